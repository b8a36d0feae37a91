"""Types of a Hugging Face causal language model and of its tokenizer, for annotations."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

__all__ = ["CausalLM", "Tokenizer"]

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from transformers import PreTrainedTokenizerBase as Tokenizer

    class CausalLM(nn.Module):
        """A module with what geffect uses of a causal language model, bare or with an adapter.

        No model inherits from it: annotate what is loaded with it, and what a user passes with `torch.nn.Module`.
        """

        config: Any
        device: torch.device
        dtype: torch.dtype

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """Run a forward pass: an output with ``logits`` and perhaps ``hidden_states``."""

        def __getattr__(self, name: str) -> Any:
            """Whatever else a kind of model has."""

        def get_input_embeddings(self) -> nn.Embedding:
            """The token embedding."""

        def get_output_embeddings(self) -> nn.Linear | None:
            """The head."""

        def get_base_model(self) -> "CausalLM":
            """The model inside an adapter's wrapper."""

        def generate(self, *args: Any, **kwargs: Any) -> Tensor:
            """Token ids ``[B, T]`` of continuations."""

        def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
            """Write weights and configuration."""

else:  # importing transformers takes seconds
    CausalLM, Tokenizer = nn.Module, object


def is_shard(tensor: object) -> TypeGuard["DTensor"]:
    """Whether a tensor is this process's part of one that lies in parts."""
    loaded = sys.modules.get("torch.distributed.tensor")  # takes a second to import; not imported, there is no shard
    return loaded is not None and isinstance(tensor, loaded.DTensor)
