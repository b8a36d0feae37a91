"""A data frame of diagnostics in, a matplotlib figure out; legible in grey, and no global setting touched."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator

from geffect.errors import GeffectError

Look = dict[str, Any]  # how a line looks: keywords of Line2D
ONE_COLUMN, TWO_COLUMN = 3.4, 7.0  # inches
NOTE: Final[Look] = {"color": "0.35", "size": 6}  # text inside a panel
STYLE: Final[dict[Any, Any]] = {  # on top of the defaults, so that a user's own settings change no figure
    **{key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")},
    "font.size": 8, "axes.titlesize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.fontsize": 7,
    "axes.edgecolor": "0.7", "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False,
    "xtick.color": "0.7", "ytick.color": "0.7", "xtick.labelcolor": "black", "ytick.labelcolor": "black",
    "legend.frameon": False, "legend.handlelength": 2.8, "legend.columnspacing": 1.2, "lines.linewidth": 1.1,
    "lines.markersize": 3.5, "figure.dpi": 200, "pdf.fonttype": 42, "ps.fonttype": 42,
}  # fmt: skip
GROUPS: Final[dict[str, Look]] = {
    "embed": {"c": "#0072B2", "marker": "o", "ls": "-"},
    "shallow": {"c": "#E69F00", "marker": "s", "ls": (0, (5, 1.5))},
    "middle": {"c": "#009E73", "marker": "^", "ls": (0, (5, 1.5, 1, 1.5))},
    "deep": {"c": "#D55E00", "marker": "D", "ls": (0, (1, 1))},
    "lm_head": {"c": "#CC79A7", "marker": "v", "ls": (0, (3, 1, 1, 1, 1, 1))},
    "tied": {"c": "#000000", "marker": "P", "ls": (0, (8, 2))},
}
RUNS: Final[tuple[Look, ...]] = (
    {"c": "#004488", "marker": "o"}, {"c": "#BB5566", "marker": "s"}, {"c": "#DDAA33", "marker": "^"},
    {"c": "#000000", "marker": "D"}, {"c": "#228833", "marker": "v"}, {"c": "#66CCEE", "marker": "P"},
)  # fmt: skip


def g_effect_curves(frame: pd.DataFrame) -> Figure:
    """Draw the unlearn (top) and retain (bottom) G-effects by step, one column of panels a run.

    Args:
        frame: Columns ``run`` (at most four), ``step``, ``group`` (of ``GROUPS``), ``unlearn``, ``retain``.

    Returns:
        A figure with one shared y-axis a row, centred on zero, and one legend of the groups.
    """
    runs = _runs(frame, ("run", "step", "group", "unlearn", "retain"), most=4)
    looks = {group: look for group, look in GROUPS.items() if group in set(frame["group"])}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(TWO_COLUMN if len(runs) > 1 else ONE_COLUMN, 4), layout="constrained")
        panels = figure.subplots(2, len(runs), sharex="col", sharey="row", squeeze=False)
        for (run, rows), (top, bottom) in zip(runs.items(), panels.T, strict=True):
            for group, look in looks.items():
                _curve(top, rows[rows["group"] == group], "unlearn", group, look)
                _curve(bottom, rows[rows["group"] == group], "retain", group, look)
            _furnish(top, "below 0: forgets").set_title(run)
            _furnish(bottom, "below 0: harms what must stay").set_xlabel("unlearning step")
        _centre(panels[0, 0], frame["unlearn"], r"unlearn G-effect  $\langle\nabla R_f,\, d\rangle$")
        _centre(panels[1, 0], frame["retain"], r"retain G-effect  $\langle\nabla R_r,\, d\rangle$")
        _finish(figure, looks, 6 if len(runs) > 1 else 3)
    return figure


def cosine_curves(frame: pd.DataFrame) -> Figure:
    """Draw the cosine of the objective's and the retain gradient by step, before and after rectification.

    Args:
        frame: Columns ``run``, ``step``, ``cosine``, ``rectified`` (NaN where the run has no rectifier).

    Returns:
        A one-panel figure: solid before, dashed after, the negative half shaded as conflict.
    """
    runs = _runs(frame, ("run", "step", "cosine", "rectified"), most=len(RUNS))
    looks = dict(zip(runs, RUNS, strict=False))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(ONE_COLUMN, 2.8), layout="constrained")
        axes = _furnish(figure.subplots(subplot_kw={"ylim": (-1, 1), "xlabel": "unlearning step"}), "")
        axes.axhspan(-1, 0, color="0.95", lw=0, zorder=0)
        axes.text(1.02, 0.25, "conflict", transform=axes.transAxes, rotation=90, va="center", **NOTE)
        for run, rows in runs.items():
            _curve(axes, rows, "cosine", run, looks[run])
            _curve(axes, rows, "rectified", run, looks[run] | {"ls": "--", "mfc": "white"})
        axes.set(ylabel="cosine to the retain gradient", yticks=[-1, -0.5, 0, 0.5, 1])
        if frame["rectified"].notna().any():
            looks |= {"before": {"c": "0.35"}, "rectified": {"c": "0.35", "ls": "--"}}
        _finish(figure, looks, 2 if len(runs) > 1 else 3)
    return figure


def trade_off(frame: pd.DataFrame) -> Figure:
    """Draw each run's path in the plane of forget risk and held risk.

    Args:
        frame: Columns ``run``, ``step``, ``forget_risk``, ``held_risk`` (nats per token).

    Returns:
        A one-panel figure: start and ends marked, some points numbered by step, the good corner named.
    """
    runs = _runs(frame, ("run", "step", "forget_risk", "held_risk"), most=len(RUNS))
    looks = dict(zip(runs, RUNS, strict=False))
    paths = {run: rows.set_index("step")[["forget_risk", "held_risk"]] for run, rows in runs.items()}
    start: Look = {"c": "black", "marker": "o", "ls": "", "mfc": "white", "ms": 7}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(ONE_COLUMN, 3.2), layout="constrained")
        axes = figure.subplots()
        for run, path in paths.items():
            end = looks[run] | {"markevery": [len(path) - 1], "ms": 7, "mec": "black"}
            axes.plot(*path.to_numpy(float).T, label=run, **end)
        axes.plot(*np.unique([path.iloc[0] for path in paths.values()], axis=0).T, zorder=5, **start)
        axes.margins(x=0.1, y=0.2)
        axes.text(0.98, 0.02, "forgotten and kept ↘", transform=axes.transAxes, ha="right", **NOTE)
        _name_risk(axes.xaxis, "forget risk (nats/token{}; higher: forgotten)")
        _name_risk(axes.yaxis, "held risk (nats/token{}; lower: kept)")
        _number_steps(axes, paths, looks)
        _finish(figure, looks | {"start": start, "end": start | {"mfc": "0.7"}}, 2 if len(runs) > 1 else 3)
    return figure


def save(figure: Figure, path: Path, data: pd.DataFrame) -> list[Path]:
    """Write a figure as PNG and PDF, and the data it draws as CSV; the same input gives the same bytes.

    Args:
        figure: A figure of this module.
        path: Where to write, without a suffix; the parent directory is created.
        data: The rows drawn.

    Returns:
        The paths of the PNG, PDF and CSV, in this order.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent) as folder, matplotlib.rc_context(STYLE):
        png, pdf, csv = parts = [Path(folder, f"{path.name}.{kind}") for kind in ("png", "pdf", "csv")]
        figure.savefig(png, dpi=200, metadata={"Software": None})
        figure.savefig(pdf, metadata=dict.fromkeys(("Creator", "Producer", "CreationDate")))
        data.to_csv(csv, index=False, lineterminator="\n")
        return [part.replace(path.with_name(part.name)) for part in parts]


