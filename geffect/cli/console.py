"""The output of the command line: plans, tables, findings, examples."""

from collections.abc import Collection, Iterable, Mapping
from json import dumps, loads
from pathlib import Path
from textwrap import fill
from time import sleep
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich import box
from rich import console as rich_console
from rich import text as rich_text
from rich.cells import cell_len
from rich.highlighter import JSONHighlighter
from rich.segment import Segment
from rich.table import Table

from geffect.errors import visible_text
from geffect.io.system import rank_and_size
from geffect.io.terminal import wrap

if TYPE_CHECKING:
    from geffect.preflight import Finding
    from geffect.reports.limits import Verdict
    from geffect.reports.live import View
    from geffect.reports.page import Report

LEARNED = "bold black on green"
WIDEST = 10_000  # columns where no terminal limits them
STATUS = {"good": "green", "warning": "yellow", "bad": "bold red"}


class Text(rich_text.Text):
    """Text in its visible form: Rich drops some characters that act on a terminal, and fails on surrogates."""

    def __init__(self, text: str = "", *args: Any, **options: Any) -> None:
        super().__init__(visible_text(text), *args, **options)

    def append(self, text: "rich_text.Text | str", *args: Any, **options: Any) -> "rich_text.Text":
        """As Rich's."""
        return super().append(visible_text(text) if isinstance(text, str) else text, *args, **options)


class Console(rich_console.Console):
    """Prints text as it is: it reads no markup, and lets no character act on a terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)
        if not self.is_terminal:
            self.width = WIDEST

    def render_str(self, text: str, **options: Any) -> rich_text.Text:
        """As Rich's, of a string's visible form, by which table cells are measured."""
        return super().render_str(visible_text(text), **options)

    def render(
        self, renderable: rich_console.RenderableType, options: rich_console.ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """As Rich's, each piece of text in its visible form; Rich's own control codes stay."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible_text(text), style, control)

    @property
    def columns(self) -> int | None:
        """Columns of the terminal; None where it is none, and nothing is wrapped or split."""
        return self.width if self.is_terminal else None

    def say(self, text: str, mark: str = "", style: str = "", indent: int = 0) -> None:
        """Print a paragraph after a styled mark; on a terminal its lines end between words, further ones indented."""
        shown = Text(wrap(visible_text(mark + text), self.columns, indent))
        shown.stylize(style, 0, len(mark))
        self.print(shown, soft_wrap=True)

    def show(
        self, title: str, columns: Iterable[str], rows: Iterable[Iterable[str]], left: Collection[str] = ()
    ) -> None:
        """Print a table (`fit`), its title above it."""
        if title:
            self.say("", title, "italic")
        for part in fit(list(columns), [list(row) for row in rows], left, self.width):
            self.print(part, soft_wrap=isinstance(part, Text))

    def print_json(self, json: str) -> None:  # type: ignore[override]
        """As Rich's; an invisible character is written as JSON's escape."""
        text = dumps(loads(json), indent=2, ensure_ascii=False)
        self.print(JSONHighlighter()(Text(text)), soft_wrap=True)


Rows = list[list[str]]


def fit(
    columns: list[str], rows: Rows, left: Collection[str], width: int, *, plain: bool = False
) -> list[rich_console.RenderableType]:
    """A table in so many columns of a terminal, with every name and number whole and nothing left out.

    The first of these that fits: the table; the same with its headings broken between words; the transposed table;
    tables of some columns each, which repeat those on the ``left`` that begin it; a paragraph a row.
    """
    rows = [[visible_text(cell, lines=False) for cell in row] for row in rows]
    columns = [visible_text(name, lines=False) for name in columns]
    sides = ["left" if name in left else "right" for name in columns]
    keys = next((i for i, side in enumerate(sides) if side == "right"), len(sides)) or 1
    narrow = [_narrow(name, [row[i] for row in rows]) for i, name in enumerate(columns)]
    turned = [[name, *(row[i] for row in rows)] for i, name in enumerate(columns)]
    across = ["left", *("right" for _ in rows)]
    choices = [(columns, rows, sides), (narrow, rows, sides)]
    choices += [(turned[0], turned[1:], across)] if keys == 1 and rows and not plain else []
    for headings, body, justified in choices:
        if _width(headings, body, plain) <= width:
            return [_table(headings, body, justified, plain)]
    blocks = _blocks(narrow, rows, keys, width, plain)
    if not blocks or len(blocks) > len(rows):
        return [_paragraphs(columns, rows, keys)]
    return [
        _table([narrow[i] for i in block], [[row[i] for i in block] for row in rows], [sides[i] for i in block], plain)
        for block in blocks
    ]


