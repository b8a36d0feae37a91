"""The combinations of gradients beside their formulas in flattened vectors, and the guarantees they state."""

import itertools
import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from geffect.errors import GeffectError
from geffect.rectifiers.base import InnerProducts, Rectifier
from geffect.rectifiers.combined import BLUR, HAMU, NGDiff, PCGrad
from geffect.rectifiers.elementwise import SAGO, Disruption, Elementwise
from geffect.rectifiers.gem import GEM, kkt_residual, multipliers
from geffect.rectifiers.gru import GRU, rectify
from geffect.rectifiers.registry import RULES, make_rectification, make_rectifier

NAMES = ("objective", "forget", "retain")
EXACT = 1e-10  # of a guarantee, relative to the lengths
INTEGERS = st.lists(st.integers(-9, 9), min_size=5, max_size=5)  # zeros, parallels and opposites among them
FLOATS = st.lists(st.floats(-100, 100, width=16), min_size=5, max_size=5)
VECTORS = (INTEGERS | FLOATS).map(lambda values: torch.tensor(values, dtype=torch.float64))


def products(vectors: Mapping[str, Tensor]) -> InnerProducts:
    """The Gram of flat vectors."""
    stacked = torch.stack(list(vectors.values()))
    return InnerProducts(tuple(vectors), stacked @ stacked.T)


def combine(rule: Rectifier, vectors: Mapping[str, Tensor]) -> Tensor:
    """What a rule makes of flat vectors, by its coefficients."""
    chosen = rule.coefficients(products(vectors))
    return sum((c * vectors[name] for name, c in chosen.items()), torch.zeros(5, dtype=torch.float64))


def named(*vectors: Tensor) -> dict[str, Tensor]:
    return dict(zip(NAMES, vectors, strict=True))


@given(o=VECTORS, f=VECTORS, r=VECTORS, alpha=st.sampled_from([0.0, 0.5, 3.0]))
@settings(deadline=None)
def test_pcgrad(o: Tensor, f: Tensor, r: Tensor, alpha: float) -> None:
    d = combine(PCGrad(alpha), named(o, f, r))
    conflict = min(0.0, float(o @ r)) / float(r @ r) if r.any() else 0.0
    torch.testing.assert_close(d, o - conflict * r + alpha * r)
    assert float(r @ d) >= -EXACT * float(r.norm() * (o.norm() + alpha * r.norm()))
    assert alpha or float(o @ d) >= -EXACT * float(o @ o)
    torch.testing.assert_close(combine(PCGrad(), named(o, f, r)), rectify(o, r))


@given(o=VECTORS, f=VECTORS, r=VECTORS, gamma=st.sampled_from([0.0, 1.0, 2.5]))
@settings(deadline=None)
def test_blur(o: Tensor, f: Tensor, r: Tensor, gamma: float) -> None:
    d = combine(BLUR(gamma), named(o, f, r))
    expected = r + (gamma - float(r @ o) / float(o @ o)) * o if o.any() else r
    torch.testing.assert_close(d, expected)
    rate = gamma * float(o @ o)
    assert abs(float(o @ d) - rate) <= EXACT * float(o.norm() * (r.norm() + gamma * o.norm()))


def test_blur_is_the_closest_to_the_retain_gradient_of_its_rate() -> None:
    generator = torch.Generator().manual_seed(1)
    o, r = (torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(2))
    best = float((combine(BLUR(), named(o, o, r)) - r).norm())
    for _ in range(200):
        other = torch.randn(5, generator=generator, dtype=torch.float64)
        other += (1 - float(other @ o) / float(o @ o)) * o  # of the same rate
        assert float((other - r).norm()) >= best


@given(o=VECTORS, f=VECTORS, r=VECTORS)
@settings(deadline=None)
def test_ngdiff(o: Tensor, f: Tensor, r: Tensor) -> None:
    d = combine(NGDiff(), named(o, f, r))
    torch.testing.assert_close(d, (r / r.norm() if r.any() else r) - (f / f.norm() if f.any() else f))
    assert float(r @ d) >= -EXACT * float(r.norm())
    assert float(f @ d) <= EXACT * float(f.norm())


@given(o=VECTORS, f=VECTORS, r=VECTORS, gain=st.sampled_from([0.1, 0.5, 0.9, 1.0]), radius=st.sampled_from([None, 0.3]))
@settings(deadline=None)
def test_hamu(o: Tensor, f: Tensor, r: Tensor, gain: float, radius: float | None) -> None:
    d = combine(HAMU(gain, radius), named(o, f, r))
    limit = float(o.norm()) if radius is None else radius
    wanted = gain * limit * float(f.norm())
    assert -float(f @ d) >= wanted - EXACT * limit * float(f.norm())
    cos = float(f @ r) / float(f.norm() * r.norm()) if f.any() and r.any() else 0.0
    sin = math.sqrt(max(0.0, (1 - cos) * (1 + cos)))
    if sin > 1e-2 or not (f.any() and r.any()):
        assert float(d.norm()) <= limit * (1 + EXACT)
    if cos <= -gain and r.any() and f.any():
        torch.testing.assert_close(d, limit * r / r.norm())
    elif sin > 1e-2 and f.any() and r.any():  # as the source writes the update −d
        across = r - float(f @ r) / float(f @ f) * f
        length = math.sqrt(max(0.0, limit**2 - wanted**2 / float(f @ f)))
        expected = -wanted / float(f @ f) * f + length * across / across.norm()
        torch.testing.assert_close(d, expected, rtol=1e-7, atol=1e-6 * limit)  # the root of a difference of squares
        price = -limit * float(r.norm()) * math.sin(math.acos(cos) - math.asin(gain))
        assert -float(r @ d) == pytest.approx(price, abs=1e-7 * limit * float(r.norm()))
        if gain <= sin:
            assert float(r @ d) >= -1e-7 * limit * float(r.norm())


