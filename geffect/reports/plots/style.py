"""What figures share: their look, how they are shown and saved, checks of frames, panels, lines, axes and cells."""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from io import BytesIO
from itertools import combinations
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar, cast

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
from matplotlib.scale import SymmetricalLogScale
from matplotlib.ticker import FixedFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from geffect.errors import GeffectError
from geffect.record.writer import write

Numbers = npt.NDArray[np.float64]
Look = dict[str, Any]  # how a line looks: keywords of Line2D
ONE_COLUMN, TWO_COLUMN = 3.3, 7.0  # inches
TALLEST = 9.2  # inches of a page
NATS: Final = "nats a token"  # the unit of a change of loss, and below that of a G-effect, everywhere
PER_RATE: Final = f"{NATS} per unit of learning rate"
NOTE: Final[Look] = {"color": "0.35", "size": 6.5}  # the smallest text
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
    "svg.hashsalt": "geffect",
}
ON_TOP: ContextVar[Mapping[Any, Any]] = ContextVar("ON_TOP")  # a reader's own settings, on top of STYLE
P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Draw in this style, and in what the reader puts on top of it."""

    @wraps(draw)
    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context(STYLE | dict(ON_TOP.get({}))):
            return draw(*args, **kwargs)

    return inner


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


FORMATS: Final = {  # what a file of the kind must not say, so that the same input gives the same bytes
    "png": {"Software": None},
    "pdf": dict.fromkeys(("Creator", "Producer", "CreationDate")),
    "svg": {"Creator": None, "Date": None},
}


@styled
def save(
    figure: matplotlib.figure.Figure,
    path: Path,
    data: pd.DataFrame,
    formats: Sequence[str] = ("png", "pdf"),
    dpi: float = 200,
) -> list[Path]:
    """Write a figure in its formats, and its data as CSV, to a path without suffix; the same input, the same bytes.

    The files' paths, the CSV last.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    contents: dict[str, str | bytes] = {}
    for kind in formats:  # rendered first: a disk's error amid a PDF raises matplotlib's own
        stream = BytesIO()
        figure.savefig(stream, format=kind, dpi=dpi, metadata=FORMATS[kind])
        contents[kind] = stream.getvalue()
    contents["csv"] = data.to_csv(index=False, lineterminator="\n")
    files = {path.with_name(f"{path.name}.{kind}"): content for kind, content in contents.items()}
    for file, content in files.items():
        write(file, content)
    return list(files)


