"""Steps of a measurement on tiny models, and what the optimizer makes of them."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from geffect.core.forward import Outputs, forward
from geffect.core.layers import trainable_parameters
from geffect.measurement.measurement import Measured, Measurement
from geffect.measurement.step import Step
from geffect.objectives.base import window_counts
from geffect.objectives.registry import make_objective
from geffect.rectifiers.registry import make_rectifier
from tests.support.cases import make_batch

Batch = dict[str, Tensor]
Batches = dict[str, Batch]
FORGET, RETAIN = make_batch([9, 5, 7, 12], seed=1), make_batch([6, 8, 4, 11], seed=2)
GENERAL, REFUSAL = make_batch([10, 3, 6, 6], seed=3), make_batch([7, 9, 5, 8], seed=4)


def with_reference(model: Any, batch: Batch) -> Batch:
    """A reference unlike the model, so that NPO's weights are not one."""
    nll = forward(model, batch).nll.detach()
    return batch | {"ref_nll": nll * 0.7}


def make_batches(model: Any) -> Batches:
    """Every set an objective may run on."""
    return {
        "forget": with_reference(model, FORGET),
        "alternative": with_reference(model, REFUSAL),
        "general": GENERAL,
        "retain": RETAIN,
    }


def split(batches: Mapping[str, Batch], size: int) -> list[Batches]:
    """Micro-batches of so many examples."""
    total = len(next(iter(batches.values()))["labels"])
    return [
        {name: {key: t[i : i + size] for key, t in batch.items()} for name, batch in batches.items()}
        for i in range(0, total, size)
    ]


def model_forward(model: Any, reference: Any = None) -> Callable[..., Outputs]:
    """The trainer's forward pass without a trainer."""
    from dataclasses import replace

    def run(batch: Batch, needs: frozenset[str], *, dropout: bool = False) -> Outputs:
        model.train(dropout)
        outputs = forward(model, batch, needs)
        if not needs & {"ref_logits", "ref_hidden"}:
            return outputs
        with torch.no_grad():
            other = forward(reference, batch, {*needs, "hidden"})
        return replace(outputs, ref_logits=other.logits, ref_hidden=other.hidden)

    return run


def make_measurement(model: Any, objective: str, rectifier: str = "none", **settings: Any) -> Measurement:
    """A measurement of a tiny model."""
    reference = settings.pop("reference", None)
    return Measurement(
        trainable_parameters(model),
        model_forward(model, reference),
        make_objective(objective),
        make_rectifier(rectifier),
        **settings,
    )


def open_step(measurement: Measurement, micro_batches: list[Batches], *, measure: bool = True) -> Step:
    """A step whose micro-batches are through."""
    counts = window_counts(micro_batches)
    step = Step(measurement, counts, measure=measure)
    step.ascend(micro_batches)
    for i, batches in enumerate(micro_batches):
        step.micro_batch(batches, last=i == len(micro_batches) - 1)
    return step


def take_step(measurement: Measurement, micro_batches: list[Batches], *, measure: bool = True) -> Measured:
    """A step that has been finished."""
    return open_step(measurement, micro_batches, measure=measure).finish()


def gradients(model: Any) -> dict[str, Tensor]:
    """What a step left in ``.grad``."""
    return {name: p.grad for name, p in trainable_parameters(model).items() if p.grad is not None}
