"""How far overlaps overlap, and what freezing what they share brings (arXiv 2504.12681, Fig. 3 and 4)."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from geffect.core.layers import depth_key
from geffect.errors import GeffectError
from geffect.reports.plots.cells import heat, name_columns, number
from geffect.reports.plots.figure import Figure
from geffect.reports.plots.panels import check, finish, once
from geffect.reports.plots.style import NOTE, ONE_COLUMN, RUNS, STYLE, TWO_COLUMN, Look

MOST, BAR = 12, 0.09  # rows, and how high the color bar is in inches
SPARE = 0.1  # inches beside long names, which are wider in a notebook's coarser picture
MAP = "YlGnBu"  # from light to dark in gray too
DIAGONAL = "0.82"
BAND: Look = {"c": "0.8", "lw": 6, "solid_capstyle": "butt"}
SWEEP = ("which", "share", "domain", "unlearn_success", "retention_success", "seed")
SUCCESSES = {"unlearn_success": "unlearn success (%)", "retention_success": "retention success (%)"}


def jaccard_matrix(frame: pd.DataFrame, share: float, within: Sequence[Sequence[str]] = ()) -> Figure:
    """Draw the Jaccard indices of the overlaps of every two rows.

    Args:
        frame: Columns ``gradient``, ``other``, ``jaccard``; each unordered pair of different gradients (at most twelve)
            once. A pair that is missing or NaN is drawn as unknown.
        share: What share of entries a mask keeps; two random masks have the Jaccard index share / (2 − share).
        within: Groups of rows, each put side by side and framed; the other rows follow.

    Returns:
        A one-panel figure, symmetric, every number in its cell, the diagonal gray, chance marked on the color bar.
    """
    check(frame, ("gradient", "other", "jaccard"))
    rows = _order(frame, within)
    matrix = pd.DataFrame(np.nan, rows, rows)
    for row, other, value in _pairs(frame, ())["jaccard"].reset_index().itertuples(index=False):
        matrix.loc[row, other] = matrix.loc[other, row] = value
    names = [row.replace(" ", "\n") if len(rows) <= 6 else row for row in rows]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(ONE_COLUMN, 3.6), layout="constrained")
        axes, bar = figure.subplots(2, height_ratios=[2.4, BAR])
        axes.set_box_aspect(1)
        mesh = _heat(axes, matrix.set_axis(names).set_axis(names, axis=1), share)
        for i in range(len(rows)):
            axes.add_patch(Rectangle((i, i), 1, 1, fc=DIAGONAL, ec="white", lw=0.5))
        number(axes, mesh, matrix.to_numpy(float))
        _frame_groups(axes, [len(group) for group in within])
        _settle(figure, bar, mesh, share)
    return figure


def jaccard_by_layer(frame: pd.DataFrame, share: float) -> Figure:
    """Draw the Jaccard index of every pair of rows by layer.

    Args:
        frame: Columns ``layer``, ``gradient``, ``other``, ``jaccard``; each layer has an unordered pair of different
            gradients (at most twelve) once. What is missing or NaN is drawn as unknown.
        share: As of `jaccard_matrix`.

    Returns:
        A one-panel figure, layers from the embedding at the left to the head at the right, pairs from top to bottom in
        order of first appearance, chance marked on the color bar.
    """
    check(frame, ("layer", "gradient", "other", "jaccard"))
    _order(frame, ())
    table = _pairs(frame, ("layer",))["jaccard"].unstack("layer", sort=False)
    layers: list[str] = sorted(map(str, table.columns), key=depth_key)
    table = table[layers]
    pairs = [f"{row} ∩ {other}" for row, other in table.index]
    size = TWO_COLUMN if table.shape[1] > 12 else ONE_COLUMN, 1.35 + 0.18 * len(pairs)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=SPARE))
        axes, bar = figure.subplots(2, height_ratios=[0.18 * len(pairs), BAR])
        mesh = _heat(axes, table.set_axis(pairs), share)
        _settle(figure, bar, mesh, share)
    return figure


def success_sweep(frame: pd.DataFrame) -> Figure:
    """Draw unlearn (left) and retention (right) success by the share that masks keep, one row of panels a mask.

    Args:
        frame: Columns ``which`` (the mask swept; at most four), ``share``, ``domain`` (at most six),
            ``unlearn_success``, ``retention_success`` (in %), ``seed``; each combination once.

    Returns:
        A figure with one y-axis a column: a line a domain, the mean over seeds, in a band from the lowest to the
        highest.
    """
    looks = _domains(frame)
    masks = list(frame["which"].unique())
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(TWO_COLUMN, 0.6 + 2.0 * len(masks)), layout="constrained")
        panels = figure.subplots(len(masks), 2, squeeze=False, sharex="row", sharey="col")
        for mask, line in zip(masks, panels, strict=True):
            for (column, label), axes in zip(SUCCESSES.items(), line, strict=True):
                for domain, look in looks.items():
                    rows = frame[(frame["which"] == mask) & (frame["domain"] == domain)]
                    _band(axes, rows, column, domain, look)
                axes.set(xlabel=f"{mask}: share of entries (%)", ylabel=label)
        band = {"lowest to highest seed": BAND} if frame["seed"].nunique() > 1 else {}
        finish(figure, looks | band, 4)
    return figure


def _order(frame: pd.DataFrame, within: Sequence[Sequence[str]]) -> list[str]:
    """The rows, those of a group together, else in order of first appearance."""
    found = list(dict.fromkeys(frame[["gradient", "other"]].to_numpy().ravel()))
    grouped = [row for group in within for row in group]
    if len(set(grouped)) < len(grouped) or not set(grouped) <= set(found):
        raise GeffectError(
            f"groups that share no row, of {', '.join(found)}", str([*map(list, within)]), "correct within"
        )
    if len(found) > MOST:
        raise GeffectError(f"at most {MOST} rows in a picture", f"{len(found)}: {', '.join(found)}", "leave some out")
    return grouped + [row for row in found if row not in grouped]


def _pairs(frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """The frame indexed by keys and pair, a pair always in the order it first came in."""
    first: dict[frozenset[str], tuple[str, str]] = {}
    pairs = [first.setdefault(frozenset(pair), pair) for pair in zip(frame["gradient"], frame["other"], strict=True)]
    named = frame.assign(gradient=[row for row, _ in pairs], other=[other for _, other in pairs])
    once(named, [*keys, "gradient", "other"])
    if same := [row for row, other in pairs if row == other]:
        raise GeffectError("pairs of different rows", f"{same[0]} with itself", "leave it out")
    return named.set_index([*keys, "gradient", "other"])


def _domains(frame: pd.DataFrame) -> dict[str, Look]:
    check(frame, SWEEP)
    once(frame, ["which", "share", "domain", "seed"])
    for column, most in (("which", 4), ("domain", len(RUNS))):
        if (found := frame[column].nunique()) > most:
            raise GeffectError(f"at most {most} values of {column} in a picture", str(found), "leave some out")
    return dict(zip(frame["domain"].unique(), RUNS, strict=False))


def _heat(axes: Axes, table: pd.DataFrame, share: float) -> QuadMesh:
    """Cells from the top left, hatched where nothing is known; the scale holds chance and every number."""
    values = table.to_numpy(float)
    top = max(np.nanmax(values, initial=0), 2 * share / (2 - share))
    step = 0.1 if top > 0.2 else 0.02
    mesh = heat(axes, table, cmap=MAP, vmin=0, vmax=min(1.0, step * np.ceil(top / step)))
    name_columns(axes, list(map(str, table.columns)))
    return mesh


def _frame_groups(axes: Axes, sizes: list[int]) -> None:
    for start, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
        axes.add_patch(Rectangle((start, start), size, size, fill=False, ec="black", lw=1.1, clip_on=False, zorder=3))


def _settle(figure: Figure, axes: Axes, mesh: QuadMesh, share: float) -> None:
    """Draw the color bar with chance on it and settle the layout."""
    level = share / (2 - share)
    bar = figure.colorbar(mesh, cax=axes, orientation="horizontal")
    bar.set_label(f"Jaccard index of the top {100 * share:g} % of entries", loc="right")
    axes.spines[:].set_visible(False)
    axes.axvline(level, ymax=1.5, color="black", lw=1.2, clip_on=False, label="chance")
    axes.text(level, 1.7, f"chance {level:.3f}", transform=axes.get_xaxis_transform(), ha="center", **NOTE)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def _band(axes: Axes, rows: pd.DataFrame, column: str, domain: str, look: Look) -> None:
    seeds = rows.groupby("share")[column].agg(["mean", "min", "max"])
    share = 100 * seeds.index.to_numpy(float)
    axes.fill_between(share, seeds["min"], seeds["max"], color=look["c"], alpha=0.2, lw=0)
    axes.plot(share, seeds["mean"], label=domain, **look)