@dataclass(frozen=True)
class Page:
    """Where a figure is drawn.

    Attributes:
        width: ``column`` (3.3 inches) or ``page`` (7); empty: as the panels need.
        figsize: inches, in place of a width.
        ax: axes of another figure to draw in; for figures of one panel.
    """

    width: str = ""
    figsize: tuple[float, float] | None = None
    ax: Axes | None = None

    def inches(self, wide: bool) -> float:
        """The figure's width; ``wide`` where nobody chose one."""
        if self.figsize:
            return self.figsize[0]
        return TWO_COLUMN if self.width == "page" or (wide and not self.width) else ONE_COLUMN

    def figure(self, wide: bool, height: float, layout: Any = "constrained") -> Figure:
        """A figure that is no single panel."""
        if self.ax is not None:
            raise GeffectError("The figure has several panels, and ax is one", remedy="Leave ax out")
        return Figure(figsize=self.figsize or (self.inches(wide), min(height, TALLEST)), layout=layout)

    def panels(
        self,
        count: int,
        most: int,
        height: Callable[[float, int], float],
        spare: float,
        block: int = 1,
        shared: str = "",
        wide: bool | None = None,
        least: float = 0.5,
    ) -> tuple[Figure, list[Axes], int]:
        """A figure of so many blocks of panels, the panels, and how many blocks stand side by side.

        ``height`` gives a panel's from the figure's width and the panels side by side, ``spare`` is left beside all
        panels; both are in inches. ``shared`` names the axes that all panels share (``x``, ``xy``). In less
        than five inches at most two panels stand side by side. It is ``wide`` by default where it has several panels.
        """
        if self.ax is not None and count * block == 1:
            return cast("Figure", self.ax.figure), [self.ax], 1
        wide = count * block > 1 if wide is None else wide
        width = self.inches(wide)
        across = min(count, most if width > 5 else max(1, 2 // block))
        lines = -(-count // across)
        tall = min(height(width, across * block), (TALLEST - spare) / lines)
        if tall < least:
            message = f"{count * block} panels do not fit on a page, {across * block} side by side"
            raise GeffectError(message, remedy="Choose --width page, or fewer runs, targets or steps")
        figure = self.figure(wide, spare + lines * tall)
        panels = list(
            figure.subplots(lines, across * block, squeeze=False, sharex="x" in shared, sharey="y" in shared).flat
        )
        for axes in panels[count * block :]:
            axes.remove()
        for axes in panels[(count - across) * block : count * block] if "x" in shared else ():
            axes.tick_params(labelbottom=True)  # below some of these stands no panel
        return figure, panels[: count * block], across

    def name(self, figure: Figure, panels: Sequence[Axes], x: str, y: str, notes: Sequence[str] = ()) -> None:
        """Name the axes that all panels share, and write notes below them."""
        room = int(20 * (self.inches(len(panels) > 1) if self.ax is None else ONE_COLUMN))
        below = "\n".join([x, *textwrap.wrap("; ".join(filter(None, notes)), room)])
        if len(panels) == 1:
            panels[0].set_xlabel(below, size=7, linespacing=1.3)
            panels[0].set_ylabel(y)
        else:
            figure.supxlabel(below, size=7, multialignment="center", linespacing=1.3)
            figure.supylabel(y, size=8, multialignment="center")


PAGE: Final = Page()


def check(frame: pd.DataFrame, columns: tuple[str, ...]) -> None:
    """Raise where a frame is empty, lacks a column, or names a layer group that is none of ``GROUPS``."""
    if frame.empty or not set(columns) <= set(frame.columns):
        message = f"The frame has {len(frame)} rows of {list(frame)}; the figure needs {', '.join(columns)}"
        raise GeffectError(message, remedy="Draw the frame of a run")
    if "group" in columns and (unknown := set(frame["group"]) - {*GROUPS, "total"}):
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


MOST_RUNS = 16


def by_run(frame: pd.DataFrame, columns: tuple[str, ...], most: int = MOST_RUNS) -> dict[str, pd.DataFrame]:
    """A frame's rows by run, sorted by step; the runs stand in order of appearance.

    A frame without a column ``run`` is one run without a name, where ``columns`` does not ask for it.
    """
    check(frame, columns)
    frame = frame if "run" in frame else frame.assign(run="")
    parts = frame.sort_values("step", kind="stable").groupby("run")
    runs = {literal(run): parts.get_group(run) for run in frame["run"].unique()}
    at_most(most, "runs", runs)
    return runs


def cells(runs: Iterable[str]) -> tuple[list[list[str]], dict[str, Look]]:
    """The runs of each panel, and their looks: all in one panel while there are looks, then each in its own."""
    names = list(runs)
    if len(names) <= len(RUNS):
        return [names], dict(zip(names, RUNS, strict=False))
    return [[name] for name in names], dict.fromkeys(names, RUNS[0])


OTHERS: Final[Look] = {"c": "0.85", "lw": 0.7, "zorder": 0.5}  # other panels' runs, behind a panel's own
TOTAL: Final[Look] = {"c": "black", "ls": "-", "lw": 1.6, "zorder": 2}


def group_looks(frame: pd.DataFrame) -> dict[str, Look]:
    """The looks of a frame's layer groups in their order, thin, after the total's."""
    thin: Look = {"lw": 0.9, "ms": 2.2, "zorder": 3}
    looks = {"total": TOTAL} | {group: look | thin for group, look in GROUPS.items()}
    return {group: look for group, look in looks.items() if group in set(frame["group"])}


def curve(axes: Axes, rows: pd.DataFrame, column: str, label: str, look: Look) -> None:
    """Draw one column by step, with about six markers, shifted from line to line, in a band where it has errors."""
    for low, high in errors(rows, column):
        axes.fill_between(rows["step"], low, high, color=look["c"], alpha=0.18, lw=0, zorder=1.5)
    if rows.empty:  # a run that has no such group; an empty line would upset the layout
        return
    every = max(1, len(rows) // 6)
    marked = (len(axes.lines) * every // 5 % every, every)
    axes.plot(rows["step"], rows[column], label=label, markevery=marked, clip_on=False, **look)


def errors(rows: pd.DataFrame, column: str) -> list[tuple[Numbers, Numbers]]:
    """Two standard errors around a column, where ``± column`` holds them: a list of one pair, or of none."""
    if f"± {column}" not in rows or rows[f"± {column}"].isna().all():
        return []
    values, error = (rows[name].to_numpy(float) for name in (column, f"± {column}"))
    return [(values - 2 * error, values + 2 * error)]


def band(axes: Axes, rows: pd.DataFrame, x: str, y: str, interval: str | tuple[str, float], look: Look) -> None:
    """Draw the mean of a column at each x in a band of seaborn's ``interval``: ``se``, or ``("pi", 100)`` for all."""
    import seaborn  # two seconds, which only these figures take

    edge = {"lw": 0, "alpha": 0.2}
    seaborn.lineplot(rows, x=x, y=y, errorbar=interval, ax=axes, legend=False, err_kws=edge, mec=look["c"], **look)


def cross(axes: Axes) -> None:
    """Draw both zero lines."""
    axes.axhline(0, color="0.55", lw=0.7, zorder=1)
    axes.axvline(0, color="0.55", lw=0.7, zorder=1)


def furnish(axes: Axes) -> Axes:
    """The axes, with a zero line and ticks at whole steps."""
    axes.axhline(0, color="0.55", lw=0.7, zorder=1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=True))
    return axes


def short(value: float, _: object = None) -> str:
    """A tick's number in few characters: 0.002, 1200, 3.5e5."""
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    return (f"{mantissa}e{int(exponent)}" if exponent else mantissa).replace("-", "−")


SCALES: Final = ("linear", "symlog", "log")


def rescale(axes: Iterable[XAxis | YAxis], values: Numbers, scale: str, ticks: int = 3) -> str:
    """Put axes on one scale, and return what a label must add: nothing where it is linear."""
    finite = values[np.isfinite(values)]
    if scale == "log" and not (finite.size and finite.min() > 0):
        raise GeffectError("A logarithmic axis shows values above 0 only, and some here are not", remedy="Use symlog")
    top = np.abs(finite).max(initial=0) or 1.0
    low, high = spread(values, 0)[1] or (int(np.floor(np.log10(top))),) * 2
    for axis in axes:
        name = axis.axis_name
        if scale == "symlog":
            axis.axes.set(**{f"{name}scale": SymmetricalLogScale(None, linthresh=10.0**low)})
            axis.set_ticks(decades(low, high, ticks))
        elif scale == "log":
            axis.axes.set(**{f"{name}scale": "log"})
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if finite.max() < 300 * finite.min() else (1,)))
        else:
            axis.set_major_locator(MaxNLocator(ticks + 1))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(FuncFormatter(short))
    return {"linear": "", "symlog": f", symlog, linear within ±{10.0**low:g}", "log": ", log"}[scale]


READABLE = 3  # a panel that fills less than one in so many of a common axis gets its own


def fit(blocks: Sequence[Sequence[Axes]], drawn: Mapping[Axes, Numbers], unit: str) -> str:
    """Set the y-limits by what is drawn and zero: for all panels in common, else by block, else panel by panel.

    Panels have an axis in common only where each fills a third of it. Those without labels of their own are in a
    block whose first one has them.

    Args:
        blocks: the panels, those together that should have an axis in common.
        drawn: what each shows.
        unit: what a block is called.

    Returns:
        What must be said: whose the axes are, and nothing where all have one.
    """
    everything = [axes for block in blocks for axes in block]
    if _fills(everything, drawn):
        _limit(everything, drawn)
        for axes in everything[1:]:
            place = axes.get_subplotspec()
            axes.tick_params(labelleft=place is None or place.is_first_col())
        return ""
    together = [len(block) > 1 and _fills(block, drawn) for block in blocks]
    for block, alike in zip(blocks, together, strict=True):
        for part in [block] if alike else [[axes] for axes in block]:
            _limit(part, drawn)
        for axes in block[1:] if alike else ():
            axes.tick_params(labelleft=False)
    if all(len(block) == 1 for block in blocks) or not any(together):
        return "each panel has a y-axis of its own"
    own = "" if all(together) else ", and so has a panel with numbers beside it"
    return f"each {unit} has a y-axis of its own{own}"


def _fills(panels: Sequence[Axes], drawn: Mapping[Axes, Numbers]) -> bool:
    spans = [np.ptp(_with_zero(axes, drawn)) for axes in panels]
    return bool(READABLE * min(spans) >= np.ptp(np.concatenate([_with_zero(axes, drawn) for axes in panels])))


def _with_zero(axes: Axes, drawn: Mapping[Axes, Numbers]) -> Numbers:
    """What a panel shows, and zero where its axis has one, on the axis's scale."""
    values = drawn[axes][np.isfinite(drawn[axes])]
    values = values if axes.get_yscale() == "log" and values.size else np.append(values, 0.0)
    return np.asarray(axes.yaxis.get_transform().transform(values), dtype=np.float64)


def _limit(panels: Sequence[Axes], drawn: Mapping[Axes, Numbers]) -> None:
    """Give panels the limits of what all of them show."""
    both = np.concatenate([_with_zero(axes, drawn) for axes in panels])
    spare = 0.07 * np.ptp(both) or 1.0
    limits = panels[0].yaxis.get_transform().inverted().transform(np.array([both.min() - spare, both.max() + spare]))
    for axes in panels:
        axes.set_ylim(*map(float, limits))


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


def finish(figure: Figure, looks: Mapping[str, Look], page: Page = PAGE) -> None:
    """Put one legend above all panels, in as many columns as there is room for, and fix the layout."""
    keys = [Line2D([], [], label=label, **look) for label, look in looks.items()]
    if page.ax is not None:
        page.ax.legend(handles=keys, loc="upper left", bbox_to_anchor=(1, 1))
        return
    longest = max((len(label.replace("$", "")) for label in looks), default=0)
    columns = int(72 * figure.get_figwidth() // (7 * (4.8 + 0.58 * longest))) or 1
    figure.legend(handles=keys, loc="outside upper center", ncols=min(len(keys), columns))
    settle(figure)


def settle(figure: Figure) -> None:
    """Fix the layout so that drawing again moves nothing, and leave out labels of ticks that would touch."""
    figure.draw_without_rendering()
    figure.set_layout_engine(None)
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if not isinstance(axis.get_major_formatter(), FixedFormatter):
                _thin(axis)
    figure.set_dpi(DPI)  # IPython shows a figure in its own resolution once pyplot has drawn


def _thin(axis: XAxis | YAxis) -> None:
    """Keep every second label of an axis, or every third, counted from zero, where they would touch."""
    low, high = sorted(axis.get_view_interval())
    ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high and tick.label1.get_visible()]
    places = [tick.get_loc() for tick in ticks]
    boxes = [tick.label1.get_window_extent().padded(1) for tick in ticks if tick.label1.get_text()]
    if len(boxes) < len(ticks):
        return
    start = places.index(0) if 0 in places else 0
    for every in range(1, len(ticks) + 1):
        kept = [i for i in range(len(ticks)) if (i - start) % every == 0]
        if not any(boxes[i].overlaps(boxes[j]) for i, j in combinations(kept, 2)):
            break
    if len(ticks) and every > 1:
        axis.set_ticks([places[i] for i in kept])


SIGNED = "PuOr"  # orange below zero, purple above: distinct for every kind of color vision
UNKNOWN = "0.75"


def signed(values: Numbers, scale: str = "") -> tuple[Normalize, str, list[float] | None]:
    """A color scale centered on zero, what its label must add (empty if linear), and its ticks (None: the default).

    ``scale`` is ``linear`` or ``symlog``; by default the second where a few values are far larger than the rest.
    """
    if scale == "log":
        raise GeffectError("Colors of signed values have no logarithmic scale", remedy="Use symlog")
    top, exponents = spread(values, {"": 30, "symlog": 0}.get(scale, np.inf))
    if exponents is None:
        return Normalize(-top, top), "", None
    low, high = exponents
    return (
        SymLogNorm(10.0**low, vmin=-top, vmax=top, base=10),
        f"symlog, linear within ±{10.0**low:g}",
        decades(low, high, 3),
    )


def bar(
    figure: Figure, axes: Axes, mesh: ScalarMappable, label: str, ticks: Sequence[float] | None, over: Any = None
) -> Colorbar:
    """Draw a horizontal color bar into its own axes, over the values that are there (by default its whole scale)."""
    colors = figure.colorbar(mesh, cax=axes, orientation="horizontal", label=label)
    if ticks is not None:
        colors.set_ticks(list(ticks))
        colors.minorticks_off()
    over = np.append(over[np.isfinite(over)], 0.0) if over is not None else np.zeros(1)
    if np.ptp(over):
        axes.set_xlim(over.min(), over.max())
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
    size = max(6.5, 8 - 0.35 * max(0, len(matrix) - 4))
    for (i, j), value in np.ndenumerate(matrix):
        text = "1" if i == j else f"{value:.2f}".replace("-", "−") if np.isfinite(value) else "–"
        axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", color=ink(mesh, value), size=size)


def ink(mesh: ScalarMappable, value: float) -> str:
    """Black or white, whichever is readable on a value's color."""
    red, green, blue, _ = mesh.to_rgba(np.nan_to_num(value))
    return "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else "black"
