"""The command line: every flag is a field of the verb's schema; an error is one line and exit code 2."""

import contextlib
import errno
import importlib
import inspect
import io
import itertools
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, get_args, get_origin

import typer
import typer.main
from typer.models import CommandInfo

from geffect.cli.help import HELP, LOOK, PREPARE, RUN, VerbCommand, VerbGroup
from geffect.core.groups import SCHEMES
from geffect.errors import GeffectError, VisibleRecord, nearest, spelled, unknown_name, visible_text
from geffect.io.system import check_single_process, keep_interrupts, raise_on_signals, rank_and_size, signal_of
from geffect.io.terminal import close_bars, say, take_messages

if TYPE_CHECKING:
    from geffect.config import (
        DoctorConfig,
        EvaluateConfig,
        FinetuneConfig,
        InspectConfig,
        LocalizeConfig,
        PreviewConfig,
        ReportConfig,
        UnlearnConfig,
    )
    from geffect.config.schema import Schema


app = typer.Typer(
    name="geffect",
    cls=VerbGroup,
    help="Gradient diagnostics for language-model unlearning.",
    no_args_is_help=True,
    context_settings={"token_normalize_func": str.lower},  # verbs and flags in any case
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
VerbGroup.made = {}
LOGGER = logging.getLogger(__name__)

OUTPUT_REMEDY = "Free disk space, or name another output"
DRY_RUN = {"dry_run": "print the plan, the batch arithmetic and an estimate of the memory, and stop"}
YES = {"yes": "answer the question that --overwrite asks"}
RESUME = {"resume": "continue the unfinished run in --out from its last checkpoint"}
SUMS = ("objective", "points", "rectifier", "stop")
LISTS = ("objectives", "presets", "rectifiers", "metrics", "suites", "stop-rules", "plots", "models", "sets")
YAML = "a YAML file with these names, such as a run's config.yaml"


def verb(heading: str, name: str, schema: str, run: Callable[..., None], **switches: str) -> None:
    """Register a command, under a heading, with a flag for every field of a schema, which is named.

    A flag overrides the YAML file, and the file overrides the default. ``run`` takes the checked configuration and the
    switches, which are flags beside the schema's (name → help); its docstring is the command's help.
    """
    app.command(name, help=inspect.getdoc(run), rich_help_panel=heading)(lambda: None)
    VerbGroup.made[name] = partial(_make_command, name, schema, run, switches)


def _make_command(name: str, schema_name: str, run: Callable[..., None], switches: Mapping[str, str]) -> Any:
    """The command that `verb` describes."""
    import geffect.config
    from geffect.config.schema import ARGUMENT, OUTPUT, flag_name

    schema: type[Schema] = getattr(geffect.config, schema_name)
    listed = next((key for key, field in schema.model_fields.items() if field.json_schema_extra == ARGUMENT), "")

    def command(config: Any = None, **flags: Any) -> None:
        options = {key: flags.pop(key) for key in switches}
        yes = options.pop("yes", False)
        file, settings = config, {key: value for key, value in flags.items() if value is not None and value != []}
        if listed:
            is_file = config and len(config) == 1 and config[0].endswith((".yaml", ".yml"))
            file = Path(config[0]) if is_file else None
            settings |= {listed: config} if config and not is_file else {}
        if name != "unlearn":
            check_single_process(f"geffect {name}")
        if options.get("resume") and file and "out" not in settings:
            settings |= _directory_of(file)
        checked = _read(schema, file, settings, resume=bool(options.get("resume")))
        if "yes" in switches and not options.get("dry_run"):
            _confirm(checked, yes=yes, resume=bool(options.get("resume")))
        with _exit_on_signal(getattr(checked, "out", None) if "resume" in switches else None):
            run(checked, **options)

    # Typer reads the flags off the function's signature
    flags = _flags(schema)
    for key, text in switches.items():
        flags.append(_parameter(key, False, bool, typer.Option(flag_name(key), help=text, rich_help_panel=OUTPUT)))
    parameters = [_argument(schema, listed), *sorted(flags, key=_place)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    info = CommandInfo(name, cls=VerbCommand, callback=command, help=inspect.getdoc(run))
    return typer.main.get_command_from_info(info, pretty_exceptions_short=False, rich_markup_mode=None)


def _read(schema: "type[Schema]", file: Path | None, settings: dict[str, Any], *, resume: bool) -> "Schema":
    """The checked configuration; unless torch is there already, what can be refused without it is refused first."""
    from geffect.config.schema import read_mapping

    content = read_mapping(file) if file else {}
    loads = bool({"model", "checkpoints"} & schema.model_fields.keys())
    if "torch" not in sys.modules:
        from geffect.config.places import check_places

        check_places(schema.draft(content | settings), resume=resume)
        if loads:
            LOGGER.info("loading the model...")  # importing torch takes seconds
    with keep_interrupts():
        checked = schema.combine(content, settings, file)
        if loads:
            importlib.import_module("geffect.api")
    return checked


def _confirm(config: Any, *, yes: bool, resume: bool = False) -> None:
    """Ask before a run is overwritten, or raise where there is no terminal to ask on."""
    from geffect.record.replacement import describe_run, is_run, refuse_taken

    if not config.overwrite:
        if yes:
            raise GeffectError("--yes does nothing without --overwrite", remedy="Add --overwrite, or leave --yes out")
        return
    if resume:
        raise GeffectError("--resume continues the run that --overwrite removes", remedy="Leave one of them out")
    inside = sorted(config.out.iterdir()) if config.out.is_dir() and not is_run(config.out) else []
    for path in filter(is_run, [config.out, *inside]):
        refuse_taken(path, overwrite=True)
        if yes or rank_and_size()[0]:
            continue
        if rank_and_size()[1] > 1 or not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
            message = f"--overwrite would remove {path}, and there is no terminal to ask on"
            raise GeffectError(message, remedy="Add --yes")
        say(f"geffect: --overwrite removes {path}, {describe_run(path)}")
        if not typer.confirm("remove it?", err=True):
            say("geffect: nothing was removed")
            raise typer.Exit(1)


def _argument(schema: "type[Schema]", listed: str) -> inspect.Parameter:
    """The YAML file, or the values of the field that has no flag."""
    if not listed:
        return _parameter("config", None, Path | None, typer.Argument(help=YAML))
    text = f"{schema.model_fields[listed].description}; or {YAML} [required]"
    return _parameter("config", None, list[str] | None, typer.Argument(help=text, metavar="PATH..."))


def _flags(schema: "type[Schema]") -> list[inspect.Parameter]:
    """An optional flag for every field that has one; None means that the flag is absent."""
    from geffect.cli.completion import completer, names_of, shown_names
    from geffect.config.schema import flag_name, has_flag, shown_default

    flags = []
    for key, field in schema.model_fields.items():
        if not has_flag(field):
            continue
        kind: Any = field.annotation if field.annotation in (int, float, bool) else str
        if get_origin(field.annotation) is list:
            kind = list[str]  # the schema makes numbers of them
        option = typer.Option(
            *(flag_name(word) for word in (key, *(word for word, name in schema.ALIASES.items() if name == key))),
            help=f"{field.description} [{shown_names(key, field)}{shown_default(field)}]",
            show_default=False,
            rich_help_panel=field.title,
            autocompletion=None if kind is bool else completer(partial(names_of, key, field), is_sum=key in SUMS),
        )
        flags.append(_parameter(key, None, kind | None, option))
    return sorted(flags, key=partial(_depth, schema))


def _depth(schema: "type[Schema]", flag: inspect.Parameter) -> int:
    """How far up the schema's bases a field stands: a verb's own come first, but what matters most is as it is."""
    from geffect.config.schema import MAIN

    if schema.model_fields[flag.name].title == MAIN:
        return 0
    return next(i for i, base in enumerate(schema.__mro__) if flag.name in inspect.get_annotations(base))


def _place(flag: inspect.Parameter) -> int:
    """The number of a flag's heading."""
    from geffect.config.schema import GROUPS

    option = get_args(flag.annotation)[1]
    return GROUPS.index(option.rich_help_panel)


def _complete(setting: str, names: Sequence[str] = ()) -> Callable[[str], list[str]]:
    """The completion of a flag that is no schema's field: of its ``names``, or of what the setting takes."""

    def complete(incomplete: str) -> list[str]:
        from geffect.cli.completion import completer, names_of

        known = names or (_references() if setting == "method" else names_of(setting))
        return completer(lambda: known, is_sum=setting in SUMS)(incomplete)

    return complete


def _parameter(name: str, default: Any, kind: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _directory_of(file: Path) -> dict[str, str]:
    """The run directory that holds a configuration file: it may have moved since it was written."""
    is_run = file.name == "config.yaml" and (file.parent / "environment.json").is_file()
    return {"out": str(file.parent)} if is_run else {}


@contextlib.contextmanager
def _exit_on_signal(out: Path | None = None) -> Iterator[None]:
    """Exit with one line and 128 + the signal's number where Ctrl-C, SIGTERM or SIGHUP stops the work in ``out``."""
    try:
        with raise_on_signals():
            yield
    except KeyboardInterrupt as stopped:
        from geffect.record.schema import CONFIG, DONE

        message = str(stopped) or "stopped by Ctrl-C"
        if out and "--resume" not in message and (out / CONFIG).exists() and not (out / DONE).exists():
            message += "; continue with the same command and --resume"
        if rank_and_size()[0] == 0:
            _print_error(message)
        raise typer.Exit(128 + signal_of(stopped)) from None


def _say(text: object) -> None:
    typer.echo(visible_text(str(text)))


def _finetune(config: "FinetuneConfig", *, dry_run: bool, resume: bool) -> None:
    """Fit a model to sets, all weights or a LoRA adapter.

    It descends the negative log-likelihood, and writes a model directory with a record.
    """
    from geffect import api
    from geffect.cli import console

    setup = api.prepare(config, resume=resume)
    console.plan(setup.plan)
    if not dry_run:
        console.run(api.finetune.run(setup.config, resume=resume, setup=setup).path)


def _unlearn(config: "UnlearnConfig", *, dry_run: bool, resume: bool) -> None:
    """Unlearn a set with an objective and a rectifier.

    Every update's G-effect is recorded: what it does to each set, in nats.
    """
    from geffect import api
    from geffect.cli import console

    setup = api.prepare(config, resume=resume)
    console.plan(setup.plan)
    if not dry_run:
        console.unlearning(api.unlearn.run(setup.config, resume=resume, setup=setup).path)


def _localize(config: "LocalizeConfig", *, dry_run: bool) -> None:
    """Find the weights where each domain's knowledge lies.

    It writes top-k masks of every split, their overlaps and heat maps.
    """
    from geffect import api
    from geffect.cli import console

    setup = api.prepare(config)
    console.plan(setup.plan)
    if not dry_run:
        console.localization(api.localize.run(config, setup=setup).path)


def _inspect(config: "InspectConfig", *, dry_run: bool, resume: bool) -> None:
    """Measure objectives at checkpoints, without training.

    They are measured at every checkpoint of a series, over whole sets.
    PATH is a directory with checkpoints (a run's, or Hugging Face's checkpoint-N), or models, adapters and hub
    revisions one by one. Options left out are taken from the configuration of a run of geffect unlearn.
    """
    from geffect import api
    from geffect.cli import console

    setup = api.prepare(config, resume=resume)
    console.plan(setup.plan)
    if not dry_run:
        console.inspections(run.path for run in api.inspect.run(config, resume=resume, setup=setup))


def _evaluate(config: "EvaluateConfig", *, json: bool) -> None:
    """Score a model or checkpoints on a suite, or sets by metrics."""
    from geffect import api
    from geffect.cli import console

    console.evaluation(api.evaluate(config).path, as_json=json)


def _report(config: "ReportConfig", *, json: bool, open: bool) -> None:
    """Write runs as one HTML page that needs no network.

    It shows the outcome, findings, figures, layers and the worst examples.
    """
    from geffect.cli import console
    from geffect.reports.compare import named
    from geffect.reports.page import write

    report = write(named(config.runs), config.page, config.scheme)  # without torch, which geffect.api imports
    console.report(report, as_json=json)
    if open:
        _browse(report.path.resolve())


def _browse(page: Path) -> None:
    """Open a page in the browser, or say where it is where there is no display to open one on."""
    import webbrowser

    elsewhere = "SSH_CONNECTION" in os.environ or (
        sys.platform.startswith("linux") and not {"DISPLAY", "WAYLAND_DISPLAY"} & {*os.environ}
    )
    if ("BROWSER" in os.environ or not elsewhere) and webbrowser.open(page.as_uri()):
        return
    message = f"geffect: no browser can be opened here; open {page.as_uri()}, or copy the file to where one is"
    typer.echo(visible_text(message), err=True)


def _preview(config: "PreviewConfig") -> None:
    """Print a set's first examples and color what is learned."""
    from geffect import api
    from geffect.cli import console

    console.batch(api.preview(config))


def _doctor(config: "DoctorConfig", *, json: bool) -> None:
    """Check a run before it begins.

    It checks precision, determinism, masks, tied weights, what the model knows, and memory.
    """
    from geffect import api
    from geffect.cli import console

    if console.findings(api.doctor(config), as_json=json):
        raise typer.Exit(1)


verb(RUN, "finetune", "FinetuneConfig", _finetune, **DRY_RUN, **RESUME, **YES)
verb(RUN, "unlearn", "UnlearnConfig", _unlearn, **DRY_RUN, **RESUME, **YES)
verb(RUN, "localize", "LocalizeConfig", _localize, **DRY_RUN, **YES)
verb(LOOK, "inspect", "InspectConfig", _inspect, **DRY_RUN, resume="continue the unfinished inspection in --out", **YES)
verb(LOOK, "evaluate", "EvaluateConfig", _evaluate, json="print metrics.json in place of a table", **YES)
REPORT = {"json": "print each run's outcome and findings as JSON", "open": "open the page in the browser"}
verb(LOOK, "report", "ReportConfig", _report, **REPORT)
verb(PREPARE, "preview", "PreviewConfig", _preview)
verb(PREPARE, "doctor", "DoctorConfig", _doctor, json="print the findings as a JSON list")


@app.command(cls=VerbCommand, rich_help_panel=RUN)
def demo(
    out: Annotated[
        Path | None, typer.Option(help="directory to make [default: runs/demo, or the next free number]")
    ] = None,
    grail: Annotated[
        bool, typer.Option("--grail", help="then localize two domains and unlearn them with GRAIL")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace the runs of an earlier demo in --out")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help=YES["yes"])] = False,
) -> None:
    """Unlearn the tiny built-in model in three ways, and draw it.

    The ways are GA, GA+GRU and NPO+GRU; a table says what each did.
    """
    check_single_process("geffect demo")
    with _exit_on_signal():
        if "torch" not in sys.modules:
            LOGGER.info("loading the model...")
        from geffect.cli import console
        from geffect.cli import demo as demo_

        numbered = (Path(f"runs/demo-{number}") for number in itertools.count(2))
        free = (path for path in itertools.chain([Path("runs/demo")], numbered) if not path.exists())
        from geffect.config.schema import place

        out = place(out) if out else Path("runs/demo") if overwrite else next(free)
        _confirm(SimpleNamespace(out=out, overwrite=overwrite), yes=yes)
        console.comparison(demo_.demo(out, overwrite=overwrite), out)
        if grail:
            localized, runs = demo_.demo_grail(out, overwrite=overwrite)
            console.localization(localized)
            for path in runs:
                console.unlearning(path)


@app.command(name="import-config", cls=VerbCommand, rich_help_panel=PREPARE)
def import_config(
    experiment: Annotated[
        Path, typer.Argument(help="an experiment of open-unlearning that Hydra composed, or its output folder")
    ],
    out: Annotated[Path | None, typer.Option(help="YAML file to write, beside printing it")] = None,
) -> None:
    """Turn an open-unlearning experiment into a YAML file.

    The file is for geffect unlearn; all that was not mapped is named.
    """
    from geffect.config.imported import import_experiment
    from geffect.config.schema import place
    from geffect.record.schema import refuse_existing
    from geffect.record.writer import write

    if out is not None:
        refuse_existing(out := place(out))
    text = import_experiment(experiment).text
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write(out, text)
    _say(text.rstrip())


@app.command(cls=VerbCommand, rich_help_panel=LOOK)
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="runs; the others are compared with the first. Or evaluations, of geffect evaluate or open-unlearning",
        ),
    ],
    at: Annotated[
        float | None, typer.Option(help="forget loss (nats a token) [default: the largest that all reached]")
    ] = None,
    simulate: Annotated[
        list[str] | None,
        typer.Option(
            help="a rectifier that is not run: what it would have done at every step of each RUN; repeat it",
            autocompletion=_complete("rectifier"),
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="seed of the bootstrap")] = 0,
    json: Annotated[bool, typer.Option("--json", help="print both tables as JSON")] = False,
) -> None:
    """Compare what runs retain at the same forget loss.

    Every setting in which they differ is listed. Evaluations are compared by their final scores. One of open-unlearning
    is its TOFU_SUMMARY.json or TOFU_EVAL.json, or the folder that has it.
    """
    from geffect.core.registry import read_names
    from geffect.record.reader import check_directories
    from geffect.reports.scores import final_scores, is_evaluation

    read_names("rectifier", simulate)
    evaluations = [each for each in runs if is_evaluation(each)]
    check_directories(each for each in runs if each not in evaluations)
    if len(runs) < 2 and not (simulate or evaluations):
        message = f"There is nothing to compare {runs[0]} with"
        raise GeffectError(message, remedy="Name two runs or more, or add --simulate gru")
    from geffect.cli import console
    from geffect.reports import compare as tables
    from geffect.reports.context import cautions
    from geffect.reports.simulation import simulated

    if evaluations:
        if simulate or at is not None:
            message = f"{evaluations[0]} is an evaluation, which has no steps for --{'simulate' if simulate else 'at'}"
            raise GeffectError(message, remedy="Leave it out, or name runs alone")
        console.final_scores(final_scores(tables.named(runs)), as_json=json)
        return

    paths = tables.named(runs)
    for text in cautions(paths):
        LOGGER.warning("%s", text)
    if simulate:
        console.simulations({name: simulated(path, simulate) for name, path in paths.items()}, as_json=json)
        return
    console.matched_comparison(tables.compare(paths, at, seed), tables.differences(paths), as_json=json)


@app.command(cls=VerbCommand, rich_help_panel=LOOK)
def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run directories, to draw side by side")],
    kind: Annotated[list[str] | None, typer.Option(help="a plot of geffect list plots; repeat it")] = None,
    targets: Annotated[str | None, typer.Option(metavar="A,B", help="sets to draw")] = None,
    groups: Annotated[str | None, typer.Option(metavar="A,B", help="layer groups to draw, and total")] = None,
    steps: Annotated[str | None, typer.Option(metavar="A:B", help="first and last step to draw")] = None,
    reading: Annotated[
        str | None,
        typer.Option(
            help="published (nats a token per unit of learning rate), or nats (a token, of the applied update)"
        ),
    ] = None,
    scale: Annotated[str | None, typer.Option(help="linear, symlog or log [default: linear]")] = None,
    width: Annotated[str | None, typer.Option(help="column (3.3 inches) or page (7)")] = None,
    labels: Annotated[list[str] | None, typer.Option(metavar="RUN=LABEL", help="a run's name; repeat it")] = None,
    format: Annotated[
        str | None, typer.Option(help="kinds of file to write, of png,pdf,svg [default: png,pdf]")
    ] = None,
    dpi: Annotated[int | None, typer.Option(help="dots an inch of a PNG [default: 200]")] = None,
    style: Annotated[str | None, typer.Option(help="a matplotlib style sheet, by name or file")] = None,
    out: Annotated[Path | None, typer.Option(help="directory to write to [default: the first RUN/figures]")] = None,
    scheme: Annotated[
        str,
        typer.Option(
            help=f"how layers make groups: {', '.join(SCHEMES[:-1])} or {SCHEMES[-1]}",
            autocompletion=_complete("scheme", SCHEMES),
        ),
    ] = "thirds",
) -> None:
    """Draw every plot that runs recorded enough for.

    Several runs are drawn side by side.
    """
    if (scheme := spelled(scheme, SCHEMES)) not in SCHEMES:
        raise unknown_name("a scheme", scheme, SCHEMES)
    from geffect.record.reader import check_directories

    check_directories(runs)
    from geffect.config.schema import place
    from geffect.reports.run import plot as draw
    from geffect.training.run import disk_errors

    names = ("targets", "groups", "steps", "reading", "scale", "width", "labels", "format", "dpi", "style")
    options = {name: value for name, value in locals().items() if name in names and value not in (None, [])}
    with disk_errors(out or runs[0], "name another --out"):
        written = draw(runs, out and place(out), scheme, kind or (), **options)
    for path in written:
        _say(path)


