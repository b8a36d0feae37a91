"""The G-effect as the published script estimates it, beside the exact one.

Running averages of micro-batch gradients, 0.6 on the past, begun with the first and not corrected for it; fresh at
each checkpoint, one pass over the forget set, read after micro-batches 3, 7, 11, … (arXiv 2502.19301's code), so the
first reading weighs three of them .36, .24, .40. Its steady state weighs about four micro-batches, so it is a noisy
reading: compare it with the dataset's own rows.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch

from geffect.core.gradients import NamedTensors
from geffect.core.gram import Gram, inner_products, norm
from geffect.core.layers import BOTH, EMBED, HEAD
from geffect.measurement.measurement import Batch, Measured, Measurement
from geffect.measurement.step import Step
from geffect.objectives.base import window_counts

PAST = 0.6
CADENCE, FIRST = 4, 3  # the script counts a micro-batch, then reads where its count mod 4 is 3
ROWS = ("objective", "forget", "retain")


def published_estimates(
    run: Measurement, micro_batches: Iterable[Mapping[str, Batch]]
) -> Iterator[tuple[int, Measured]]:
    """Read the running averages at their published cadence; weights and ``.grad`` are left as found.

    Args:
        run: model, objective and parameters; neither its rectifier nor its state takes part.
        micro_batches: one pass over the forget set, each with as many retain rows.

    Yields:
        (call, measured): the micro-batches averaged so far, 3, 7, 11, …; the Gram of the averaged rows, and ``risk``,
        the average of the objective's value.
    """
    alone = run.alone(tie=None)
    averages: dict[str, NamedTensors] = {row: {} for row in ROWS}
    value = 0.0
    for call, batches in enumerate(micro_batches, start=1):
        step = Step(alone, window_counts([batches]), measure=True)
        loss = float(step.micro_batch(batches, last=True))
        value = loss if call == 1 else PAST * value + (1 - PAST) * loss
        for row in ROWS:
            _fold(averages[row], step.row(row))
        if call % CADENCE == FIRST:
            yield call, _read(averages, run, value)


def _fold(average: NamedTensors, row: NamedTensors) -> None:
    for name, gradient in row.items():
        if name in average:
            average[name].mul_(PAST).add_(gradient, alpha=1 - PAST)
        else:
            average[name] = gradient.clone()


def _read(averages: Mapping[str, NamedTensors], run: Measurement, value: float) -> Measured:
    gram = Gram(ROWS)
    for name in run.parameters:
        product = inner_products([averages[row].get(name) for row in ROWS])
        if run.tie is not None and name == run.tie.name:  # the script counts a tied tensor as embedding
            nothing = torch.zeros_like(product)
            gram.values |= {name + EMBED: product, name + HEAD: nothing, name + BOTH: nothing}
        else:
            gram.values[name] = product
    norms = {f"norm_{row}": norm(gram.total(), ROWS, row) for row in ROWS}
    return Measured({"risk": value} | norms, gram)
