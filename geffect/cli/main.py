"""The shell's face: every flag is a field of the verb's schema, every error one line and exit code 2."""

import contextlib
import errno
import inspect
import io
import itertools
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_origin

import typer
from typer.core import TyperCommand, TyperOption

from geffect.config import (
    ARGUMENT,
    DoctorConfig,
    EvaluateConfig,
    FinetuneConfig,
    InspectConfig,
    LocalizeConfig,
    PreviewConfig,
    ReportConfig,
    Schema,
    UnlearnConfig,
    place,
)
from geffect.errors import GeffectError, VisibleRecord, formatted_warning, visible
from geffect.io.readers import duplicate
from geffect.io.system import check_single_process, rank_and_size, signal_of, terminable

app = typer.Typer(
    name="geffect",
    help="Gradient diagnostics for language-model unlearning.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class OnceCommand(TyperCommand):
    """A command that refuses a flag given twice: the parser keeps the last one and drops the first without a word."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As Typer's, once every flag that takes one value is seen to stand once.

        Args:
            ctx: the command's context.
            args: the command line.

        Returns:
            What is left of it.

        Raises:
            GeffectError: a flag stands twice.
        """
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        once = (each.opts[0] for each in given if isinstance(each, TyperOption) and not (each.multiple or each.count))
        if (twice := duplicate(once)) is not None:
            raise GeffectError(f"{twice} once", "it twice", "keep one of them")
        return super().parse_args(ctx, args)


OUTPUT = "an output that can be written to", "free its disk, or name another"
DRY_RUN = {"dry_run": "print plan, batch arithmetic and memory estimate, and stop"}
RESUME = {"resume": "go on from the last checkpoint of the unfinished run in --out"}


def verb(name: str, schema: type[Schema], run: Callable[..., None], **switches: str) -> None:
    """Register a command whose flags are the fields of a schema.

    Args:
        name: of the command.
        schema: what it reads; a given flag overrides the YAML file, the file overrides the default.
        run: called with the checked configuration and the switches; its docstring is the help.
        **switches: flags that are no field of the schema, with their help.
    """
    unflagged = next((key for key, field in schema.model_fields.items() if field.json_schema_extra == ARGUMENT), "")

    def command(config: Any = None, **flags: Any) -> None:
        others = {key: flags.pop(key) for key in switches}
        file, values = (config, None) if not unflagged else _file_or_values(config or [])
        given = {key: value for key, value in flags.items() if value is not None and value != []}
        if name != "unlearn":
            check_single_process(f"geffect {name}")
        if others.get("resume") and file and "out" not in given:
            given |= _where_it_lies(file)
        chosen = schema.read(file, **given, **({unflagged: values} if values else {}))
        with _stoppable(getattr(chosen, "out", None) if "resume" in switches else None):
            run(chosen, **others)

    yaml = "a YAML file with these names, as a run's own"
    argument = _parameter("config", None, Path | None, typer.Argument(help=yaml))
    if unflagged:
        told = f"{schema.model_fields[unflagged].description}; or {yaml}"
        argument = _parameter("config", None, list[str] | None, typer.Argument(help=told, metavar="PATH..."))
    flagged = {key: field for key, field in schema.model_fields.items() if not field.json_schema_extra}
    parameters = [argument, *(_flag(key, field) for key, field in flagged.items())]
    for key, told in switches.items():
        parameters.append(_parameter(key, False, bool, typer.Option("--" + key.replace("_", "-"), help=told)))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    app.command(name, cls=OnceCommand, help=inspect.getdoc(run))(command)


@contextlib.contextmanager
def _stoppable(out: Path | None = None) -> Iterator[None]:
    """End with one line and 128 + the signal's number where Ctrl-C, SIGTERM or SIGHUP stops the work.

    Args:
        out: a run that can be resumed.

    Yields:
        Nothing.

    Raises:
        Exit: it was stopped.
    """
    try:
        with terminable():
            yield
    except KeyboardInterrupt as stopped:
        from geffect.record.schema import CONFIG, DONE

        told = str(stopped) or "stopped by Ctrl-C"
        if out and "--resume" not in told and (out / CONFIG).exists() and not (out / DONE).exists():
            told += "; go on with the same command and --resume"
        if rank_and_size()[0] == 0:
            _say(f"geffect: {told}", err=True)
        raise typer.Exit(128 + signal_of(stopped)) from None


def _where_it_lies(file: Path) -> dict[str, str]:
    """The run directory that a configuration lies in: it may have been moved since it was written."""
    lies = file.name == "config.yaml" and (file.parent / "environment.json").is_file()
    return {"out": str(file.parent)} if lies else {}


def _say(text: object, *, err: bool = False) -> None:
    typer.echo(visible(str(text), lines=not err), err=err)


def _file_or_values(given: list[str]) -> tuple[Path | None, list[str] | None]:
    if len(given) == 1 and given[0].endswith((".yaml", ".yml")):
        return Path(given[0]), None
    return None, given


def _parameter(name: str, default: Any, kind: Any, told: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, told])


