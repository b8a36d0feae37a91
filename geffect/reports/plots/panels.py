"""What panels share: the frame checked and split, lines, axes, the legend."""

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from geffect.errors import GeffectError
from geffect.reports.plots.style import GROUPS, NOTE, Look, literal

Numbers = npt.NDArray[np.float64]


def check(frame: pd.DataFrame, columns: tuple[str, ...]) -> None:
    """Raise where there is nothing to draw.

    Args:
        frame: what was handed in.
        columns: what it must hold; of a column ``group`` every value must be one of ``GROUPS``.

    Raises:
        GeffectError: it is empty, a column is missing, or a group unknown.
    """
    if frame.empty or not set(columns) <= set(frame.columns):
        raise GeffectError(f"columns {', '.join(columns)}", f"{len(frame)} rows of {list(frame)}", "draw a run's frame")
    if "group" in columns and (unknown := set(frame["group"]) - set(GROUPS)):
        raise GeffectError(f"groups among {', '.join(GROUPS)}", str(sorted(map(str, unknown))), "sum by group")


def once(frame: pd.DataFrame, keys: list[str]) -> None:
    """Raise where two rows have the same keys."""
    if (again := frame.duplicated(keys)).any():
        found = ", ".join(map(str, frame.loc[again, keys].iloc[0]))
        raise GeffectError(f"each {', '.join(keys)} once", f"{found} again", "draw one step of one run")


def by_run(frame: pd.DataFrame, columns: tuple[str, ...], most: int) -> dict[str, pd.DataFrame]:
    """The frame, checked and split by run.

    Args:
        frame: what was handed in.
        columns: what it must hold; where ``run`` is not among them, a frame without it is one nameless run.
        most: how many runs fit.

    Returns:
        Run → its rows sorted by step, in order of appearance.

    Raises:
        GeffectError: as `check`, or too many runs.
    """
    check(frame, columns)
    frame = frame if "run" in frame else frame.assign(run="")
    parts = frame.sort_values("step", kind="stable").groupby("run")
    runs = {literal(run): parts.get_group(run) for run in frame["run"].unique()}
    if len(runs) > most:
        raise GeffectError(f"at most {most} runs in a picture", f"{len(runs)}: {', '.join(runs)}", "name fewer")
    return runs


def curve(axes: Axes, rows: pd.DataFrame, column: str, label: str, look: Look) -> None:
    """Draw one column by step, with about six markers, staggered from line to line."""
    if rows.empty:  # a run that has no such group; an empty line would upset the layout
        return
    every = max(1, len(rows) // 6)
    marked = (len(axes.lines) * every // 5 % every, every)
    axes.plot(rows["step"], rows[column], label=label, markevery=marked, clip_on=False, **look)


def furnish(axes: Axes, note: str) -> Axes:
    """Return the axes with a zero line, whole-number steps and a note in the lower left corner."""
    axes.axhline(0, color="0.55", lw=0.7, zorder=1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=True))
    axes.text(0.03, 0.03, note, transform=axes.transAxes, in_layout=False, **NOTE)
    return axes


def center(
    axes: Axes,
    values: "pd.Series[float]",
    label: str,
    unit: str = "gradient² units",
    ticks: int = 3,
    ratio: float = 100,
) -> None:
    """Center the y-axis on zero and name it; symlog where the largest value dwarfs the median by more than a ratio."""
    top, exponents = spread(finite(values), ratio)
    room = 1.3  # the margin holds the note
    if exponents:
        low, high = exponents
        axes.set_yscale("symlog", linthresh=10.0**low)
        axes.set_yticks(decades(low, high, ticks))
        room = 10 ** (0.3 * (np.log10(top) - low + 1))
    axes.set(ylim=(-room * top, room * top), ylabel=f"{label}\n({unit}{', symlog' if exponents else ''})")


def spread(values: Numbers, ratio: float = 100) -> tuple[float, tuple[int, int] | None]:
    """How far values reach from zero, and whether they need a symmetric logarithm.

    Args:
        values: any; those not finite are left out.
        ratio: of the largest size to the median from which on a linear scale would hide most.

    Returns:
        The largest size (1 where all are zero), and the exponents of ten below which the scale is linear and at which
        it ends; None where it is linear.
    """
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    top = float(sizes.max(initial=0)) or 1.0
    if sizes.size == 0 or top <= ratio * np.median(sizes):
        return top, None
    low, high = np.floor(np.log10([max(np.quantile(sizes, 0.25), top / 1e6), top])).astype(int)
    return top, (int(low), int(high))


def decades(low: int, high: int, most: int) -> list[float]:
    """Ticks at powers of ten on either side of zero, the largest first, at most so many a side, and at zero."""
    ticks = 10.0 ** np.arange(high, low, -max(1, -(-(high - low) // most)))
    return [*-ticks, 0, *ticks[::-1]]


def finite(values: "pd.Series[float]") -> Numbers:
    """The numbers among the values."""
    numbers = np.asarray(values, dtype=np.float64)
    return numbers[np.isfinite(numbers)]


def around_zero(axis: XAxis | YAxis, values: Numbers, room: float) -> tuple[float, float]:
    """Limits of an axis that hold zero and all values, with a share of their distance to spare on either side."""
    scale = axis.get_transform()
    low, high = scale.transform(np.array([values.min(initial=0), values.max(initial=0)]))
    spare = room * (high - low) or 1.0
    bottom, top = scale.inverted().transform(np.array([low - spare, high + spare]))
    return float(bottom), float(top)


def finish(figure: Figure, looks: dict[str, Look], columns: int, *, above: bool = False) -> None:
    """Put the one legend below or above all panels and settle the layout, so that drawing again moves nothing."""
    keys = [Line2D([], [], label=label, **look) for label, look in looks.items()]
    figure.legend(handles=keys, loc="outside upper center" if above else "outside lower center", ncols=columns)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
