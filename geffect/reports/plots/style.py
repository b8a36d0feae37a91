"""What figures share: their look, how they are shown and saved, checks of frames, panels, lines, axes and cells."""

from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import matplotlib
import matplotlib.figure
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.cm import ScalarMappable
from matplotlib.collections import QuadMesh
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from geffect.errors import GeffectError
from geffect.record.writer import write

Numbers = npt.NDArray[np.float64]
Look = dict[str, Any]  # how a line looks: keywords of Line2D
ONE_COLUMN, TWO_COLUMN = 3.4, 7.0  # inches
NOTE: Final[Look] = {"color": "0.35", "size": 6}  # text inside a panel
DPI = 144  # 8-point text is 16 pixels high


class Settings(dict[str, Any]):
    """Matplotlib settings of the pictures, for pictures of your own: ``plt.rcParams.update(geffect.PLOT_STYLE)``."""


PLOT_STYLE: Final = Settings({
    "font.size": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.edgecolor": "0.7",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": "0.7",
    "ytick.color": "0.7",
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "legend.frameon": False,
    "legend.handlelength": 2.8,
    "legend.columnspacing": 1.2,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    "figure.dpi": DPI,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
})
STYLE: Final[dict[Any, Any]] = {  # on top of the defaults, so that a user's own settings change no figure
    **{key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")},
    **PLOT_STYLE,
    "figure.dpi": 200,
}


styled = matplotlib.rc_context(STYLE)  # decorates a function that draws


def literal(name: object) -> str:
    """A name as matplotlib shows it; unescaped dollars would make a formula."""
    return str(name).replace("$", r"\$")


GROUPS: Final[dict[str, Look]] = {
    "embed": {"c": "#0072B2", "marker": "o", "ls": "-"},
    "shallow": {"c": "#E69F00", "marker": "s", "ls": (0, (5, 1.5))},
    "middle": {"c": "#009E73", "marker": "^", "ls": (0, (5, 1.5, 1, 1.5))},
    "deep": {"c": "#D55E00", "marker": "D", "ls": (0, (1, 1))},
    "lm_head": {"c": "#CC79A7", "marker": "v", "ls": (0, (3, 1, 1, 1, 1, 1))},
    "shared": {"c": "#56B4E9", "marker": "X", "ls": (0, (2, 1.5, 6, 1.5))},
    "tied": {"c": "#000000", "marker": "P", "ls": (0, (8, 2))},
}
RUNS: Final[tuple[Look, ...]] = (
    {"c": "#004488", "marker": "o"},
    {"c": "#BB5566", "marker": "s"},
    {"c": "#DDAA33", "marker": "^"},
    {"c": "#000000", "marker": "D"},
    {"c": "#228833", "marker": "v"},
    {"c": "#66CCEE", "marker": "P"},
)
READINGS: Final[dict[str, Look]] = {  # what a change of loss is predicted from
    "gradient": {"c": "#D55E00", "marker": "s", "ls": (0, (5, 1.5))},
    "update": {"c": "#0072B2", "marker": "o", "ls": (0, (5, 1.5, 1, 1.5))},
}


class Figure(matplotlib.figure.Figure):
    """matplotlib's figure, shown as the last value of a notebook cell without pyplot."""

    def _repr_png_(self) -> bytes:
        stream = BytesIO()
        with matplotlib.rc_context(STYLE):
            self.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
        return stream.getvalue()


def save(figure: matplotlib.figure.Figure, path: Path, data: pd.DataFrame) -> list[Path]:
    """Write a figure as PNG and PDF and its data as CSV to a path without suffix; the same input gives the same bytes.

    The three files' paths, in this order.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    png, pdf = BytesIO(), BytesIO()  # rendered first: a disk's error amid a PDF raises matplotlib's own
    with matplotlib.rc_context(STYLE):
        figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
        figure.savefig(pdf, format="pdf", metadata=dict.fromkeys(("Creator", "Producer", "CreationDate")))
    csv = data.to_csv(index=False, lineterminator="\n")
    contents: dict[str, str | bytes] = {"png": png.getvalue(), "pdf": pdf.getvalue(), "csv": csv}
    files = {path.with_name(f"{path.name}.{kind}"): content for kind, content in contents.items()}
    for file, content in files.items():
        write(file, content)
    return list(files)


def check(frame: pd.DataFrame, columns: tuple[str, ...]) -> None:
    """Raise where a frame is empty, lacks a column, or names a layer group that is none of ``GROUPS``."""
    if frame.empty or not set(columns) <= set(frame.columns):
        message = f"The frame has {len(frame)} rows of {list(frame)}; the figure needs {', '.join(columns)}"
        raise GeffectError(message, remedy="Draw the frame of a run")
    if "group" in columns and (unknown := set(frame["group"]) - set(GROUPS)):
        message = f"{', '.join(sorted(map(str, unknown)))} is no layer group"
        raise GeffectError(message, remedy=f"Sum by group: {', '.join(GROUPS)}")


def once(frame: pd.DataFrame, keys: list[str]) -> None:
    """Raise where two rows of a frame have the same keys."""
    if (repeated := frame.duplicated(keys)).any():
        values = ", ".join(map(str, frame.loc[repeated, keys].iloc[0]))
        message = f"The frame has two rows of {', '.join(keys)} = {values}"
        raise GeffectError(message, remedy="Draw one step of one run")


def at_most(most: int, what: str, names: Iterable[object]) -> None:
    """Raise where there are more names than a figure shows."""
    if len(named := [*map(str, names)]) > most:
        message = f"A figure shows at most {most} {what}, not {len(named)}: {', '.join(named)}"
        raise GeffectError(message, remedy="Leave some out")


def by_run(frame: pd.DataFrame, columns: tuple[str, ...], most: int) -> dict[str, pd.DataFrame]:
    """A frame's rows by run, sorted by step; the runs stand in order of appearance.

    A frame without a column ``run`` is one run without a name, where ``columns`` does not ask for it.
    """
    check(frame, columns)
    frame = frame if "run" in frame else frame.assign(run="")
    parts = frame.sort_values("step", kind="stable").groupby("run")
    runs = {literal(run): parts.get_group(run) for run in frame["run"].unique()}
    at_most(most, "runs", runs)
    return runs


def curve(axes: Axes, rows: pd.DataFrame, column: str, label: str, look: Look) -> None:
    """Draw one column by step, with about six markers, shifted from line to line."""
    if rows.empty:  # a run that has no such group; an empty line would upset the layout
        return
    every = max(1, len(rows) // 6)
    marked = (len(axes.lines) * every // 5 % every, every)
    axes.plot(rows["step"], rows[column], label=label, markevery=marked, clip_on=False, **look)


def band(axes: Axes, rows: pd.DataFrame, x: str, y: str, interval: str | tuple[str, float], look: Look) -> None:
    """Draw the mean of a column at each x in a band of seaborn's ``interval``: ``se``, or ``("pi", 100)`` for all."""
    import seaborn  # two seconds, which only these figures take

    edge = {"lw": 0, "alpha": 0.2}
    seaborn.lineplot(rows, x=x, y=y, errorbar=interval, ax=axes, legend=False, err_kws=edge, mec=look["c"], **look)


def panel_grid(
    count: int, most: int, height: Callable[[float, int], float], spare: float
) -> tuple[Figure, list[Axes], int]:
    """A figure of so many empty panels that share both axes, the panels, and how many stand side by side.

    ``height`` gives a panel's from the figure's width and the panels side by side, ``spare`` is left beside all panels;
    both are in inches.
    """
    across = min(most, count)
    width, lines = (TWO_COLUMN if across > 1 else ONE_COLUMN), -(-count // across)
    figure = Figure(figsize=(width, spare + lines * height(width, across)), layout="constrained")
    panels = list(figure.subplots(lines, across, sharex=True, sharey=True, squeeze=False).flat)
    for axes in panels[count:]:
        axes.remove()
    for axes in panels[count - across : count]:
        axes.tick_params(labelbottom=True)  # below some of these stands no panel
    return figure, panels[:count], across


def name_axes(figure: Figure, x: str, y: str) -> None:
    """Name the axes that all panels share."""
    figure.supxlabel(x, size=8, multialignment="center")
    figure.supylabel(y, size=8, multialignment="center")


def cross(axes: Axes) -> None:
    """Draw both zero lines."""
    axes.axhline(0, color="0.55", lw=0.7, zorder=1)
    axes.axvline(0, color="0.55", lw=0.7, zorder=1)


def furnish(axes: Axes, note: str) -> Axes:
    """The axes, with a zero line, ticks at whole steps and a note in the lower left corner."""
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
    """Center the y-axis on zero and name it; symlog if the largest value is more than ``ratio`` times the median."""
    top, exponents = spread(finite(values), ratio)
    room = 1.3  # the margin holds the note
    if exponents:
        low, high = exponents
        axes.set_yscale("symlog", linthresh=10.0**low)
        axes.set_yticks(decades(low, high, ticks))
        room = 10 ** (0.3 * (np.log10(top) - low + 1))
    axes.set(ylim=(-room * top, room * top), ylabel=f"{label}\n({unit}{', symlog' if exponents else ''})")


def spread(values: Numbers, ratio: float = 100) -> tuple[float, tuple[int, int] | None]:
    """The largest absolute value (1 where all are zero), and two exponents of ten for a symmetric logarithm.

    The scale is linear below the first and ends at the second. None: the largest is at most ``ratio`` times the median.
    """
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    top = float(sizes.max(initial=0)) or 1.0
    if sizes.size == 0 or top <= ratio * np.median(sizes):
        return top, None
    low, high = np.floor(np.log10([max(np.quantile(sizes, 0.25), top / 1e6), top])).astype(int)
    return top, (int(low), int(high))


def decades(low: int, high: int, most: int) -> list[float]:
    """Ticks at zero and at powers of ten on both sides, the largest first, at most so many a side."""
    ticks = 10.0 ** np.arange(high, low, -max(1, -(-(high - low) // most)))
    return [*-ticks, 0, *ticks[::-1]]


def finite(values: "pd.Series[float]") -> Numbers:
    """The finite values."""
    numbers = np.asarray(values, dtype=np.float64)
    return numbers[np.isfinite(numbers)]


def around_zero(axis: XAxis | YAxis, values: Numbers, room: float) -> tuple[float, float]:
    """Limits of an axis that include zero and all values, plus a share ``room`` of their distance on both sides."""
    scale = axis.get_transform()
    low, high = scale.transform(np.array([values.min(initial=0), values.max(initial=0)]))
    spare = room * (high - low) or 1.0
    bottom, top = scale.inverted().transform(np.array([low - spare, high + spare]))
    return float(bottom), float(top)


def finish(figure: Figure, looks: dict[str, Look], columns: int, *, above: bool = False) -> None:
    """Put one legend below or above all panels, and fix the layout."""
    keys = [Line2D([], [], label=label, **look) for label, look in looks.items()]
    figure.legend(handles=keys, loc="outside upper center" if above else "outside lower center", ncols=columns)
    settle(figure)


def settle(figure: Figure) -> None:
    """Fix the layout so that drawing again moves nothing, in the size that a notebook shows it in."""
    figure.draw_without_rendering()
    figure.set_layout_engine(None)
    figure.set_dpi(DPI)  # IPython shows a figure in its own resolution once pyplot has drawn


SIGNED = "PuOr"  # orange below zero, purple above: distinct for every kind of color vision
UNKNOWN = "0.75"


def signed(values: Numbers) -> tuple[Normalize, str, list[float] | None]:
    """A color scale centered on zero, what its label must add (empty if linear), and its ticks (None: the default)."""
    top, exponents = spread(values, 30)
    if exponents is None:
        return Normalize(-top, top), "", None
    low, high = exponents
    return (
        SymLogNorm(10.0**low, vmin=-top, vmax=top, base=10),
        f"symlog, linear within ±{10.0**low:g}",
        decades(low, high, 3),
    )


def bar(figure: Figure, axes: Axes, mesh: ScalarMappable, label: str, ticks: Sequence[float] | None) -> Colorbar:
    """Draw a horizontal color bar into its own axes."""
    colors = figure.colorbar(mesh, cax=axes, orientation="horizontal", label=label)
    if ticks is not None:
        colors.set_ticks(list(ticks))
        colors.minorticks_off()
    axes.spines[:].set_visible(False)
    return colors


def heat(axes: Axes, table: pd.DataFrame, colors: str, scale: Normalize, x: Numbers | None = None) -> QuadMesh:
    """Draw a table's cells from the top left, hatched where a value is missing, with the index beside them.

    ``x`` holds the columns' edges, one more than columns; whole numbers by default.
    """
    axes.patch.set(facecolor="white", edgecolor=UNKNOWN, hatch="//////")
    edges, lines = np.arange(table.shape[1] + 1.0) if x is None else x, np.arange(len(table) + 1)
    mesh = axes.pcolormesh(edges, lines, table.to_numpy(float), ec="white", lw=0.5, cmap=colors, norm=scale)
    axes.set(ylim=(len(table), 0), yticks=np.arange(len(table)) + 0.5, yticklabels=[*map(literal, table.index)])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return mesh


def name_columns(axes: Axes, names: list[str]) -> None:
    """Label the columns; rotate labels that overlap, and leave some out where they still would."""
    width = 65 * (axes.figure.bbox.width / axes.figure.dpi - 1) / len(names)  # points a column has, about
    turned = max(len(line) for name in names for line in name.split("\n")) * 4.2 > width
    every = int(np.ceil(9 / width)) if turned else 1
    places = range(0, len(names), every)
    axes.set_xticks([i + 0.5 for i in places], [literal(names[i]) for i in places], rotation=90 if turned else 0)


def number(axes: Axes, mesh: QuadMesh, matrix: Numbers) -> None:
    """Write every number into its cell; the diagonal is 1."""
    size = 8 - 0.35 * max(0, len(matrix) - 4)
    for (i, j), value in np.ndenumerate(matrix):
        text = "1" if i == j else f"{value:.2f}".replace("-", "−") if np.isfinite(value) else "–"
        axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", color=ink(mesh, value), size=size)


def ink(mesh: ScalarMappable, value: float) -> str:
    """Black or white, whichever is readable on a value's color."""
    red, green, blue, _ = mesh.to_rgba(np.nan_to_num(value))
    return "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else "black"
