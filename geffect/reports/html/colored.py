"""What a page colors: a run's G-effects as a table of layers by steps, and the worst examples token by token."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_hex

from geffect.core.layers import depth_key
from geffect.reports.plots.cells import SIGNED, ink, signed

MOST, LABELS = 60, 12  # columns of a map; about as many of them are named
SIDES = {
    "retain": ("raises the retain loss: harm", "lowers the retain loss"),
    "unlearn": ("raises the forget loss: forgets", "lowers the forget loss"),
}


class Cell(NamedTuple):
    """One layer at one step: its number as text, its color, whether it is above zero."""

    text: str
    color: str
    above: bool


class LayerMap(NamedTuple):
    """One G-effect by layer and step.

    Attributes:
        side: ``retain`` or ``unlearn``.
        below: what a number below zero means.
        above: what one above zero means.
        columns: a step, or steps that were averaged, and whether its name is shown.
        rows: layer → cells.
        pooled: steps in a column.
    """

    side: str
    below: str
    above: str
    columns: list[tuple[str, bool]]
    rows: dict[str, list[Cell]]
    pooled: int


def layer_maps(frame: pd.DataFrame) -> list[LayerMap]:
    """Both G-effects by layer and step, on one color scale centered on zero.

    The retain side first. Of a run of more than 60 measured steps a column is the mean of several.
    """
    layers = sorted(frame["layer"].unique(), key=depth_key)
    steps = np.sort(frame["step"].unique())
    pooled = -(-len(steps) // MOST)
    parts = [steps[at : at + pooled] for at in range(0, len(steps), pooled)]
    place = {step: number for number, part in enumerate(parts) for step in part}
    means = frame.groupby(["layer", frame["step"].map(place)])[list(SIDES)].mean()
    colors = ScalarMappable(signed(means.to_numpy(float).ravel())[0], SIGNED)
    every = -(-len(parts) // LABELS)
    columns = [(_span(part), number % every == 0) for number, part in enumerate(parts)]
    return [
        LayerMap(side, *says, columns, _rows(means[side].unstack().loc[layers], colors), pooled)
        for side, says in SIDES.items()
    ]


def _span(steps: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> str:
    return str(steps[0]) if len(steps) == 1 else f"{steps[0]}–{steps[-1]}"


def _rows(table: pd.DataFrame, colors: ScalarMappable) -> dict[str, list[Cell]]:
    return {
        str(layer): [Cell(signed_text(value), color_of(value, colors), bool(value > 0)) for value in values]
        for layer, values in zip(table.index, table.to_numpy(float), strict=True)
    }


def signed_text(value: float) -> str:
    """A number with its sign, three digits; ``unknown`` where it is not finite."""
    return f"{value:+.3g}".replace("-", "−") if np.isfinite(value) else "unknown"


def color_of(value: float, colors: ScalarMappable) -> str:
    """A number's color as ``#rrggbb``; gray where it is not finite."""
    red, green, blue, _ = colors.to_rgba(np.nan_to_num(value))
    return to_hex((red, green, blue)) if np.isfinite(value) else "#bfbfbf"


NO_LOSS = "no loss"


class Token(NamedTuple):
    """What is written, what is said of it, and its colors (empty: none)."""

    text: str
    says: str
    color: str
    ink: str


class Text(NamedTuple):
    """One row of a set."""

    title: str
    tokens: list[Token]


def texts(frame: pd.DataFrame) -> list[Text]:
    """Texts on one color scale, those of the last step."""
    frame = frame[frame["step"] == frame["step"].max()]
    labeled = frame["labeled"].astype(bool)
    colors = ScalarMappable(signed(frame.loc[labeled, "effect"].to_numpy(float))[0], SIGNED)
    found = []
    for (name, row, direction), rows in frame.groupby(["set", "example", "direction"], sort=False):
        tokens = rows.sort_values("position")
        columns = (tokens["token"], tokens["labeled"], tokens["effect"])
        found.append(
            Text(
                f"{name} row {row}, along the {direction}",
                [
                    _token(str(text), bool(known), float(effect), colors)
                    for text, known, effect in zip(*columns, strict=True)
                ],
            )
        )
    return found


def _token(text: str, labeled: bool, effect: float, colors: ScalarMappable) -> Token:
    shown = text.replace("\n", "⏎").replace("\r", "␍").replace("\t", "⇥")
    if not labeled:
        return Token(shown, NO_LOSS, "", "")
    return Token(shown, signed_text(effect), color_of(effect, colors), ink(colors, effect))
