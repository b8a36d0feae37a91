"""Many methods on a page: what is drawn is the frame, each method on its own scale."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from geffect.reports import plots
from tests.support.pictures import fits, same_bytes

GROUPS = ["embed", "shallow", "middle", "deep", "lm_head"]
pytestmark = pytest.mark.usefixtures("untouched_style")


def make(runs: Sequence[str], steps: int = 12) -> pd.DataFrame:
    """Each run ten times as large as the one before; the retain side is half of the unlearn side."""
    rows = [
        (run, step, group, size := -(10.0**i) * (g + 1) * (1 + step), -size / 2)
        for i, run in enumerate(runs)
        for g, group in enumerate(GROUPS)
        for step in range(steps)
    ]
    return pd.DataFrame(rows, columns=["run", "step", "group", "unlearn", "retain"])


def pairs(figure: Figure) -> dict[str, tuple[Axes, Axes]]:
    """Title → the panels of a method."""
    return {
        left.get_title(loc="left"): (left, right)
        for left, right in zip(figure.axes[::2], figure.axes[1::2], strict=True)
    }


@pytest.mark.parametrize("count", [1, 2, 5])
def test_lines_are_the_frames_and_the_total_is_their_sum(count: int) -> None:
    frame = make([f"m{i}" for i in range(count)])
    shuffled = frame.sample(frac=1, random_state=0).sort_values("run", kind="stable")
    drawn = pairs(plots.g_effect_panels(shuffled))
    assert list(drawn) == list(frame["run"].unique())
    for run, panels in drawn.items():
        own = frame[frame["run"] == run]
        for axes, side in zip(panels, ("unlearn", "retain"), strict=True):
            lines = {line.get_label(): np.asarray(line.get_xydata()) for line in axes.lines}
            for group in GROUPS:
                np.testing.assert_array_equal(lines[group], own[own["group"] == group][["step", side]])
            np.testing.assert_allclose(lines["total"][:, 1], own.groupby("step")[side].sum())


def test_every_method_has_its_scale_zero_in_the_middle_and_its_two_panels_share_it() -> None:
    tops = []
    for left, right in pairs(plots.g_effect_panels(make(["a", "b", "c"]))).values():
        low, high = left.get_ylim()
        assert (low, right.get_ylim()) == (-high, left.get_ylim())
        assert high >= max(np.abs(np.asarray(line.get_ydata())).max() for line in left.lines)
        tops.append(high)
    assert tops == pytest.approx([tops[0], 10 * tops[0], 100 * tops[0]])


def test_a_title_says_where_the_scale_is_logarithmic_which_it_never_is_beside_a_zoom() -> None:
    frame = make(["even", "steep"])
    growth = np.where(frame["run"] == "steep", 10.0 ** (frame["step"] / 2), 1)
    frame = frame.assign(unlearn=frame["unlearn"] * growth, retain=frame["retain"] * growth)
    drawn = pairs(plots.g_effect_panels(frame))
    assert list(drawn) == ["even", "steep (symlog)"]
    assert [left.get_yscale() for left, _ in drawn.values()] == ["linear", "symlog"]
    assert {axes.get_yscale() for axes in plots.g_effect_panels(frame, (0, 3)).axes} == {"linear"}


def test_a_zoom_adds_the_window_on_a_scale_of_its_own() -> None:
    drawn = pairs(plots.g_effect_panels(make(["ga", "wga"]), (2, 5)))
    assert list(drawn) == ["ga", "ga, steps 2 to 5", "wga", "wga, steps 2 to 5"]
    for run in ("ga", "wga"):
        (whole, _), (window, _) = drawn[run], drawn[f"{run}, steps 2 to 5"]
        (total,) = [line for line in window.lines if line.get_label() == "total"]
        np.testing.assert_array_equal(total.get_xdata(), [2, 3, 4, 5])
        assert window.get_ylim()[1] == pytest.approx(whole.get_ylim()[1] / 2)


@pytest.mark.parametrize(
    ("count", "zoom", "says"),
    [
        (17, None, "A figure shows at most 16 runs, not 17"),
        (9, (0, 3), "A figure shows at most 8 runs, not 9"),
        (1, (40, 50), "m0 has steps from 0 to 11, and none from 40 to 50"),
    ],
)
def test_what_does_not_fit_is_refused(count: int, zoom: tuple[float, float] | None, says: str) -> None:
    with pytest.raises(ValueError, match=rf"^{says}[^\n]*$"):
        plots.g_effect_panels(make([f"m{i}" for i in range(count)]), zoom)


@pytest.mark.parametrize("count", [1, 3, 16])
def test_all_fits_on_a_page_whatever_a_method_is_called(count: int) -> None:
    figure = plots.g_effect_panels(make([f"npo(beta=0.1)_{i} + 1.0*$kl$" for i in range(count)]))
    fits(figure)
    assert figure.get_figheight() < 10
    lowest = [axes for axes in figure.axes if axes.xaxis.get_tick_params()["labelbottom"]]
    assert len(lowest) == (2 if count == 1 else 4)


def test_the_same_frame_gives_the_same_bytes(tmp_path: Path) -> None:
    same_bytes(
        plots.g_effect_panels(make(["a", "b"]), (0, 4)), plots.g_effect_panels(make(["a", "b"]), (0, 4)), tmp_path
    )
