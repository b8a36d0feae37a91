"""A G-effect by layer and step, and the cosines of all rows at one step, as heat maps."""

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize
from matplotlib.ticker import FixedLocator, MaxNLocator

from geffect.core.gram import Gram, gram_at
from geffect.core.layers import depth_key
from geffect.errors import GeffectError
from geffect.reports.plots.cells import SIGNED, bar, heat, ink, name_columns, number, signed
from geffect.reports.plots.figure import Figure
from geffect.reports.plots.panels import Numbers, check, once
from geffect.reports.plots.style import NOTE, ONE_COLUMN, STYLE, TWO_COLUMN

BAR, MOST = 0.09, 12  # how high a color bar is in inches, rows of a Gram
SIDES = {"unlearn": "below 0: forgets", "retain": "below 0: harms the retain set"}
DOT = 4  # points a cell must have for its mark
STEPS = 6  # named below a panel


def layer_heat_map(frame: pd.DataFrame) -> Figure:
    """Draw one run's unlearn (left) and retain (right) G-effect by layer and step.

    Args:
        frame: Columns ``step``, ``layer``, ``unlearn``, ``retain``, as of `geffect.g_effect` on a record read by layer;
            each layer and step once. What is missing or NaN is drawn as unknown.

    Returns:
        A figure with one color scale for both sides, centered on zero (symmetric logarithm where a few cells dwarf the
        rest; the color bar says so): layers from the embedding at the top to the head, then what is in several. Where
        cells are large enough, those above zero bear a dot, so that signs can be distinguished in gray.

    Raises:
        GeffectError: a column is missing, or a layer stands twice at a step.
    """
    check(frame, ("step", "layer", "unlearn", "retain"))
    once(frame, ["step", "layer"])
    layers = sorted(frame["layer"].unique(), key=depth_key)
    scale, says, ticks = signed(frame[list(SIDES)].to_numpy(float).ravel())
    height = min(6.0, max(1.2, 0.15 * len(layers)))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(TWO_COLUMN, height + 1.3), layout="constrained")
        grid = figure.add_gridspec(2, 2, height_ratios=[height, BAR])
        for place, (side, note) in enumerate(SIDES.items()):
            table = frame.pivot(index="layer", columns="step", values=side).loc[layers]
            axes = figure.add_subplot(grid[0, place], title=f"{side} G-effect ({note})", xlabel="unlearning step")
            mesh = _side(axes, table, scale, 72 * height / len(layers))
            if place > 0:
                axes.set_yticks([])
        label = rf"G-effect $\langle\nabla R,\, d\rangle$ (gradient² units; {says + '; ' if says else ''}dots: above 0)"
        bar(figure, figure.add_subplot(grid[1, :]), mesh, label, ticks)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    return figure


def _side(axes: Axes, table: pd.DataFrame, scale: Normalize, high: float) -> QuadMesh:
    """One panel, whose cells are so many points high."""
    edges = _edges(table.columns.to_numpy(float))
    mesh = heat(axes, table, edges, cmap=SIGNED, norm=scale)
    every = int(np.ceil(8.5 / high))  # points a name needs
    axes.set_yticks(np.arange(0, len(table), every) + 0.5, table.index[::every])
    few = table.shape[1] <= STEPS
    axes.xaxis.set_major_locator(
        FixedLocator(list(map(float, table.columns))) if few else MaxNLocator(nbins=STEPS, integer=True)
    )
    if min(high, 190 / table.shape[1]) >= DOT:  # points a panel is wide, about
        _dot(axes, mesh, table.to_numpy(float), edges)
    else:
        mesh.set_edgecolor("face")
    return mesh


def _dot(axes: Axes, mesh: QuadMesh, values: Numbers, edges: Numbers) -> None:
    """A dot in every cell above zero."""
    lines, columns = np.nonzero(values > 0)
    colors = [ink(mesh, value) for value in values[lines, columns]]
    axes.scatter((edges[columns] + edges[columns + 1]) / 2, lines + 0.5, s=3, c=colors, lw=0)


def _edges(steps: Numbers) -> Numbers:
    """Edges half-way between steps, so that steps that are far apart are drawn so."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middles = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[2 * steps[0] - middles[0]], middles, [2 * steps[-1] - middles[-1]]])


def gram_heat_map(gram: Gram | pd.DataFrame, step: int | None = None) -> Figure:
    """Draw the cosines of all rows with one another, their norms beside.

    Args:
        gram: a Gram, or a record's frame with columns ``step``, ``gradient``, ``other``, ``inner`` (labels are summed);
            at most twelve gradients.
        step: of a frame; may be left out where it has one.

    Returns:
        A one-panel figure, symmetric, every number in its cell (– where a row is zero), the scale from −1 to 1.

    Raises:
        GeffectError: a column or the step is missing, or there are too many rows.
    """
    table = _table(gram, step)
    norms = np.sqrt(np.clip(np.diag(table), 0, None))
    known = np.where(norms > 0, norms, np.nan)
    cosines = table.div(known, axis=0).div(known, axis=1).clip(-1, 1)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(ONE_COLUMN, 1.3 + min(2.4, 0.5 * len(table))), layout="constrained")
        axes, below = figure.subplots(2, height_ratios=[min(2.4, 0.5 * len(table)), BAR])
        axes.set_box_aspect(1)
        mesh = heat(axes, cosines, cmap=SIGNED, vmin=-1, vmax=1)
        name_columns(axes, list(map(str, cosines.columns)))
        number(axes, mesh, cosines.to_numpy(float))
        for place, norm in enumerate(norms):
            axes.text(len(table) + 0.15, place + 0.5, f"{norm:.3g}", va="center", size=7)
        axes.text(len(table) + 0.15, -0.15, "norm", va="bottom", **NOTE)
        axes.set_title("" if step is None else f"step {step:g}")
        bar(figure, below, mesh, "cosine of two rows (norms in gradient units)", [-1, -0.5, 0, 0.5, 1])
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    return figure


def _table(gram: Gram | pd.DataFrame, step: int | None) -> pd.DataFrame:
    if isinstance(gram, Gram):
        table = pd.DataFrame(gram.total().numpy(), gram.rows, gram.rows)
    else:
        check(gram, ("step", "gradient", "other", "inner"))
        table = gram_at(gram, step)
    if len(table) > MOST:
        raise GeffectError(
            f"at most {MOST} rows in a picture", f"{len(table)}: {', '.join(table.index)}", "leave some out"
        )
    return table