def _narrow(name: str, cells: Iterable[str]) -> str:
    """A heading in lines as long as its column's cells, or as its longest word."""
    return fill(name, max([1, *map(cell_len, cells), *map(cell_len, name.split())]), break_long_words=False)


def _width(headings: Iterable[str], rows: Rows, plain: bool) -> int:
    """Columns that a table takes."""
    texts = zip(headings, *rows, strict=True)
    widths = [max(cell_len(line) for text in column for line in text.split("\n")) for column in texts]
    return sum(widths) + (2 if plain else 3) * len(widths) + 1


def _blocks(headings: list[str], rows: Rows, keys: int, width: int, plain: bool) -> list[list[int]]:
    """The columns of each of several tables, keys first; none where a key with one column is too wide."""
    first, blocks = list(range(keys)), list[list[int]]()

    def fits(block: list[int]) -> bool:
        return _width([headings[i] for i in block], [[row[i] for i in block] for row in rows], plain) <= width

    for i in range(keys, len(headings)):
        if not fits([*first, i]):
            return []
        if blocks and fits([*blocks[-1], i]):
            blocks[-1].append(i)
        else:
            blocks.append([*first, i])
    return blocks


def _paragraphs(columns: list[str], rows: Rows, keys: int) -> Text:
    """Each row below its names, a line a value."""
    text, longest = Text(), max(map(len, columns))
    for row in rows:
        text.append(", ".join(row[:keys]) + "\n", "bold")
        for name, value in list(zip(columns, row, strict=True))[keys:]:
            text.append(f"  {name:<{longest}}  {value}\n")
    return text


def _table(headings: Iterable[str], rows: Rows, sides: Iterable[Any], plain: bool) -> Table:
    """A table with each column on its side; ``plain`` has no lines but one under the headings."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True) if plain else Table()
    for heading, side in zip(headings, sides, strict=True):
        table.add_column(heading, justify=side, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def plan(content: Mapping[str, str]) -> None:
    """Print a plan, one entry a line."""
    console = Console(stderr=True, highlight=False, quiet=rank_and_size()[0] > 0)
    width = max(map(len, content), default=0)
    for name, value in content.items():
        console.say(value, f"{name:>{width}}  ", "bold", indent=width + 2)


def run(path: Path) -> None:
    """Print a finished run's first and last scores, and its path."""
    from geffect.record.reader import read_metrics

    metrics = read_metrics(path)
    pairs = {name: (metrics["start"][name], metrics["end"][name]) for name in metrics["start"] if name != "step"}
    rows = (
        [name, *(_decimals(each[kind], 3) for kind in ("loss", "accuracy") for each in pair)]
        for name, pair in pairs.items()
    )
    columns = ("set", "loss, start", "loss, end", "accuracy, start", "accuracy, end")
    Console().show(f"{path}", columns, rows, left=("set",))
    if "success" in metrics:
        _successes(metrics["success"])


def unlearning(path: Path) -> None:
    """Print a finished unlearning run: whether it forgot selectively, then as `run`."""
    from geffect.reports.outcome import outcome

    Console(highlight=False).say(outcome(path).sentence)
    run(path)


def verdicts(found: "list[Verdict]", *, as_json: bool) -> bool:
    """Print verdicts; whether a limit was broken."""
    if as_json:
        Console().print_json(dumps([each._asdict() for each in found]))
    for each in () if as_json else found:
        mark, status = ("kept    ", "good") if each.kept else ("broken  ", "bad")
        Console(highlight=False).say(each.sentence, mark, STATUS[status], indent=len(mark))
    return not all(each.kept for each in found)


def live(path: Path, every: float, *, once: bool) -> None:
    """Print how a run stands, again and again until it ends."""
    from rich.live import Live as Screen

    from geffect.reports.live import Live

    looks, shown = Live(path), Console(highlight=False)
    view = looks.look()
    if once or view.finished or not shown.is_terminal:
        shown.print(_standing(view))
        return
    with Screen(_standing(view), console=shown, auto_refresh=False) as screen:
        while not view.finished:
            sleep(every)
            view = looks.look()
            screen.update(_standing(view), refresh=True)


