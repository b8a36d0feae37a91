"""What a page says of runs: one section a run, and one of all where there are several."""

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
import pandas as pd

from geffect.core.splits import role_of
from geffect.errors import GeffectError
from geffect.record.frames import read_settings
from geffect.record.reader import evaluations
from geffect.record.schema import TOKENS
from geffect.reports.compare import descended, summarize
from geffect.reports.findings.finding import Finding
from geffect.reports.findings.gradients import read_findings
from geffect.reports.findings.outcome import Outcome, outcome
from geffect.reports.html.colored import LayerMap, Text, layer_maps, texts
from geffect.reports.matched import compare, differences
from geffect.reports.plots import STYLE
from geffect.reports.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDE = 5  # inches: it stands alone
READING = {  # kind of plot → its title, and how it is read
    "g_effect": (
        "G-effects by layer group",
        "Each line is a layer group's inner product of a loss's gradient with what was descended. Upper "
        "panel: below 0, the step raises the forget loss, which is wanted. Lower panel: below 0, it raises "
        "the retain loss, which is harm. The sum of the lines is the whole model's G-effect. It predicts a "
        "change under plain SGD; an adaptive optimizer applies something else.",
    ),
    "cosine": (
        "Conflict with the retain gradient",
        "Cosine of the objective's gradient and the retain gradient over the whole model: below 0 the two "
        "pull apart. It does not depend on the gradients' lengths. Dashed, where a rectifier ran: what it "
        "made of the objective's gradient.",
    ),
    "trade_off": (
        "What was forgotten against what was kept",
        "The path of the model from its first evaluation on: to the right the forget set is forgotten, "
        "upwards the heldout set, which no gradient was drawn from, is harmed. A good path runs to the right "
        "and stays low.",
    ),
    "plane": (
        "The objective among the two losses' gradients",
        "The last measured step. Arrows of unit length: the gradients of the forget and of the retain loss at "
        "their true angle; the objective's and, dashed, the rectified gradient are projected into their "
        "plane, as long as the share of them that lies in it. In the shaded wedge a step forgets and does not "
        "harm.",
    ),
    "prediction_sums": (
        "Predicted against measured change of the losses",
        "Sums from the first step on, over the check's examples. The black line is what happened. A reading "
        "that follows it may be trusted: 'update' pairs the loss's gradient with what the optimizer applied, "
        "'gradient' with the objective's gradient times the learning rate.",
    ),
    "points": (
        "Single examples of the forget set",
        "Each point is a forget example: what ascending on it alone would do to both losses, to first order.",
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
    """Every kind of picture that runs have something of."""
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


TOGETHER = ("g_effect", "cosine", "trade_off")


@dataclass(frozen=True)
class Table:
    """Named columns and lines of text."""

    columns: list[str]
    lines: list[list[str]]


@dataclass(frozen=True)
class Section:
    """One run."""

    name: str
    path: str
    key: str  # its anchor
    outcome: Outcome
    findings: list[Finding]
    scores: Table
    figures: list[Picture]
    maps: list[LayerMap]
    texts: list[Text]
    worst: Table  # by likelihood, where no tokens were recorded
    settings: dict[str, str]


@dataclass(frozen=True)
class Comparison:
    """Several runs side by side."""

    table: Table
    equal: Table | None
    why_not: str  # there is no table of equal forgetting
    differ: Table
    figures: list[Picture] = field(default_factory=list)


def section(path: Path, name: str, key: str, scheme: str = "thirds") -> Section:
    """Read a run."""
    run = Run(path)
    found = read_findings(path, name, scheme)  # first, as it refuses what is no measured run
    maps = layer_maps(descended(run.to_frame("layer")))
    told = texts(run.tokens()) if (path / TOKENS).exists() else []
    worst = _table(worst_rows(path))
    return Section(
        name,
        str(path),
        key,
        outcome(path),
        found,
        _scores(run),
        pictures([run]),
        maps,
        told,
        worst,
        read_settings(path),
    )


def comparison(runs: Mapping[str, Path]) -> Comparison:
    """Put runs side by side."""
    differ = differences(runs)
    equal, why_not = None, ""
    try:
        equal = _table(compare(runs).drop(columns="forget loss"))
    except GeffectError as error:
        why_not = str(error)
    together = pictures([Run(path) for path in runs.values()], TOGETHER)
    names = differ.rename_axis("setting").reset_index() if len(differ) else pd.DataFrame(columns=["setting"])
    return Comparison(_table(summarize(list(runs.values()))), equal, why_not, _table(names), together)


def _scores(run: Run) -> Table:
    frame = run.evaluations()
    lines = []
    for name in frame["set"].unique():
        own = frame[frame["set"] == name]
        ends = [own[kind].iloc[place] for kind in ("loss", "accuracy") for place in (0, -1)]
        lines.append([str(name), *map(_text, ends)])
    return Table(["set", "loss, start", "loss, end", "accuracy, start", "accuracy, end"], lines)


def _table(frame: pd.DataFrame) -> Table:
    return Table(list(map(str, frame.columns)), [list(map(_text, line)) for line in frame.itertuples(index=False)])


def _text(value: Any) -> str:
    if not isinstance(value, int | float):
        return str(value)
    if math.isnan(value):
        return "–"
    return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}").replace("-", "−")


COLUMNS = ["set", "example", "nats a token, start", "nats a token, end", "rise"]
COUNT = 3


def worst_rows(path: Path, count: int = COUNT) -> pd.DataFrame:
    """Of every evaluated set the rows that moved the wrong way most, or the right way least.

    `COLUMNS`: of a forget set the rows whose −log p rose least, of any other those whose rose most; no lines where
    fewer than two evaluations kept their rows.
    """
    scored = [line.examples for line in evaluations(path) if line.examples and not line.diverged]
    if len(scored) < 2:
        return pd.DataFrame(columns=COLUMNS)
    found = []
    for name, first in scored[0].items():
        frame = pd.DataFrame({"start": first.nll, "end": scored[-1][name].nll}).div(first.tokens, axis=0)
        frame["rise"] = frame["end"] - frame["start"]
        chosen = frame.sort_values("rise", ascending=role_of(name).startswith("forget")).head(count)  # or forget_val
        found.append(chosen.rename_axis("example").reset_index().assign(set=name))
    return pd.concat(found)[["set", "example", "start", "end", "rise"]].set_axis(COLUMNS, axis=1)
