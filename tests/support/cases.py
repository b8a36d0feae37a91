"""Tiny models of several shapes, and batches for them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

VOCABULARY = 48
SMALL = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
NARROW = {  # of a built-in model
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def llama(num_blocks: int = 2, *, tied: bool = False) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return _made(
        LlamaForCausalLM,
        LlamaConfig(
            **SMALL,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=num_blocks,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=tied,
        ),
    )


def gpt2(num_blocks: int = 2, *, tied: bool = True) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(**SMALL, n_embd=16, n_layer=num_blocks, n_head=2, n_positions=64, tie_word_embeddings=tied)
    return _made(GPT2LMHeadModel, config)


def neox(num_blocks: int = 2) -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return _made(
        GPTNeoXForCausalLM,
        GPTNeoXConfig(
            **SMALL,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=num_blocks,
            num_attention_heads=2,
            max_position_embeddings=64,
        ),
    )


def lora() -> Any:
    from geffect.models.load import add_lora

    model = add_lora(llama(), rank=2, seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)  # an adapter that does something
    return model


def frozen() -> Any:
    """The embedding frozen, and a block's norm too."""
    model = llama()
    model.model.embed_tokens.requires_grad_(False)
    model.model.layers[0].input_layernorm.requires_grad_(False)
    return model


def unused() -> Any:
    """A block whose query projection no loss reaches: a trainable twin of it stands beside it."""
    model = llama()
    model.model.layers[0].spare = nn.Linear(4, 4)
    return model


CASES: dict[str, Callable[[], Any]] = {
    "llama": llama,
    "llama-tied": lambda: llama(tied=True),
    "gpt2": gpt2,
    "neox": neox,
    "lora": lora,
    "frozen": frozen,
    "unused": unused,
}


def make_batch(lengths: list[int], prompt: int = 2, seed: int = 0) -> dict[str, Tensor]:
    """Examples of these lengths; the first ``prompt`` tokens of each carry no loss."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.randint(2, VOCABULARY, (len(lengths), width), generator=generator)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    labels = torch.where(mask & (torch.arange(width) >= prompt), ids, -100)
    return {"input_ids": ids.where(mask, 0), "attention_mask": mask.long(), "labels": labels}


def _made(cls: Any, config: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls(config).eval()