def test_no_direction_of_hamu_s_gain_and_length_is_better_for_the_retain_loss() -> None:
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        o, f, r = (torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(3))
        best = float(r @ combine(HAMU(0.6, 1.0), named(o, f, r)))
        others = torch.randn(4000, 5, generator=generator, dtype=torch.float64)
        others /= others.norm(dim=1, keepdim=True)
        allowed = others[-(others @ f) >= 0.6 * f.norm()]
        assert len(allowed) > 50
        assert float((allowed @ r).max()) <= best


def test_hamu_of_zero_gradients() -> None:
    zero, x, y = torch.zeros(5).double(), *(2 * torch.eye(5)[:2].double())
    torch.testing.assert_close(combine(HAMU(0.5), named(y, zero, x)), x)  # nothing to gain: the retain loss descends
    torch.testing.assert_close(combine(HAMU(0.5), named(y, x, zero)), -0.5 * x)  # nothing to keep: the gain, no more
    torch.testing.assert_close(combine(HAMU(0.5), named(y, x, 3 * x)), -0.5 * x)  # parallel: the gain has its price
    torch.testing.assert_close(combine(HAMU(0.5), named(y, x, -x)), -x)
    assert not combine(HAMU(0.5), named(zero, x, y)).any()


def remembered(objective: Tensor, memories: Tensor) -> dict[str, Tensor]:
    """The objective's gradient and the rows of a matrix as GEM names them."""
    return {"objective": objective, **{f"retain_{i}": each for i, each in enumerate(memories)}}


@given(o=VECTORS, memories=st.lists(VECTORS, min_size=1, max_size=5))
@settings(deadline=None, max_examples=150)
def test_gem_is_the_projection_on_the_cone(o: Tensor, memories: list[Tensor]) -> None:
    """Beside the best of all active sets, one after another; degenerate sets among them."""
    m, rule = torch.stack(memories), GEM(memory=len(memories))
    vectors = remembered(o, m)
    d = combine(rule, vectors)
    size = (m.norm(dim=1) * o.norm()).clamp(min=1e-300)
    assert float(((m @ d) / size).min()) >= -EXACT
    assert float(o @ d) >= -EXACT * float(o @ o)
    best = min(_of_active_sets(o, m), key=lambda each: float((each - o).norm()))
    torch.testing.assert_close(d, best, rtol=1e-6, atol=1e-6 * float(o.norm()) + 1e-9)
    chosen = rule.coefficients(products(vectors))
    assert rule.numbers(products(vectors), chosen)["kkt_residual"] <= EXACT


def _of_active_sets(o: Tensor, m: Tensor) -> list[Tensor]:
    """Feasible projections on the borders of some of the half spaces."""
    found = [torch.zeros_like(o)]
    for count in range(len(m) + 1):
        for chosen in itertools.combinations(range(len(m)), count):
            border = m[list(chosen)]
            x = o - border.T @ (torch.linalg.pinv(border.T) @ o if count else torch.zeros(0).double())
            if float((m @ x / m.norm(dim=1).clamp(min=1e-300)).min()) >= -1e-9 * float(o.norm()):
                found.append(x)
    return found


@given(o=VECTORS, r=VECTORS)
@settings(deadline=None)
def test_gem_of_one_memory_is_gru_without_an_average(o: Tensor, r: Tensor) -> None:
    for rule, vectors in ((GEM(memory=1), remembered(o, r[None])), (GEM(memory=3), {"objective": o, "retain": r})):
        torch.testing.assert_close(combine(rule, vectors), rectify(o, r), rtol=1e-9, atol=1e-9)


def test_the_kkt_residual_sees_what_is_not_optimal() -> None:
    matrix = np.array([[1.0, -0.5, 0.2], [-0.5, 0.25, 0.0], [0.2, 0.0, 1.0]])
    best = multipliers(matrix)
    assert kkt_residual(matrix, best) <= 1e-15
    assert kkt_residual(matrix, 0 * best) == pytest.approx(1.0)  # the conflict stays, whole
    assert kkt_residual(matrix, 2 * best) == pytest.approx(2.0)  # more than what takes it out
    assert kkt_residual(matrix, best + np.array([0, -0.1])) == pytest.approx(0.1)
    assert multipliers(np.full((3, 3), np.nan)).tolist() == [0.0, 0.0]


