"""Sharpness-aware terms: the gradient of a term on the forget set at weights a little further up (arXiv 2502.05374)."""

import math
from collections.abc import Iterable, Mapping

import torch

from geffect.core.distributed import sum_gradients
from geffect.core.gradients import GradientBuffer, NamedTensors
from geffect.core.splits import domain_of, of_domain, split_names
from geffect.measurement.measurement import Batch, Measurement
from geffect.objectives.base import Counts, Objective


def ascended(
    run: Measurement, objective: Objective, counts: Mapping[str, Counts], window: Iterable[Mapping[str, Batch]]
) -> NamedTensors:
    """θ + ρ g/‖g‖ of every parameter that g reaches, g the forget term's gradient over a window of micro-batches.

    It costs a forward and backward pass a micro-batch, and holds a gradient; none where g is zero.
    """
    buffer = GradientBuffer(run.parameters)
    gradient = buffer.gradients.setdefault("ascent", {})
    for batches in window:
        for forget in (each for each in split_names("forget", counts) if each in batches):
            own = of_domain(batches, domain_of(forget))
            outputs = run.outputs("forget", own, dropout=run.keep_dropout)
            buffer.add("ascent", objective.loss("forget", outputs, counts))
    gradient = sum_gradients({"ascent": gradient}, run.parameters)["ascent"]
    length = math.sqrt(sum(float(torch.linalg.vector_norm(each).double() ** 2) for each in gradient.values()))
    if not length:
        return {}
    return {
        name: each.mul_((objective.rho or 0.0) / length).add_(run.parameters[name].detach())
        for name, each in gradient.items()
    }
