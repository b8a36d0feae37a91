"""The HTML page: one section a run, one of all where there are several, rendered and written."""

import base64
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_hex

from geffect.core.groups import depth_key
from geffect.core.splits import TARGETS, role_of
from geffect.errors import GeffectError, visible_text
from geffect.io.readers import open_regular
from geffect.record.frames import read_settings
from geffect.record.reader import check_run, keep_lines
from geffect.record.schema import TOKENS
from geffect.record.writer import write as write_file
from geffect.reports.compare import compare, descended, differences, summarize
from geffect.reports.findings import Finding, nats, read_findings
from geffect.reports.outcome import Outcome, outcome, worst_examples
from geffect.reports.plots.examples import SHOWN
from geffect.reports.plots.registry import draw_all, plots_of
from geffect.reports.plots.style import SIGNED, STYLE, ink, signed
from geffect.reports.price import price_sentences
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
    shown = []
    for plot, _, figure, _ in drawings:
        text = f"{plot.title}, of {', '.join(runs)}. {plot.caption}"
        shown.append(Picture(plot.title, data_uri(figure), text, plot.caption, figure.get_figwidth() > WIDE))
    return shown


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
    """One G-effect by layer and step."""

    side: str  # retain or unlearn
    below: str  # what a number below zero means
    above: str
    columns: list[tuple[str, bool]]  # a step, or steps that were averaged, and whether its name is shown
    rows: dict[str, list[Cell]]  # layer → cells
    pooled: int  # steps in a column


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
    spans = [str(part[0]) if len(part) == 1 else f"{part[0]}–{part[-1]}" for part in parts]
    columns = [(span, number % every == 0) for number, span in enumerate(spans)]
    return [
        LayerMap(side, *meanings, columns, _cells(means[side].unstack().loc[layers], colors), pooled)
        for side, meanings in SIDES.items()
    ]


def _cells(table: pd.DataFrame, colors: ScalarMappable) -> dict[str, list[Cell]]:
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
        tokens = rows.sort_values("position")[["token", "labeled", "effect"]].itertuples(index=False)
        title = f"{name} example {example}, along the {direction}"
        texts.append(Text(title, [_token(str(text), known, effect, colors) for text, known, effect in tokens]))
    return texts


def _token(text: str, labeled: bool, effect: float, colors: ScalarMappable) -> Token:
    text = text.translate(SHOWN)
    if not labeled:
        return Token(text, "no loss", "", "")
    return Token(text, signed_text(effect), color_of(effect, colors), ink(colors, effect))


class Table(NamedTuple):
    """Named columns and lines of text."""

    columns: list[str]
    lines: list[list[str]]


class Section(NamedTuple):
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
    price: list[str]  # of forgetting, in words


class Comparison(NamedTuple):
    """Several runs side by side."""

    table: Table
    equal: Table | None
    why_not: str  # there is no table of equal forgetting
    differ: Table
    figures: list[Picture]


def section(path: Path, name: str, key: str, scheme: str = "thirds") -> Section:
    """Read a run."""
    run = Run(path)
    findings = read_findings(path, name, scheme)  # first, as it refuses a run without measured steps
    maps = layer_maps(descended(run.to_frame("layer"))) if {*TARGETS} <= {*map(role_of, run.targets)} else []
    texts = token_texts(run.tokens()) if (path / TOKENS).exists() else []
    scores, worst = _scores(run), _table(worst_examples(path))
    figures, judged = pictures({name: run}, scheme), outcome(path)
    return Section(
        name,
        str(path),
        key,
        judged,
        findings,
        scores,
        figures,
        maps,
        texts,
        worst,
        read_settings(path),
        price_sentences(path),
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


def write(runs: Mapping[str, Path], out: Path, scheme: str = "thirds") -> Report:
    """Write runs as one HTML page that needs no network."""
    for path in runs.values():
        check_run(path)
    _check_replaceable(out)
    with keep_lines():
        sections = [section(path, name, f"run-{i}", scheme) for i, (name, path) in enumerate(runs.items())]
        page = _render(runs=sections, comparison=comparison(runs, scheme) if len(sections) > 1 else None)
    try:
        write_file(out, page)
    except OSError as error:
        reason = f"--out {out} cannot be written to: {error.strerror}"
        raise GeffectError(reason, remedy="Choose another place") from error
    findings = [finding for each in sections for finding in each.findings]
    prices = {each.name: each.price for each in sections}
    return Report(out, findings, {each.name: each.outcome for each in sections}, prices)


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
        return "\n".join(f".{name} {{ {rule} }}" for name, rule in sorted(self._rules.items()))


def digest(content: str) -> str:
    """The hash of a script or a style, in the form of a Content-Security-Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _shown(value: object) -> object:
    """The visible form of text from a run, a model or a file, as a template prints it."""
    from markupsafe import Markup

    return visible_text(value) if isinstance(value, str) and not isinstance(value, Markup) else value


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
