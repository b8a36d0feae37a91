"""Many methods by step, each on its own scale (arXiv 2502.19301, Fig. 3 and 4)."""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from geffect.errors import GeffectError
from geffect.reports.plots.figure import Figure
from geffect.reports.plots.panels import by_run, center, curve, finish, furnish
from geffect.reports.plots.style import GROUPS, ONE_COLUMN, STYLE, TWO_COLUMN, Look

SIDES = {"unlearn": "unlearn; below 0: forgets", "retain": "retain; below 0: harms"}
TOTAL: Look = {"c": "black", "ls": "-", "lw": 1.6, "zorder": 2}
THIN: Look = {"lw": 0.9, "ms": 2.2, "zorder": 3}
CELLS = 16  # pairs of panels on a page


def g_effect_panels(frame: pd.DataFrame, zoom: tuple[float, float] | None = None) -> Figure:
    """Draw many methods' unlearn (left) and retain (right) G-effect by step, in total and by layer group.

    Args:
        frame: Columns ``run`` (the method; at most 16, with a zoom eight), ``step``, ``group`` (of ``GROUPS``),
            ``unlearn``, ``retain``; each run, step and group once. The total is the sum over groups.
        zoom: The first and the last step of a window drawn again, beside the whole and on a scale of its own.

    Returns:
        A figure with two methods side by side (with a zoom: one, its window to the right). The two panels of a method
        share a y-axis centered on zero, no two methods do. A title says where it is a symmetric
        logarithm, which it never is with a zoom.

    Raises:
        GeffectError: a column is missing, there are too many methods, or a window holds no step.
    """
    runs = by_run(frame, ("run", "step", "group", "unlearn", "retain"), CELLS // 2 if zoom else CELLS)
    cells = [cell for run, rows in runs.items() for cell in _windows(run, rows, zoom)]
    looks = {group: look | THIN for group, look in GROUPS.items() if group in set(frame["group"])}
    across = min(2, len(cells))
    lines = -(-len(cells) // across)
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(TWO_COLUMN, 1 + 1.05 * lines) if across > 1 else (ONE_COLUMN, 2.3), layout="constrained"
        )
        panels = figure.subplots(lines, 2 * across, squeeze=False).reshape(-1, 2)
        for (title, rows), (left, right) in zip(cells, panels, strict=False):
            _method(left, right, rows, title, looks, np.inf if zoom else 100)
        for axes in panels[len(cells) :].flat:
            axes.remove()
        for i, pair in enumerate(panels[: len(cells)]):
            for axes in pair:
                axes.tick_params(labelbottom=i + across >= len(cells))
        figure.supxlabel("unlearning step", size=8)
        figure.supylabel(
            "G-effect  $\\langle\\nabla R,\\, d\\rangle$\n(gradient² units)", size=8, multialignment="center"
        )
        finish(figure, {"total": TOTAL} | looks, 7 if across > 1 else 4, above=True)
    return figure


def _windows(run: str, rows: pd.DataFrame, zoom: tuple[float, float] | None) -> list[tuple[str, pd.DataFrame]]:
    """A method's rows, and those of the window, with their titles."""
    if zoom is None:
        return [(run, rows)]
    inside = rows[rows["step"].between(*zoom)]
    if inside.empty:
        raise GeffectError(
            f"steps of {run} from {zoom[0]:g} to {zoom[1]:g}",
            f"only {rows['step'].min():g} to {rows['step'].max():g}",
            "zoom into steps that were measured",
        )
    return [(run, rows), (f"{run}, steps {zoom[0]:g} to {zoom[1]:g}", inside)]


def _method(left: Axes, right: Axes, rows: pd.DataFrame, title: str, looks: dict[str, Look], ratio: float) -> None:
    """One method's pair of panels on one scale."""
    total = rows.groupby("step")[list(SIDES)].sum(min_count=1).reset_index()
    for axes, (side, note) in zip((left, right), SIDES.items(), strict=True):
        axes.plot(total["step"], total[side], label="total", **TOTAL)
        for group, look in looks.items():
            curve(axes, rows[rows["group"] == group], side, group, look)
        furnish(axes, note)
        center(axes, pd.concat([part[name] for part in (total, rows) for name in SIDES]), "", ticks=2, ratio=ratio)
        axes.set(ylabel="", xlim=_wide(rows["step"].min(), rows["step"].max()))
        if axes.get_yscale() == "linear":
            axes.yaxis.set_major_locator(MaxNLocator(nbins=4, symmetric=True))
            axes.yaxis.set_major_formatter(FuncFormatter(_short))
    right.tick_params(labelleft=False)
    left.set_title(title + (" (symlog)" if left.get_yscale() == "symlog" else ""), loc="left", parse_math=False)


def _wide(first: float, last: float) -> tuple[float, float]:
    """Limits with a little room at both ends, for markers."""
    room = 0.03 * (last - first) or 0.5
    return first - room, last + room


def _short(value: float, _: object) -> str:
    """A tick's number: 0.002, 1200, 3.5e5."""
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    return (f"{mantissa}e{int(exponent)}" if exponent else mantissa).replace("-", "−")
