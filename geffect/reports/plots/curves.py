"""Diagnostics by step."""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from geffect.errors import GeffectError
from geffect.reports.plots.figure import Figure
from geffect.reports.plots.panels import by_run, center, check, curve, finish, furnish
from geffect.reports.plots.style import GROUPS, NOTE, ONE_COLUMN, RUNS, STYLE, TWO_COLUMN


def g_effect_curves(frame: pd.DataFrame) -> Figure:
    """Draw the unlearn (top) and retain (bottom) G-effects by step, one column of panels a run.

    Args:
        frame: Columns ``run`` (at most four), ``step``, ``group`` (of ``GROUPS``), ``unlearn``, ``retain``.

    Returns:
        A figure with one shared y-axis a row, centered on zero, and one legend of the groups.
    """
    runs = by_run(frame, ("run", "step", "group", "unlearn", "retain"), most=4)
    looks = {group: look for group, look in GROUPS.items() if group in set(frame["group"])}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(TWO_COLUMN if len(runs) > 1 else ONE_COLUMN, 4), layout="constrained")
        panels = figure.subplots(2, len(runs), sharex="col", sharey="row", squeeze=False)
        for (run, rows), (top, bottom) in zip(runs.items(), panels.T, strict=True):
            for group, look in looks.items():
                curve(top, rows[rows["group"] == group], "unlearn", group, look)
                curve(bottom, rows[rows["group"] == group], "retain", group, look)
            furnish(top, "below 0: forgets").set_title(run)
            furnish(bottom, "below 0: harms the retain set").set_xlabel("unlearning step")
        center(panels[0, 0], frame["unlearn"], r"unlearn G-effect  $\langle\nabla R_f,\, d\rangle$")
        center(panels[1, 0], frame["retain"], r"retain G-effect  $\langle\nabla R_r,\, d\rangle$")
        finish(figure, looks, 6 if len(runs) > 1 else 3)
    return figure


def cosine_curves(frame: pd.DataFrame) -> Figure:
    """Draw the cosine of the objective's and the retain gradient by step, before and after rectification.

    Args:
        frame: Columns ``run``, ``step``, ``cosine``, ``rectified`` (NaN where the run has no rectifier).

    Returns:
        A one-panel figure: solid before, dashed after, the negative half shaded as conflict.
    """
    runs = by_run(frame, ("run", "step", "cosine", "rectified"), most=len(RUNS))
    looks = dict(zip(runs, RUNS, strict=False))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(ONE_COLUMN, 2.8), layout="constrained")
        axes = furnish(figure.subplots(subplot_kw={"ylim": (-1, 1), "xlabel": "unlearning step"}), "")
        axes.axhspan(-1, 0, color="0.95", lw=0, zorder=0)
        axes.text(1.02, 0.25, "conflict", transform=axes.transAxes, rotation=90, va="center", **NOTE)
        for run, rows in runs.items():
            curve(axes, rows, "cosine", run, looks[run])
            curve(axes, rows, "rectified", run, looks[run] | {"ls": "--", "mfc": "white"})
        axes.set(ylabel="cosine to the retain gradient", yticks=[-1, -0.5, 0, 0.5, 1])
        if frame["rectified"].notna().any():
            looks |= {"before": {"c": "0.35"}, "rectified": {"c": "0.35", "ls": "--"}}
        finish(figure, looks, 2 if len(runs) > 1 else 3)
    return figure


def jaccard_curves(frame: pd.DataFrame, row: str, other: str, share: float) -> Figure:
    """Draw how much of two rows' overlaps is common, by step and group, against chance.

    Args:
        frame: Columns ``step``, ``group`` (of ``GROUPS``), ``gradient``, ``other``, ``jaccard``; optionally ``run`` (at
            most four, one panel each).
        row: One of the two rows.
        other: The other.
        share: What share of entries a mask keeps; two random masks have the Jaccard index share / (2 − share).

    Returns:
        A figure with one shared y-axis from zero, chance dashed and named.
    """
    frame = _pair(frame, row, other)
    runs = by_run(frame, ("step", "group", "gradient", "other", "jaccard"), most=4)
    looks = {group: look for group, look in GROUPS.items() if group in set(frame["group"])}
    level = share / (2 - share)
    top = np.nanmax([level, *frame["jaccard"].to_numpy(float)])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(TWO_COLUMN if len(runs) > 1 else ONE_COLUMN, 2.8), layout="constrained")
        panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
        for (run, rows), axes in zip(runs.items(), panels, strict=True):
            for group, look in looks.items():
                curve(axes, rows[rows["group"] == group], "jaccard", group, look)
            furnish(axes, "").set(title=run, xlabel="unlearning step", ylim=(0, min(1.0, 1.1 * top)))
            axes.axhline(level, color="0.35", ls="--", lw=0.9, label="chance")
        _name_chance(panels[-1], level)
        panels[0].set_ylabel(f"Jaccard index, largest {100 * share:g} %\nof {row} and {other}")
        finish(figure, looks, 6 if len(runs) > 1 else 3)
    return figure


def _pair(frame: pd.DataFrame, row: str, other: str) -> pd.DataFrame:
    check(frame, ("step", "group", "gradient", "other", "jaccard"))
    chosen = frame[[{a, b} == {row, other} for a, b in zip(frame["gradient"], frame["other"], strict=True)]]
    if chosen.empty:
        known = ", ".join(sorted({*frame["gradient"], *frame["other"]}))
        raise GeffectError(f"two rows among {known}", f"{row!r} and {other!r}", "name rows of the record")
    return chosen


def _name_chance(axes: Axes, level: float) -> None:
    axes.text(1.02, level, f"chance\n{level:.3f}", transform=axes.get_yaxis_transform(), va="center", **NOTE)
