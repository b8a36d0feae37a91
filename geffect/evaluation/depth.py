"""The Unlearning Depth Score: what is left of a model's knowledge in its hidden states, layer by layer.

Patching the output of block l sets the hidden states of another model there in the place of the start's own, at the
positions that predict a labeled token, and lets the start's later blocks run on.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from geffect.core.devices import input_device
from geffect.core.forward import IGNORE_INDEX, forward, shift_labels
from geffect.core.layers import decoder_blocks, unwrap
from geffect.data.encode import EncodedExample, collate
from geffect.errors import GeffectError
from geffect.models.scoring import batches_by_length, in_evaluation_mode

THRESHOLD = 0.05  # nats a token: a layer whose drop is no larger holds nothing that the retrained model lacks


def depth_score(retrained: Sequence[float], unlearned: Sequence[float]) -> float:
    """UDS = Σ_l Δ1 · clip(Δ2/Δ1, 0, 1) / Σ_l Δ1 over the layers with Δ1 > 0.05 nats a token (arXiv 2605.24614).

    Args:
        retrained: Δ1 of every layer, the start's drop of log P by the states of a model that never saw the example.
        unlearned: Δ2, its drop by the unlearned model's states.

    Returns:
        1 where the unlearned model's states lack as much as the retrained one's, 0 where they lack nothing; NaN where
        no layer counts.

    >>> depth_score([1.0, 3.0, 0.01], [0.5, 4.0, 9.0])
    0.875
    """
    counted = [(first, second) for first, second in zip(retrained, unlearned, strict=True) if first > THRESHOLD]
    if not counted:
        return math.nan
    return math.fsum(min(max(second, 0.0), first) for first, second in counted) / math.fsum(
        first for first, _ in counted
    )


def depth_scores(
    start: nn.Module,
    retrained: nn.Module,
    unlearned: nn.Module,
    examples: Sequence[EncodedExample],
    pad_id: int,
    batch_size: int = 16,
) -> list[float]:
    """`depth_score` of every example; the models stay in their modes.

    Raises:
        GeffectError: the models differ in blocks, width or vocabulary.
    """
    _check_shapes(start, retrained, unlearned)
    found = [math.nan] * len(examples)
    with ExitStack() as stack, torch.no_grad():
        for model in (start, retrained, unlearned):
            stack.enter_context(in_evaluation_mode(model))
        for places in batches_by_length([len(each.input_ids) for each in examples], batch_size):
            batch = collate([examples[i] for i in places], pad_id)
            drops = (compute_drops(start, source, batch).T.tolist() for source in (retrained, unlearned))
            for i, first, second in zip(places, *drops, strict=True):
                found[i] = depth_score(first, second)
    return found


def compute_drops(start: nn.Module, source: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """``[L, B]``, float64: by how much the start's mean log P of each example falls with block l's output patched."""
    device = input_device(start)
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    mask = (shift_labels(batch["labels"]) != IGNORE_INDEX)[..., None]
    with _recorded(_blocks(source)) as states:
        _mean_log_p(source, batch)
    before, drops = _mean_log_p(start, batch), []
    for block, state in zip(_blocks(start), states, strict=True):
        handle = block.register_forward_hook(partial(_patch, state, mask))
        try:
            drops.append(before - _mean_log_p(start, batch))
        finally:
            handle.remove()
    return torch.stack(drops)


def _mean_log_p(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """``[B]``, float64, on the CPU: nats a labeled token; NaN where there is none."""
    outputs = forward(model, batch)
    return -outputs.nll.cpu().double().sum(1) / outputs.mask.cpu().sum(1)


def _blocks(model: nn.Module) -> nn.ModuleList:
    return decoder_blocks(unwrap(model))[1]


@contextmanager
def _recorded(blocks: nn.ModuleList) -> Iterator[list[Tensor]]:
    """Collect the hidden states that each block returns, in order."""
    states: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda _m, _i, output: states.append(_hidden(output))) for block in blocks]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def _patch(state: Tensor, mask: Tensor, _module: nn.Module, _inputs: Any, output: Any) -> Any:
    """A block's output with other states at the positions of a mask ``[B, T, 1]``."""
    hidden = _hidden(output)
    patched = torch.where(mask.to(hidden.device), state.to(hidden), hidden)
    return (patched, *output[1:]) if isinstance(output, tuple) else patched


def _hidden(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _check_shapes(start: nn.Module, retrained: nn.Module, unlearned: nn.Module) -> None:
    shape = _shape(start)
    for name, model in {"retrained model": retrained, "evaluated model": unlearned}.items():
        if _shape(model) != shape:
            kinds = "of {} blocks, width {} and {} tokens"
            message = f"The start is {kinds.format(*shape)}, and the {name} is {kinds.format(*_shape(model))}"
            raise GeffectError(message, remedy="Name the model before unlearning, and one of its kind, for uds")


def _shape(model: nn.Module) -> tuple[int, int, int]:
    config: Any = unwrap(model).config
    text = config.get_text_config()
    return len(_blocks(model)), text.hidden_size, text.vocab_size
