"""Heat maps: a G-effect by layer and step, cosines of gradients, and overlaps of masks (arXiv 2504.12681, Fig. 3)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, MaxNLocator

from geffect.core.effects import gram_at
from geffect.core.groups import depth_key
from geffect.core.splits import domain_of
from geffect.errors import GeffectError
from geffect.reports.plots import style
from geffect.reports.plots.curves import SIDES
from geffect.reports.plots.style import NATS, NOTE, PAGE, PER_RATE, SIGNED, Figure, Numbers, Page, styled

if TYPE_CHECKING:  # records are drawn without torch
    from geffect.core.gram import Gram

BAR, MOST, MOST_PAIRS = 0.09, 12, 36  # how high a color bar is in inches, gradients of a Gram
DOT = 4  # points a cell must have for its mark
STEPS = 6  # named below a panel


@styled
def layer_heat_map(frame: pd.DataFrame, scale: str = "linear", page: Page = PAGE) -> Figure:
    """Draw one run's unlearn (left) and retain (right) G-effect by layer and step.

    Columns ``step``, ``layer``, and ``unlearn``, ``retain`` or both (or ``forget_change`` and ``retain_change``), as of
    `geffect.g_effect` on a record read by layer; each layer and step once. A value that is missing or NaN is hatched.
    Both sides share a color scale centered on zero. Layers go from the embedding at the top to the head, then what is
    in several. Cells above zero bear a dot where there is room, so that signs can be read in gray.
    """
    sides = [side for side in SIDES if side in frame] or ["unlearn", "retain"]
    style.check(frame, ("step", "layer", *sides))
    style.once(frame, ["step", "layer"])
    layers = sorted(frame["layer"].unique(), key=depth_key)
    values = frame[sides].to_numpy(float).ravel()
    colors, note_of_scale, ticks = style.signed(values, scale)
    height = min(6.0, max(1.2, 0.15 * len(layers)))
    figure = page.figure(len(sides) > 1, height + 1.3)
    grid = figure.add_gridspec(2, len(sides), height_ratios=[height, BAR])
    dotted = 0
    for place, side in enumerate(sides):
        table = frame.pivot(index="layer", columns="step", values=side).loc[layers]
        axes = figure.add_subplot(grid[0, place], title=SIDES[side][0], xlabel="unlearning step")
        width = 72 * (figure.get_figwidth() - 0.9) / len(sides)
        mesh = _side(axes, table, colors, 72 * height / len(layers), width)
        dotted += len(axes.collections) - 1 if (values > 0).any() else 0
        if place > 0:
            axes.set_yticks([])
    label = f"change ({NATS})" if sides[0].endswith("change") else f"G-effect ({PER_RATE})"
    notes = "; ".join([*filter(None, [note_of_scale]), *(["dots: above 0"] if dotted else [])])
    style.bar(figure, figure.add_subplot(grid[1, :]), mesh, f"{label}\n{notes}".strip(), ticks, values)
    style.settle(figure)
    return figure


def _side(axes: Axes, table: pd.DataFrame, scale: Normalize, high: float, wide: float) -> QuadMesh:
    """Draw one panel, which is ``wide`` points wide and whose cells are ``high`` points high."""
    edges = _edges(table.columns.to_numpy(float))
    mesh = style.heat(axes, table, SIGNED, scale, edges)
    every = int(np.ceil(8.5 / high))  # points a name needs
    axes.set_yticks(np.arange(0, len(table), every) + 0.5, table.index[::every])
    few = table.shape[1] <= STEPS
    axes.xaxis.set_major_locator(
        FixedLocator(list(map(float, table.columns))) if few else MaxNLocator(nbins=STEPS, integer=True)
    )
    if min(high, wide / table.shape[1]) >= DOT:
        values = table.to_numpy(float)
        lines, columns = np.nonzero(values > 0)
        colors = [style.ink(mesh, value) for value in values[lines, columns]]
        axes.scatter((edges[columns] + edges[columns + 1]) / 2, lines + 0.5, s=3, c=colors, lw=0)
    else:
        mesh.set_edgecolor("face")
    return mesh


def _edges(steps: Numbers) -> Numbers:
    """The edges half-way between steps, so that steps that are far apart are drawn so."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middles = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[2 * steps[0] - middles[0]], middles, [2 * steps[-1] - middles[-1]]])


