"""What a run measures beside its objective, and a measured step in a few numbers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from geffect.core.gram import cosine, inner
from geffect.data.encode import EncodedExample, collate
from geffect.measurement.ema import published_estimates
from geffect.measurement.measurement import Batch, Measured, Measurement


@dataclass(frozen=True)
class Diagnostics:
    """What is measured, and when.

    Attributes:
        every: optimizer steps between two Grams of all rows.
        overlap: share of the largest entries in a row's mask; 0 makes none.
        prediction: probe rows of each set whose risk's change is predicted and measured; 0 keeps no prediction.
        save_rows: rows written to ``rows/step-N/ROW.safetensors`` at measured steps.
        standard_errors: go over each measured window's micro-batches again.
        until_accuracy: stop after an evaluation with the forget set's token accuracy below this.
        mode: ``exact``, or ``paper``: the published script's estimates too, at every evaluation.
        free_rows: see `Measurement`.
        labels: see `Measurement`.
    """

    every: int = 1
    overlap: float = 0.0
    prediction: int = 0
    save_rows: tuple[str, ...] = ()
    standard_errors: bool = False
    until_accuracy: float = 0.0
    mode: str = "exact"
    free_rows: bool = True
    labels: Mapping[str, str] = field(default_factory=dict)


def probe_batches(rows: Sequence[EncodedExample], count: int, batch_size: int, pad_id: int) -> list[Batch]:
    """Evenly spaced rows of a set, all where there are fewer, padded in batches."""
    count = min(count, len(rows))
    chosen = [rows[i * len(rows) // count] for i in range(count)]
    return [collate(chosen[i : i + batch_size], pad_id) for i in range(0, count, batch_size)]


def published_lines(run: Measurement, micro_batches: Iterable[Mapping[str, Batch]]) -> list[dict[str, Any]]:
    """The published script's estimates at this checkpoint, as a record's lines."""
    return [{"call": call} | measured.line() for call, measured in published_estimates(run, micro_batches)]


def summary(measured: Measured) -> dict[str, float]:
    """A measured step in a few numbers, for trackers: G-effects, cosine, losses."""
    gram = measured.gram
    if gram is None:
        return dict(measured.scalars)
    total, rows = gram.total(), gram.rows
    found = {
        "unlearn_g_effect": inner(total, rows, "forget", "objective"),
        "retain_g_effect": inner(total, rows, "retain", "objective"),
        "cosine": cosine(total, rows, "objective", "retain"),
    }
    if "rectified" in rows:
        found["rectified_retain_g_effect"] = inner(total, rows, "retain", "rectified")
    return measured.scalars | found
