"""How exact inner products are, where a model's own arithmetic allows it: loops over examples, finite differences."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from geffect.core.layers import trainable_parameters
from tests.support import oracles
from tests.support.architectures import make
from tests.support.steps import FORGET, RETAIN, make_measurement, split, take_step

TWO = {"forget": FORGET, "retain": RETAIN}
EXACT = ["gpt2", "falcon"]
MIXED = ["llama", "mistral", "qwen2", "gemma2"]  # norms and rotations in float32, whatever the dtype


def _gradients(model: Any, text_scale: float = -1.0) -> list[dict[str, Tensor]]:
    forget, retain = (oracles.gradient(model, partial(oracles.mean_nll, model, batch)) for batch in (FORGET, RETAIN))
    return [{name: text_scale * g for name, g in forget.items()}, forget, retain]


def _relative(found: Tensor, expected: Tensor) -> float:
    norms = expected.diagonal().sqrt()
    return float(((found - expected).abs() / (norms[:, None] * norms)).max())


@pytest.mark.parametrize("family", EXACT + MIXED)
@pytest.mark.parametrize("tied", [False, True])
def test_streamed_products_equal_loops_over_examples(family: str, tied: bool) -> None:
    model = make(family, tied=tied).double()
    bound = 1e-10 if family in EXACT else 1e-5
    expected = oracles.gram(_gradients(model), list(trainable_parameters(model)))
    for size in (4, 1):
        gram = take_step(make_measurement(model, "ga"), split(TWO, size)).gram
        assert gram is not None
        assert _relative(gram.total(), expected) <= bound


@pytest.mark.parametrize("family", EXACT + MIXED)
def test_a_finite_difference_of_the_loss_is_the_g_effect(family: str) -> None:
    """Descending d by h changes the retain loss by −h·⟨∇R, d⟩."""
    model = make(family, tied=False).double()
    bound, h = (1e-6, 1e-4) if family in EXACT else (1e-3, 1e-2)
    objective, _, retain = _gradients(model)
    effect = float(sum((retain[name] * objective[name]).sum() for name in objective))
    norm = float(sum(g.square().sum() for g in objective.values())) ** 0.5

    def at(step: float) -> float:
        with torch.no_grad():
            for name, parameter in trainable_parameters(model).items():
                parameter.add_(objective[name], alpha=step / norm)
            value = float(oracles.mean_nll(model, RETAIN))
            for name, parameter in trainable_parameters(model).items():
                parameter.sub_(objective[name], alpha=step / norm)
        return value

    found = (at(h) - at(-h)) / (2 * h) * norm
    size = norm * float(sum(g.square().sum() for g in retain.values())) ** 0.5
    assert abs(found - effect) <= bound * size
