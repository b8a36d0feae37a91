"""The worst examples, token by token, colored by effect."""

from typing import NamedTuple

import pandas as pd
from matplotlib.cm import ScalarMappable

from geffect.reports.html.maps import color_of, signed_text
from geffect.reports.plots.cells import SIGNED, ink, signed

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
    """Texts on one color scale, those of the last step.

    Args:
        frame: as `geffect.read_tokens`.

    Returns:
        A text a row of a set.
    """
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
