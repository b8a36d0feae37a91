"""What single forget rows do to both risks, and how an objective weighs them (arXiv 2502.19301, Fig. 5)."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.scale import SymmetricalLogScale

from geffect.errors import GeffectError
from geffect.reports.plots.figure import Figure
from geffect.reports.plots.panels import Numbers, around_zero, check, curve, decades, finish, furnish, spread
from geffect.reports.plots.style import ONE_COLUMN, RUNS, STYLE, TWO_COLUMN, Look

FIXED = ("step", "example", "unlearn", "retain", "nll", "reference_nll", "num_tokens")  # the rest are weights
EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
ENOUGH, ACROSS, GRID = 20, 3, 80  # points for a density, panels side by side, its grid's lines
HELD = {0.5: "-", 0.9: (0, (3, 1.5))}  # a contour holds such a share of its range's points
REST: Look = {"c": "0.8", "ls": "", "marker": "o", "ms": 1.5, "mec": "none", "zorder": 1}
POINT: Look = {"c": "#004488", "ls": "", "marker": "o", "ms": 2.2, "mec": "none", "alpha": 0.6, "zorder": 2}
CONTOUR: Look = {"c": "#BB5566", "lw": 1.0}


def point_plane(points: pd.DataFrame, weight: str = "") -> Figure:
    """Draw every forget row's PG-effect on the forget (x) and the retain (y) risk, a panel a range of its weight.

    PG(s; D) = ⟨∇R(D), ∇log p(s)⟩: what gradient ascent on row s alone does, with the sign of a G-effect.

    Args:
        points: Columns ``unlearn``, ``retain`` (gradient² units) and what ``weight`` names; a row a step and forget
            row, all steps pooled.
        weight: The column of an objective's weights; the first by default.

    Returns:
        A figure whose panels share both axes: the range's points on gray ones of all others, and where there are at
        least twenty that do not lie on a line, contours of a kernel density that hold half and 90 % of them.

    Raises:
        GeffectError: a column is missing, or no row has all three numbers.
    """
    weight = weight or next(iter(_weights(points)), "a column of weights")
    check(points, ("unlearn", "retain", weight))
    rows = points[["unlearn", "retain", weight]].replace([np.inf, -np.inf], np.nan).dropna()
    if rows.empty:
        raise GeffectError(f"rows with unlearn, retain and {weight}", "only NaN", "draw a record made with --points")
    places = np.digitize(rows[weight].round(6), EDGES[1:], right=True)  # NPO's 1 at the start is 1 to rounding
    ranges, places_xy = sorted(set(places)), rows[["unlearn", "retain"]].to_numpy(float)
    across = min(ACROSS, len(ranges))
    width, lines = (TWO_COLUMN if across > 1 else ONE_COLUMN), -(-len(ranges) // across)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, 1.1 + min(2.2, 0.85 * width / across) * lines), layout="constrained")
        panels = list(figure.subplots(lines, across, sharex=True, sharey=True, squeeze=False).flat)
        says = _scale(panels[0], places_xy)
        for place, axes in zip(ranges, panels, strict=False):
            _range(axes, places_xy, places == place)
            axes.set_title(f"weight {_name(place)} (n = {(places == place).sum()})")
        for axes in panels[len(ranges) :]:
            axes.remove()
        for axes in panels[max(0, len(ranges) - across) : len(ranges)]:
            axes.tick_params(labelbottom=True)  # below some of these stands no panel
        label = f"PG-effect on the forget risk (gradient² units{says[0]}; left: forgets)"
        figure.supxlabel(
            f"{label}\npanels: weight of {weight}; shaded: forgets and keeps",
            size=8,
            multialignment="center",
            parse_math=False,
        )
        figure.supylabel(
            f"PG-effect on the retain risk\n(gradient² units{says[1]}; below 0: harms)", size=8, multialignment="center"
        )
        contours = {f"holds {100 * share:g} %": CONTOUR | {"ls": style} for share, style in HELD.items()}
        finish(
            figure, {"a row at a step": POINT, "of another weight": REST} | contours, 4 if across > 1 else 2, above=True
        )
    return figure


def _weights(points: pd.DataFrame) -> list[str]:
    return [name for name in points.columns if name not in (*FIXED, "run")]


def _name(place: int) -> str:
    return f"above {EDGES[-1]:g}" if place == len(EDGES) - 1 else f"{EDGES[place]:g} to {EDGES[place + 1]:g}"


def _scale(axes: Axes, points: Numbers) -> tuple[str, str]:
    """Scales and limits of all panels, and what the labels must say of them."""
    says = []
    for name, values in zip("xy", points.T, strict=True):
        if exponents := spread(values, 10)[1]:
            low, high = exponents
            axes.set(**{f"{name}scale": SymmetricalLogScale(None, linthresh=10.0**low)})
            axes.set(**{f"{name}ticks": decades(low, high, 2)})
        axes.set(**{f"{name}lim": around_zero(getattr(axes, f"{name}axis"), values, 0.12)})
        says.append(", symlog" if exponents else "")
    return says[0], says[1]


def _range(axes: Axes, points: Numbers, inside: "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]") -> None:
    """One panel: zero lines, all points, the range's own, and their contours where they are enough."""
    axes.axhline(0, color="0.55", lw=0.7, zorder=1)
    axes.axvline(0, color="0.55", lw=0.7, zorder=1)
    axes.plot(*points[~inside].T, **REST)
    axes.plot(*points[inside].T, **POINT)
    left, top = axes.get_xlim()[0], axes.get_ylim()[1]
    axes.add_patch(Rectangle((left, 0), -left, top, fc="0.92", ec="none", zorder=0))
    own = axes.transScale.transform(points[inside])
    if len(own) >= ENOUGH:
        _contours(axes, own)


