"""Risk and token accuracy of a set, teacher-forced."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from geffect.core.forward import Outputs, forward
from geffect.core.host_state import evaluation_mode
from geffect.data.encode import EncodedExample, collate


@dataclass(frozen=True)
class Likelihood:
    """How well a model knows a set.

    Attributes:
        risk: Σ −log p / N over all N labeled tokens of the set (nats per token); long answers weigh more.
        accuracy: share of those tokens that are the most likely one.
        tokens: N.
        row_nll: Σ −log p of each row, in the rows' order.
        row_tokens: labeled tokens of each.
        row_right: those of them that are the most likely one.
    """

    risk: float
    accuracy: float
    tokens: int
    row_nll: tuple[float, ...] = ()
    row_tokens: tuple[int, ...] = ()
    row_right: tuple[int, ...] = ()

    @classmethod
    def of(cls, by_row: Tensor) -> Self:
        """Scores of a set from those of its rows, ``[N, 3]`` as `row_scores` gives them."""
        risk, right, tokens = by_row.sum(0).tolist()
        rights, counts = (tuple(int(each) for each in by_row[:, column]) for column in (1, 2))
        return cls(risk / tokens, right / tokens, int(tokens), tuple(by_row[:, 0].tolist()), counts, rights)


def likelihood(model: nn.Module, rows: Sequence[EncodedExample], pad_id: int, batch_size: int = 16) -> Likelihood:
    """Risk and token accuracy over a set; the model is left in the mode it was in.

    Args:
        model: the model.
        rows: the encoded set.
        pad_id: fills the batches.
        batch_size: rows at a time; it does not change the result.

    Returns:
        The scores.
    """
    by_row = torch.zeros(len(rows), 3, dtype=torch.float64)
    for chosen, outputs in outputs_of(model, rows, pad_id, batch_size):
        by_row[chosen] = row_scores(outputs)
    return Likelihood.of(by_row)


def row_scores(outputs: Outputs) -> Tensor:
    """``[B, 3]``, float64, on the CPU: nats, most likely tokens that are right, and labeled tokens of every row."""
    parts = [x.detach().cpu().sum(1, dtype=torch.float64) for x in (outputs.nll, outputs.right, outputs.mask)]
    return torch.stack(parts, 1)


def reference_nll(model: nn.Module, rows: Sequence[EncodedExample], pad_id: int, batch_size: int = 16) -> list[Tensor]:
    """Token NLLs of every row under the model as it is now, in the rows' order.

    Args:
        model: the start of an unlearning run.
        rows: the encoded set.
        pad_id: fills the batches.
        batch_size: rows at a time.

    Returns:
        A tensor ``[T]`` a row, float32 or better, 0 where not labeled, laid out as `Outputs.nll`.
    """
    found: dict[int, Tensor] = {}
    for chosen, outputs in outputs_of(model, rows, pad_id, batch_size):
        for i, nll in zip(chosen, outputs.nll.cpu(), strict=True):
            found[i] = nll[: len(rows[i].input_ids)].clone()
    return [found[i] for i in range(len(rows))]


def outputs_of(
    model: nn.Module, rows: Sequence[EncodedExample], pad_id: int, batch_size: int, needs: Collection[str] = ()
) -> Iterator[tuple[list[int], Outputs]]:
    """Batches of similar length, with the positions of their rows; ``needs`` as of `geffect.core.forward.forward`."""
    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids))
    with evaluating(model), torch.no_grad():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = collate([rows[i] for i in chosen], pad_id)
            yield chosen, forward(model, {name: tensor.to(device) for name, tensor in batch.items()}, needs)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode while this lasts; every module's own mode returns after."""
    modes = {module: module.training for module in model.modules()}
    evaluation_mode(model)
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
