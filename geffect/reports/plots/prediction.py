"""The prediction check: predicted against measured change of the losses."""

import math

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.layout_engine import ConstrainedLayoutEngine

from geffect.core.gram import r_squared
from geffect.errors import GeffectError
from geffect.reports.plots.panels import around_zero, by_run, center, curve, finish, finite, furnish
from geffect.reports.plots.style import READINGS, STYLE, TWO_COLUMN, Figure, Look

COLUMNS = ("step", "target", "reading", "predicted", "measured")
NOTES = {"forget": "above 0: forgets", "retain": "above 0: harms the retain set"}
FORMULAS = {"gradient": r"$-\eta\,\langle\nabla R,\, d\rangle$", "update": r"$\langle\nabla R,\, \Delta\theta\rangle$"}
MEASURED: Look = {"c": "black", "marker": "D", "ls": "-", "lw": 1.6}
IDENTITY: Look = {"c": "0.35", "ls": "--", "lw": 0.9}


def prediction_plane(frame: pd.DataFrame) -> Figure:
    """Draw the predicted (x) against the measured (y) change of each loss, a point a step and a square panel a target.

    Columns ``step``, ``target`` (``forget``, ``retain``), ``reading`` (``gradient``, ``update``), ``predicted`` and
    ``measured`` (nats a token), and optionally ``run`` (at most four, a row of panels each). Above a panel stands
    R² = 1 − Σ(measured − predicted)² / Σ(measured − mean)² of each reading; nothing is fitted.
    """
    runs, targets = _facets(frame)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(TWO_COLUMN, 0.8 + 3.6 * len(runs)), layout=ConstrainedLayoutEngine(h_pad=0.08))
        panels = figure.subplots(len(runs), len(targets), squeeze=False)
        for (run, rows), line in zip(runs.items(), panels, strict=True):
            for target, axes in zip(targets, line, strict=True):
                _points(axes, rows[rows["target"] == target], _title(run, target))
        for axes in panels[:, 0]:
            axes.set_ylabel("measured change (nats/token)")
        for axes in panels[-1]:
            axes.set_xlabel("predicted change (nats/token)")
        looks = {f"{reading}: {FORMULAS[reading]}": look for reading, look in _dots(frame).items()}
        finish(figure, looks | {"predicted = measured": IDENTITY}, 3)
    return figure


def prediction_sums(frame: pd.DataFrame) -> Figure:
    """Draw the predicted and the measured changes of each loss, summed from the first step on, a panel a target.

    Columns as of `prediction_plane`; a step without a number adds nothing.
    """
    runs, targets = _facets(frame)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(TWO_COLUMN, 0.6 + 2.0 * len(runs)), layout="constrained")
        panels = figure.subplots(len(runs), len(targets), squeeze=False, sharex="col")
        for (run, rows), line in zip(runs.items(), panels, strict=True):
            for target, axes in zip(targets, line, strict=True):
                _sums(axes, rows[rows["target"] == target], NOTES[target])
                axes.set_title(_title(run, target))
        for axes in panels[-1]:
            axes.set_xlabel("unlearning step")
        finish(figure, {name: READINGS[name] for name in _dots(frame)} | {"measured": MEASURED}, 3)
    return figure


def _facets(frame: pd.DataFrame) -> tuple[dict[str, pd.DataFrame], list[str]]:
    runs = by_run(frame, COLUMNS, most=4)
    for column, known in (("target", NOTES), ("reading", READINGS)):
        if unknown := set(frame[column]) - set(known):
            message = f"{', '.join(sorted(map(str, unknown)))} is no {column} of a prediction check"
            raise GeffectError(message, remedy=f"Leave it out; there are {', '.join(known)}")
    return runs, [target for target in NOTES if target in set(frame["target"])]


def _title(run: str, target: str) -> str:
    return f"{run}: {target} loss" if run else f"{target} loss"


def _dots(frame: pd.DataFrame) -> dict[str, Look]:
    """The frame's readings as hollow markers."""
    return {
        reading: look | {"ls": "", "mfc": "none"}
        for reading, look in READINGS.items()
        if reading in set(frame["reading"])
    }


def _points(axes: Axes, cell: pd.DataFrame, title: str) -> None:
    """Draw one panel of the plane; its title and R² stand above it, where no point can be."""
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
    """Put both axes on one scale and draw the diagonal; True if symlog, as where predictions are far off."""
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
    """Draw one panel of sums; its y-axis includes zero and what is drawn."""
    measured = cell.drop_duplicates("step")
    parts = {"measured": measured.assign(sum=measured["measured"])}
    for reading, rows in cell.groupby("reading", sort=False):
        parts[str(reading)] = rows.assign(sum=rows["predicted"])
    for name, rows in parts.items():
        curve(axes, rows.assign(sum=rows["sum"].fillna(0).cumsum()), "sum", name, READINGS.get(name, MEASURED))
    drawn = pd.Series(np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]))
    furnish(axes, note)
    center(axes, drawn, "summed change of loss", "nats/token")
    axes.set_ylim(*around_zero(axes.yaxis, finite(drawn), 0.15))  # most sums have one sign
