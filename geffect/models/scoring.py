"""Teacher-forced scores of a set under a model, and the frozen reference of a run."""

import contextlib
import copy
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from geffect.core.devices import input_device
from geffect.core.distributed import shard_model
from geffect.core.forward import FROM_REFERENCE, Outputs, forward, logits_at
from geffect.core.layers import trainable_parameters
from geffect.core.masks import GradientMask
from geffect.core.model_state import enter_evaluation_mode
from geffect.data.encode import EncodedExample, collate
from geffect.errors import GeffectError

TOKENS = 2**15  # of a batch, with padding


@dataclass(frozen=True)
class Likelihood:
    """Loss and token accuracy of a set.

    Attributes:
        loss: Σ −log p / N over all N labeled tokens of the set (nats a token); long answers weigh more.
        accuracy: share of those tokens that are the most likely one.
        tokens: N.
        example_nll: Σ −log p of each example, in their order.
        example_tokens: labeled tokens of each example.
        example_right: labeled tokens of each example that are the most likely one.
    """

    loss: float
    accuracy: float
    tokens: int
    example_nll: tuple[float, ...] = ()
    example_tokens: tuple[int, ...] = ()
    example_right: tuple[int, ...] = ()

    @classmethod
    def from_examples(cls, scores: Tensor) -> Self:
        """Scores of a set from those of its examples, ``[N, 3]`` as `example_scores` gives them."""
        nll, right, tokens = scores.sum(0).tolist()
        rights, counts = (tuple(int(each) for each in scores[:, column]) for column in (1, 2))
        return cls(nll / tokens, right / tokens, int(tokens), tuple(scores[:, 0].tolist()), counts, rights)


def compute_likelihood(
    model: nn.Module, examples: Sequence[EncodedExample], pad_id: int, batch_size: int = 16
) -> Likelihood:
    """Loss and token accuracy over an encoded set; the model keeps its mode.

    ``pad_id`` fills the batches; ``batch_size`` does not change the result.
    """
    scores = torch.zeros(len(examples), 3, dtype=torch.float64)
    for indices, outputs in forward_batches(model, examples, pad_id, batch_size):
        scores[indices] = example_scores(outputs)
    return Likelihood.from_examples(scores)


def example_scores(outputs: Outputs) -> Tensor:
    """``[B, 3]``, float64, on the CPU: nats, most likely tokens that are right, and labeled tokens of every example."""
    parts = torch.stack([x.detach().to(outputs.nll.dtype) for x in (outputs.nll, outputs.right, outputs.mask)], 1)
    return parts.cpu().sum(2, dtype=torch.float64)  # one copy, and not every device has float64


def compute_reference_nll(
    model: nn.Module, examples: Sequence[EncodedExample], pad_id: int, batch_size: int = 16
) -> list[Tensor]:
    """Token NLLs ``[T]`` of every example under the model as it is now, float32 or better, 0 where not labeled.

    They are laid out as `Outputs.nll`, in the examples' order.
    """
    by_index: dict[int, Tensor] = {}
    for indices, outputs in forward_batches(model, examples, pad_id, batch_size):
        for i, nll in zip(indices, outputs.nll.cpu(), strict=True):
            by_index[i] = nll[: len(examples[i].input_ids)].clone()
    return [by_index[i] for i in range(len(examples))]


def forward_batches(
    model: nn.Module, examples: Sequence[EncodedExample], pad_id: int, batch_size: int, needs: Collection[str] = ()
) -> Iterator[tuple[list[int], Outputs]]:
    """Outputs of batches of similar length (`batches_by_length`) in evaluation mode, with their examples' positions.

    ``needs`` is that of `geffect.core.forward.forward`.
    """
    device = input_device(model)
    with in_evaluation_mode(model), torch.no_grad():
        for indices in batches_by_length([len(each.input_ids) for each in examples], batch_size):
            batch = collate([examples[i] for i in indices], pad_id)
            yield indices, forward(model, {name: tensor.to(device) for name, tensor in batch.items()}, needs)


