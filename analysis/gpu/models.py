"""Models and batches made of shapes and random numbers: nothing is downloaded."""

from typing import Any

import torch

from analysis.benchmarks.setting import Setting, random_batch
from analysis.gpu.running import Place
from geffect.core.forward import IGNORE_INDEX, forward
from geffect.measurement.measurement import Batch

Shape = dict[str, Any]
SHAPES: dict[str, Shape] = {
    "1b": {  # Llama-3.2-1B's
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
        "vocab_size": 128256,
    },
    "8b": {  # Llama-3.1-8B's
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
        "vocab_size": 128256,
    },
}
SMALL: Shape = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
}


def llama(size: str, dtype: torch.dtype, place: Place) -> Any:
    """A Llama of a size with random weights, in evaluation mode.

    Args:
        size: a key of `SHAPES`.
        dtype: of the weights.
        place: where it lies; a small place has a small one.

    Returns:
        The model.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = SHAPES[size] | (SMALL if place.small else {})
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(place.device):
            return LlamaForCausalLM(LlamaConfig(max_position_embeddings=2048, **shape)).eval()
    finally:
        torch.set_default_dtype(before)


def setting_of(model: Any, examples: int = 8, tokens: int = 100) -> Setting:
    """A model with one forget and one retain batch of random tokens; the second half of each carries loss.

    Args:
        model: the model; the batches lie where it does.
        examples: of each batch.
        tokens: an example.

    Returns:
        The setting.
    """
    generator = torch.Generator().manual_seed(0)
    device, batches = next(model.parameters()).device, dict[str, Batch]()
    for name in ("forget", "retain"):
        batch = random_batch(model.config.vocab_size, examples, tokens, generator)
        batch["labels"] = batch["labels"].clone()
        batch["labels"][:, : tokens // 2] = IGNORE_INDEX
        batches[name] = {key: tensor.to(device) for key, tensor in batch.items()}
    with torch.no_grad():
        batches["forget"]["ref_nll"] = forward(model, batches["forget"]).nll
    return Setting("random", model, batches)
