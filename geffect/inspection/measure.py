"""Gradients of one checkpoint over whole sets, in micro-batches."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from geffect.core.forward import Outputs
from geffect.core.layers import find_tied_weights, trainable_parameters
from geffect.data.encode import EncodedExample
from geffect.data.pairing import PairedDataset, PairedSampler
from geffect.errors import GeffectError
from geffect.measurement.measurement import Batch, Measured, Measurement
from geffect.measurement.step import Step
from geffect.models.scoring import Reference, forward_beside
from geffect.objectives.base import Objective, window_counts
from geffect.rectifiers.registry import NoRectifier
from geffect.training.aux_inputs import Columns, collate_sets

FEWEST = 2  # parts for a standard error


@dataclass
class Inputs:
    """What every checkpoint of a series is measured with.

    Attributes:
        objective: whose gradient is measured.
        sets: set → encoded examples that gradients are drawn from.
        columns: what the objective needs of each example.
        reference: the frozen start, where the objective needs more of it than token NLLs.
        labels: parameter → layer.
        pad_id: fills the batches.
    """

    objective: Objective
    sets: Mapping[str, list[EncodedExample]]
    columns: Columns
    reference: Reference | None
    labels: Mapping[str, str]
    pad_id: int


def measurement(
    model: Any, inputs: Inputs, overlap: float = 0.0, *, standard_errors: bool = False, keep: bool = False
) -> Measurement:
    """A measurement of one checkpoint, in evaluation mode.

    ``overlap`` is the share of the largest entries in a gradient's mask, ``standard_errors`` goes over the window's
    parts again, ``keep`` holds the gradients.
    """
    device = next(model.parameters()).device

    def run(batch: Batch, needs: frozenset[str], *, dropout: bool) -> Outputs:
        here = {name: tensor.to(device) for name, tensor in batch.items()}
        return forward_beside(model, inputs.reference, here, needs)

    return Measurement(
        trainable_parameters(model),
        run,
        inputs.objective,
        NoRectifier(),
        tie=find_tied_weights(model),
        overlap=overlap,
        keep=keep,
        standard_errors=standard_errors,
        labels=inputs.labels,
    )


def dataset_step(run: Measurement, parts: Sequence[Sequence[Mapping[str, Batch]]]) -> tuple[Step, Measured]:
    """The gradients of whole sets, in `dataset_parts`: the step, which may keep them, and the numbers."""
    flat = [(place, batches) for place, part in enumerate(parts) for batches in part]
    step = Step(run, window_counts([batches for _, batches in flat]), measure=True)
    for i, (place, batches) in enumerate(flat):
        step.micro_batch(batches, last=i == len(flat) - 1, part=place)
    try:
        measured = step.finish()
    except FloatingPointError as error:
        raise GeffectError(
            f"A loss or gradient of a checkpoint is not finite: {error}", remedy="Inspect the checkpoints before it"
        ) from error
    return step, measured


def dataset_parts(
    sets: Mapping[str, Sequence[EncodedExample]], columns: Columns, pad_id: int, batch_size: int
) -> list[list[dict[str, Batch]]]:
    """Every example of every set once: parts with equal shares of all sets, each in micro-batches.

    Standard errors see the parts; there are as many as the smallest set fills batches. A part holds an equal share of
    each set, cut into batches of at most ``batch_size``; shorter sets are right-aligned, so that the last micro-batch
    of a part has every set.
    """
    count = num_parts(min(map(len, sets.values())), batch_size)
    parts = []
    for part in range(count):
        shares = {name: _share(rows, part, count) for name, rows in sets.items()}
        chunks = {
            name: [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)] for name, rows in shares.items()
        }
        longest = max(map(len, chunks.values()))
        parts.append([
            collate_sets(
                {name: each[i - longest] for name, each in chunks.items() if longest - i <= len(each)}, columns, pad_id
            )
            for i in range(longest)
        ])
    return parts


def num_parts(smallest: int, batch_size: int) -> int:
    """The number of parts that standard errors see, where the smallest set has so many examples.

    >>> num_parts(40, 8), num_parts(8, 8), num_parts(1, 8)
    (5, 2, 1)
    """
    return min(smallest, max(FEWEST, -(-smallest // batch_size)))


def _share(rows: Sequence[EncodedExample], part: int, count: int) -> Sequence[EncodedExample]:
    return rows[part * len(rows) // count : (part + 1) * len(rows) // count]


def paper_batches(
    sets: Mapping[str, Sequence[EncodedExample]], columns: Columns, pad_id: int, batch_size: int, seed: int
) -> Iterator[dict[str, Batch]]:
    """One pass over the forget examples beside as many random ones of each other set, drawn as a run draws them."""
    met = [PairedDataset(sets)[each] for each in PairedSampler({name: len(rows) for name, rows in sets.items()}, seed)]
    for i in range(0, len(met), batch_size):
        yield collate_sets({name: [row[name] for row in met[i : i + batch_size]] for name in sets}, columns, pad_id)
