"""``builtin:tiny``: a Llama of about 1.7 million parameters that learns the built-in benchmark in a minute."""

import hashlib
import json
from typing import Any

from geffect.data import authors
from geffect.data.encode import PLAIN

SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 448,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
VOCABULARY = 1600
RECIPE = {"epochs": 60, "until_accuracy": 0.995, "batch_size": 20, "learning_rate": 3e-3, "seed": 0}
END, PAD = "<|end|>", "<|pad|>"


def training_sets() -> list[str]:
    """What the tiny model is fitted on: all three parts of the built-in benchmark."""
    return [f"builtin:authors/{part}" for part in authors.PARTS]


def tiny_key() -> str:
    """Everything the fitted model depends on, for its place in the cache."""
    texts = hashlib.sha256("\n".join(_texts()).encode()).hexdigest()
    return json.dumps([SHAPE, VOCABULARY, RECIPE, texts])


def make_tiny(seed: int = 0, vocabulary: int = VOCABULARY, **shape: Any) -> tuple[Any, Any]:
    """A freshly initialised tiny model and its tokenizer; no file is read or written.

    Args:
        seed: of the initial weights; the global random state is left as found.
        vocabulary: upper bound of the tokenizer's size.
        **shape: entries of `SHAPE` to change.

    Returns:
        The float32 model and the tokenizer.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(vocabulary)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **(SHAPE | shape),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).to(torch.float32), tokenizer


def make_tokenizer(vocabulary: int = VOCABULARY) -> Any:
    """A byte-level BPE trained on the built-in benchmark: any text can be written with it."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(_texts(), vocabulary, min_frequency=2, special_tokens=[PAD, END], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token=END, pad_token=PAD)


def _texts() -> list[str]:
    return [PLAIN.format(**row) for part in authors.PARTS for row in authors.generate(part)]
