"""One checkpoint's rows over whole sets, and its forget rows one by one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from geffect.core.forward import Outputs, forward
from geffect.core.layers import find_tied_weights, trainable_parameters
from geffect.data.encode import EncodedExample
from geffect.errors import GeffectError
from geffect.measurement.measurement import Batch, Measured, Measurement
from geffect.measurement.step import Step
from geffect.models.scoring import Reference
from geffect.objectives.base import Objective, window_counts
from geffect.rectifiers.registry import NoRectifier
from geffect.training.aux_inputs import Columns


@dataclass
class Given:
    """What every checkpoint of a series is measured with.

    Attributes:
        objective: whose gradient is measured.
        sets: set → encoded rows that gradients are drawn from.
        columns: what the objective needs of each row.
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
    model: Any, given: Given, overlap: float = 0.0, *, standard_errors: bool = False, keep: bool = False
) -> Measurement:
    """A measurement of one checkpoint, in evaluation mode.

    Args:
        model: the checkpoint's.
        given: objective and sets.
        overlap: share of the largest entries in a row's mask.
        standard_errors: go over the window's parts again.
        keep: hold the rows.

    Returns:
        The measurement.
    """
    device = next(model.parameters()).device

    def run(batch: Batch, needs: frozenset[str], *, dropout: bool) -> Outputs:
        here = {name: tensor.to(device) for name, tensor in batch.items()}
        outputs = forward(model, here, needs)
        if not needs & {"ref_logits", "ref_hidden"}:
            return outputs
        if given.reference is None:
            raise GeffectError(f"a start for {given.objective.text!r}", "none", "name it with --start")
        return given.reference(here, outputs, needs)

    return Measurement(
        trainable_parameters(model),
        run,
        given.objective,
        NoRectifier(),
        tie=find_tied_weights(model),
        overlap=overlap,
        keep=keep,
        standard_errors=standard_errors,
        labels=given.labels,
    )


def dataset_step(run: Measurement, parts: Sequence[Sequence[Mapping[str, Batch]]]) -> tuple[Step, Measured]:
    """The rows of whole sets.

    Args:
        run: of the checkpoint.
        parts: as of `geffect.inspection.windows.dataset_parts`.

    Returns:
        The step, whose rows can be asked for where they are kept, and the numbers.

    Raises:
        GeffectError: a loss or a row is not finite.
    """
    flat = [(place, batches) for place, part in enumerate(parts) for batches in part]
    step = Step(run, window_counts([batches for _, batches in flat]), measure=True)
    for i, (place, batches) in enumerate(flat):
        step.micro_batch(batches, last=i == len(flat) - 1, part=place)
    try:
        measured = step.finish()
    except FloatingPointError as error:
        raise GeffectError(
            "finite losses and gradients at every checkpoint", str(error), "inspect the checkpoints before it"
        ) from error
    return step, measured
