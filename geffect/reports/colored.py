"""What the HTML page colors by a signed effect: maps of layers by step and texts token by token, each with its key."""

from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_hex

from geffect.core.effects import direction_name, objective_name
from geffect.core.groups import depth_key
from geffect.reports.compare import descended
from geffect.reports.plots.examples import SHOWN, token_unit
from geffect.reports.plots.style import PER_RATE, SIGNED, Numbers, signed

MOST, LABELS = 60, 12  # columns of a map; about as many of them are named
TOKENS_SHOWN = 400  # of a text
STEPS_OF_KEY = 9
SIDES = {
    "unlearn": ("raises the forget loss: forgets", "lowers the forget loss"),
    "retain": ("raises the retain loss: harm", "lowers the retain loss"),
}


class Key(NamedTuple):
    """The key of a color scale centered on zero."""

    colors: list[str]  # from the lowest number to the highest
    low: str
    high: str
    below: str  # what a number below zero means
    above: str
    unit: str


class Scale:
    """Colors for signed numbers, centered on zero; logarithmic where a few dwarf the rest."""

    def __init__(self, values: Numbers) -> None:
        norm, self.note, _ = signed(values)
        self._top = float(norm.inverse(1.0))
        self._colors = ScalarMappable(norm, SIGNED)

    def color(self, value: float) -> str:
        """A number's color as ``#rrggbb``; gray where it is not finite."""
        red, green, blue, _ = self._colors.to_rgba(np.nan_to_num(value))
        return to_hex((red, green, blue)) if np.isfinite(value) else "#bfbfbf"

    def key(self, below: str, above: str, unit: str) -> Key:
        """The key, with what the two signs mean and the unit."""
        colors = [to_hex(self._colors.cmap(float(place))[:3]) for place in np.linspace(0, 1, STEPS_OF_KEY)]
        note = f"{unit}; {self.note}" if self.note else unit
        return Key(colors, signed_text(-self._top), signed_text(self._top), below, above, note)


def signed_text(value: float) -> str:
    """A number with its sign and three digits; ``unknown`` where it is not finite."""
    return f"{value:+.3g}".replace("-", "−") if np.isfinite(value) else "unknown"


def contrast(color: str, other: str) -> float:
    """The contrast of two colors ``#rrggbb``, 1 to 21 (WCAG 2.2, relative luminance).

    >>> round(contrast("#000000", "#ffffff"))
    21
    """
    low, high = sorted(map(_luminance, (color, other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(color: str) -> float:
    shares = np.frombuffer(bytes.fromhex(color[1:]), np.uint8) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def ink_on(color: str) -> str:
    """Black or white, whichever has more contrast on a color; it is at least 4.5."""
    return "black" if contrast(color, "#000000") >= contrast(color, "#ffffff") else "white"


class Cell(NamedTuple):
    """One layer at one step: its number as text, its color, whether it is above zero."""

    text: str
    color: str
    above: bool


class LayerMap(NamedTuple):
    """One G-effect by layer and step."""

    side: str  # unlearn or retain
    direction: str  # what was descended
    key: Key
    columns: list[tuple[str, bool]]  # a step, or steps that were averaged, and whether its name is shown
    rows: dict[str, list[Cell]]  # layer → cells
    pooled: int  # steps in a column


def layer_maps_of(gram: pd.DataFrame) -> list[LayerMap]:
    """The maps of a record's frame by layer."""
    name = direction_name(gram)
    words = "the objective’s gradient" if name == objective_name(gram) else f"the {name} gradient"
    return layer_maps(descended(gram), words)


def layer_maps(frame: pd.DataFrame, direction: str = "") -> list[LayerMap]:
    """Both G-effects by layer and step, unlearn first as in the figures, on one color scale centered on zero.

    Of a run of more than 60 measured steps, a column is the mean of several.
    """
    layers = sorted(frame["layer"].unique(), key=depth_key)
    steps = np.sort(frame["step"].unique())
    pooled = -(-len(steps) // MOST)
    parts = [steps[at : at + pooled] for at in range(0, len(steps), pooled)]
    place = {step: number for number, part in enumerate(parts) for step in part}
    means = frame.groupby(["layer", frame["step"].map(place)])[list(SIDES)].mean()
    scale = Scale(means.to_numpy(float).ravel())
    every = -(-len(parts) // LABELS)
    spans = [str(part[0]) if len(part) == 1 else f"{part[0]}–{part[-1]}" for part in parts]
    columns = [(span, number % every == 0) for number, span in enumerate(spans)]
    return [
        LayerMap(
            side,
            direction,
            scale.key(*meanings, f"{PER_RATE}; a dot marks numbers above 0"),
            columns,
            _cells(means[side].unstack().loc[layers], scale),
            pooled,
        )
        for side, meanings in SIDES.items()
    ]


def _cells(table: pd.DataFrame, scale: Scale) -> dict[str, list[Cell]]:
    return {
        str(layer): [Cell(signed_text(value), scale.color(value), bool(value > 0)) for value in values]
        for layer, values in zip(table.index, table.to_numpy(float), strict=True)
    }


class Token(NamedTuple):
    """A token of a text, the number shown for it, and its colors (empty: none)."""

    text: str
    says: str
    color: str
    ink: str


class Text(NamedTuple):
    """One example of a set."""

    title: str
    tokens: list[Token]
    left_out: int  # further tokens


class Texts(NamedTuple):
    """Texts on one color scale."""

    key: Key
    texts: list[Text]


def token_texts(frame: pd.DataFrame) -> Texts:
    """The texts of the last step, each up to its four hundredth token."""
    frame = frame[frame["step"] == frame["step"].max()]
    labeled = frame["labeled"].astype(bool)
    scale = Scale(frame.loc[labeled, "effect"].to_numpy(float))
    texts = []
    for (name, example, direction), rows in frame.groupby(["set", "example", "direction"], sort=False):
        columns = rows.sort_values("position")[["token", "labeled", "effect"]].head(TOKENS_SHOWN)
        tokens = [_token(str(text), known, effect, scale) for text, known, effect in columns.itertuples(index=False)]
        title = f"{name} example {example}, along the {direction}"
        texts.append(Text(title, tokens, len(rows) - len(tokens)))
    meanings = ("the step makes the token less likely", "the step makes it more likely (underlined)")
    return Texts(scale.key(*meanings, f"{token_unit(frame)}; tokens without color carry no loss"), texts)


def _token(text: str, labeled: bool, effect: float, scale: Scale) -> Token:
    text = text.translate(SHOWN)
    if not labeled:
        return Token(text, "no loss", "", "")
    color = scale.color(effect)
    return Token(text, signed_text(effect), color, ink_on(color))
