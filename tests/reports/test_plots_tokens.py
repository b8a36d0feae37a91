"""Colored texts: every token is there, in order, on the color of its effect."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from geffect.reports import plots
from tests.support.pictures import fits, same_bytes

ODD = ["$x^2$", "\\frac", "{_", "}^", "\n", "\t", " ", "水", "\x00", "&%#", "é", "$"]
pytestmark = pytest.mark.usefixtures("untouched_style")


def make(tokens: list[str], row: int = 0, prompt: int = 2, scale: float = 1.0) -> pd.DataFrame:
    """The first tokens carry no loss; effects alternate in sign."""
    effects = [0.0 if i < prompt else (-1) ** i * scale**i for i in range(len(tokens))]
    return pd.DataFrame({
        "step": 5,
        "set": "heldout",
        "example": row,
        "position": range(len(tokens)),
        "token": tokens,
        "labeled": [i >= prompt for i in range(len(tokens))],
        "direction": "objective",
        "effect": effects,
        "embed": [effect / 2 for effect in effects],
    })


def written(figure: Figure) -> list[Text]:
    return [text for text in figure.axes[0].texts if text.get_color() != plots.style.NOTE["color"]]


def boxes(figure: Figure) -> list[Rectangle]:
    return [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]


def test_tokens_stand_in_order_each_in_its_box() -> None:
    tokens = [f"word{i} " for i in range(60)]
    figure = plots.token_strip(make(tokens).sample(frac=1, random_state=0))
    assert [text.get_text() for text in written(figure)] == tokens
    places = [(box.get_y(), box.get_x()) for box in boxes(figure)]
    assert places == sorted(places)
    assert len({y for y, _ in places}) > 1  # several lines
    for one, two in pairwise(boxes(figure)):
        assert two.get_x() in (0, one.get_x() + one.get_width())
    figure.draw_without_rendering()
    for text, box in zip(written(figure), boxes(figure), strict=True):
        assert text.get_window_extent().x1 <= box.get_window_extent().x1 + 1


def test_colors_are_the_effects_on_a_scale_centered_on_zero_and_prompts_are_gray() -> None:
    frame = make(["a", "b", "c", "d", "e"])
    frame["effect"] = [9.0, 9.0, -2.0, 0.0, 2.0]  # those of a prompt count for nothing
    figure = plots.token_strip(frame)
    fills = [np.array(box.get_facecolor()[:3]) for box in boxes(figure)]
    assert len(set(fills[0])) == len(set(fills[1])) == 1
    assert fills[2][0] > fills[2][2]  # orange
    assert fills[4][2] > fills[4][0]  # purple
    assert np.ptp(fills[3]) < 0.02  # neutral
    assert figure.axes[1].get_xlim() == (-2, 2)
    for text, fill in zip(written(figure)[2:], fills[2:], strict=True):
        assert abs(fill.mean() - np.mean(to_rgb(text.get_color()))) > 0.3


@pytest.mark.parametrize("scale", ["linear", "symlog"])
def test_the_bar_says_unit_and_scale(scale: str) -> None:
    label = plots.token_strip(make(list("abcdefghij"), scale=4), scale=scale).axes[1].get_xlabel()
    assert label.startswith("effect on a token's NLL (nats per unit of learning rate")
    assert ("symlog" in label) == (scale == "symlog")
    assert "embed" in plots.token_strip(make(list("abcdefghij")), "embed").axes[1].get_xlabel()


def test_dollars_line_breaks_and_strange_characters_break_nothing(tmp_path: Path) -> None:
    figure = plots.token_strip(make(ODD))
    texts = [text.get_text() for text in written(figure)]
    assert texts == ["$x^2$", "\\frac", "{_", "}^", "⏎", "⇥", " ", "□", "□", "&%#", "é", "$"]
    after = boxes(figure)[5]
    assert after.get_x() == 0
    assert after.get_y() == pytest.approx(boxes(figure)[4].get_y() + 1)
    plots.save(figure, tmp_path / "odd", pd.DataFrame())  # a missing glyph would warn, and a warning is an error here


def test_a_token_longer_than_its_room_is_cut() -> None:
    figure = plots.token_strip(make(["a", "b", "x" * 500, "c"]))
    assert [len(text.get_text()) for text in written(figure)] == [1, 1, 40, 1]
    assert written(figure)[2].get_text().endswith("x…")


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("column", ["effect", "embed"])
def test_texts_stand_apart_and_on_the_page(count: int, column: str) -> None:
    frames = [make([f" token{i}" for i in range(50)], row, scale=1.2) for row in range(count)]
    fits(plots.token_strip(pd.concat(frames), column))


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^A figure shows at most 8 texts, not 9\. Choose some examples"):
        plots.token_strip(pd.concat([make(["a", "b"], row) for row in range(9)]))
    with pytest.raises(ValueError, match=r"^The frame has two rows of step, set, example, direction, position = "):
        plots.token_strip(pd.concat([make(["a"]), make(["a"])]))
    with pytest.raises(ValueError, match=r"^The frame has 2 rows of .*needs .*tied"):
        plots.token_strip(make(["a", "b"]), "tied")


def test_a_text_without_loss_still_draws() -> None:
    plots.token_strip(make(["a", "b"], prompt=2))


def test_the_same_tokens_give_the_same_bytes(tmp_path: Path) -> None:
    same_bytes(plots.token_strip(make(list("abc"))), plots.token_strip(make(list("abc"))), tmp_path)
