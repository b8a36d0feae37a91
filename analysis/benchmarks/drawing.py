"""The picture of how cost grows."""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from analysis.benchmarks.timing import clock
from geffect.reports import plots
from geffect.reports.plots.style import Figure, Look

OURS, PLAIN = "geffect", "plain passes"
LABELS = {
    "tokens": "tokens an example",
    "layers": "layers",
    "examples": "examples of each batch",
    "steps": "steps of a record, read",
    "checkpoints": "checkpoints inspected",
}
LOOKS: dict[str, Look] = {OURS: {"c": "#0072B2", "marker": "o"}, PLAIN: {"c": "#E69F00", "marker": "s"}}


def slope(frame: pd.DataFrame) -> float:
    """The exponent k of seconds ∝ sizeᵏ, by least squares on logarithms.

    Args:
        frame: columns ``size`` and ``seconds``.

    Returns:
        k: 1 is proportional, below it a fixed part weighs in.

    >>> slope(pd.DataFrame({"size": [1, 2, 4], "seconds": [3.0, 6.0, 12.0]}))
    1.0
    """
    return round(float(np.polyfit(np.log(frame["size"]), np.log(frame["seconds"]), 1)[0]), 3)


def draw(frame: pd.DataFrame) -> Figure:
    """Seconds against size, a panel an axis, both logarithmic, with the fitted exponent.

    Args:
        frame: columns ``axis``, ``size``, ``what``, ``seconds``.

    Returns:
        The figure.
    """
    axes_named = list(frame["axis"].unique())
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(plots.TWO_COLUMN, 3.6), layout="constrained")
        panels = figure.subplots(2, 3, squeeze=False).ravel()
        for axis, panel in zip(axes_named, panels, strict=False):
            for what, own in frame[frame["axis"] == axis].groupby("what", sort=False):
                panel.plot(own["size"], own["seconds"], **LOOKS[str(what)], label=f"size$^{{{slope(own):.2f}}}$")
            panel.set(xscale="log", yscale="log", xlabel=LABELS[axis], ylabel=clock()[0])
            ticks = sorted(frame.loc[frame["axis"] == axis, "size"].unique())
            panel.set_xticks(ticks, [str(tick) for tick in ticks])
            panel.xaxis.set_minor_locator(NullLocator())
            low, high = panel.get_ylim()
            panel.set_ylim(low, high * (high / low) ** 0.45)  # room for the legend
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            panel.yaxis.set_minor_locator(NullLocator())
            panel.legend(loc="upper left")
        for panel in panels[len(axes_named) :]:
            panel.axis("off")
        handles = [Line2D([], [], **look, label=what) for what, look in LOOKS.items()]
        panels[-1].legend(handles=handles, loc="center", title="lower panels: geffect alone")
    return figure