def _runs(frame: pd.DataFrame, columns: tuple[str, ...], most: int) -> dict[str, pd.DataFrame]:
    # the frame, checked and split by run in order of appearance, each part sorted by step
    if frame.empty or not set(columns) <= set(frame.columns):
        raise GeffectError(f"columns {', '.join(columns)}", f"{len(frame)} rows of {list(frame)}", "draw a run's frame")
    if "group" in columns and (unknown := set(frame["group"]) - set(GROUPS)):
        raise GeffectError(f"groups among {', '.join(GROUPS)}", str(sorted(map(str, unknown))), "sum by group")
    parts = frame.sort_values("step", kind="stable").groupby("run")
    runs = {str(run): parts.get_group(run) for run in frame["run"].unique()}
    if len(runs) > most:
        raise GeffectError(f"at most {most} runs in a picture", f"{len(runs)}: {', '.join(runs)}", "name fewer")
    return runs


def _curve(axes: Axes, rows: pd.DataFrame, column: str, label: str, look: Look) -> None:
    """Draw one column by step, with about six markers, staggered from line to line."""
    if rows.empty:  # a run that has no such group; an empty line would upset the layout
        return
    every = max(1, len(rows) // 6)
    marked = (len(axes.lines) * every // 5 % every, every)
    axes.plot(rows["step"], rows[column], label=label, markevery=marked, clip_on=False, **look)


def _furnish(axes: Axes, note: str) -> Axes:
    """Return the axes with a zero line, whole-number steps and a note in the lower left corner."""
    axes.axhline(0, color="0.55", lw=0.7, zorder=1)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=True))
    axes.text(0.03, 0.03, note, transform=axes.transAxes, in_layout=False, **NOTE)
    return axes


