"""The HTML page: one section a run, one of all where there are several, rendered and written."""

import base64
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import matplotlib
import pandas as pd

from geffect.core.splits import TARGETS, role_of
from geffect.errors import GeffectError, shorten, visible_text
from geffect.io.readers import open_regular
from geffect.record.frames import read_settings
from geffect.record.reader import Damaged, check_run, keep_lines
from geffect.record.schema import TOKENS
from geffect.record.writer import write as write_file
from geffect.reports.colored import LayerMap, Texts, layer_maps_of, token_texts
from geffect.reports.compare import compare, differences, summarize
from geffect.reports.context import cautions, facts, unfinished, with_texts
from geffect.reports.findings import Finding, nats, read_findings
from geffect.reports.outcome import Outcome, outcome, worst_examples
from geffect.reports.plots.registry import draw_all, plots_of
from geffect.reports.plots.style import STYLE
from geffect.reports.price import cheapest_harm, price_by_part, price_sentences
from geffect.reports.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDE = 5  # inches: it stands alone
LONGEST = 5000  # characters shown of one text


class Picture(NamedTuple):
    """A figure in a page."""

    name: str  # of its plot
    title: str
    source: str
    alternative: str
    caption: str
    wide: bool


def pictures(runs: Mapping[str, Run], scheme: str = "thirds") -> list[Picture]:
    """Every plot with a caption that runs recorded enough for."""
    drawings, _ = draw_all([plot for plot in plots_of(runs) if plot.caption], runs, scheme)
    shown = []
    for plot, _, figure, _ in drawings:
        text = f"{plot.title}, of {', '.join(runs)}. {plot.caption}"
        shown.append(Picture(plot.name, plot.title, data_uri(figure), text, plot.caption, figure.get_figwidth() > WIDE))
    return shown


def data_uri(figure: "Figure") -> str:
    """A figure as SVG inside a URI; the same figure gives the same text."""
    from markupsafe import Markup

    stream = io.StringIO()
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "geffect"}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return Markup("data:image/svg+xml;base64," + base64.b64encode(stream.getvalue().encode()).decode())


class Table(NamedTuple):
    """Named columns and lines of text."""

    columns: list[str]
    lines: list[list[str]]


class Price(NamedTuple):
    """The price of forgetting in one run."""

    sentences: list[str]  # at the first and last measured weights
    cheapest: Table | None  # c(B)
    parts: Table | None  # what the steps paid, by group
    why_not: str  # there is no table of parts


class Section(NamedTuple):
    """One run."""

    name: str
    path: str
    key: str  # its anchor
    facts: list[str]
    outcome: Outcome
    findings: list[Finding]
    scores: Table
    figures: list[Picture]
    maps: list[LayerMap]
    texts: Texts | None
    worst: Table  # by likelihood, where no tokens were recorded
    no_text: str  # why some of them have no text
    settings: dict[str, str]
    price: Price


class Comparison(NamedTuple):
    """Several runs side by side."""

    cautions: list[str]
    table: Table
    equal: Table | None
    why_not: str  # there is no table of equal forgetting
    differ: Table
    figures: list[Picture]


def section(path: Path, name: str, key: str, scheme: str = "thirds") -> Section:
    """Read a run."""
    run = Run(path)
    findings = read_findings(path, name, scheme)  # first, as it refuses a run without measured steps
    maps = layer_maps_of(run.to_frame("layer")) if {*TARGETS} <= {*map(role_of, run.targets)} else []
    texts = token_texts(run.tokens()) if (path / TOKENS).exists() else None
    worst, no_text = with_texts(path, worst_examples(path))
    return Section(
        name,
        str(path),
        key,
        facts(path),
        outcome(path),
        findings,
        _scores(run),
        pictures({name: run}, scheme),
        maps,
        texts,
        _table(worst),
        no_text,
        read_settings(path),
        _price(path, scheme),
    )


def _price(path: Path, scheme: str) -> Price:
    cheapest, parts, why_not = cheapest_harm(path), None, ""
    try:
        parts = _table(price_by_part(path, scheme))
    except Damaged:
        raise
    except GeffectError as error:
        why_not = str(error)
    return Price(price_sentences(path), None if cheapest.empty else _table(cheapest), parts, why_not)


def comparison(runs: Mapping[str, Path], scheme: str = "thirds") -> Comparison:
    """Put runs side by side."""
    differ = differences(runs)
    equal, why_not = None, ""
    try:
        equal = _table(_with_interval(compare(runs).drop(columns="forget loss")))
    except GeffectError as error:
        why_not = str(error)
    together = pictures({name: Run(path) for name, path in runs.items()}, scheme)
    names = differ.rename_axis("setting").reset_index() if len(differ) else pd.DataFrame(columns=["setting"])
    table = _table(summarize(list(runs.values())))
    return Comparison(cautions(runs), table, equal, why_not, _table(names), together)