@styled
def gram_heat_map(gram: "Gram | pd.DataFrame", step: int | None = None, page: Page = PAGE) -> Figure:
    """Draw the cosines of all gradients with one another, with their norms beside.

    A Gram, or a record's frame with columns ``step``, ``gradient``, ``other`` and ``inner`` (labels are summed); at
    most twelve gradients. ``step`` is one of a frame, and may be None if there is one. Every number is in its cell, –
    where a gradient is zero.
    """
    table = _table(gram, step)
    norms = np.sqrt(np.clip(np.diag(table), 0, None))
    known = np.where(norms > 0, norms, np.nan)
    cosines = table.div(known, axis=0).div(known, axis=1).clip(-1, 1)
    side = 0.5 * len(table) if page.inches(len(table) > 5) > 5 else min(2.2, 0.5 * len(table))
    names = 0.04 * max(len(str(name)) for name in table)  # inches that long ones take below the cells
    figure = page.figure(len(table) > 5, 1.2 + side + names)
    axes, below = figure.subplots(2, height_ratios=[side, BAR])
    axes.set_box_aspect(1)
    mesh = style.heat(axes, cosines, SIGNED, Normalize(-1, 1))
    style.name_columns(axes, list(map(str, cosines.columns)))
    style.number(axes, mesh, cosines.to_numpy(float))
    for place, norm in enumerate(norms):
        axes.text(len(table) + 0.15, place + 0.5, f"{norm:.3g}", va="center", size=7)
    axes.text(len(table) + 0.15, -0.15, "norm", va="bottom", **NOTE)
    axes.set_title("" if step is None else f"step {step:g}")
    style.bar(figure, below, mesh, "cosine of two gradients", [-1, -0.5, 0, 0.5, 1])
    style.settle(figure)
    return figure


def _table(gram: "Gram | pd.DataFrame", step: int | None) -> pd.DataFrame:
    if isinstance(gram, pd.DataFrame):
        style.check(gram, ("step", "gradient", "other", "inner"))
        table = gram_at(gram, step)
    else:
        table = pd.DataFrame(gram.total().numpy(), gram.names, gram.names)
    style.at_most(MOST, "gradients", table.index)
    return table


SPARE = 0.1  # inches beside long names, which are wider in a notebook's coarser picture
MAP = "YlGnBu"  # from light to dark in gray too
DIAGONAL = "0.82"


@styled
def jaccard_matrix(
    frame: pd.DataFrame, share: float, within: Sequence[Sequence[str]] = (), page: Page = PAGE
) -> Figure:
    """Draw the Jaccard indices of the masks of every two gradients.

    Columns ``gradient``, ``other`` and ``jaccard``; each unordered pair of different gradients (at most twelve) once. A
    pair that is missing or NaN is hatched. A mask holds a ``share`` of the entries; two random ones have the index
    share / (2 − share), marked on the color bar. Each group of gradients in ``within`` is put side by side and framed.
    """
    style.check(frame, ("gradient", "other", "jaccard"))
    gradients = _order(frame, within)
    matrix = pd.DataFrame(np.nan, gradients, gradients)
    for gradient, other, value in _pairs(frame, ())["jaccard"].reset_index().itertuples(index=False):
        matrix.loc[gradient, other] = matrix.loc[other, gradient] = value
    names = [name.replace(" ", "\n") if len(gradients) <= 6 else name for name in gradients]
    wide = page.inches(len(gradients) > 6) > 5
    side = max(2.4, 0.42 * len(gradients)) if wide else 2.4
    figure = page.figure(wide, 1.2 + side)
    axes, bar = figure.subplots(2, height_ratios=[side, BAR])
    axes.set_box_aspect(1)
    mesh = _heat(axes, matrix.set_axis(names).set_axis(names, axis=1), share)
    for i in range(len(gradients)):
        axes.add_patch(Rectangle((i, i), 1, 1, fc=DIAGONAL, ec="white", lw=0.5))
    style.number(axes, mesh, matrix.to_numpy(float))
    for start, size in zip(np.cumsum([0, *map(len, within)]), map(len, within), strict=False):
        axes.add_patch(Rectangle((start, start), size, size, fill=False, ec="black", lw=1.1, clip_on=False, zorder=3))
    _chance_bar(figure, bar, mesh, share)
    return figure


def overlap_matrix(frame: pd.DataFrame, share: float, page: Page = PAGE) -> Figure:
    """Draw the overlaps of a localization's splits at one ``share``, those of a domain framed."""
    frame = frame[frame["share"] == share]
    splits = dict.fromkeys([*frame["gradient"], *frame["other"]])
    pairs = {domain: [name for name in splits if domain_of(name) == domain] for domain in map(domain_of, splits)}
    return jaccard_matrix(frame, share, [names for names in pairs.values() if len(names) == 2], page)


@styled
def jaccard_by_layer(frame: pd.DataFrame, share: float, page: Page = PAGE) -> Figure:
    """Draw the Jaccard index of every pair of gradients by layer, from the embedding (left) to the head.

    Columns ``layer``, ``gradient``, ``other`` and ``jaccard``; each layer has an unordered pair of different gradients
    (at most twelve) once. A value that is missing or NaN is hatched. ``share`` is as of `jaccard_matrix`.
    """
    style.check(frame, ("layer", "gradient", "other", "jaccard"))
    _order(frame, ())
    values = _pairs(frame, ("layer",))["jaccard"]
    rows = values.groupby(level=["gradient", "other"], sort=False).size().index
    layers = sorted(map(str, frame["layer"].unique()), key=depth_key)
    table = values.unstack("layer").loc[rows, layers]  # unstack(sort=False) moves values to other rows in pandas 2
    pairs = [f"{gradient} ∩ {other}" for gradient, other in table.index]
    figure = page.figure(table.shape[1] > 12, 1.35 + 0.18 * len(pairs), ConstrainedLayoutEngine(w_pad=SPARE))
    axes, bar = figure.subplots(2, height_ratios=[0.18 * len(pairs), BAR])
    mesh = _heat(axes, table.set_axis(pairs), share)
    _chance_bar(figure, bar, mesh, share)
    return figure


