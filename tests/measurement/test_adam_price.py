"""The price of forgetting in Adam's metric: beside flattened float64 vectors, Adam's moments averaged here.

The least and the largest harm of a step of the same Adam-length and gain are found by numpy alone: a step is
θ-dimensional, the constraints are eliminated, and what is left is the extreme of a linear form on a sphere.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from geffect import api
from geffect.config import UnlearnConfig
from geffect.core.layers import find_tied_weights, trainable_parameters
from geffect.core.price import step_price
from geffect.errors import GeffectError
from geffect.measurement.metric import adam_metric
from geffect.reports.price import price_sentences
from tests.conftest import config
from tests.support import oracles
from tests.support.cases import CASES, make_batch
from tests.support.steps import make_measurement, open_step, split

BETAS, EPS = (0.9, 0.99), 1e-4
Vector = npt.NDArray[np.float64]
SETS: dict[str, Any] = {"forget": "builtin:authors/forget[:8]", "retain": "builtin:authors/retain[:8]", "batch_size": 8}


def flat(tensors: dict[str, torch.Tensor]) -> Vector:
    return oracles.flat(tensors, list(tensors)).numpy()


def extremes(forget: Vector, retain: Vector, diagonal: Vector, gain: float, length: float) -> tuple[float, float]:
    """min and max of ⟨retain, Δ⟩ subject to ⟨forget, Δ⟩ = gain and ⟨Δ, MΔ⟩ = length²."""
    least_step = gain * (forget / diagonal) / (forget @ (forget / diagonal))  # of the gain, the shortest
    left = max(0.0, length**2 - float(least_step @ (diagonal * least_step)))
    across = retain / diagonal - (retain @ (forget / diagonal)) / (forget @ (forget / diagonal)) * (forget / diagonal)
    assert abs(forget @ across) < 1e-9 * np.linalg.norm(forget) * np.linalg.norm(across)
    side = np.sqrt(left / float(across @ (diagonal * across))) * across
    return float(retain @ (least_step - side)), float(retain @ (least_step + side))


@pytest.mark.parametrize("case", ["llama", "lora", "gpt2"])
@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_the_price_in_adam_s_metric_is_that_of_flattened_vectors(case: str, beta: float) -> None:
    """Four steps; without momentum a combination of both gradients costs exactly one of the two ends."""
    model = CASES[case]().double()
    parameters = trainable_parameters(model)
    stepper = torch.optim.AdamW(parameters.values(), lr=1e-3, betas=(beta, BETAS[1]), eps=EPS, weight_decay=0.0)
    preconditioner, tie = adam_metric(parameters, lambda: stepper), find_tied_weights(model)
    extra = {"preconditioner": preconditioner, "adam_products": True, "tie": tie}
    run = make_measurement(model, "ga", "hamu(gain=0.7)", **extra)
    moment = np.zeros(sum(p.numel() for p in parameters.values()))
    for t in range(1, 5):
        forget, retain = (make_batch([6, 4, 7], seed=each + t) for each in (10, 50))
        g_f, g_r = (
            flat(oracles.gradient(model, lambda batch=each: oracles.mean_nll(model, batch)))  # type: ignore[misc]
            for each in (forget, retain)
        )
        step = open_step(run, split({"forget": forget, "retain": retain}, 2))
        step.finish()
        descended = flat({name: p.grad for name, p in parameters.items() if p.grad is not None})
        before = flat(dict(parameters))
        stepper.step()
        delta = flat(dict(parameters)) - before
        measured = step.after(dict.fromkeys(parameters, 1e-3))
        assert measured is not None
        gram = measured.parts["adam_gram"]
        moment = BETAS[1] * moment + (1 - BETAS[1]) * descended**2
        diagonal = np.sqrt(moment / (1 - BETAS[1] ** t)) + EPS
        scaled = np.stack([g_f / np.sqrt(diagonal), g_r / np.sqrt(diagonal), -delta * np.sqrt(diagonal)])
        np.testing.assert_allclose(gram.total(), scaled @ scaled.T, rtol=1e-8)
        found = step_price(gram.total(), gram.names)
        gain, length = float(g_f @ delta), float(np.sqrt(delta @ (diagonal * delta)))
        assert (found["gain"], found["harm"]) == pytest.approx((gain, g_r @ delta), rel=1e-8)
        ends = extremes(g_f, g_r, diagonal, gain, length)
        if beta == 0:
            assert found["efficiency"] == pytest.approx(1, abs=1e-5)
            assert found["harm"] == pytest.approx(ends[0], rel=1e-5)
        else:
            assert (found["cheapest"], found["dearest"]) == pytest.approx(ends, rel=1e-6)


def test_no_step_of_the_same_gain_and_adam_length_is_cheaper() -> None:
    """Of many drawn steps none is, and the end is reached: a quadratic program by trial."""
    generator = np.random.default_rng(0)
    forget, retain = generator.normal(size=(2, 6))
    diagonal, delta = generator.uniform(0.01, 3, size=6), generator.normal(size=6)
    gain, length = float(forget @ delta), float(np.sqrt(delta @ (diagonal * delta)))
    drawn = generator.normal(size=(20_000, 6)) / np.sqrt(diagonal)
    shortest = gain * (forget / diagonal) / (forget @ (forget / diagonal))
    drawn -= np.outer(drawn @ forget / (forget @ (forget / diagonal)), forget / diagonal)
    left = np.sqrt(length**2 - shortest @ (diagonal * shortest))
    drawn = shortest + left * drawn / np.sqrt(drawn**2 @ diagonal)[:, None]
    np.testing.assert_allclose(drawn @ forget, gain)
    np.testing.assert_allclose(drawn**2 @ diagonal, length**2)
    root = np.sqrt(diagonal)
    three = np.stack([forget / root, retain / root, -delta * root])
    found = step_price(torch.from_numpy(three @ three.T), ("forget", "retain", "applied"))
    low, high = extremes(forget, retain, diagonal, gain, length)
    assert (found["cheapest"], found["dearest"]) == pytest.approx((low, high))
    assert low - 1e-9 <= (drawn @ retain).min() <= low + 0.05 * (high - low)
    assert (drawn @ retain).max() <= high + 1e-9


def test_a_run_tells_its_price_in_both_metrics(known: Path, tmp_path: Path) -> None:
    settings = {**SETS, "rectifier": "hamu(gain=0.9)", "learning_rate": 3e-4, "steps": 3}
    run = api.unlearn(config(known, tmp_path / "run", **settings, adam_metric=True))
    plain, adam = run.price(), run.price(metric="adam")
    assert list(adam["metric"]) == ["adam"] * 3 and list(plain["metric"]) == ["euclidean"] * 3
    for name in ("gain", "harm"):  # what a step does is the same in any metric
        assert adam[name].to_numpy() == pytest.approx(plain[name].to_numpy(), rel=1e-3, abs=1e-7)
    assert (adam["efficiency"] > plain["efficiency"]).all()
    groups = run.price("group", metric="adam")
    assert groups.groupby("step")["gain"].sum().to_numpy() == pytest.approx(adam["gain"].to_numpy())
    assert sum("in Adam's metric" in text for text in price_sentences(run.path)) == 2
    bare = api.unlearn(config(known, tmp_path / "bare", **settings))
    assert (
        bare.steps()["forget_loss"].dropna().tolist() == run.steps()["forget_loss"].dropna().tolist()
    )  # changes no bit
    with pytest.raises(GeffectError, match="--adam-metric"):
        bare.price(metric="adam")


@pytest.mark.parametrize("asked", [{"adam_metric": True, "optimizer": "sgd"}, {"stop": "dear(metric=adam)"}])
def test_what_has_no_second_moments_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(GeffectError, match="Adam"):
        UnlearnConfig(model="builtin:tiny", out="run", **SETS, **asked)
