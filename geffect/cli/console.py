"""The output of the command line: plans, tables, findings, examples."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich import console as rich_console
from rich import text as rich_text
from rich.highlighter import JSONHighlighter
from rich.segment import Segment
from rich.table import Table

from geffect.errors import GeffectError, visible
from geffect.io.system import rank_and_size

if TYPE_CHECKING:
    from geffect.preflight.numerics import Finding
    from geffect.reports.page import Report

LEARNED = "bold black on green"
STATUS = {"good": "green", "warning": "yellow", "bad": "bold red"}


class Text(rich_text.Text):
    """Text in its visible form: Rich drops some characters that act on a terminal, and fails on surrogates."""

    def __init__(self, text: str = "", *args: Any, **options: Any) -> None:
        super().__init__(visible(text), *args, **options)

    def append(self, text: "rich_text.Text | str", *args: Any, **options: Any) -> "rich_text.Text":
        """As Rich's."""
        return super().append(visible(text) if isinstance(text, str) else text, *args, **options)


class Console(rich_console.Console):
    """Prints text as it is: it reads no markup, and lets no character act on a terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> rich_text.Text:
        """As Rich's, of a string's visible form, by which table cells are measured."""
        return super().render_str(visible(text), **options)

    def render(
        self, renderable: rich_console.RenderableType, options: rich_console.ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """As Rich's, each piece of text in its visible form; Rich's own control codes stay."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)

    def print_json(self, json: str) -> None:  # type: ignore[override]
        """As Rich's; an invisible character is written as JSON's escape."""
        from json import dumps, loads

        self.print(JSONHighlighter()(Text(dumps(loads(json), indent=2, ensure_ascii=False))), soft_wrap=True)


def plan(content: Mapping[str, Any]) -> None:
    """Print a plan, one entry a line."""
    console = Console(stderr=True, soft_wrap=True, highlight=False, quiet=rank_and_size()[0] > 0)
    for name, value in content.items():
        console.print(Text.assemble((f"{name:>10}  ", "bold"), str(value)))


def run(path: Path) -> None:
    """Print a finished run's first and last scores, and its path."""
    from geffect.record.reader import read_metrics

    metrics = read_metrics(path)
    table = Table(title=f"{path}", title_justify="left")
    for column in ("set", "loss, start", "loss, end", "accuracy, start", "accuracy, end"):
        table.add_column(column, justify="left" if column == "set" else "right")
    for name in (each for each in metrics["start"] if each != "step"):
        start, end = metrics["start"][name], metrics["end"][name]
        table.add_row(name, *map(_three, (start["loss"], end["loss"], start["accuracy"], end["accuracy"])))
    Console().print(table)
    if "success" in metrics:
        successes(metrics["success"])


def unlearned(path: Path) -> None:
    """Print a finished unlearning run: whether it forgot selectively, then as `run`."""
    from geffect.reports.outcome import outcome

    Console(soft_wrap=True, highlight=False).print(Text(outcome(path).sentence))
    run(path)


