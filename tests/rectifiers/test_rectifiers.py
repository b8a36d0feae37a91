"""GRU's identities."""

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from geffect.errors import GeffectError
from geffect.rectifiers.gru import GRU, projection, rectify
from geffect.rectifiers.registry import make_rectifier

VECTORS = st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=4).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


@given(g=VECTORS, m=VECTORS)
@settings(deadline=None)
def test_the_result_never_conflicts_with_the_memory(g: Tensor, m: Tensor) -> None:
    assert float(rectify(g, m) @ m) >= -1e-9 * float(g.norm() * m.norm())


@given(g=VECTORS, m=VECTORS)
@settings(deadline=None)
def test_without_conflict_nothing_changes(g: Tensor, m: Tensor) -> None:
    g = g if float(g @ m) >= 0 else -g
    assert torch.equal(rectify(g, m), g)


@given(g=VECTORS, m=VECTORS, scale=st.floats(1e-3, 1e3))
@settings(deadline=None)
def test_the_memorys_length_does_not_matter(g: Tensor, m: Tensor, scale: float) -> None:
    assert torch.allclose(rectify(g, scale * m), rectify(g, m), rtol=1e-6, atol=1e-6 * float(g.norm()))


@given(g=VECTORS, m=VECTORS)
@settings(deadline=None)
def test_rectifying_twice_is_rectifying_once(g: Tensor, m: Tensor) -> None:
    once = rectify(g, m)
    assert torch.allclose(rectify(once, m), once, atol=1e-9 * max(1.0, float(g.norm())))


def test_it_is_the_closest_point_that_does_not_conflict() -> None:
    generator = torch.Generator().manual_seed(0)
    g, m = torch.randn(6, generator=generator), torch.randn(6, generator=generator)
    g = g if float(g @ m) < 0 else -g
    best = float((rectify(g, m) - g).norm())
    for _ in range(500):
        other = g + torch.randn(6, generator=generator)
        assert float(other @ m) < 0 or float((other - g).norm()) >= best


def test_its_length_is_the_sine_of_the_angle() -> None:
    g, m = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.3, 1.0, -1.0])
    cos = float(g @ m / g.norm() / m.norm())
    assert cos < 0
    assert float(rectify(g, m).norm()) == pytest.approx(float(g.norm()) * math.sqrt(1 - cos**2))


def test_opposite_rows_stall() -> None:
    g = torch.tensor([1.0, -2.0])
    assert torch.allclose(rectify(g, -3 * g), torch.zeros(2), atol=1e-7)


@pytest.mark.parametrize("clip", [-0.5, -0.2, 0.0])
def test_a_clip_leaves_the_conflict_beyond_it(clip: float) -> None:
    g, m = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.3, 1.0, -1.0]).double()
    length = float(g.norm() * m.norm())
    cos = float(g @ m) / length
    assert cos < -0.5
    assert float(rectify(g, m, clip) @ m) == pytest.approx(length * (cos - clip))


def test_a_zero_memory_changes_nothing() -> None:
    assert projection(1.0, 0.0, 0.0) == 0.0
    assert projection(1.0, -1e-310, sys.float_info.min / 4) == 0.0  # its length cannot be divided by
    assert projection(1.0, -1e-40, 1e-60) == pytest.approx(1e20)  # however short, it is projected on


def test_the_average_starts_at_zero_without_bias_correction() -> None:
    gru, state = GRU(decay=0.3), GRU().init()
    constant = torch.tensor([2.0, -4.0])
    for t in range(1, 6):
        gru.update(state, "w", constant)
        assert torch.allclose(state["retain_average"]["w"], (1 - 0.3**t) * constant)


def test_a_step_that_does_not_reach_a_tensor_still_fades_it() -> None:
    gru = GRU(decay=0.5)
    state = gru.init()
    gru.update(state, "w", None)
    assert state == {"retain_average": {}}
    gru.update(state, "w", torch.ones(1))
    gru.update(state, "w", None)
    assert state["retain_average"]["w"].tolist() == [0.25]


def test_the_average_keeps_no_tensor_of_the_step() -> None:
    gru, gradient = GRU(), torch.ones(3)
    state = gru.init()
    gru.update(state, "w", gradient)
    gradient.zero_()
    assert state["retain_average"]["w"].tolist() == pytest.approx([0.8] * 3)


@pytest.mark.parametrize("text", ["gru(decay=1)", "gru(decay=-0.1)", "gru(cos_clip=0.5)", "gru(cos_clip=-2)", "2*gru"])
def test_impossible_settings_are_refused(text: str) -> None:
    with pytest.raises(GeffectError):
        make_rectifier(text)