def _centre(axes: Axes, values: "pd.Series[float]", label: str) -> None:
    """Centre the y-axis on zero and name it; symlog where the largest value dwarfs the median."""
    sizes = np.abs(values[np.isfinite(values) & (values != 0)].to_numpy(float))
    top, room = float(sizes.max(initial=0)) or 1.0, 1.3  # the margin holds the note
    wide = sizes.size > 0 and top > 100 * np.median(sizes)
    if wide:
        low, high = np.floor(np.log10([max(np.quantile(sizes, 0.25), top / 1e6), top])).astype(int)
        axes.set_yscale("symlog", linthresh=10.0**low)
        ticks = 10.0 ** np.arange(high, low, -max(1, -(-(high - low) // 3)))
        axes.set_yticks([*-ticks, 0, *ticks[::-1]])
        room = 10 ** (0.3 * (np.log10(top) - low + 1))
    axes.set(ylim=(-room * top, room * top), ylabel=f"{label}\n(gradient² units{', symlog' if wide else ''})")


def _name_risk(axis: XAxis | YAxis, text: str) -> None:
    """Name a risk's axis, logarithmic where the data spans more than a decade."""
    low, high = axis.get_data_interval()
    if wide := 0 < 10 * low < high:
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axis.set_label_text(text.format(", log" if wide else ""))


def _number_steps(axes: Axes, paths: dict[str, pd.DataFrame], looks: dict[str, Look]) -> None:
    """Mark and number the ends, then the points far from all those numbered before."""
    axes.autoscale_view()
    plane = axes.transScale + axes.transLimits
    taken = [plane.transform(path.iloc[0]) for path in paths.values()]
    points = [(run, index) for run, path in paths.items() for index in range(len(path))]
    for run, index in [(run, -1) for run in paths] + points:
        point = tuple(paths[run].iloc[index])
        place = plane.transform(point)
        if min(np.hypot(*(place - other)) for other in taken) > 0.13:
            text = f"{'step ' if len(taken) == len(paths) else ''}{paths[run].index[index]:g}"
            falls = point[1] < paths[run].iloc[0, 1]  # keep the number off the path it belongs to
            shift, side = ((3, 3), "left") if falls else ((-3, 3), "right")
            axes.annotate(text, point, shift, textcoords="offset points", size=6, ha=side)
            axes.plot(*point, **looks[run])
            taken.append(place)


def _finish(figure: Figure, looks: dict[str, Look], columns: int) -> None:
    """Put the one legend below all panels and settle the layout, so that drawing again moves nothing."""
    keys = [Line2D([], [], label=label, **look) for label, look in looks.items()]
    figure.legend(handles=keys, loc="outside lower center", ncols=columns)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