def batches_by_length(
    lengths: Sequence[int], batch_size: int, tokens: int = TOKENS, further: int = 0
) -> Iterator[list[int]]:
    """Positions of examples by length, in batches of at most ``batch_size`` and, padded, of at most so many tokens.

    Each example grows by ``further`` tokens. One that is longer than ``tokens`` has a batch of its own.

    >>> list(batches_by_length([5, 2, 9, 2], batch_size=3, tokens=12))
    [[1, 3], [0], [2]]
    """
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) == batch_size or (len(batch) + 1) * (lengths[i] + further) > tokens):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


@contextmanager
def in_evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode; every module's own mode returns after."""
    modes = {module: module.training for module in model.modules()}
    enter_evaluation_mode(model)
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


class Reference:
    """The model as it is now, frozen.

    A fresh adapter (every B zero) is disabled for the pass, so that nothing is copied; any other model is copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self.is_fresh = is_fresh_adapter(model)
        self.model: Any = model if self.is_fresh else copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor], outputs: Outputs, needs: Collection[str]) -> Outputs:
        """The model's outputs on a batch, with ``ref_logits`` and, where needed, ``ref_hidden`` at their positions."""
        with self.model.disable_adapter() if self.is_fresh else contextlib.nullcontext():
            logits, hidden = logits_at(self.model, batch, outputs.index, hidden="ref_hidden" in needs)
        return replace(outputs, ref_logits=logits, ref_hidden=hidden)


def shard_start(model: nn.Module, reference: Reference | None, frozen: GradientMask | None, device: str) -> None:
    """Leave each process a part of a run's model, of its reference and of its mask, on a type of device.

    All may lie on the CPU, whole: a device then holds its parts and one whole block at a time.
    """
    for each in dict.fromkeys((model, reference.model if reference else model)):  # in every process's order
        shard_model(each, device)
    if frozen is not None:
        frozen.shard(trainable_parameters(model))


def forward_beside(
    model: nn.Module, reference: Reference | None, batch: dict[str, Tensor], needs: frozenset[str]
) -> Outputs:
    """The model's outputs on a batch, with the reference's where the needs name them."""
    outputs = forward(model, batch, needs)
    if not needs & FROM_REFERENCE:
        return outputs
    if reference is None:
        missing = ", ".join(sorted(needs & FROM_REFERENCE))
        message = f"The objective needs {missing} of a frozen reference, and there is none"
        raise GeffectError(message, remedy="Pass reference=Reference(model) before training")
    return reference(batch, outputs, needs)


def is_fresh_adapter(model: nn.Module) -> bool:
    """Whether the model is its base with an adapter that does not change it yet."""
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        return False
    deltas = [p for name, p in model.named_parameters() if "lora_B" in name or "lora_embedding_B" in name]
    others = [n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n]
    return bool(deltas) and not others and not any(bool(p.detach().any()) for p in deltas)


def check_same_shape(model: nn.Module, reference: nn.Module) -> None:
    """Raise unless a model and its reference have the same parameters."""
    ours, theirs = ({n: tuple(p.shape) for n, p in m.named_parameters()} for m in (model, reference))
    for name, shape in ours.items():
        if theirs.get(name) != shape:
            has = f"{name} of shape {theirs[name]}" if name in theirs else f"no {name}"
            message = f"The reference has {has}, the model {name} of shape {shape}"
            raise GeffectError(message, remedy="Use the run's start as its reference")


def check_trainable(model: nn.Module) -> None:
    """Raise where no gradient can reach the weights: they are quantized, or all of them are frozen."""
    from peft import PeftModel

    is_quantized = bool(getattr(model, "is_quantized", False)) and not isinstance(model, PeftModel)
    if is_quantized or not any(p.requires_grad for p in model.parameters()):
        state = "quantized and have no gradients" if is_quantized else "all frozen"
        raise GeffectError(f"The weights are {state}", remedy="Train an adapter with --lora, or load full weights")