def _with_interval(frame: pd.DataFrame) -> pd.DataFrame:
    """A matched comparison with its interval in one column; a dash for the run that others are compared with."""
    cells = [
        f"{nats(value)} [{nats(low)},\N{NO-BREAK SPACE}{nats(high)}]" if place else "–"
        for place, (value, low, high) in enumerate(frame[["more harm", "low", "high"]].itertuples(index=False))
    ]
    return frame.drop(columns=["low", "high"]).assign(**{"more harm": cells})


def _scores(run: Run) -> Table:
    frame = run.evaluations()
    lines = []
    for name, scores in frame.groupby("set", sort=False):
        ends = [scores[kind].iloc[place] for kind in ("loss", "accuracy") for place in (0, -1)]
        lines.append([str(name), *map(_text, ends)])
    return Table(["set", "loss, start", "loss, end", "accuracy, start", "accuracy, end"], lines)


def _table(frame: pd.DataFrame) -> Table:
    return Table(list(map(str, frame.columns)), [list(map(_text, line)) for line in frame.itertuples(index=False)])


def _text(value: object) -> str:
    return nats(value) if isinstance(value, int | float) else str(value)


MARK = b'<meta name="generator" content="geffect report">'  # what was drawn once may be drawn again


class Report(NamedTuple):
    """A page, the findings of all its runs, and whether each run forgot selectively."""

    path: Path
    findings: list[Finding]
    outcomes: dict[str, Outcome]
    prices: dict[str, list[str]]  # of forgetting at each run's first and last measured weights, in words
    cautions: list[str]  # which runs are unfinished; in what several differ that a comparison takes to be equal


def write(runs: Mapping[str, Path], out: Path, scheme: str = "thirds") -> Report:
    """Write runs as one HTML page that needs no network."""
    for path in runs.values():
        check_run(path)
    _check_replaceable(out)
    with keep_lines():
        sections = [section(path, name, f"run-{i}", scheme) for i, (name, path) in enumerate(runs.items())]
        together = comparison(runs, scheme) if len(sections) > 1 else None
        page = _render(runs=sections, comparison=together)
    try:
        write_file(out, page)
    except OSError as error:
        reason = f"--out {out} cannot be written to: {error.strerror}"
        raise GeffectError(reason, remedy="Choose another place") from error
    findings = [finding for each in sections for finding in each.findings]
    prices = {each.name: each.price.sentences for each in sections}
    outcomes = {each.name: each.outcome for each in sections}
    told = [*unfinished(runs), *(together.cautions if together else [])]
    return Report(out, findings, outcomes, prices, told)


def _check_replaceable(out: Path) -> None:
    if not out.parent.is_dir():
        raise GeffectError(f"There is no directory to write --out {out} in", remedy="Make it, or choose another place")
    if not out.exists() and not out.is_symlink():
        return
    if out.is_file():
        with open_regular(out) as stream:
            if MARK in stream.read(2000):
                return
    raise GeffectError(
        f"--out {out} exists, and is no report of geffect", remedy="Choose another name, or move it away"
    )


class Shades:
    """The colors of a page as classes, because a policy that allows its style by hash allows no style in an element."""

    def __init__(self) -> None:
        self._rules: dict[str, str] = {}

    def __call__(self, ground: str, ink: str = "") -> str:
        """The classes of a background, ``#rrggbb``, and of a text's color on it, a name."""
        names = {f"shade-{ground[1:]}": f"background:{ground}"} | ({f"ink-{ink}": f"color:{ink}"} if ink else {})
        self._rules |= names
        return " ".join(names)

    def rules(self) -> str:
        """The style sheet of all classes that were asked for."""
        from markupsafe import Markup

        return Markup("\n").join(f".{name} {{ {rule} }}" for name, rule in sorted(self._rules.items()))


def digest(content: str) -> str:
    """The hash of a script or a style, in the form of a Content-Security-Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _shown(value: object) -> object:
    """The visible form of text from a run, a model or a file, as a template prints it; cut where it is very long."""
    from markupsafe import Markup

    return visible_text(shorten(value, LONGEST)) if isinstance(value, str) and not isinstance(value, Markup) else value


def _render(**content: object) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("geffect.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["digest"] = digest
    return templates.get_template("report.html").render(**content, shade=Shades())
