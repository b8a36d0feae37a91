"""What a page says of runs: one section a run, and one of all where there are several."""

import base64
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_hex

from geffect.core.layers import depth_key
from geffect.core.splits import role_of
from geffect.errors import GeffectError
from geffect.record.frames import read_settings
from geffect.record.reader import evaluations
from geffect.record.schema import TOKENS
from geffect.reports.compare import compare, descended, differences, summarize
from geffect.reports.findings import Finding, read_findings
from geffect.reports.outcome import Outcome, outcome
from geffect.reports.plots.registry import Plot, draw_all, plots_of
from geffect.reports.plots.style import SIGNED, STYLE, ink, signed
from geffect.reports.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


WIDE = 5  # inches: it stands alone


class Picture(NamedTuple):
    """A figure in a page."""

    title: str
    source: str
    alternative: str
    caption: str
    wide: bool


def pictures(runs: Mapping[str, Run], scheme: str = "thirds") -> list[Picture]:
    """Every plot with a caption that runs recorded enough for."""
    drawings, _ = draw_all([plot for plot in plots_of(runs) if plot.caption], runs, scheme)
    return [_picture(each.plot, each.figure, ", ".join(runs)) for each in drawings]


def _picture(plot: Plot, figure: "Figure", of: str) -> Picture:
    text = f"{plot.title}, of {of}. {plot.caption}"
    return Picture(plot.title, data_uri(figure), text, plot.caption, figure.get_figwidth() > WIDE)


def data_uri(figure: "Figure") -> str:
    """A figure as SVG inside a URI; the same figure gives the same text."""
    stream = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "geffect"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(stream.getvalue().encode()).decode()


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
    """Both G-effects by layer and step, retain first, on one color scale centered on zero.

    Of a run of more than 60 measured steps, a column is the mean of several.
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
        LayerMap(side, *meanings, columns, _rows(means[side].unstack().loc[layers], colors), pooled)
        for side, meanings in SIDES.items()
    ]


def _span(steps: "np.ndarray[tuple[int], np.dtype[np.int64]]") -> str:
    return str(steps[0]) if len(steps) == 1 else f"{steps[0]}–{steps[-1]}"


def _rows(table: pd.DataFrame, colors: ScalarMappable) -> dict[str, list[Cell]]:
    return {
        str(layer): [Cell(signed_text(value), color_of(value, colors), bool(value > 0)) for value in values]
        for layer, values in zip(table.index, table.to_numpy(float), strict=True)
    }


def signed_text(value: float) -> str:
    """A number with its sign and three digits; ``unknown`` where it is not finite."""
    return f"{value:+.3g}".replace("-", "−") if np.isfinite(value) else "unknown"


def color_of(value: float, colors: ScalarMappable) -> str:
    """A number's color as ``#rrggbb``; gray where it is not finite."""
    red, green, blue, _ = colors.to_rgba(np.nan_to_num(value))
    return to_hex((red, green, blue)) if np.isfinite(value) else "#bfbfbf"


NO_LOSS = "no loss"


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


def token_texts(frame: pd.DataFrame) -> list[Text]:
    """Texts on one color scale, those of the last step."""
    frame = frame[frame["step"] == frame["step"].max()]
    labeled = frame["labeled"].astype(bool)
    colors = ScalarMappable(signed(frame.loc[labeled, "effect"].to_numpy(float))[0], SIGNED)
    texts = []
    for (name, example, direction), rows in frame.groupby(["set", "example", "direction"], sort=False):
        tokens = rows.sort_values("position")
        columns = (tokens["token"], tokens["labeled"], tokens["effect"])
        texts.append(
            Text(
                f"{name} example {example}, along the {direction}",
                [
                    _token(str(text), bool(known), float(effect), colors)
                    for text, known, effect in zip(*columns, strict=True)
                ],
            )
        )
    return texts


def _token(text: str, labeled: bool, effect: float, colors: ScalarMappable) -> Token:
    shown = text.replace("\n", "⏎").replace("\r", "␍").replace("\t", "⇥")
    if not labeled:
        return Token(shown, NO_LOSS, "", "")
    return Token(shown, signed_text(effect), color_of(effect, colors), ink(colors, effect))


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
    findings = read_findings(path, name, scheme)  # first, as it refuses a run without measured steps
    maps = layer_maps(descended(run.to_frame("layer")))
    texts = token_texts(run.tokens()) if (path / TOKENS).exists() else []
    worst = _table(worst_rows(path))
    return Section(
        name,
        str(path),
        key,
        outcome(path),
        findings,
        _scores(run),
        pictures({name: run}, scheme),
        maps,
        texts,
        worst,
        read_settings(path),
    )


def comparison(runs: Mapping[str, Path], scheme: str = "thirds") -> Comparison:
    """Put runs side by side."""
    differ = differences(runs)
    equal, why_not = None, ""
    try:
        equal = _table(compare(runs).drop(columns="forget loss"))
    except GeffectError as error:
        why_not = str(error)
    together = pictures({name: Run(path) for name, path in runs.items()}, scheme)
    names = differ.rename_axis("setting").reset_index() if len(differ) else pd.DataFrame(columns=["setting"])
    return Comparison(_table(summarize(list(runs.values()))), equal, why_not, _table(names), together)


def _scores(run: Run) -> Table:
    frame = run.evaluations()
    lines = []
    for name in frame["set"].unique():
        scores = frame[frame["set"] == name]
        ends = [scores[kind].iloc[place] for kind in ("loss", "accuracy") for place in (0, -1)]
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
    """The examples of every evaluated set that moved the wrong way most, or the right way least; columns are `COLUMNS`.

    Of a forget set those whose −log p rose least, of any other those whose rose most; empty where fewer than two
    evaluations recorded their examples.
    """
    scored = [line.examples for line in evaluations(path) if line.examples and not line.diverged]
    if len(scored) < 2:
        return pd.DataFrame(columns=COLUMNS)
    worst = []
    for name, first in scored[0].items():
        frame = pd.DataFrame({"start": first.nll, "end": scored[-1][name].nll}).div(first.tokens, axis=0)
        frame["rise"] = frame["end"] - frame["start"]
        most = frame.sort_values("rise", ascending=role_of(name).startswith("forget")).head(count)  # or forget_val
        worst.append(most.rename_axis("example").reset_index().assign(set=name))
    return pd.concat(worst)[["set", "example", "start", "end", "rise"]].set_axis(COLUMNS, axis=1)
