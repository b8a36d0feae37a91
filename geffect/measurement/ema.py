"""The G-effect as the published script estimates it, beside the exact one.

Running averages of micro-batch gradients, 0.6 on the past, begun with the first and not corrected for it; fresh at
each checkpoint, one pass over the forget set, read after micro-batches 3, 7, 11, … (arXiv 2502.19301's code), so the
first reading weighs three of them .36, .24, .40. Its steady state weighs about four micro-batches, so it is a noisy
estimate: compare it with the data set's own gradients.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch

from geffect.core.gradients import NamedTensors
from geffect.core.gram import Gram
from geffect.measurement.measurement import Batch, Measured, Measurement
from geffect.measurement.step import Step
from geffect.objectives.base import window_counts

PAST = 0.6
CADENCE, FIRST = 4, 3  # the script counts a micro-batch, then reads where its count mod 4 is 3
GRADIENTS = ("objective", "forget", "retain")


def published_estimates(
    run: Measurement, micro_batches: Iterable[Mapping[str, Batch]]
) -> Iterator[tuple[int, Measured]]:
    """The running averages at their published cadence; weights and ``.grad`` are left unchanged.

    ``micro_batches`` are one pass over the forget set, each with as many retain examples; the run's rectifier takes no
    part.

    Yields:
        (call, measured): the micro-batches averaged so far, 3, 7, 11, …; the Gram of the averaged gradients, and
        ``loss``, the average of the objective's value.
    """
    alone = run.alone(tie=None)
    averages: dict[str, NamedTensors] = {each: {} for each in GRADIENTS}
    value = 0.0
    for call, batches in enumerate(micro_batches, start=1):
        step = Step(alone, window_counts([batches]), measure=True)
        step.ascend([batches])
        loss = float(step.micro_batch(batches, last=True))
        value = loss if call == 1 else PAST * value + (1 - PAST) * loss
        for each in GRADIENTS:
            _fold(averages[each], step.gradient(each))
        if call % CADENCE == FIRST:
            yield call, _read(averages, run, value)


def _fold(average: NamedTensors, gradient: NamedTensors) -> None:
    for name, tensor in gradient.items():
        if name in average:
            average[name].mul_(PAST).add_(tensor, alpha=1 - PAST)
        else:
            average[name] = tensor.clone()


def _read(averages: Mapping[str, NamedTensors], run: Measurement, value: float) -> Measured:
    gram = Gram(GRADIENTS)
    products = Gram.reduce(GRADIENTS, run.parameters, averages).values
    for name, product in products.items():
        if run.tie is not None and name == run.tie.name:  # the script counts a tied tensor as embedding
            nothing = torch.zeros_like(product)
            gram.values |= zip(run.tie.uses, (product, nothing, nothing), strict=True)
        else:
            gram.values[name] = product
    return Measured({"loss": value} | gram.norms(), gram)