@app.command(cls=VerbCommand, rich_help_panel=LOOK)
def check(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run, or a monitored training's record")],
    max_harm: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NATS", help="largest rise allowed of a set's loss, nats a token; repeat it"),
    ] = None,
    min_forget: Annotated[
        float | None, typer.Option(help="smallest rise wanted of the forget loss, nats a token")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print the verdicts as a JSON list")] = False,
) -> None:
    """Say whether a run kept limits on its sets' losses.

    The exit code is 1 where it did not.
    """
    from geffect.record.reader import check_directories

    check_directories([run])
    limits = _limits(max_harm or [])
    from geffect.reports.limits import check as judge

    found = judge(run, limits, min_forget)
    from geffect.cli import console

    if console.verdicts(found, as_json=json):
        raise typer.Exit(1)


def _limits(texts: list[str]) -> dict[str, float]:
    """NAME=NATS, each name once."""
    limits: dict[str, float] = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            number = None
        if not name or number is None:
            raise GeffectError(f"--max-harm {text!r} is no limit", remedy="Write NAME=NATS, such as retain=0.1")
        if name in limits:
            raise GeffectError(f"--max-harm names {name} twice", remedy="Leave one of them out")
        limits[name] = number
    return limits


@app.command(cls=VerbCommand, rich_help_panel=LOOK)
def monitor(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="the directory of a run that is being trained, or of several: the newest"),
    ],
    every: Annotated[float, typer.Option(min=0.2, help="seconds between two looks")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="show the last step once, and stop")] = False,
) -> None:
    """Show what the last step does to every set, live.

    It shows that by layer group, until the run ends; Ctrl-C stops looking.
    """
    from geffect.record.reader import check_run

    if not run.is_dir():
        check_run(run)
    from geffect.cli import console

    with contextlib.suppress(KeyboardInterrupt):
        console.live(run, every, once=once)