def _flag(key: str, field: Any) -> inspect.Parameter:
    """One optional flag; None means that it was not given."""
    plain = {int: int, float: float, bool: bool}.get(field.annotation, str)
    plain = list[str] if get_origin(field.annotation) is list else plain  # the schema makes numbers of them
    default = "required" if field.is_required() else f"default: {_shown(field.get_default(call_default_factory=True))}"
    told = typer.Option("--" + key.replace("_", "-"), help=f"{field.description} [{default}]", show_default=False)
    return _parameter(key, None, plain | None, told)


def _shown(default: Any) -> str:
    return "none" if default is None or default == [] else str(default)


def _finetune(config: FinetuneConfig, *, dry_run: bool, resume: bool) -> None:
    """Descend the NLL of named sets (full weights or LoRA) and write a model directory with a record."""
    from geffect import api
    from geffect.cli import console

    setup = api.prepare(config, resume=resume)
    console.plan(setup.plan)
    if not dry_run:
        console.run(api.finetune(setup.config, resume=resume, setup=setup))


def _unlearn(config: UnlearnConfig, *, dry_run: bool, resume: bool) -> None:
    """Unlearn a set with an objective and a rectifier, recording the G-effect of every update."""
    from geffect import api
    from geffect.cli import console

    setup = api.prepare(config, resume=resume)
    console.plan(setup.plan)
    if not dry_run:
        console.unlearned(api.unlearn(setup.config, resume=resume, setup=setup))


def _localize(config: LocalizeConfig, *, dry_run: bool) -> None:
    """Find where each domain's knowledge lies: top-share masks of every split, their overlaps, and heat maps."""
    from geffect import api
    from geffect.cli import console

    setup = api.prepare(config)
    console.plan(setup.plan)
    if not dry_run:
        console.localization(api.localize(config, setup=setup))


def _inspect(config: InspectConfig, *, dry_run: bool, resume: bool) -> None:
    """Measure objectives at every checkpoint of a series, over whole sets and without training.

    PATH is a directory with checkpoints (a run's, or Hugging Face's checkpoint-N), or models, adapters and hub
    revisions one by one. Of a run of geffect unlearn, what is not given is taken from its configuration.
    """
    from geffect import api
    from geffect.cli import console

    setup = api.prepare(config, resume=resume)
    console.plan(setup.plan)
    if not dry_run:
        console.inspected(api.inspect(config, resume=resume, setup=setup))


def _evaluate(config: EvaluateConfig, *, json: bool) -> None:
    """Score a model, an adapter or a run's checkpoints on a suite, or on sets by named metrics."""
    from geffect import api
    from geffect.cli import console

    console.evaluation(api.evaluate(config), as_json=json)


def _report(config: ReportConfig, *, json: bool) -> None:
    """Write runs as one HTML page for any browser, offline: the outcome, findings, figures, layers, worst examples."""
    from geffect import api
    from geffect.cli import console

    console.report(api.report(config), as_json=json)


def _preview(config: PreviewConfig) -> None:
    """Print, colored, which tokens of a batch carry loss."""
    from geffect import api
    from geffect.cli import console

    console.batch(api.preview(config))


def _doctor(config: DoctorConfig, *, json: bool) -> None:
    """Look at a run before it begins: precision, determinism, masks, ties, what the model knows, memory."""
    from geffect import api
    from geffect.cli import console

    if console.findings(api.doctor(config), as_json=json):
        raise typer.Exit(1)


verb("finetune", FinetuneConfig, _finetune, **DRY_RUN, **RESUME)
verb("unlearn", UnlearnConfig, _unlearn, **DRY_RUN, **RESUME)
verb("localize", LocalizeConfig, _localize, **DRY_RUN)
verb("inspect", InspectConfig, _inspect, **DRY_RUN, resume="go on where an unfinished inspection in --out stopped")
verb("evaluate", EvaluateConfig, _evaluate, json="print metrics.json, and no table")
verb("report", ReportConfig, _report, json="print each run's outcome and findings as JSON")
verb("preview", PreviewConfig, _preview)
verb("doctor", DoctorConfig, _doctor, json="print the findings as a JSON list")


@app.command(cls=OnceCommand)
def demo(
    out: Annotated[
        Path | None, typer.Option(help="where to write [default: runs/demo, or the next free number]")
    ] = None,
    grail: Annotated[
        bool, typer.Option("--grail", help="then localize two domains and unlearn them with GRAIL")
    ] = False,
) -> None:
    """Fit the tiny built-in model, run GA, GA+GRU and NPO+GRU on it, and print and draw what they did."""
    check_single_process("geffect demo")
    with _stoppable():
        _demo(out, grail=grail)


