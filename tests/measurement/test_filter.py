"""The finite-step filter: the largest s of {1, 1/2, …, 1/64} whose measured rise is allowed, against a loop by hand."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from geffect import api
from geffect.core.forward import forward
from geffect.core.layers import find_tied_weights, trainable_parameters
from geffect.record.reader import read_lines
from tests.conftest import config
from tests.support.cases import gpt2, llama
from tests.support.steps import RETAIN, make_batches, make_measurement, open_step, split

RATE = 20.0


def retain_loss(model: Any) -> float:
    """Token-mean NLL of the retain batch."""
    outputs = forward(model, RETAIN)
    return outputs.nll[outputs.mask].mean().item()


@pytest.mark.parametrize("make", [gpt2, llama], ids=["tied", "untied"])
@pytest.mark.parametrize("parts", [1, 2], ids=["whole", "accumulated"])
@pytest.mark.parametrize("limit", [1e9, 0.05, 1e-3, -1.0])
def test_the_step_is_halved_until_its_rise_is_small_enough(make: Any, parts: int, limit: float) -> None:
    """In float64, SGD at a rate that overshoots, and harms."""
    model = make().double().eval()
    start = {name: p.detach().clone() for name, p in trainable_parameters(model).items()}
    before = retain_loss(model)
    batches = {name: each for name, each in make_batches(model).items() if name in ("forget", "retain")}
    measurement = make_measurement(model, "ga", tie=find_tied_weights(model), max_rise=limit, keep=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    step = open_step(measurement, split(batches, 4 // parts))
    step.finish()
    optimizer.step()
    whole = {name: p.detach().clone() for name, p in trainable_parameters(model).items()}
    by_hand, tries = copy.deepcopy(model), {}
    for power in range(7):
        for name, parameter in trainable_parameters(by_hand).items():
            parameter.data = start[name] + (whole[name] - start[name]) / 2**power
        tries[2.0**-power] = retain_loss(by_hand) - before
    allowed = [scale for scale, rise in tries.items() if rise <= limit]
    expected = max(allowed, default=1 / 64)
    measured = step.after(dict.fromkeys(start, RATE))
    assert measured is not None
    assert measured.scalars["step_scale"] == expected
    assert measured.scalars["step_rise"] == pytest.approx(tries[expected], rel=1e-9, abs=1e-14)
    for name, parameter in trainable_parameters(model).items():
        torch.testing.assert_close(parameter.detach(), start[name] + (whole[name] - start[name]) * expected)
    assert (expected == 1) == (limit == 1e9)  # at this rate the whole step harms


def test_a_step_into_nowhere_is_halved_too() -> None:
    """A loss that is not finite is no small rise."""
    model = gpt2().double().eval()
    batches = {name: each for name, each in make_batches(model).items() if name in ("forget", "retain")}
    step = open_step(make_measurement(model, "ga", max_rise=0.1), split(batches, 4), measure=False)
    step.finish()
    before = next(iter(trainable_parameters(model).values()))
    with torch.no_grad():
        before.fill_(float("nan"))
    measured = step.after(dict.fromkeys(trainable_parameters(model), 0.5))
    assert measured is not None
    assert measured.scalars["step_scale"] == 1 / 64


def test_a_run_s_steps_are_within_the_limit(known: Path, tmp_path: Path) -> None:
    """Every step, measured or not; a limit that none reaches changes no bit."""
    settings: dict[str, Any] = {
        "learning_rate": 3e-3,
        "batch_size": 4,
        "diagnose_every": 2,
        "rectifier": "gru(space=both)",
    }
    limited = api.unlearn(config(known, tmp_path / "limited", **settings, max_rise=0.01))
    scales = [(line["step_scale"], line["step_rise"]) for line in read_lines(limited.path) if "step_scale" in line]
    assert len(scales) == 4
    assert all(rise <= 0.01 or scale == 1 / 64 for scale, rise in scales)
    assert any(scale < 1 for scale, _ in scales)
    free, plain = (
        api.unlearn(config(known, tmp_path / name, **settings, **extra))
        for name, extra in (("free", {"max_rise": 1e6}), ("plain", {}))
    )
    losses = [run.evaluations().query("set == 'heldout'")["loss"].tolist() for run in (free, plain)]
    assert losses[0] == losses[1]
