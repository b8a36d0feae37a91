"""What a direction does to the tokens of a text, as a colored text."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font
from matplotlib.patches import Rectangle

from geffect.errors import GeffectError
from geffect.reports.plots.cells import SIGNED, bar, ink, signed
from geffect.reports.plots.figure import Figure
from geffect.reports.plots.panels import check, once
from geffect.reports.plots.style import NOTE, STYLE, TWO_COLUMN

FONT, SIZE = "DejaVu Sans Mono", 7  # comes with matplotlib; every character has one width
WIDTH, LINE = 0.617 * SIZE / 72, 0.17  # inches of a character (as wide as whole pixels make it) and of a line
MARGIN, BELOW = 0.08, 0.55  # inches beside the text, and of the color bar with its label
ACROSS = int((TWO_COLUMN - 2 * MARGIN) / WIDTH)  # characters of a line
MOST, LONGEST = 8, 40  # texts in a picture, characters of a token
SHOWN = str.maketrans({"\n": "⏎", "\r": "␍", "\t": "⇥"})
PROMPT = "0.9"


@dataclass(frozen=True)
class Box:
    """Where a token stands: its first character, its line, what is written."""

    column: int
    line: int
    text: str


def token_strip(tokens: pd.DataFrame, column: str = "effect") -> Figure:
    """Draw texts token by token, each on the color of its effect.

    Args:
        tokens: Columns ``step``, ``set``, ``example``, ``position``, ``token``, ``labeled``, ``direction`` and what
            ``column`` names, as of `geffect.read_tokens`; at most eight texts (rows of a set at a step).
        column: ``effect``, or a layer group: nats per unit of the direction, below 0 for a token that a step along
            the direction makes less likely.

    Returns:
        A figure of text in lines, under one color scale centered on zero (symmetric logarithm where a few tokens dwarf
        the rest; the color bar says so). Tokens that carry no loss are gray. A line break is drawn as ⏎, a character
        that matplotlib's own font lacks as □.

    Raises:
        GeffectError: a column is missing, a token stands twice, or there are too many texts.
    """
    keys = ["step", "set", "example"]
    check(tokens, (*keys, "position", "token", "labeled", "direction", column))
    once(tokens, [*keys, "direction", "position"])
    texts = list(tokens.groupby([*keys, "direction"], sort=False))
    if len(texts) > MOST:
        raise GeffectError(f"at most {MOST} texts in a picture", str(len(texts)), "choose some rows, at one step")
    scale, says, ticks = signed(tokens.loc[tokens["labeled"].astype(bool), column].to_numpy(float))
    colors = ScalarMappable(scale, SIGNED)
    laid = [(_title(*key), rows.sort_values("position"), list(_lay(rows))) for key, rows in texts]
    lines = sum(boxes[-1].line + 2.3 for _, _, boxes in laid)
    height = lines * LINE + BELOW
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(TWO_COLUMN, height))
        axes = figure.add_axes((0, BELOW / height, 1, lines * LINE / height))
        inches = MARGIN / WIDTH
        axes.set(xlim=(-inches, TWO_COLUMN / WIDTH - inches), ylim=(lines, 0))
        axes.set_axis_off()
        top = 0.0
        for title, rows, boxes in laid:
            axes.text(0, top + 0.65, title, va="center", parse_math=False, **NOTE)
            _write(axes, rows, boxes, column, top + 1.1, colors)
            top += boxes[-1].line + 2.3
        below = figure.add_axes((0.2, (BELOW - 0.14) / height, 0.6, 0.09 / height))
        of = "effect" if column == "effect" else f"effect within {column}"
        says = "; ".join(["nats per unit of the direction", *([says] if says else []), "below 0: less likely"])
        label = f"{of} on a token's NLL ({says}; gray: no loss)"
        bar(figure, below, colors, label, ticks).ax.xaxis.label.set_fontsize(7)
    return figure


def _title(step: object, name: object, row: object, direction: object) -> str:
    return f"{name} row {row}, step {step}, along the {direction}"


def _lay(rows: pd.DataFrame) -> Iterator[Box]:
    """Tokens from left to right, a new line where one does not fit or after a line break."""
    column = line = 0
    for token in rows.sort_values("position")["token"]:
        text = _printable(str(token))
        if column and column + len(text) > ACROSS:
            column, line = 0, line + 1
        yield Box(column, line, text)
        column += len(text)
        if text.endswith("⏎"):
            column, line = 0, line + 1


def _printable(token: str) -> str:
    """What is written of a token: cut where it is long, no character without a shape."""
    text = "".join(char if _drawable(char) else "□" for char in token.translate(SHOWN))
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


@cache
def _drawable(char: str) -> bool:
    return char == " " or (char.isprintable() and FT2Font(findfont(FontProperties(FONT))).get_char_index(ord(char)) > 0)


def _write(axes: Axes, rows: pd.DataFrame, boxes: list[Box], column: str, top: float, colors: ScalarMappable) -> None:
    """One text: a rectangle and the letters of each token."""
    for box, labeled, value in zip(boxes, rows["labeled"], rows[column], strict=True):
        fill = colors.to_rgba(value) if labeled and np.isfinite(value) else PROMPT
        pen = ink(colors, value) if labeled else "0.45"
        corner = (box.column, top + box.line)
        axes.add_patch(Rectangle(corner, len(box.text), 0.94, fc=fill, ec="white", lw=0.4))
        axes.text(
            corner[0],
            corner[1] + 0.5,
            box.text,
            va="center_baseline",
            family=FONT,
            size=SIZE,
            color=pen,
            parse_math=False,
        )
