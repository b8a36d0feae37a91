"""What a page says of runs: one section a run, and one of all where there are several."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from geffect.errors import GeffectError
from geffect.record.frames import read_settings
from geffect.record.schema import TOKENS
from geffect.reports.compare import compare, descended
from geffect.reports.findings.collecting import find
from geffect.reports.findings.finding import Finding
from geffect.reports.findings.outcome import Outcome, outcome
from geffect.reports.html.maps import LayerMap, layer_maps
from geffect.reports.html.pictures import Picture, pictures
from geffect.reports.html.texts import Text, texts
from geffect.reports.html.worst import worst_rows
from geffect.reports.matched import align, differences
from geffect.reports.run import Run

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
    """Read a run.

    Args:
        path: its directory.
        name: what it is called.
        key: its anchor in the page.
        scheme: how layers make groups.

    Returns:
        What the page says of it.
    """
    run = Run(path)
    found = find(path, name, scheme)  # first, as it refuses what is no measured run
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
    """Put runs side by side.

    Args:
        runs: name → directory.

    Returns:
        What the page says of them together.
    """
    differ = differences(runs)
    equal, why_not = None, ""
    try:
        equal = _table(align(runs).drop(columns="forget loss"))
    except GeffectError as error:
        why_not = str(error)
    together = pictures([Run(path) for path in runs.values()], TOGETHER)
    names = differ.rename_axis("setting").reset_index() if len(differ) else pd.DataFrame(columns=["setting"])
    return Comparison(_table(compare(list(runs.values()))), equal, why_not, _table(names), together)


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
