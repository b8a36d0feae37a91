"""Paths in the plane of what is forgotten and what is kept."""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.ticker import LogLocator

from geffect.reports.plots.figure import Figure
from geffect.reports.plots.panels import by_run, finish
from geffect.reports.plots.style import NOTE, ONE_COLUMN, RUNS, STYLE, Look


def trade_off(frame: pd.DataFrame) -> Figure:
    """Draw each run's path in the plane of forget risk and heldout risk.

    Args:
        frame: Columns ``run``, ``step``, ``forget_loss``, ``heldout_loss`` (nats per token).

    Returns:
        A one-panel figure: start and ends marked, some points numbered by step, the good corner named.
    """
    runs = by_run(frame, ("run", "step", "forget_loss", "heldout_loss"), most=len(RUNS))
    looks = dict(zip(runs, RUNS, strict=False))
    paths = {run: rows.set_index("step")[["forget_loss", "heldout_loss"]] for run, rows in runs.items()}
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
        name_loss(axes.xaxis, "forget risk (nats/token{}; higher: forgotten)", axes.xaxis.get_data_interval())
        name_loss(axes.yaxis, "heldout risk (nats/token{}; lower: kept)", axes.yaxis.get_data_interval())
        _number_steps(axes, paths, looks)
        finish(figure, looks | {"start": start, "end": start | {"mfc": "0.7"}}, 2 if len(runs) > 1 else 3)
    return figure


def name_loss(axis: XAxis | YAxis, text: str, interval: tuple[float, float]) -> None:
    """Name a risk's axis, logarithmic where the data's interval spans more than a decade."""
    low, high = interval
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
