"""TorchJD's weightings, where it is installed, and their refusal where it is not."""

import importlib.util
from typing import Any

import pytest
import torch

from geffect.errors import GeffectError
from geffect.rectifiers.base import InnerProducts
from geffect.rectifiers.gru import rectify
from geffect.rectifiers.registry import make_rectifier
from tests.support.cases import CASES
from tests.support.steps import FORGET, RETAIN, gradients, make_measurement, take_step

NAMES = ("objective", "retain")


def _rule(name: str) -> Any:
    for package in ("torchjd", "qpsolvers", "quadprog"):
        pytest.importorskip(package)
    return make_rectifier(f"torchjd(weighting={name})")


@pytest.mark.parametrize("name", ["UPGrad", "DualProj", "MGDA"])
def test_neither_gradient_is_in_conflict(name: str) -> None:
    rule, generator = _rule(name), torch.Generator().manual_seed(0)
    worst, scale = 0.0, torch.tensor([[1.0], [1.0]]).double()
    for exponent in (0.0, 2.0, -3.0) * 60:
        scale[1] = 10.0**exponent
        both = scale * torch.randn(2, 3, generator=generator, dtype=torch.float64)
        chosen = rule.coefficients(InnerProducts(NAMES, both @ both.T))
        d = chosen["objective"] * both[0] + chosen["retain"] * both[1]
        worst = min(worst, float(((both @ d) / both.norm(dim=1) / both.norm(dim=1).max()).min()))
    assert worst >= (-1e-10 if name == "MGDA" else -1e-3)


def test_upgrad_is_the_mean_of_both_projections() -> None:
    rule, generator = _rule("UPGrad"), torch.Generator().manual_seed(1)
    for _ in range(20):
        o, r = torch.randn(2, 4, generator=generator, dtype=torch.float64)
        chosen = rule.coefficients(InnerProducts(NAMES, torch.stack([o, r]) @ torch.stack([o, r]).T))
        d = chosen["objective"] * o + chosen["retain"] * r
        torch.testing.assert_close(d, (rectify(o, r) + rectify(r, o)) / 2, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["UPGrad", "DualProj", "MGDA"])
def test_a_zero_gradient_is_left_out(name: str) -> None:
    gram = InnerProducts(NAMES, torch.tensor([[4.0, 0.0], [0.0, 0.0]]))
    assert _rule(name).coefficients(gram) == {"objective": 0.5, "retain": 0.0}


def test_a_step_of_a_model_is_rectified() -> None:
    _rule("UPGrad")
    model = CASES["lora"]()
    measured = take_step(make_measurement(model, "ga", "torchjd"), [{"forget": FORGET, "retain": RETAIN}])
    assert measured.gram is not None
    gram = InnerProducts(measured.gram.names, measured.gram.total())
    length = float((gram["retain", "retain"] * gram["rectified", "rectified"]) ** 0.5)
    assert gram["retain", "rectified"] >= -1e-3 * length
    assert any(gradient.any() for gradient in gradients(model).values())


def test_without_the_package_it_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(GeffectError) as refused:
        make_rectifier("torchjd")
    assert str(refused.value) == (
        "torchjd(weighting=UPGrad) needs the package torchjd, which is not installed. "
        "Run: pip install 'geffect[torchjd]'."
    )


def test_another_weighting_is_refused() -> None:
    with pytest.raises(GeffectError, match=r"weighting of torchjd is 'upgrad'\. It should be 'UPGrad', 'DualProj' or"):
        make_rectifier("torchjd(weighting=upgrad)")
