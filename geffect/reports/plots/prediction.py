"""The prediction: predicted against measured change of the risks."""

import math

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine

from geffect.core.gram import r_squared
from geffect.errors import GeffectError
from geffect.reports.plots.figure import Figure
from geffect.reports.plots.panels import around_zero, by_run, center, curve, finish, finite, furnish
from geffect.reports.plots.style import READINGS, STYLE, TWO_COLUMN, Look

COLUMNS = ("step", "target", "reading", "predicted", "measured")
NOTES = {"forget": "above 0: forgets", "retain": "above 0: harms the retain set"}
FORMULAS = {"gradient": r"$-\eta\,\langle\nabla R,\, d\rangle$", "update": r"$\langle\nabla R,\, \Delta\theta\rangle$"}
MEASURED: Look = {"c": "black", "marker": "D", "ls": "-", "lw": 1.6}
IDENTITY: Look = {"c": "0.35", "ls": "--", "lw": 0.9}


def prediction_plane(frame: pd.DataFrame) -> Figure:
    """Draw the predicted (x) against the measured (y) change of each risk, a point a step.

    Args:
        frame: Columns ``step``, ``risk`` (``forget``, ``retain``), ``reading`` (``gradient``, ``update``),
            ``predicted``, ``measured`` (nats per token); optionally ``run`` (at most four, one row of panels each).

    Returns:
        A figure with one square panel a risk, the same scale on both axes, the line of perfect prediction, and over
        each panel R² = 1 − Σ(measured − predicted)² / Σ(measured − mean)², nothing fitted, for each reading.
    """
    runs, risks = _facets(frame)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(TWO_COLUMN, 0.8 + 3.6 * len(runs)), layout=ConstrainedLayoutEngine(h_pad=0.08))
        panels = figure.subplots(len(runs), len(risks), squeeze=False)
        for (run, rows), line in zip(runs.items(), panels, strict=True):
            for risk, axes in zip(risks, line, strict=True):
                _points(axes, rows[rows["target"] == risk], _title(run, risk))
        for axes in panels[:, 0]:
            axes.set_ylabel("measured change (nats/token)")
        for axes in panels[-1]:
            axes.set_xlabel("predicted change (nats/token)")
        looks = {f"{reading}: {FORMULAS[reading]}": look for reading, look in _dots(frame).items()}
        finish(figure, looks | {"predicted = measured": IDENTITY}, 3)
    return figure


def prediction_sums(frame: pd.DataFrame) -> Figure:
    """Draw the sums, from the first step on, of the predicted and the measured changes of each risk.

    Args:
        frame: As of `prediction_plane`; a step without a number adds nothing.

    Returns:
        A figure with one panel a risk (and run), zero in each.
    """
    runs, risks = _facets(frame)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(TWO_COLUMN, 0.6 + 2.0 * len(runs)), layout="constrained")
        panels = figure.subplots(len(runs), len(risks), squeeze=False, sharex="col")
        for (run, rows), line in zip(runs.items(), panels, strict=True):
            for risk, axes in zip(risks, line, strict=True):
                _sums(axes, rows[rows["target"] == risk], NOTES[risk])
                axes.set_title(_title(run, risk))
        for axes in panels[-1]:
            axes.set_xlabel("unlearning step")
        finish(figure, {name: READINGS[name] for name in _dots(frame)} | {"measured": MEASURED}, 3)
    return figure


def _facets(frame: pd.DataFrame) -> tuple[dict[str, pd.DataFrame], list[str]]:
    runs = by_run(frame, COLUMNS, most=4)
    for column, known in (("target", NOTES), ("reading", READINGS)):
        if unknown := set(frame[column]) - set(known):
            raise GeffectError(f"{column}s among {', '.join(known)}", str(sorted(map(str, unknown))), "leave them out")
    return runs, [risk for risk in NOTES if risk in set(frame["target"])]


def _title(run: str, risk: str) -> str:
    return f"{run}: {risk} risk" if run else f"{risk} risk"


def _dots(frame: pd.DataFrame) -> dict[str, Look]:
    """The frame's readings as hollow markers."""
    return {
        reading: look | {"ls": "", "mfc": "none"}
        for reading, look in READINGS.items()
        if reading in set(frame["reading"])
    }


def _points(axes: Axes, cell: pd.DataFrame, title: str) -> None:
    """One panel of the plane, its title and R² above it, where no point can be."""
    for reading, look in _dots(cell).items():
        points = cell[cell["reading"] == reading]
        label = f"{reading}: R² = {_number(_fit(points))}"
        axes.plot(points["predicted"], points["measured"], label=label, **look)
    title += " (symlog)" if _same_scales(axes, cell) else ""
    axes.yaxis.get_offset_text().set_horizontalalignment("right")  # beside what stands above the panel
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), title=title, title_fontsize=8, alignment="left", handlelength=1
    )


def _fit(points: pd.DataFrame) -> float:
    """R² of the finite points."""
    known = points[["predicted", "measured"]].replace([np.inf, -np.inf], np.nan).dropna()
    return r_squared(list(known["predicted"]), list(known["measured"])) if len(known) else math.nan


def _number(value: float) -> str:
    return (f"{value:.3f}" if abs(value) < 10 else f"{value:.3g}").replace("-", "−")


def _same_scales(axes: Axes, cell: pd.DataFrame) -> bool:
    """Give both axes one scale with zero in it and draw the diagonal; symlog where predictions dwarf what happened."""
    predicted, measured = (finite(cell[column]) for column in ("predicted", "measured"))
    reach, size = (np.abs(values).max(initial=0) for values in (predicted, measured))
    wide = bool(reach > 30 * size > 0)
    if wide:
        low, high = np.floor(np.log10([np.median(np.abs(measured[measured != 0])), reach]))
        axes.set_xscale("symlog", linthresh=10**low)
        axes.set_yscale("symlog", linthresh=10**low)
        ticks = 10 ** np.arange(high, low, -max(1, (high - low) // 2))
        axes.set(xticks=[*-ticks, 0, *ticks[::-1]], yticks=[*-ticks, 0, *ticks[::-1]])
    limits = around_zero(axes.yaxis, np.concatenate([predicted, measured]), 0.06)
    axes.axhline(0, color="0.55", lw=0.7, zorder=1)
    axes.axvline(0, color="0.55", lw=0.7, zorder=1)
    axes.plot(limits, limits, zorder=1, **IDENTITY)
    axes.set(xlim=limits, ylim=limits, box_aspect=1)
    return wide


def _sums(axes: Axes, cell: pd.DataFrame, note: str) -> None:
    """One panel of sums; its y-axis holds zero and what is drawn."""
    measured = cell.drop_duplicates("step")
    parts = {"measured": measured.assign(sum=measured["measured"])}
    for reading, rows in cell.groupby("reading", sort=False):
        parts[str(reading)] = rows.assign(sum=rows["predicted"])
    for name, rows in parts.items():
        curve(axes, rows.assign(sum=rows["sum"].fillna(0).cumsum()), "sum", name, READINGS.get(name, MEASURED))
    drawn = pd.Series(np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]))
    furnish(axes, note)
    center(axes, drawn, "summed change of risk", "nats/token")
    axes.set_ylim(*around_zero(axes.yaxis, finite(drawn), 0.15))  # most sums have one sign
