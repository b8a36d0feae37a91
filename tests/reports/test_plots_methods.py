"""G-effects of runs, a pair of panels each: what is drawn is the frame, on axes that fit it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from geffect.reports import plots
from tests.support.pictures import fits, same_bytes

GROUPS = ["total", "embed", "shallow", "middle", "deep", "lm_head"]
pytestmark = pytest.mark.usefixtures("untouched_style")


def make(runs: Sequence[str], steps: int = 12, growth: float = 10, retain: float = 0.5) -> pd.DataFrame:
    """Each run so many times as large as the one before; the retain side is a share of the unlearn side."""
    rows = [
        (run, step, group, size := -(growth**i) * (g + 1) * (1 + step), retain * size)
        for i, run in enumerate(runs)
        for g, group in enumerate(GROUPS[1:])
        for step in range(steps)
    ]
    frame = pd.DataFrame(rows, columns=["run", "step", "group", "unlearn", "retain"])
    totals = frame.groupby(["run", "step"], sort=False)[["unlearn", "retain"]].sum().reset_index()
    return pd.concat([totals.assign(group="total")[list(frame)], frame])


def pairs(figure: Figure) -> dict[str, tuple[Axes, Axes]]:
    """Title → the panels of a method."""
    return {
        left.get_title(loc="left"): (left, right)
        for left, right in zip(figure.axes[::2], figure.axes[1::2], strict=True)
    }


@pytest.mark.parametrize("count", [1, 2, 5])
def test_lines_are_the_frame(count: int) -> None:
    frame = make([f"m{i}" for i in range(count)])
    shuffled = frame.sample(frac=1, random_state=0).sort_values("run", kind="stable")
    drawn = pairs(plots.g_effect_curves(shuffled))
    assert list(drawn) == list(frame["run"].unique())
    for run, panels in drawn.items():
        own = frame[frame["run"] == run]
        for axes, side in zip(panels, ("unlearn", "retain"), strict=True):
            lines = {line.get_label(): np.asarray(line.get_xydata()) for line in axes.lines}
            for group in GROUPS:
                np.testing.assert_array_equal(lines[group], own[own["group"] == group][["step", side]])


@pytest.mark.parametrize("sign", [1, -1])
def test_axes_are_not_symmetric_where_all_is_on_one_side(sign: int) -> None:
    frame = make(["a"])
    for axes in plots.g_effect_curves(frame.assign(unlearn=sign * frame["unlearn"], retain=0.0)).axes[:1]:
        ends = sorted(np.abs(axes.get_ylim()))
        assert ends[0] < 0.1 * ends[1]
        assert ends[1] < 1.1 * frame["unlearn"].abs().max()
        assert any(set(np.ravel(line.get_ydata())) == {0} for line in axes.lines)


@pytest.mark.parametrize(
    ("growth", "retain", "limits", "says"),
    [
        (1.5, 0.5, 1, ""),
        (10, 0.5, 2, "each run has a y-axis of its own"),
        (10, 0.2, 4, "each panel has a y-axis of its own"),
    ],
)
def test_panels_share_an_axis_only_where_each_is_readable_on_it(
    growth: float, retain: float, limits: int, says: str
) -> None:
    figure = plots.g_effect_curves(make(["a", "b"], growth=growth, retain=retain))
    assert len({axes.get_ylim() for axes in figure.axes}) == limits
    assert figure.get_supxlabel() == "\n".join(["unlearning step", *filter(None, [says])])
    for axes in figure.axes:
        drawn = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
        low, high = axes.get_ylim()
        assert low < drawn.min() <= drawn.max() < high
        assert np.ptp(drawn) > (high - low) / 4
    numbered = [axes for axes in figure.axes if axes.yaxis.get_tick_params()["labelleft"]]
    assert len(numbered) == limits


@pytest.mark.parametrize("scale", ["linear", "symlog"])
def test_every_panel_has_the_scale_that_is_asked_for(scale: str) -> None:
    figure = plots.g_effect_curves(make(["even", "steep"]), scale=scale)
    assert {axes.get_yscale() for axes in figure.axes} == {scale}
    assert ("symlog, linear within ±" in figure.get_supylabel()) == (scale == "symlog")


def test_bands_are_two_standard_errors_and_are_explained() -> None:
    frame = make(["a"]).assign(**{"± unlearn": 3.0, "± retain": np.nan})
    figure = plots.g_effect_curves(frame)
    left, right = figure.axes
    assert (len(left.collections), len(right.collections)) == (len(GROUPS), 0)
    corners = np.asarray(left.collections[0].get_paths()[0].vertices)
    for step, value in frame.loc[frame["group"] == "total", ["step", "unlearn"]].to_numpy(float):
        assert {value - 6, value + 6} <= set(corners[corners[:, 0] == step, 1])
    assert left.get_ylim()[0] < frame["unlearn"].min() - 6
    assert "bands: two standard errors" in figure.get_supxlabel()


def test_a_zoom_adds_the_window_on_a_scale_of_its_own() -> None:
    drawn = pairs(plots.g_effect_curves(make(["ga", "wga"]), (2, 5)))
    assert list(drawn) == ["ga", "ga, steps 2 to 5", "wga", "wga, steps 2 to 5"]
    for run in ("ga", "wga"):
        (whole, _), (window, _) = drawn[run], drawn[f"{run}, steps 2 to 5"]
        (total,) = [line for line in window.lines if line.get_label() == "total"]
        np.testing.assert_array_equal(total.get_xdata(), [2, 3, 4, 5])
        assert window.get_ylim()[0] == pytest.approx(whole.get_ylim()[0] / 2)


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
        plots.g_effect_curves(make([f"m{i}" for i in range(count)]), zoom)


@pytest.mark.parametrize("width", ["column", "page"])
@pytest.mark.parametrize("count", [1, 3, 12])
def test_all_fits_on_a_page_whatever_a_method_is_called(count: int, width: str) -> None:
    names = [f"npo(beta=0.1)_{i} + 1.0*$kl$" for i in range(count)]
    figure = plots.g_effect_curves(make(names, growth=1.5), page=plots.Page(width))
    fits(figure)
    assert figure.get_figheight() < 10
    lowest = [axes for axes in figure.axes if axes.xaxis.get_tick_params()["labelbottom"]]
    assert len(lowest) == (2 if count in (1, 3) or width == "column" else 4)


def test_the_same_frame_gives_the_same_bytes(tmp_path: Path) -> None:
    same_bytes(
        plots.g_effect_curves(make(["a", "b"]), (0, 4)), plots.g_effect_curves(make(["a", "b"]), (0, 4)), tmp_path
    )