def _standing(view: "View") -> rich_console.Group:
    """A run's sets at one look: losses, and the last measured step's effect by layer group."""
    from geffect.reports.live import groups_of

    step = "before its first line" if view.step is None else f"step {view.step}"
    of = f" of {view.steps}" if view.steps else ""
    title = f"{view.path}: {step}{of}{', finished' if view.finished else ''}"
    groups = groups_of(view.sets)
    rows = []
    for each in view.sets:
        rise = None if each.loss is None or each.start is None else each.loss - each.start
        numbers = [each.effect, *(each.by_group.get(group) for group in groups)]
        rows.append([each.name, _decimals(each.loss, 3), _signed(rise), *map(_signed, numbers)])
    tables = fit(["set", "loss", "rise", "effect", *groups], rows, ("set",), Console().width, plain=True)
    legend = "Nats a token. Effect of the last measured step, and its parts; above 0: harm."
    return rich_console.Group(Text(title), *tables, Text(legend, "dim"))


def _signed(value: float | None) -> str:
    """A number with its sign in at most seven characters."""
    if value is None:
        return "–"
    return f"{value:+.0e}" if 0 < abs(value) < 1e-3 else f"{value:+.3g}" if abs(value) >= 1 else f"{value:+.3f}"


def _decimals(value: float | None, count: int) -> str:
    return "–" if value is None else f"{value:.{count}f}"