def test_gem_remembers_the_newest_gradients_by_age() -> None:
    rule = GEM(memory=3)
    state = rule.init()
    seen = []
    for step in range(5):
        gradient = torch.full((2,), float(step))
        rule.update(state, "w", gradient)
        gradient.fill_(-1.0)  # what is remembered is a copy
        seen.append([float(state[each]["w"][0]) if "w" in state[each] else None for each in rule.memories])
    assert seen == [[0.0, None, None], [1.0, 0.0, None], [2.0, 1.0, 0.0], [3.0, 2.0, 1.0], [4.0, 3.0, 2.0]]
    tensors = {state[each]["w"].data_ptr() for each in rule.memories}
    rule.update(state, "w", torch.zeros(2))
    assert {state[each]["w"].data_ptr() for each in rule.memories} == tensors  # the oldest's place is used again
    rule.update(state, "w", None)
    assert "w" not in state["retain_0"]


@given(o=VECTORS, r=VECTORS, alpha=st.sampled_from([0.0, 1.0, 3.0]), gamma=st.sampled_from([0.0, 1.0, 0.5]))
@settings(deadline=None)
def test_no_entry_of_an_elementwise_rule_conflicts(o: Tensor, r: Tensor, alpha: float, gamma: float) -> None:
    d = SAGO(alpha, gamma).entries(o, r)
    assert d.tolist() == [alpha * b if a * b < 0 else gamma * a for a, b in zip(o.tolist(), r.tolist(), strict=True)]
    assert float((d * r).min()) >= 0
    d = Disruption().entries(o, r)
    signs = zip(o.tolist(), r.tolist(), strict=True)
    assert d.tolist() == [a if (a > 0) - (a < 0) == (b > 0) - (b < 0) else 0.0 for a, b in signs]
    assert float((d * r).min()) >= 0 and float((d * o).min()) >= 0


def test_a_gradient_that_is_missing_counts_as_zeros() -> None:
    ones = torch.ones(2)
    assert SAGO(gamma=0.5).rectify(ones, None).tolist() == [0.5, 0.5]  # type: ignore[union-attr]
    assert SAGO().rectify(None, ones).tolist() == [0.0, 0.0]  # type: ignore[union-attr]
    assert Disruption().rectify(None, None) is None


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_rule_reads_inner_products_without_a_model(name: str) -> None:
    if name == "torchjd":
        pytest.importorskip("quadprog")
    rule = make_rectifier("random(grail)" if name == "random" else name)
    if isinstance(rule, Rectifier) and rule.memories != GRU.memories and not isinstance(rule, Elementwise):
        gram = InnerProducts(NAMES, torch.tensor([[2.0, -1.0, -1.0], [-1.0, 1.0, 0.5], [-1.0, 0.5, 1.0]]))
        assert set(rule.coefficients(gram)) <= set(NAMES)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hamu(gain=1.5)", "gain of hamu is 1.5. It should be less than or equal to 1"),
        ("hamu(gain=0)", "gain of hamu is 0. It should be greater than 0"),
        ("hamu(radius=0)", "radius of hamu is 0"),
        ("gem(memory=0)", "memory of gem is 0. It should be greater than or equal to 1"),
        ("gem(memory=17)", "memory of gem is 17. It should be less than or equal to 16"),
        ("gem(memory=2.5)", "memory of gem is 2.5"),
        ("pcgrad(alpha=-1)", "alpha of pcgrad is -1. It should be greater than or equal to 0"),
        ("pcgrad(scope=block)", "scope of pcgrad is 'block'. It should be 'model', 'group', 'layer' or 'parameter'"),
        ("blur(gamma=-1)", "gamma of blur is -1"),
        ("ngdiff(alpha=1)", "ngdiff has no parameter 'alpha'"),
        ("sago(alpha=-1)", "alpha of sago is -1"),
        ("disruption(alpha=1)", "disruption has no parameter 'alpha'"),
        ("gru(metric=manhattan)", "metric of gru is 'manhattan'. It should be 'euclidean' or 'adam'"),
        ("gu(memory=10)", "memory of gu is 10. It should be less than or equal to 9"),
        ("gu(tolerance=-1)", "tolerance of gu is -1. It should be greater than or equal to 0"),
        ("consistent(threshold=-1)", "threshold of consistent is -1"),
        ("orthograd(examples=17)", "examples of orthograd is 17. It should be less than or equal to 16"),
        ("grail + orthograd", "freezes entries and combines example_0"),
        ("pcgrad + gem", "more than one rectifier that combines gradients"),
        ("grail + pcgrad", "freezes entries and combines retain, which is not masked"),
    ],
)
def test_impossible_settings_are_refused(text: str, says: str) -> None:
    with pytest.raises(GeffectError) as refused:
        make_rectifier(text)
    assert says in str(refused.value)


def test_gem_goes_together_with_frozen_entries() -> None:
    both = make_rectification("grail + gem(memory=2)")
    assert both.freezing is not None
    assert both.rule.gradients == ("objective", "retain_0", "retain_1")