def _contours(axes: Axes, points: Numbers) -> None:
    """Contours of the density over the axes as scaled; none where the points lie on a line."""
    from scipy.stats import gaussian_kde

    if np.linalg.svd(points - points.mean(0), compute_uv=False)[-1] <= 1e-9 * np.abs(points).max():
        return  # nothing but rounding across the line
    density = gaussian_kde(points.T)
    low, high = axes.transScale.transform(np.transpose([axes.get_xlim(), axes.get_ylim()]))
    x, y = np.linspace(low, high, GRID).T
    heights = density(np.stack(np.meshgrid(x, y)).reshape(2, -1)).reshape(GRID, GRID)
    levels = {float(np.quantile(density(points.T), 1 - share)): style for share, style in HELD.items()}
    back = axes.transScale.inverted()
    grid = back.transform(np.stack([x, y], axis=1))
    for level, style in levels.items():
        axes.contour(*grid.T, heights, [level], colors=[CONTOUR["c"]], linewidths=CONTOUR["lw"], linestyles=[style])


def weight_curves(points: pd.DataFrame, weights: Sequence[str] = ()) -> Figure:
    """Draw the mean weight that objectives put on the forget rows by step, in a band of its standard error.

    Args:
        points: Column ``step``, and one an objective with a row's weights; a row a step and forget row.
        weights: Which columns (at most six); by default all that are not of `geffect.read_points` itself.

    Returns:
        A one-panel figure from zero: a line an objective, mean ± std/√n over rows.

    Raises:
        GeffectError: a column is missing, or there are none or too many.
    """
    chosen = list(weights) or _weights(points)
    if not 0 < len(chosen) <= len(RUNS):
        raise GeffectError(f"one to {len(RUNS)} columns of weights", f"{len(chosen)} in {list(points)}", "name some")
    check(points, ("step", *chosen))
    looks = dict(zip(chosen, RUNS, strict=False))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(ONE_COLUMN, 2.6), layout="constrained")
        axes = furnish(figure.subplots(), "")
        for name, look in looks.items():
            table = points.groupby("step")[name].agg(["mean", "sem"]).reset_index()
            edges = (table["mean"] - table["sem"], table["mean"] + table["sem"])
            axes.fill_between(table["step"], *edges, color=look["c"], alpha=0.2, lw=0)
            curve(axes, table, "mean", name, look)
        axes.set(
            xlabel="unlearning step",
            ylabel="mean weight on a row's " + r"$\nabla\log p$" + "\n(band: ± 1 standard error)",
        )
        axes.set_ylim(0, None)
        finish(figure, looks, 2)
    return figure
