"""What a step costs the kept set, against the cosine of what was descended (arXiv 2503.09117)."""

import matplotlib
import pandas as pd
from matplotlib.axes import Axes

from geffect.errors import GeffectError
from geffect.reports.plots.figure import Figure
from geffect.reports.plots.panels import check, finish
from geffect.reports.plots.style import NOTE, ONE_COLUMN, RUNS, STYLE, TWO_COLUMN, Look

Y = {
    "heldout_accuracy": "heldout accuracy where the step starts (up: kept)",
    "heldout_rise": "rise of the heldout risk over the step\n(nats/token; above 0: harm)",
}
MOST = 4
DOT: Look = {"ls": "", "ms": 3.5, "mew": 0.8, "zorder": 3}
BEFORE: Look = DOT | {"mfc": "none", "alpha": 0.55, "zorder": 2}
WAY: Look = {"c": "0.8", "lw": 0.5, "zorder": 1}


def retain_by_cosine(frame: pd.DataFrame, y: str = "heldout_rise") -> Figure:
    """Draw every step's cosine with the retain gradient against what became of the heldout set, a panel a rectifier.

    Args:
        frame: Columns ``run`` (the objective; at most six), ``rectifier`` (at most four), ``step``, ``cosine`` (of the
            objective's gradient), ``rectified`` (NaN where the run has no rectifier) and what ``y`` names; a row a step
            of a run, those with NaN in ``cosine`` or ``y`` left out.
        y: ``heldout_accuracy`` (of the state that the step starts from), or ``heldout_rise``: by how much the heldout
            risk rises over the step (nats per token).

    Returns:
        A figure whose panels share both axes, the negative half shaded as conflict. A filled mark is a step at the
        cosine of what it descended; where that was rectified, a hollow one, a gray line away, is at the cosine before.

    Raises:
        GeffectError: a column is missing, ``y`` is unknown, nothing is left to draw, or there are too many.
    """
    if y not in Y:
        raise GeffectError(f"y among {', '.join(Y)}", repr(y), "choose one of these")
    check(frame, ("run", "rectifier", "step", "cosine", "rectified", y))
    rows = frame.dropna(subset=["cosine", y])
    for column, most in (("run", len(RUNS)), ("rectifier", MOST)):
        if not 0 < (found := rows[column].nunique()) <= most:
            raise GeffectError(f"one to {most} of {column} with cosine and {y}", str(found), "name others")
    looks = dict(zip(rows["run"].unique(), RUNS, strict=False))
    rectifiers = list(rows["rectifier"].unique())
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(TWO_COLUMN if len(rectifiers) > 1 else ONE_COLUMN, 3), layout="constrained")
        panels = figure.subplots(1, len(rectifiers), sharex=True, sharey=True, squeeze=False)[0]
        for rectifier, axes in zip(rectifiers, panels, strict=True):
            _furnish(axes, "without rectifier" if rectifier == "none" else f"with {rectifier}")
            for run, look in looks.items():
                _steps(axes, rows[(rows["run"] == run) & (rows["rectifier"] == rectifier)], y, look)
        if y == "heldout_accuracy":
            panels[0].set_ylim(-0.03, 1.03)
        panels[0].set_ylabel(Y[y])
        figure.supxlabel("cosine to the step's retain gradient", size=8)
        keys = {run: DOT | {"c": look["c"], "marker": look["marker"]} for run, look in looks.items()}
        if rows["rectified"].notna().any():
            keys |= {"before rectification": BEFORE | {"c": "0.35", "marker": "o"}}
        finish(figure, keys, 4 if len(rectifiers) > 1 else 2, above=True)
    return figure


def _furnish(axes: Axes, title: str) -> None:
    axes.axvspan(-1, 0, color="0.95", lw=0, zorder=0)
    axes.axhline(0, color="0.55", lw=0.7, zorder=1)
    axes.text(0.02, 0.98, "conflict", transform=axes.transAxes, va="top", in_layout=False, **NOTE)
    axes.set(title=title, xlim=(-1, 1), xticks=[-1, -0.5, 0, 0.5, 1])
    axes.xaxis.set_major_formatter("{x:g}")


def _steps(axes: Axes, rows: pd.DataFrame, y: str, look: Look) -> None:
    """One objective's steps under one rectifier."""
    color = {"c": look["c"], "marker": look["marker"]}
    moved = rows.dropna(subset=["rectified"])
    if not moved.empty:
        axes.plot(moved[["cosine", "rectified"]].to_numpy(float).T, moved[[y, y]].to_numpy(float).T, **WAY)
        axes.plot(moved["cosine"], moved[y], **(BEFORE | color))
    axes.plot(rows["rectified"].fillna(rows["cosine"]), rows[y], **(DOT | color))