WHOLE = "whole"


@styled
def conflict_map(frame: pd.DataFrame, page: Page = PAGE) -> Figure:
    """Draw the cosine of every two targets' gradients, of the whole model (left) and by layer.

    Columns ``layer`` (``whole`` among them), ``target``, ``other`` and ``cosine``, each layer and pair once. Below 0
    (orange) a step that helps one of the two harms the other. The number is the whole model's.
    """
    style.check(frame, ("layer", "target", "other", "cosine"))
    style.once(frame, ["layer", "target", "other"])
    style.at_most(MOST_PAIRS, "pairs of targets", frame[["target", "other"]].drop_duplicates().index)
    layers = sorted(set(frame["layer"]) - {WHOLE}, key=depth_key)
    pairs = list(dict.fromkeys(zip(frame["target"], frame["other"], strict=True)))
    named = frame.assign(pair=[f"{a} · {b}" for a, b in zip(frame["target"], frame["other"], strict=True)])
    table = named.pivot(index="pair", columns="layer", values="cosine").loc[[f"{a} · {b}" for a, b in pairs]]
    height = 0.22 * len(pairs)
    figure = page.figure(len(layers) > 12, 1.35 + height, ConstrainedLayoutEngine(w_pad=SPARE))
    grid = figure.add_gridspec(2, 2, height_ratios=[height, BAR], width_ratios=[1.5, max(3, len(layers))])
    axes, beside = (figure.add_subplot(grid[0, place]) for place in (0, 1))
    mesh = style.heat(axes, table[[WHOLE]], SIGNED, Normalize(-1, 1))
    for place, value in enumerate(table[WHOLE].to_numpy(float)):
        text = f"{value:.2f}".replace("-", "−") if np.isfinite(value) else "–"
        axes.text(0.5, place + 0.5, text, ha="center", va="center", color=style.ink(mesh, value), size=7)
    axes.set_xticks([0.5], [WHOLE], rotation=90)
    style.heat(beside, table[layers], SIGNED, Normalize(-1, 1))
    beside.set_yticks([])
    style.name_columns(beside, layers)
    style.bar(figure, figure.add_subplot(grid[1, :]), mesh, "cosine of two targets' gradients", [-1, -0.5, 0, 0.5, 1])
    style.settle(figure)
    return figure


def _order(frame: pd.DataFrame, within: Sequence[Sequence[str]]) -> list[str]:
    """The gradients: those of a group together, else in order of first appearance."""
    names = list(dict.fromkeys(frame[["gradient", "other"]].to_numpy().ravel()))
    grouped = [name for group in within for name in group]
    if len(set(grouped)) < len(grouped) or not set(grouped) <= set(names):
        message = f"The groups {[*map(list, within)]} share a gradient, or name none of {', '.join(names)}"
        raise GeffectError(message, remedy="Correct within")
    style.at_most(MOST, "gradients", names)
    return grouped + [name for name in names if name not in grouped]


def _pairs(frame: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """The frame indexed by keys and pair; a pair is always in the order of its first appearance."""
    first: dict[frozenset[str], tuple[str, str]] = {}
    pairs = [first.setdefault(frozenset(pair), pair) for pair in zip(frame["gradient"], frame["other"], strict=True)]
    named = frame.assign(gradient=[gradient for gradient, _ in pairs], other=[other for _, other in pairs])
    style.once(named, [*keys, "gradient", "other"])
    if same := [gradient for gradient, other in pairs if gradient == other]:
        raise GeffectError(f"The frame pairs {same[0]} with itself", remedy="Leave that pair out")
    return named.set_index([*keys, "gradient", "other"])


def _heat(axes: Axes, table: pd.DataFrame, share: float) -> QuadMesh:
    """Draw cells from the top left, hatched where a value is missing; the scale includes chance and every number."""
    values = table.to_numpy(float)
    top = max(np.nanmax(values, initial=0), 2 * share / (2 - share))
    step = 0.1 if top > 0.2 else 0.02
    mesh = style.heat(axes, table, MAP, Normalize(0, min(1.0, step * np.ceil(top / step))))
    style.name_columns(axes, list(map(str, table.columns)))
    return mesh


def _chance_bar(figure: Figure, axes: Axes, mesh: QuadMesh, share: float) -> None:
    """Draw the color bar with chance on it, and fix the layout."""
    level = share / (2 - share)
    bar = figure.colorbar(mesh, cax=axes, orientation="horizontal")
    bar.set_label(f"Jaccard index of the top {100 * share:g} % of entries", loc="right")
    axes.spines[:].set_visible(False)
    axes.axvline(level, ymax=1.5, color="black", lw=1.2, clip_on=False, label="chance")
    axes.text(level, 1.7, f"chance {level:.3f}", transform=axes.get_xaxis_transform(), ha="center", **NOTE)
    style.settle(figure)
