"""What heat maps share: the scale of signed values, names, numbers and marks in cells."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import QuadMesh
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.figure import Figure

from geffect.reports.plots.panels import Numbers, decades, spread
from geffect.reports.plots.style import literal

SIGNED = "PuOr"  # orange below zero, purple above: distinct for every kind of color vision
UNKNOWN = "0.75"


def signed(values: Numbers) -> tuple[Normalize, str, list[float] | None]:
    """A color scale centered on zero.

    Args:
        values: to be colored; those not finite are left out.

    Returns:
        The scale, what its label must say of it (empty where it is linear), and its ticks (None: matplotlib's own).
    """
    top, exponents = spread(values, 30)
    if exponents is None:
        return Normalize(-top, top), "", None
    low, high = exponents
    return (
        SymLogNorm(10.0**low, vmin=-top, vmax=top, base=10),
        f"symlog, linear within ±{10.0**low:g}",
        decades(low, high, 3),
    )


def bar(figure: Figure, axes: Axes, mesh: ScalarMappable, label: str, ticks: Sequence[float] | None) -> Colorbar:
    """Draw a horizontal color bar, zero at its middle, into its own axes."""
    drawn = figure.colorbar(mesh, cax=axes, orientation="horizontal", label=label)
    if ticks is not None:
        drawn.set_ticks(list(ticks))
        drawn.minorticks_off()
    axes.spines[:].set_visible(False)
    return drawn


def heat(axes: Axes, table: pd.DataFrame, x: Numbers | None = None, **scale: Any) -> QuadMesh:
    """Draw a table's cells from the top left, hatched where nothing is known, its index beside them.

    Args:
        axes: where.
        table: lines by columns.
        x: the columns' edges, one more than columns; whole numbers from zero by default.
        scale: ``cmap`` and ``norm``, or ``vmin`` and ``vmax``.

    Returns:
        The cells.
    """
    axes.patch.set(facecolor="white", edgecolor=UNKNOWN, hatch="//////")
    edges = np.arange(table.shape[1] + 1.0) if x is None else x
    mesh = axes.pcolormesh(edges, np.arange(len(table) + 1), table.to_numpy(float), ec="white", lw=0.5, **scale)
    axes.set(ylim=(len(table), 0), yticks=np.arange(len(table)) + 0.5, yticklabels=[*map(literal, table.index)])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return mesh


def name_columns(axes: Axes, names: list[str]) -> None:
    """Upright where they would meet; every so many where even that is too dense."""
    width = 65 * (axes.figure.bbox.width / axes.figure.dpi - 1) / len(names)  # points a column has, about
    turned = max(len(line) for name in names for line in name.split("\n")) * 4.2 > width
    every = int(np.ceil(9 / width)) if turned else 1
    places = range(0, len(names), every)
    axes.set_xticks([i + 0.5 for i in places], [literal(names[i]) for i in places], rotation=90 if turned else 0)


def number(axes: Axes, mesh: QuadMesh, matrix: Numbers) -> None:
    """Every number in its cell, dark on light and light on dark; the diagonal is 1."""
    size = 8 - 0.35 * max(0, len(matrix) - 4)
    for (i, j), value in np.ndenumerate(matrix):
        text = "1" if i == j else f"{value:.2f}".replace("-", "−") if np.isfinite(value) else "–"
        axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", color=ink(mesh, value), size=size)


def ink(mesh: ScalarMappable, value: float) -> str:
    """Black or white, whichever is read on a value's color."""
    red, green, blue, _ = mesh.to_rgba(np.nan_to_num(value))
    return "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else "black"