def _three(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def successes(scores: Mapping[str, Any]) -> None:
    """Print unlearn, retention and harmonic success of every domain's validation sets, at the start and the end."""
    table = Table(title="validation, %: US unlearn, RS retention, HS harmonic success", title_justify="left")
    for column in ("domain", *(f"{name}, {when}" for name in ("US", "RS", "HS") for when in ("start", "end"))):
        table.add_column(column, justify="left" if column == "domain" else "right")
    for domain in scores["start"]:
        pairs = ((scores["start"][domain][name], scores["end"][domain][name]) for name in ("US", "RS", "HS"))
        table.add_row(domain, *("–" if value is None else f"{value:.1f}" for pair in pairs for value in pair))
    Console().print(table)


def localization(path: Path) -> None:
    """Print a localization's overlaps over the whole model, beside chance, and its path."""
    from geffect.reports.compare import whole_overlaps

    table = Table(title=f"{path}: Jaccard index of the most important entries", title_justify="left")
    for column in ("share", "split", "other", "Jaccard", "chance"):
        table.add_column(column, justify="left" if column in ("split", "other") else "right")
    for row in whole_overlaps(path).to_dict("records"):
        numbers = (f"{row[name]:.3f}" for name in ("jaccard", "chance"))
        table.add_row(f"{row['share']:g}", str(row["gradient"]), str(row["other"]), *numbers)
    Console().print(table)


def inspected(paths: Iterable[Path]) -> None:
    """Print each objective's G-effects at every checkpoint with their standard errors, and both losses."""
    from geffect.reports.compare import at_checkpoints

    errors = False
    for path in paths:
        table = Table(title=f"{path}", title_justify="left")
        frame = at_checkpoints(path)
        errors |= bool(frame.filter(like="±").notna().to_numpy().any())
        columns = [name for name in frame.columns if not name.startswith("±")]
        for column in columns:
            table.add_column(column.replace("_", " "), justify="right")
        for row in frame.astype({"step": str}).to_dict("records"):
            table.add_row(*(_with_error(row, name) for name in columns))
        Console().print(table)
    with_errors = ", with standard errors over batches" if errors else ""
    Console(soft_wrap=True).print(
        Text(
            f"G-effects: ⟨∇loss, objective⟩ over whole sets{with_errors}; "
            "unlearn < 0 forgets, retain < 0 harms the retain set."
        )
    )


def _with_error(row: Mapping[Any, Any], name: str) -> str:
    value, error = row[name], row.get(f"± {name}")
    if isinstance(value, str):
        return value
    return f"{value:,.3g}" if error is None else f"{value:,.3g} ± {error:,.2g}"


def evaluation(path: Path, *, as_json: bool = False) -> None:
    """Print an evaluation's means with their intervals, and the numbers of several sets."""
    import json

    from geffect.record.reader import read_metrics

    content = read_metrics(path)
    console = Console(soft_wrap=True)
    if as_json:
        console.print_json(json.dumps(content))
        return
    for model, results in content["models"].items():
        if results["sets"]:
            console.print(_of_sets(f"{path}: {model}", results["sets"]))
        for name, scores in results.get("tasks", {}).items():
            console.print(f"{model}, {name}: " + ", ".join(f"{key} {_decimal(value)}" for key, value in scores.items()))
        for name, value in results["totals"].items():
            numbers = value if isinstance(value, dict) else {"": value}
            console.print(f"{name}: " + ", ".join(f"{key} {_decimal(each)}".strip() for key, each in numbers.items()))


def _of_sets(title: str, sets: Mapping[str, Any]) -> Table:
    """A table with one line a set and metric."""
    table = Table(title=title, title_justify="left")
    for column in ("set", "metric", "mean", "interval", "examples"):
        table.add_column(column, justify="left" if column in ("set", "metric") else "right")
    for name, metrics in sets.items():
        for kind, each in metrics.items():
            ends = " – ".join(_decimal(each[end]) for end in ("low", "high"))
            table.add_row(name, kind, _decimal(each["mean"]), ends, str(each["examples"]))
    return table


def _decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def findings(checks: "Iterable[Finding]", *, as_json: bool) -> bool:
    """Print findings as they come, or as one JSON list; True where any is bad."""
    import json
    from dataclasses import asdict

    console, results = Console(soft_wrap=True, highlight=False), []
    for each in checks:
        results.append(each)
        if not as_json:
            console.print(Text.assemble((f"{each.status:>8}", STATUS[each.status]), f"  {each.name}: {each.found}"))
            if each.remedy:
                console.print(Text(f"{'':>8}  → {each.remedy}"))
    if as_json:
        console.print_json(json.dumps([asdict(each) for each in results]))
    return any(each.status == "bad" for each in results)


def report(result: "Report", *, as_json: bool = False) -> None:
    """Print each run's outcome and findings and the page's path; or the same as JSON.

    The JSON is ``{"page": …, "runs": [{"run": …, "outcome": {…}, "findings": [{…}]}]}``.
    """
    import json

    console = Console(soft_wrap=True, highlight=False)
    findings = {run: [each for each in result.findings if each.run == run] for run in result.outcomes}
    if as_json:
        runs = [
            {"run": run, "outcome": outcome.to_json(), "findings": [each._asdict() for each in findings[run]]}
            for run, outcome in result.outcomes.items()
        ]
        console.print_json(json.dumps({"page": str(result.path), "runs": runs}))
        return
    for run, outcome in result.outcomes.items():
        console.print(Text(f"{run}: {outcome.sentence}" if len(result.outcomes) > 1 else outcome.sentence))
        for each in findings[run]:
            console.print(Text(f"- {each.text}"))
        if not findings[run]:
            console.print(Text("- No finding on its gradients is distinguishable from noise."))
    console.print(Text(f"page: {result.path}"))


def batch(rows: list[tuple[str, list[tuple[str, bool]]]]) -> None:
    """Print examples' (title, [(token, carries loss)]); tokens with loss are colored, or bracketed without color."""
    console = Console(soft_wrap=True, highlight=False)
    console.print(Text.assemble("tokens that carry loss: ", (" so ", LEARNED) if console.is_terminal else "[so]"))
    for title, tokens in rows:
        console.print(Text(f"\n{title}", style="bold"))
        text = Text()
        for token, learned in tokens:
            shown = token.replace("\n", "⏎\n")
            text.append(f"[{shown}]" if learned and not console.is_terminal else shown, LEARNED if learned else "dim")
        console.print(text)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def aligned(frame: pd.DataFrame, differences: pd.DataFrame, *, as_json: bool = False) -> None:
    """Print runs at equal forgetting, and the settings in which they differ."""
    import json

    console = Console(width=140 if not Console().is_terminal else None)
    if as_json:
        both = {"runs": json.loads(frame.to_json(orient="records")), "differences": differences.T.to_dict()}
        console.print_json(json.dumps(both))
        return
    title = f"at a forget loss of {frame['forget loss'].iloc[0]:.3g} nats a token"
    console.print(_table(frame.drop(columns="forget loss"), title, "run"))
    console.print(
        "gained, harm: rise of the forget loss, and of the heldout or retain loss, from the start (nats a token)."
    )
    console.print(f"more harm: than {frame['run'].iloc[0]}, by example; low, high: its 95 % interval over examples.")
    if len(differences):
        console.print(_table(differences.rename_axis("setting").reset_index(), "settings that differ", "setting"))
    else:
        console.print("no setting differs")


def _table(frame: pd.DataFrame, title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in frame.columns:
        table.add_column(str(column), justify="left" if column == first else "right")
    for values in frame.itertuples(index=False):
        table.add_row(*(value if isinstance(value, str) else _number(value) for value in values))
    return table


def comparison(frame: pd.DataFrame, out: Path) -> None:
    """Print a table of runs, one a row, and the directory of the pictures."""
    console = Console(width=140 if not Console().is_terminal else None)
    console.print(_table(frame, "what each run forgot and retained, and what its updates predicted", "run"))
    console.print("Σe_u, Σe_r: ⟨∇loss, what was descended⟩ over the whole model, summed over the measured steps;")
    console.print("  Σe_u < 0 forgets, Σe_r < 0 harms the retain set. conflict: share of steps with e_r < 0.")
    console.print("cos: the objective's gradient against the retain gradient, before any rectification.")
    console.print(f"records and pictures: {out}")


def names(kind: str) -> None:
    """Print every name of a kind, with the first line of its definition."""
    from geffect.evaluation.metrics import METRICS
    from geffect.evaluation.suites import DERIVED, SUITES
    from geffect.models.builtin import BUILT_IN
    from geffect.objectives.registry import OBJECTIVES
    from geffect.rectifiers.registry import RECTIFIERS
    from geffect.reports.plots.registry import PLOTS
    from geffect.stopping import RULES

    tables: dict[str, Mapping[str, Any]] = {
        "objectives": OBJECTIVES,
        "rectifiers": RECTIFIERS,
        "metrics": {name: metric.compute for name, metric in METRICS.items()}
        | {name: x.compute for name, x in DERIVED.items()},
        "suites": {name: suite.parts for name, suite in SUITES.items()},
        "stop-rules": RULES,
        "plots": {name: each.draw for name, each in PLOTS.items()},
        "models": dict.fromkeys((*BUILT_IN, "smollm2")),
    }
    if kind not in tables:
        raise GeffectError(f"There is no list of {kind!r}", remedy=f"Choose one of {', '.join(tables)}")
    console = Console(soft_wrap=True, highlight=False)
    width = max(map(len, tables[kind]))
    for name, each in sorted(tables[kind].items()):
        lines = ((each.__doc__ if each else None) or "").strip().splitlines()
        console.print(Text(f"{name:<{width}}  {lines[0]}" if lines and callable(each) else name))
