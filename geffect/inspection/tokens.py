"""Lines of ``tokens.jsonl`` and ``points.jsonl``: the effects on single tokens, and of single examples."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from geffect.core.forward import IGNORE_INDEX, forward
from geffect.core.gradients import NamedTensors
from geffect.core.layers import layout
from geffect.core.token_effects import token_effects
from geffect.data.encode import EncodedExample, token_texts
from geffect.objectives.base import Objective
from geffect.training.aux_inputs import Columns, collate_sets

HARMED = ("retain", "heldout")  # of these, rows whose loss is raised most are recorded; of others, least


def token_lines(
    model: Any,
    tokenizer: Any,
    sets: Mapping[str, Sequence[EncodedExample]],
    direction: NamedTensors,
    pad_id: int,
    count: int,
    batch_size: int,
) -> Iterator[dict[str, Any]]:
    """The ``count`` examples of each set that a descended direction serves worst, and its effect on their tokens.

    Worst are the retained examples whose loss it raises most, and the forget examples whose loss it raises least. Each
    line has ``tokens``, ``labeled``, ``effect`` = ⟨∇ℓ_i, direction⟩ of every token i, and its ``groups``.
    """
    groups = layout(model).groups()
    for name, rows in sets.items():
        means = [_row_means(model, batch, direction) for batch in _batches(rows, {}, pad_id, batch_size)]
        order = torch.cat(means).argsort(descending=name not in HARMED, stable=True)[:count].tolist()
        chosen = [rows[position] for position in order]
        for start, batch in enumerate(_batches(chosen, {}, pad_id, batch_size)):
            effects = token_effects(model, _on_device(model, batch), direction, groups)
            for i, row in enumerate(chosen[start * batch_size : (start + 1) * batch_size]):
                size = len(row.input_ids)
                yield {
                    "set": name,
                    "example": row.index,
                    "tokens": token_texts(tokenizer, row.input_ids),
                    "labeled": [label != IGNORE_INDEX for label in row.labels],
                    "effect": _at_token(effects.total[i, :size]),
                    "groups": {group: _at_token(each[i, :size]) for group, each in effects.groups.items()},
                }


def point_lines(
    model: Any,
    rows: Sequence[EncodedExample],
    columns: Columns,
    losses: Mapping[str, NamedTensors],
    objectives: Mapping[str, Objective],
    pad_id: int,
    batch_size: int,
) -> Iterator[dict[str, Any]]:
    """Every forget example's effect on both losses (PG-effect, arXiv 2502.19301 §5), and objectives' weights on it.

    PG(s; D) = ⟨∇R(D), ∇log p(s)⟩, log p(s) the sum over the example's labeled tokens: what gradient ascent on s alone
    would do. Below 0 on the forget set it unlearns, below 0 on the retain set it harms. ``losses`` is ``unlearn`` and
    ``retain`` → ∇R; ``columns`` has ``ref_nll`` where there is a start; a weight is a mean over labeled tokens.
    """
    for batch in _batches(rows, columns, pad_id, batch_size):
        here = _on_device(model, batch)
        effects = {name: -token_effects(model, here, row).by_example() for name, row in losses.items()}
        with torch.no_grad():
            outputs = forward(model, here)
            counts = outputs.mask.sum(1)
            weights = {name: each.forget_weights(outputs) for name, each in objectives.items()}
        start = None if outputs.ref_nll is None else outputs.ref_nll.sum(1)
        for i, index in enumerate(batch["index"].tolist()):
            yield {
                "example": index,
                **{name: float(effect[i]) for name, effect in effects.items()},
                "nll": float(outputs.sequence_nll[i]),
                "reference_nll": None if start is None else float(start[i]),
                "num_tokens": int(counts[i]),
                "weights": {name: float(w[i].sum() / counts[i]) for name, w in weights.items() if w is not None},
            }


def _row_means(model: Any, batch: Mapping[str, Tensor], direction: NamedTensors) -> Tensor:
    effects = token_effects(model, _on_device(model, batch), direction)
    return effects.by_example() / effects.labeled.sum(1)


def _batches(rows: Sequence[EncodedExample], columns: Columns, pad_id: int, size: int) -> Iterator[dict[str, Tensor]]:
    for i in range(0, len(rows), size):
        yield collate_sets({"forget": rows[i : i + size]}, columns, pad_id)["forget"]


def _on_device(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _at_token(effect: Tensor) -> list[float]:
    """Shift effects from the position that predicts a token to the token; no position predicts the first token."""
    return [0.0, *(float(f"{x:.9g}") for x in effect[:-1].tolist())]