def _successes(scores: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> None:
    """Print unlearn, retention and harmonic success of every domain's validation sets, at the start and the end."""
    names, times = ("US", "RS", "HS"), ("start", "end")
    rows = (
        [domain, *(_decimals(scores[time][domain][name], 1) for name in names for time in times)]
        for domain in scores["start"]
    )
    title = "validation, %: US unlearn, RS retention, HS harmonic success"
    columns = ("domain", *(f"{name}, {time}" for name in names for time in times))
    Console().show(title, columns, rows, left=("domain",))


def localization(path: Path) -> None:
    """Print a localization's overlaps over the whole model, beside chance and its controls, and what it recovers."""
    from geffect.record.reader import read_metrics
    from geffect.reports.compare import whole_overlaps

    metrics, keys = read_metrics(path), ["share", "gradient", "other"]
    frame, columns = whole_overlaps(path), ["share", "split", "other", "Jaccard", "chance"]
    shown = {"jaccard": 3, "chance": 3}
    if "controls" in metrics:
        drawn = pd.DataFrame(metrics["controls"]).groupby(keys)["jaccard"]
        frame = frame.join(drawn.agg(["mean", "min", "max"]), on=keys)
        columns, shown = [*columns, "random", "least", "most"], shown | {"mean": 3, "min": 3, "max": 3}
    title = f"{path}: Jaccard index of the most important entries"
    Console().show(title, columns, _cells(frame, keys, shown), left=keys)
    if "truth" in metrics:
        found = pd.DataFrame(metrics["truth"])
        found["localizer"] = found["localizer"].str.replace(r"^random:.*", "random", regex=True)
        keys, shown = ["split", "localizer", "size"], {"precision": 3, "recall": 3, "auc": 3, "draws": 0}
        means = found.groupby(keys, sort=False)[["precision", "recall", "auc"]].mean()
        means = means.assign(draws=found.groupby(keys, sort=False).size()).reset_index()
        title = "planted entries found, by masks of the planted size and of each share"
        Console().show(title, [*keys, *shown], _cells(means, keys, shown), left=keys)


def _cells(frame: pd.DataFrame, names: Iterable[str], numbers: Mapping[str, int]) -> Iterable[list[str]]:
    """The rows of a table: columns as they are, then those of numbers with so many decimals."""
    for row in frame.to_dict("records"):
        texts = [f"{row[name]:g}" if isinstance(row[name], float) else str(row[name]) for name in names]
        yield [*texts, *(_decimals(row[name], count) for name, count in numbers.items())]


def inspections(paths: Iterable[Path]) -> None:
    """Print each objective's G-effects at every checkpoint with their standard errors, and both losses."""
    from geffect.reports.compare import at_checkpoints
    from geffect.reports.price import price_sentences

    errors, paths = False, list(paths)
    for path in paths:
        frame = at_checkpoints(path)
        errors |= bool(frame.filter(like="±").notna().to_numpy().any())
        columns = [name for name in frame.columns if not name.startswith("±")]
        records = frame.astype({"step": str}).to_dict("records")
        rows = ([_with_error(row, name) for name in columns] for row in records)
        Console().show(f"{path}", (name.replace("_", " ") for name in columns), rows)
    with_errors = ", with standard errors over batches" if errors else ""
    sentence = f"G-effects: ⟨∇loss, objective⟩ over whole sets{with_errors}; "
    console = Console()
    console.say(sentence + "unlearn < 0 forgets, retain < 0 harms the retain set.")
    for text in dict.fromkeys(text for path in paths for text in price_sentences(path)):
        console.say(text)


def _with_error(row: Mapping[Any, Any], name: str) -> str:
    value, error = row[name], row.get(f"± {name}")
    if isinstance(value, str):
        return value
    return f"{value:,.3g}" if error is None else f"{value:,.3g} ± {error:,.2g}"


def evaluation(path: Path, *, as_json: bool = False) -> None:
    """Print an evaluation's means with their intervals, and the numbers of several sets."""
    from geffect.record.reader import read_metrics

    content = read_metrics(path)
    console = Console()
    if as_json:
        console.print_json(dumps(content))
        return
    for model, results in content["models"].items():
        if results["sets"]:
            columns, left = ("set", "metric", "mean", "interval", "count"), ("set", "metric")
            console.show(f"{path}: {model}", columns, _of_sets(results["sets"]), left)
        for name, scores in results.get("tasks", {}).items():
            console.say(f"{model}, {name}: " + ", ".join(f"{key} {_digits(value)}" for key, value in scores.items()))
        for name, value in results["totals"].items():
            numbers = value if isinstance(value, dict) else {"": value}
            console.say(f"{name}: " + ", ".join(f"{key} {_digits(each)}".strip() for key, each in numbers.items()))


def _of_sets(sets: Mapping[str, Any]) -> Iterable[list[str]]:
    """A row a set and metric."""
    return (
        [name, kind, _digits(each["mean"]), f"{_digits(each['low'])} – {_digits(each['high'])}", str(each["examples"])]
        for name, metrics in sets.items()
        for kind, each in metrics.items()
    )


def _digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def findings(checks: "Iterable[Finding]", *, as_json: bool) -> bool:
    """Print findings as they come, or as one JSON list; True where any is bad."""
    from dataclasses import asdict

    console, results = Console(highlight=False), []
    for each in checks:
        results.append(each)
        if not as_json:
            console.say(f"  {each.name}: {each.found}", f"{each.status:>8}", STATUS[each.status], indent=10)
            if each.remedy:
                console.say(f"{'':>8}  → {each.remedy}", indent=12)
    if as_json:
        console.print_json(dumps([asdict(each) for each in results]))
    return any(each.status == "bad" for each in results)


def report(result: "Report", *, as_json: bool = False) -> None:
    """Print each run's outcome and findings and the page's path; or the same as JSON.

    The JSON is ``{"page": …, "cautions": […], "runs": [{"run": …, "outcome": {…}, "findings": [{…}], "price": […]}]}``.
    """
    console = Console(highlight=False)
    findings = {run: [each for each in result.findings if each.run == run] for run in result.outcomes}
    if as_json:
        runs = [
            {"run": run, "outcome": outcome.to_json(), "findings": [each._asdict() for each in findings[run]]}
            | {"price": result.prices[run]}
            for run, outcome in result.outcomes.items()
        ]
        console.print_json(dumps({"page": str(result.path), "cautions": result.cautions, "runs": runs}))
        return
    for run, outcome in result.outcomes.items():
        console.say(f"{run}: {outcome.sentence}" if len(result.outcomes) > 1 else outcome.sentence)
        for each in findings[run]:
            console.say(f"- {each.text}", indent=2)
        if not findings[run]:
            console.say("- No finding on its gradients is distinguishable from noise.", indent=2)
        for text in result.prices[run]:
            console.say(f"- {text}", indent=2)
    for text in result.cautions:
        console.say(f"caution: {text}")
    console.say(f"page: {result.path}")


def batch(examples: Iterable[tuple[str, list[tuple[str, bool]]]]) -> None:
    """Print examples' (title, [(token, carries loss)]); tokens with loss are colored, or bracketed without color."""
    console = Console(soft_wrap=True, highlight=False)
    console.print(Text.assemble("tokens that carry loss: ", (" so ", LEARNED) if console.is_terminal else "[so]"))
    for title, tokens in examples:
        console.print(Text(f"\n{title}", style="bold"))
        text = Text()
        for token, learned in tokens:
            shown = token.replace("\n", "⏎\n")
            text.append(f"[{shown}]" if learned and not console.is_terminal else shown, LEARNED if learned else "dim")
        console.print(text)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def matched_comparison(frame: pd.DataFrame, differences: pd.DataFrame, *, as_json: bool = False) -> None:
    """Print runs at equal forgetting, and the settings in which they differ."""
    console = Console()
    if as_json:
        both = {"runs": loads(frame.to_json(orient="records")), "differences": differences.T.to_dict()}
        console.print_json(dumps(both))
        return
    title = f"at a forget loss of {frame['forget loss'].iloc[0]:.3g} nats a token"
    _show_frame(console, title, frame.drop(columns="forget loss"))
    console.say(
        "gained, harm: rise of the forget loss, and of the heldout or retain loss, from the start (nats a token)."
    )
    console.say(f"more harm: than {frame['run'].iloc[0]}, by example; low, high: its 95 % interval over examples.")
    if len(differences):
        _show_frame(console, "settings that differ", differences.rename_axis("setting").reset_index())
    else:
        console.say("no setting differs")


def final_scores(scores: Mapping[str, Mapping[str, float]], *, as_json: bool = False) -> None:
    """Print the final scores of evaluations, one a column; – where one lacks a score."""
    console = Console()
    if as_json:
        console.print_json(
            dumps({n: {k: None if v != v else v for k, v in each.items()} for n, each in scores.items()})
        )
        return
    frame = pd.DataFrame({name: pd.Series(each, dtype=object) for name, each in scores.items()}).fillna("–")
    _show_frame(console, "final scores", frame.rename_axis("score").reset_index())


def simulations(tables: Mapping[str, pd.DataFrame], *, as_json: bool = False) -> None:
    """Print what other rectifiers would have done at the steps of each run."""
    console = Console()
    if as_json:
        console.print_json(dumps({run: loads(frame.to_json(orient="records")) for run, frame in tables.items()}))
        return
    for run, frame in tables.items():
        _show_frame(console, f"{run}: effects of each rule, summed over the measured steps", frame)
    console.say("effects: −⟨∇loss, direction⟩ for a learning rate of 1, each direction as long as what was descended")
    console.say("  (nats a token; above 0: that loss rises). cosine: with what the run descended, the steps' mean.")


def _show_frame(console: Console, title: str, frame: pd.DataFrame) -> None:
    """Print a frame, whose first column is on the left."""
    rows = ([value if isinstance(value, str) else _number(value) for value in row] for row in frame.itertuples(False))
    console.show(title, map(str, frame.columns), rows, left=(str(frame.columns[0]),))


def comparison(frame: pd.DataFrame, out: Path) -> None:
    """Print a table of runs, one a row, and the directory of the pictures."""
    console = Console()
    _show_frame(console, "what each run forgot and retained, and what its updates predicted", frame)
    console.say("Σe_u, Σe_r: ⟨∇loss, what was descended⟩ over the whole model, summed over the measured steps;")
    console.say("  Σe_u < 0 forgets, Σe_r < 0 harms the retain set. conflict: share of steps with e_r < 0.")
    console.say("cos: the objective's gradient against the retain gradient, before any rectification.")
    console.say(f"records and pictures: {out}")


def names(kind: str) -> None:
    """Print every name of a kind, with the first line of its definition."""
    from geffect.config.presets import PRESETS
    from geffect.data.load import BUILTIN
    from geffect.evaluation.metrics import METRICS
    from geffect.evaluation.suites import DERIVED, SUITES
    from geffect.models.builtin import BUILT_IN
    from geffect.objectives.registry import OBJECTIVES
    from geffect.rectifiers.registry import RECTIFIERS
    from geffect.reports.plots.registry import PLOTS
    from geffect.stopping import RULES

    metrics = {name: each.compute for name, each in METRICS.items()}
    tables: dict[str, Mapping[str, object]] = {
        "objectives": {**OBJECTIVES, **OBJECTIVES.aliases},
        "presets": {name: ", ".join(f"{key} {value}" for key, value in each.items()) for name, each in PRESETS.items()},
        "rectifiers": RECTIFIERS,
        "metrics": metrics | {name: each.compute for name, each in DERIVED.items()},
        "suites": {name: suite.parts for name, suite in SUITES.items()},
        "stop-rules": RULES,
        "plots": {name: each.draw for name, each in PLOTS.items()},
        "models": dict.fromkeys((*BUILT_IN, "smollm2")),
        "sets": {f"builtin:{name}": getattr(each, "func", each) for name, each in BUILTIN.items()},
    }
    console = Console(highlight=False)
    width = max(map(len, tables[kind]))
    for name, each in sorted(tables[kind].items()):
        text = each if isinstance(each, str) else each.__doc__ if callable(each) else ""
        lines = (text or "").strip().splitlines()
        console.say(f"{name:<{width}}  {lines[0]}" if lines else name, indent=min(width + 2, 30))
        if kind == "plots":
            console.say(f"{'':<{width}}  takes {', '.join(PLOTS[name].takes())}", indent=min(width + 2, 30))