@app.command(cls=VerbCommand, rich_help_panel=HELP)
def cite(
    method: Annotated[
        str, typer.Argument(help="geffect, g-effect, gru, npo, tofu, …", autocompletion=_complete("method"))
    ] = "all",
) -> None:
    """Print the BibTeX entry of a method or of this toolkit."""
    typer.echo(bibtex(method))


def bibtex(method: str) -> str:
    """The entry of one method in ``references.bib``, or of ``all``."""
    entries = _references()
    if method.lower() == "all":
        return "\n\n".join(entries.values())
    if method.lower() not in entries:
        remedy = f"{nearest(method, entries)}Choose one of {', '.join(entries)}"
        raise GeffectError(f"There is no reference for {method!r}", remedy=remedy)
    return entries[method.lower()]


def _references() -> dict[str, str]:
    """Method → entry in ``references.bib``."""
    text = Path(__file__).with_name("references.bib").read_text(encoding="utf-8").strip()
    return dict(part.removeprefix("% ").split("\n", 1) for part in text.split("\n\n"))


@app.command(name="list", cls=VerbCommand, rich_help_panel=HELP)
def list_(
    what: Annotated[
        str, typer.Argument(help=f"{', '.join(LISTS[:-1])} or {LISTS[-1]}", autocompletion=_complete("list", LISTS))
    ],
) -> None:
    """Print what can be named, with definitions."""
    what = what.lower()
    if what not in LISTS:
        raise GeffectError(
            f"There is no list of {what!r}", remedy=f"{nearest(what, LISTS)}Choose one of {', '.join(LISTS)}"
        )
    from geffect.cli import console

    console.names(what)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        _say(f"geffect {version('geffect')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="print the version and stop", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Gradient diagnostics for language-model unlearning."""


def main() -> NoReturn:
    """Run the command line; an error of the user ends in one line and exit code 2."""
    logging.setLogRecordFactory(VisibleRecord)
    take_messages()
    for library in ("huggingface_hub", "datasets"):  # each has a handler of its own
        logging.getLogger(library).propagate = False
    logging.getLogger("geffect").setLevel(logging.ERROR if rank_and_size()[0] else logging.INFO)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may not know every character
    code: object = 2
    try:
        _run()
    except SystemExit as ended:
        code = ended.code
    except GeffectError as error:
        _print_error(str(error))
    except (OSError, MemoryError, RecursionError, UnicodeError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        remedy = "Correct the path, or free disk space or memory"
        if getattr(error, "errno", None) == errno.ENOSPC and getattr(error, "filename", None) is None:
            message, remedy = f"The output cannot be written: {message}", OUTPUT_REMEDY
        _print_error(str(GeffectError(message, remedy=remedy)))
    sys.exit(_flush(code))  # type: ignore[arg-type]


def _run() -> None:
    if "_GEFFECT_COMPLETE" in os.environ:
        from geffect.cli.completion import join_words

        join_words()
    if rank_and_size()[0] == 0:
        app(prog_name="geffect", standalone_mode=True)
    with Path(os.devnull).open("w") as silent, contextlib.redirect_stdout(silent):  # the first process prints
        app(prog_name="geffect", standalone_mode=True)


def _print_error(text: str) -> None:
    with contextlib.suppress(OSError):  # a closed pipe, or a full disk
        close_bars()
        say(f"geffect: {visible_text(text, lines=False)}")


def _flush(code: object) -> object:
    """The exit code after everything is written; a closed pipe ends it silently, a full disk in one line."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except BrokenPipeError:
            code = code or 1
            _close(stream)
        except (OSError, ValueError) as error:
            _close(stream)
            if code != 2:  # 2: another error was printed
                _print_error(str(GeffectError(f"The output cannot be written: {error}", remedy=OUTPUT_REMEDY)))
            code = 2
    return code


def _close(stream: Any) -> None:
    """Discard what is left to write: the interpreter would try again at exit, and print a traceback."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


if __name__ == "__main__":
    main()
