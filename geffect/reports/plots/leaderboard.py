"""Many methods with their intervals: at one level of forgetting, and along all of them."""

import matplotlib
import numpy as np
import pandas as pd

from geffect.errors import GeffectError
from geffect.reports.plots.figure import Figure
from geffect.reports.plots.grid import MOST, looks_of, small_panels
from geffect.reports.plots.panels import check, finish
from geffect.reports.plots.style import ONE_COLUMN, STYLE


def leaderboard(frame: pd.DataFrame, label: str) -> Figure:
    """Draw what methods kept at equal forgetting, the best on top, with their intervals.

    Args:
        frame: Columns ``objective``, ``rectifier`` (at most six), ``mean``, ``low``, ``high``; a row a method. One
            with NaN never got there, and its place says so.
        label: of the axis.

    Returns:
        A figure with a line an objective, and a mark a rectifier.

    Raises:
        GeffectError: a column is missing, or no method reached the level.
    """
    check(frame, ("objective", "rectifier", "mean", "low", "high"))
    best = frame.groupby("objective")["mean"].max().sort_values(na_position="first")
    if best.isna().all():
        raise GeffectError("a method that forgets as much as asked", "none", "compare at a lower forget risk")
    looks = looks_of(frame)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(ONE_COLUMN, 0.9 + 0.22 * len(best)), layout="constrained")
        axes = figure.subplots()
        for place, (rectifier, look) in enumerate(looks.items()):
            rows = frame[frame["rectifier"] == rectifier].set_index("objective").reindex(best.index)
            heights = np.arange(len(best)) + 0.26 * (place - (len(looks) - 1) / 2) * 2 / max(1, len(looks) - 1) / 1.6
            errors = np.abs(rows[["low", "high"]].to_numpy(float).T - rows["mean"].to_numpy(float))
            marks = {key: look[key] for key in ("c", "marker")}
            axes.errorbar(rows["mean"], heights, xerr=errors, ls="", elinewidth=1, mec="black", mew=0.4, **marks)
        left = axes.get_xlim()[0]
        for height, missing in enumerate(best.isna()):
            if missing:
                axes.text(left, height, " never got there", va="center", size=6, color="0.35")
        axes.set(yticks=range(len(best)), yticklabels=list(best.index), xlabel=label, ylim=(-0.7, len(best) - 0.3))
        axes.grid(axis="y", color="0.93", lw=0.6)
        axes.set_axisbelow(True)
        marked = {name: {"ls": "", **{key: look[key] for key in ("c", "marker")}} for name, look in looks.items()}
        finish(figure, marked, len(marked), above=True)
    return figure


def trade_off_bands(frame: pd.DataFrame, label: str) -> Figure:
    """Draw what is kept along what is forgotten, with intervals, a small panel an objective.

    Args:
        frame: Columns ``objective`` (at most 16), ``rectifier`` (at most six), ``forget_loss``, ``mean``, ``low``,
            ``high``; a row a level.
        label: of what is kept.

    Returns:
        A figure whose panels share both axes: a line a rectifier, in its band.

    Raises:
        GeffectError: a column is missing, or there are too many objectives.
    """
    check(frame, ("objective", "rectifier", "forget_loss", "mean", "low", "high"))
    objectives, looks = list(frame["objective"].unique()), looks_of(frame)
    if len(objectives) > MOST:
        raise GeffectError(f"at most {MOST} objectives in a picture", str(len(objectives)), "leave some out")
    with matplotlib.rc_context(STYLE):
        figure, panels, _ = small_panels(len(objectives))
        for objective, axes in zip(objectives, panels, strict=True):
            for rectifier, look in looks.items():
                rows = frame[(frame["objective"] == objective) & (frame["rectifier"] == rectifier)]
                rows = rows.dropna().sort_values("forget_loss")
                axes.fill_between(rows["forget_loss"], rows["low"], rows["high"], color=look["c"], alpha=0.2, lw=0)
                axes.plot(rows["forget_loss"], rows["mean"], c=look["c"], ls=look["ls"])
            axes.set_title(objective)
        figure.supxlabel("forget risk (nats/token; right: forgotten)", size=8)
        figure.supylabel(label, size=8)
        finish(figure, {name: {"c": look["c"], "ls": look["ls"]} for name, look in looks.items()}, 6, above=True)
    return figure