def _demo(out: Path | None, *, grail: bool) -> None:
    from geffect.cli import console
    from geffect.cli import demo as demo_

    numbered = (Path(f"runs/demo-{number}") for number in itertools.count(2))
    out = (
        place(out)
        if out
        else next(path for path in itertools.chain([Path("runs/demo")], numbered) if not path.exists())
    )
    console.comparison(demo_.demo(out), out)
    if grail:
        localized, runs = demo_.demo_grail(out)
        console.localization(localized)
        for path in runs:
            console.unlearned(path)


@app.command(cls=OnceCommand)
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run directories; the first is compared with")],
    at: Annotated[float | None, typer.Option(help="forget loss [default: the largest that every run reached]")] = None,
    seed: Annotated[int, typer.Option(help="of the bootstrap")] = 0,
    json: Annotated[bool, typer.Option("--json", help="print both tables as JSON")] = False,
) -> None:
    """Show what runs kept at the same forget loss, and every setting in which they differ."""
    from geffect.cli import console
    from geffect.reports import compare as tables

    paths = tables.named(runs)
    console.aligned(tables.compare(paths, at, seed), tables.differences(paths), as_json=json)


@app.command(cls=OnceCommand)
def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run directories, drawn side by side")],
    out: Annotated[Path | None, typer.Option(help="where to write [default: RUN/figures of the first]")] = None,
    scheme: Annotated[str, typer.Option(help="layer groups: thirds, paper or paper_script")] = "thirds",
) -> None:
    """Draw every plot that runs recorded enough for; several runs side by side."""
    from geffect.reports.run import plot as draw
    from geffect.training.run import disk_errors

    with disk_errors(out or runs[0], "name another --out"):
        written = draw(runs, out and place(out), scheme)
    for path in written:
        _say(path)


@app.command(cls=OnceCommand)
def cite(
    method: Annotated[str, typer.Argument(help="geffect, g-effect, gru, npo, tofu, … ; all by default")] = "all",
) -> None:
    """Print the BibTeX entry of a method, benchmark or of this toolkit."""
    typer.echo(bibtex(method))


def bibtex(method: str) -> str:
    """The entry of one method in ``references.bib``, or of ``all``."""
    text = Path(__file__).with_name("references.bib").read_text(encoding="utf-8").strip()
    entries = dict(part.removeprefix("% ").split("\n", 1) for part in text.split("\n\n"))
    if method == "all":
        return "\n\n".join(entries.values())
    if method.lower() not in entries:
        raise GeffectError(f"There is no reference for {method!r}", remedy=f"Choose one of {', '.join(entries)}")
    return entries[method.lower()]


@app.command(name="list", cls=OnceCommand)
def list_(
    what: Annotated[str, typer.Argument(help="objectives, rectifiers, metrics, suites, stop-rules, plots or models")],
) -> None:
    """Print what can be named, each with its definition in one line."""
    from geffect.cli import console

    console.names(what)


def _version(asked: bool) -> None:
    if asked:
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
    """Run the command line; what a user got wrong ends in one line and exit code 2."""
    logging.setLogRecordFactory(VisibleRecord)
    warnings.formatwarning = formatted_warning
    logging.basicConfig(format="geffect: %(message)s", level=logging.WARNING)
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
        _tell(str(error))
    except (OSError, MemoryError, RecursionError, UnicodeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        remedy, wanted = "correct the path, or free what is in the way", "files and memory that can be used"
        if getattr(error, "errno", None) == errno.ENOSPC and getattr(error, "filename", None) is None:
            wanted, remedy = OUTPUT
        _tell(str(GeffectError(wanted, reason, remedy)))
    sys.exit(_flushed(code))  # type: ignore[arg-type]


def _run() -> None:
    if rank_and_size()[0] == 0:
        app(standalone_mode=True)
    with Path(os.devnull).open("w") as silent, contextlib.redirect_stdout(silent):  # the first process speaks
        app(standalone_mode=True)


def _tell(text: str) -> None:
    with contextlib.suppress(OSError):  # a closed pipe, or a full disk
        _say(f"geffect: {text}", err=True)


def _flushed(code: object) -> object:
    """The exit code once everything is written; a closed pipe ends it quietly, a full disk in one line."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except BrokenPipeError:
            code = code or 1
            _close(stream)
        except (OSError, ValueError) as error:
            _close(stream)
            if code != 2:  # else it was told
                _tell(str(GeffectError(OUTPUT[0], str(error), OUTPUT[1])))
            code = 2
    return code


def _close(stream: Any) -> None:
    """Let what is left to write go nowhere: the interpreter would try it again, and complain."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


if __name__ == "__main__":
    main()
