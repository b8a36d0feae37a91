"""Views of a Gram with numbers a hand can check."""

import math

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geffect.core.effects import direction_name, g_effect, inner_by_label, total_cosine
from geffect.core.gram import cosine, inner, norm

ROWS = ("objective", "forget", "retain")
GRAM = torch.tensor([[4.0, -4.0, -1.0], [-4.0, 4.0, 1.0], [-1.0, 1.0, 9.0]], dtype=torch.float64)


def _frame(values: dict[tuple[int, str, str, str], float]) -> pd.DataFrame:
    rows = [(*key, value) for key, value in values.items()]
    return pd.DataFrame(rows, columns=["step", "group", "gradient", "other", "inner"])


FRAME = _frame({
    (0, "embed", "objective", "objective"): 4.0,
    (0, "embed", "objective", "forget"): -4.0,
    (0, "embed", "objective", "retain"): -1.0,
    (0, "embed", "retain", "retain"): 9.0,
    (0, "deep", "objective", "objective"): 12.0,
    (0, "deep", "objective", "forget"): -12.0,
    (0, "deep", "objective", "retain"): 5.0,
    (0, "deep", "retain", "retain"): 16.0,
})


def test_entries_norms_and_cosines() -> None:
    assert inner(GRAM, ROWS, "retain", "objective") == -1
    assert norm(GRAM, ROWS, "retain") == 3
    assert cosine(GRAM, ROWS, "objective", "retain") == pytest.approx(-1 / 6)
    assert cosine(GRAM, ROWS, "objective", "forget") == -1


def test_a_zero_row_has_no_angle() -> None:
    assert math.isnan(cosine(torch.zeros(2, 2), ("a", "b"), "a", "b"))


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_cosine_ignores_scale_and_the_effect_is_bilinear(a: float, b: float) -> None:
    scale = torch.tensor([a, 1.0, b], dtype=torch.float64)
    scaled = scale[:, None] * GRAM * scale
    assert cosine(scaled, ROWS, "objective", "retain") == pytest.approx(-1 / 6)
    assert inner(scaled, ROWS, "objective", "retain") == pytest.approx(-a * b)


def test_the_order_of_a_pair_does_not_matter() -> None:
    assert inner_by_label(FRAME, "retain", "objective").equals(inner_by_label(FRAME, "objective", "retain"))


def test_the_g_effect_pairs_each_loss_with_the_direction() -> None:
    effects = g_effect(FRAME).set_index("group")
    assert effects["unlearn"].to_dict() == {"embed": -4, "deep": -12}
    assert effects["retain"].to_dict() == {"embed": -1, "deep": 5}


def test_a_row_that_was_not_recorded_is_named() -> None:
    with pytest.raises(ValueError, match="no gradient 'rectified'; there are forget, objective, retain"):
        g_effect(FRAME, "rectified")


def test_the_total_cosine_is_of_the_whole_vectors() -> None:
    assert total_cosine(FRAME, "objective", "retain").loc[0] == pytest.approx(4 / math.sqrt(16 * 25))


def test_the_direction_is_what_was_descended() -> None:
    assert direction_name(FRAME) == "objective"
    rectified = pd.concat([FRAME, _frame({(0, "deep", "rectified", "rectified"): 1.0})])
    assert direction_name(rectified) == "rectified"
