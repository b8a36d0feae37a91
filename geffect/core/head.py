"""The head of one forward pass, which computes the logits of some positions at a time.

Logits are the largest tensor of a pass where answers are long: 4,096 positions of a vocabulary of 128,256 take 2 GB.
Here the decoder runs once, and the head, with whatever the model does to its logits, runs over its output a chunk of
positions at a time.

Letters: B examples, T tokens, N of the B·T positions, n of these in a chunk, V vocabulary, d hidden size.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from geffect.core.architectures import is_shard
from geffect.core.devices import is_dispatched
from geffect.core.layers import unwrap

CHUNK = 2**26  # logits at a time: 256 MB in float32
TRAINED = 2**27  # logits that a pass with a graph keeps at most; of more, the head is computed twice


@dataclass(frozen=True)
class Head:
    """The logits of a pass whose decoder has run.

    Attributes:
        base: the language model, without wrappers.
        decoder: its decoder.
        inputs: its arguments.
        decoded: what the decoder gave, with a graph where gradients are wanted.
        index: ``[N]`` the flat positions b·T + t whose logits are wanted.
        chunk: positions at a time.
    """

    base: nn.Module
    decoder: nn.Module
    inputs: Mapping[str, Any]
    decoded: Any
    index: Tensor
    chunk: int

    def logits(self, places: slice = slice(None)) -> Tensor:
        """Logits ``[n, V]`` at some of the positions of ``index``."""
        kept = keep_mask(self.index[places], self.inputs["input_ids"].shape)
        with _fixed_output(self.decoder, self.decoded):
            logits: Tensor = self.base(**self.inputs, logits_to_keep=kept).logits
        return logits

    def map(self, function: Callable[..., Tensor], *others: Tensor) -> Tensor:
        """A function of logits ``[n, V]`` and other tensors ``[n, …]`` at all positions, in chunks.

        Where gradients are wanted, each chunk is computed again for the backward pass, so that the logits of one chunk
        at a time are held.
        """
        parts = []
        for start in range(0, len(self.index), self.chunk):
            places = slice(start, start + self.chunk)

            def compute(places: slice = places) -> Tensor:
                return function(self.logits(places), *(each[places] for each in others))

            if torch.is_grad_enabled():
                parts.append(checkpoint(compute, use_reentrant=False, preserve_rng_state=False))
            else:
                parts.append(compute())
        return torch.cat(parts)


def keeps_positions(model: nn.Module) -> bool:
    """Whether the model's head can be restricted to a mask of positions."""
    base = unwrap(model)
    if is_dispatched(base):  # accelerate would move the mask to the first device, where the head's inputs may not be
        return False
    if "logits_to_keep" not in signature(base.forward).parameters:
        return False
    code = sys.modules[type(base).__module__]
    return hasattr(code, "slice_logits_to_keep")  # transformers' own, which takes masks; older ones take ranges only


def keep_mask(index: Tensor, shape: torch.Size) -> Tensor:
    """``[B, T]`` bool: which positions are among ``index``."""
    nowhere = torch.zeros(shape.numel(), dtype=torch.bool, device=index.device)
    return nowhere.index_fill(0, index, True).view(shape)


def run_decoder(
    model: nn.Module, inputs: Mapping[str, Any], index: Tensor, *, hidden: bool
) -> tuple[Head, tuple[Tensor, ...] | None] | None:
    """Run a model with its head at one position, and keep what its decoder gave; and the hidden states.

    None where the logits at the positions ``index`` are few, or where the head cannot be run apart: the model computes
    the logits of every position, its decoder is no module of its own or has forward hooks, or parameters are shards.
    """
    base, vocabulary = unwrap(model), _vocabulary(model)
    decoder, decoded = _decoder(base), list[Any]()
    if decoder is None or not computes_in_chunks(model, len(index), graph=torch.is_grad_enabled()):
        return None
    with decoder.register_forward_hook(lambda _module, _arguments, output: decoded.append(output)):
        one = keep_mask(index[:1], inputs["input_ids"].shape)
        output = model(**inputs, output_hidden_states=hidden, logits_to_keep=one)
    if len(decoded) != 1:
        return None
    head = Head(base, decoder, inputs, decoded[0], index, max(1, CHUNK // vocabulary))
    return head, output.hidden_states if hidden else None


def computes_in_chunks(model: nn.Module, positions: int, *, graph: bool) -> bool:
    """Whether a pass with or without a graph computes the logits of so many positions a chunk at a time."""
    base = unwrap(model)
    if positions * _vocabulary(model) <= (TRAINED if graph else CHUNK) or _decoder(base) is None:
        return False
    return keeps_positions(model) and not any(map(is_shard, base.parameters()))


def logits_at_once(model: nn.Module, positions: int, *, graph: bool) -> int:
    """The number of logits of so many positions that a pass holds at a time."""
    vocabulary = _vocabulary(model)
    in_chunks = computes_in_chunks(model, positions, graph=graph)
    return vocabulary * (max(1, CHUNK // vocabulary) if in_chunks else positions)


def _decoder(base: nn.Module) -> nn.Module | None:
    """The module whose output the model's head reads; None where it cannot be named, or hooks may change its output."""
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else base  # type: ignore[operator]
    if decoder is base or not isinstance(decoder, nn.Module) or decoder._forward_hooks or decoder._forward_pre_hooks:
        return None
    return decoder


def _vocabulary(model: nn.Module) -> int:
    config: Any = getattr(unwrap(model), "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(getattr(text, "vocab_size", 0) or 0)


@contextmanager
def _fixed_output(module: nn.Module, output: Any) -> Iterator[None]:
    """While this lasts, calling the module returns ``output``."""
    before = vars(module).get("forward")
    vars(module)["forward"] = lambda *_, **__: output
    try:
        yield
    finally:
        if before is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = before
