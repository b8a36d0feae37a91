"""Figures as they stand in a page: drawn, told in words, and with a line on how they are read."""

import base64
import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib

from geffect.errors import GeffectError
from geffect.reports.plots import STYLE
from geffect.reports.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDE = 5  # inches: it stands alone
READING = {
    "g_effect": (
        "G-effects by layer group",
        (
            "Each line is a layer group's inner product of a risk's gradient with what was descended. Upper panel: "
            "below "
            "0, the step raises the forget loss, which is wanted. Lower panel: below 0, it raises the retain loss, "
            "which "
            "is harm. The sum of the lines is the whole model's G-effect. It predicts a change under plain SGD; an "
            "adaptive optimizer applies something else."
        ),
    ),
    "cosine": (
        "Conflict with the retain gradient",
        (
            "Cosine of the objective's gradient and the retain gradient over the whole model: below 0 the two pull "
            "apart. "
            "It does not depend on the gradients' lengths. Dashed, where a rectifier ran: what it made of the "
            "objective's gradient."
        ),
    ),
    "trade_off": (
        "What was forgotten against what was kept",
        (
            "The path of the model from its first evaluation on: to the right the forget set is forgotten, upwards the "
            "heldout set, which no gradient was drawn from, is harmed. A good path runs to the right and stays low."
        ),
    ),
    "plane": (
        "The objective among the two risks' gradients",
        (
            "The last measured step. Arrows of unit length: the gradients of the forget and of the retain loss at "
            "their "
            "true angle; the objective's and, dashed, the rectified gradient are projected into their plane, as long "
            "as "
            "the share of them that lies in it. In the shaded wedge a step forgets and does not harm."
        ),
    ),
    "prediction_sums": (
        "Predicted against measured change of the risks",
        (
            "Sums from the first step on, over probe rows. The black line is what happened. A reading that follows it "
            "may be trusted: 'update' pairs the risk's gradient with what the optimizer applied, 'gradient' with the "
            "objective's gradient times the learning rate."
        ),
    ),
    "points": (
        "Single rows of the forget set",
        ("Each point is a forget row: what ascending on it alone would do to both risks, to first order."),
    ),
}


class Picture(NamedTuple):
    """A figure in a page."""

    title: str
    source: str
    alternative: str
    reading: str
    wide: bool


def pictures(runs: Sequence[Run], kinds: Sequence[str] = tuple(READING)) -> list[Picture]:
    """Every kind of picture that runs have something of.

    Args:
        runs: drawn together.
        kinds: which, of `geffect.Run.plot`.

    Returns:
        The pictures in that order.
    """
    return [each for kind in kinds for each in _drawn(runs, kind)]


def _drawn(runs: Sequence[Run], kind: str) -> Iterator[Picture]:
    first, *others = runs
    try:
        figure = first.plot(kind, *others, **_options(first, kind))
    except GeffectError:  # nothing of the kind was recorded
        return
    title, reading = READING[kind]
    of = ", ".join(run.path.name for run in runs)
    yield Picture(title, data_uri(figure), f"{title}, of {of}. {reading}", reading, figure.get_figwidth() > WIDE)


def _options(run: Run, kind: str) -> dict[str, Any]:
    return {"step": int(run.to_frame()["step"].max())} if kind == "plane" else {}


def data_uri(figure: "Figure") -> str:
    """A figure as SVG inside a URI; the same figure gives the same text."""
    stream = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "geffect"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue().encode()).decode()
