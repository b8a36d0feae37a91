"""Read a run directory, and check that it can be resumed: the only place that takes lines and files of a record apart.

A reader checks the format and every line (`geffect.record.schema`) and returns typed values; the frames of
`geffect.record.frames` are made of the same lines.
"""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, Self, TypeVar

from geffect.core.registry import Metric
from geffect.errors import GeffectError, missing_path
from geffect.io.readers import StrPath, Unreadable, byte_lines, parse_json, read_bytes, read_text, read_yaml
from geffect.record.schema import (
    CONFIG,
    DONE,
    ENVIRONMENT,
    FORMAT,
    FORMAT_COMMENT,
    GRAMS,
    METRICS,
    POINTS,
    RECIPE,
    STEPS,
    TOKENS,
    LineChecker,
    check_environment,
)

if TYPE_CHECKING:
    from geffect.core.gram import Gram

LOGGER = logging.getLogger(__name__)
NO_RUN = "Name a directory written by geffect unlearn, finetune or inspect"
MADE_BY = {TOKENS: "Make them with geffect inspect --tokens 3", POINTS: "Make them with geffect inspect --points ga"}
RESTORE = "Restore its files from a copy"
PROMPTS = {"template": "chat template", "date": "template's date", "system": "system turn"}
BROKEN = (AttributeError, LookupError, TypeError, ValueError)  # what the content of a damaged file raises
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Score(NamedTuple):
    """How well a model knows one set; None where the model has diverged."""

    loss: float  # mean NLL over the set's labeled tokens, nats a token
    accuracy: float  # share of the labeled tokens whose most probable prediction is right


class Examples(NamedTuple):
    """An evaluation of one set, example by example."""

    nll: list[float | None]  # Σ −log p of the labeled tokens, nats; None where it is not finite
    tokens: list[int]  # labeled tokens
    right: list[int] | None = None  # those whose most probable prediction is right; None where they were not counted


class Products(NamedTuple):
    """The inner products of gradients, over all entries."""

    names: tuple[str, ...] = ()
    matrix: Sequence[Sequence[float]] = ()  # ``[M][M]`` in the order of ``names``; NaN where one is not finite


NO_PRODUCTS = Products()


class Stop(NamedTuple):
    """The rule that ended a run, and why."""

    rule: str
    reason: str


@dataclass(frozen=True)
class StepLine:
    """A line of ``steps.jsonl`` without its matrices (`geffect.record.frames`)."""

    step: int = -1  # the optimizer step it was measured before
    scores: Mapping[str, Score] = field(default_factory=dict)  # by set, where the step was evaluated
    examples: Mapping[str, Examples] = field(default_factory=dict)  # by set, where they were recorded
    norm_objective: float | None = None  # ‖∇objective‖, where the step was measured
    products: Products = NO_PRODUCTS  # of the whole model's gradients, where the step was measured
    adam_products: Products = NO_PRODUCTS  # of the price in Adam's metric, where they were recorded
    diverged: str = ""  # which losses are not finite; empty where all are
    stop: Stop | None = None  # the rule that ended the run after this line

    def products_in(self, metric: Metric) -> Products:
        """The inner products in a metric; none where they were not recorded."""
        return self.adam_products if metric == "adam" else self.products

    @classmethod
    def of(cls, line: Mapping[str, Any], *, examples: bool = True) -> Self:
        """A line as it is written, or about to be; ``examples`` reads the scores by example too."""
        scores = {name: Score(part["loss"], part.get("accuracy")) for name, part in _part(line, "evaluation").items()}
        single = _part(line, "evaluation_examples") if examples else {}
        stopped = _part(line, "stopped")
        return cls(
            line.get("step", -1),
            scores,
            {name: Examples(part["nll"], part["tokens"], part.get("right")) for name, part in single.items()},
            line.get("norm_objective"),
            _total(_part(line, "gram")),
            _total(_part(line, "adam_gram")),
            str(line.get("diverged") or ""),
            Stop(str(stopped["rule"]), str(stopped["reason"])) if stopped else None,
        )


def _total(gram: Mapping[str, Any], tensors: Sequence[int] | None = None) -> Products:
    """The inner products of a recorded Gram, summed over tensors, all by default."""
    import numpy as np  # here: a refusal imports none

    names = tuple(gram.get("gradients", ()))
    matrix = np.zeros((len(names), len(names)))
    if names:
        upper = np.triu_indices(len(names))
        values = np.asarray(gram["values"], dtype=np.float64)
        matrix[upper] = matrix.T[upper] = (values if tensors is None else values[tensors]).sum(0)
    return Products(names, matrix.tolist())


class Damaged(GeffectError):
    """A file of a run is not as geffect writes it."""


def damage_refused(
    read: Callable[Concatenate[Path, Parameters], Result],
) -> Callable[Concatenate[StrPath, Parameters], Result]:
    """Decorate a reader of a run: it receives a `Path`, and whatever a damaged file makes it raise is `Damaged`."""

    @functools.wraps(read)
    def checked(path: StrPath, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        path = Path(path)
        try:
            return read(path, *args, **kwargs)
        except GeffectError:
            raise
        except (ArithmeticError, *BROKEN) as error:
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise Damaged(f"The record in {path} is damaged ({reason})", remedy=RESTORE) from error

    return checked


def read_lines(path: StrPath, name: str = STEPS) -> list[dict[str, Any]]:
    """The lines of ``steps.jsonl`` or of a file beside it, as written; a torn last line is dropped."""
    return list(each_line(path, name))


def each_line(path: StrPath, name: str = STEPS) -> Iterator[dict[str, Any]]:
    """As `read_lines`, one at a time: a long record is larger than memory once it is parsed."""
    check_format(path)
    file = Path(path) / name
    if not file.is_file():
        raise GeffectError(f"There is no {name} in {path}", remedy=MADE_BY.get(name, NO_RUN))
    kept, status = _KEPT.get(), file.stat()
    if kept is None or status.st_size > MOST_KEPT:
        yield from _parsed_lines(path, file)
        return
    key = file.resolve(), status.st_size, status.st_mtime_ns
    if key not in kept:
        kept[key] = list(map(_packed, _parsed_lines(path, file)))
    yield from kept[key]


_KEPT: ContextVar[dict[tuple[Path, int, int], list[dict[str, Any]]] | None] = ContextVar("_KEPT", default=None)
MOST_KEPT = 1 << 30  # bytes of a file; a line that is kept takes about as many as in the file


@contextmanager
def keep_lines() -> Iterator[None]:
    """Parse the lines of a record once while this lasts: a report reads them for every table and picture."""
    kept = _KEPT.get()
    token = _KEPT.set({} if kept is None else kept)
    try:
        yield
    finally:
        _KEPT.reset(token)


def _packed(line: dict[str, Any]) -> dict[str, Any]:
    """A line whose inner products are one array: Python's numbers would take five times the memory."""
    import numpy as np

    grams = {name: line[name] for name in GRAMS.values() if line.get(name)}
    return line | {name: each | {"values": np.array(each["values"], dtype=np.float64)} for name, each in grams.items()}


def _parsed_lines(path: StrPath, file: Path) -> Iterator[dict[str, Any]]:
    table = read_environment(path).get("parameters") if file.with_name(ENVIRONMENT).exists() else None
    checker, number = LineChecker(table, repeats=file.name != STEPS), 0
    try:
        for text in byte_lines(file):
            number += 1
            if not text.endswith(b"\n"):
                return  # torn
            line = _json_object(text)
            _check_format(file, line)
            checker.check(line)
            yield line
    except GeffectError:
        raise
    except BROKEN as error:
        where = f" in line {number}" if number else ""
        raise Damaged(f"{file} is not as geffect writes it: {error}{where}", remedy=RESTORE) from error


class Tail:
    """The record of a run that may still be written: each look reads what is new."""

    def __init__(self, path: StrPath) -> None:
        self.file = Path(path) / STEPS
        self._read = 0  # bytes
        self._measured = b""  # the newest line with inner products that was not asked for

    def look(self) -> list[StepLine]:
        """The new whole lines with an evaluation, and the last new one in any case."""
        if not self.file.is_file():
            return []
        with self.file.open("rb") as stream:
            if self.file.stat().st_size < self._read:  # a run that was resumed is cut back first
                self._read = 0
            stream.seek(self._read)
            whole = [text for text in stream.read().splitlines(keepends=True) if text.endswith(b"\n")]
        self._read += sum(map(len, whole))
        self._measured = next((text for text in reversed(whole) if b'"gram"' in text), self._measured)
        chosen = [text for i, text in enumerate(whole) if b'"evaluation"' in text or i == len(whole) - 1]
        return [StepLine.of(self._parse(text), examples=False) for text in chosen]

    def gram(self, parameters: Sequence[str]) -> "Gram | None":
        """The newest inner products, once: None where no newer ones have come."""
        from geffect.core.gram import Gram

        text, self._measured = self._measured, b""
        return Gram.from_record(self._parse(text)["gram"], parameters) if text else None

    def _parse(self, text: bytes) -> dict[str, Any]:
        try:
            line = _json_object(text)
            _check_format(self.file, line)
            LineChecker(None).check(line)
        except GeffectError:
            raise
        except BROKEN as error:
            raise Damaged(f"{self.file} is not as geffect writes it: {error}", remedy=RESTORE) from error
        return line


@damage_refused
def step_lines(path: StrPath) -> list[StepLine]:
    """The lines of ``steps.jsonl``, without their matrices."""
    return [StepLine.of(line) for line in each_line(path)]


def evaluations(path: StrPath) -> list[StepLine]:
    """The lines of ``steps.jsonl`` with an evaluation, the first at the start and the last at the end."""
    return [line for line in step_lines(path) if line.scores]


@damage_refused
def num_micro_batches(path: StrPath) -> int:
    """The number of micro-batches of a run's standard errors; 0 where none were recorded."""
    errors = (line["standard_errors"] for line in each_line(path) if line.get("standard_errors"))
    return next((len(part["linearized"][0]) for part in errors), 0)


@damage_refused
def first_gram(path: StrPath) -> "Gram | None":
    """The inner products of a record's first line, by parameter; None where it has none."""
    from geffect.core.gram import Gram

    record = next(each_line(path)).get("gram")
    return Gram.from_record(record, read_environment(path)["parameters"]["names"]) if record else None


@damage_refused
def grams(path: StrPath, metric: Metric = "euclidean") -> "list[tuple[int, Gram]]":
    """The step and the inner products in a metric, by parameter, of every line that has them."""
    from geffect.core.gram import Gram

    names, name = read_environment(path).get("parameters", {}).get("names", []), GRAMS[metric]
    return [(line["step"], Gram.from_record(line[name], names)) for line in each_line(path) if line.get(name)]


@damage_refused
def products_by(
    path: StrPath, labels: Mapping[str, str], metric: Metric = "euclidean"
) -> list[tuple[int, dict[str, Products]]]:
    """The step and the inner products in a metric under each label (parameter → label) of every line that has them."""
    names, part = read_environment(path).get("parameters", {}).get("names", []), GRAMS[metric]
    under: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        under.setdefault(labels[name], []).append(place)
    lines = (line for line in each_line(path) if line.get(part))
    return [(line["step"], {label: _total(line[part], each) for label, each in under.items()}) for line in lines]


def is_finished(path: StrPath) -> bool:
    """Whether a run is finished."""
    return (Path(path) / DONE).exists()


def check_localization(path: Path) -> None:
    """Refuse a directory that holds no finished localization."""
    if not is_finished(path) or not (path / RECIPE).exists():
        remedy = missing_path(path, "Make one with geffect localize")
        raise GeffectError(f"There is no localization in {path}", remedy=remedy)


def read_environment(path: StrPath) -> dict[str, Any]:
    """A run's ``environment.json`` without the format."""
    file = Path(path) / ENVIRONMENT
    try:
        content = _json_object(read_bytes(file))
        _check_format(file, content)
        check_environment(content)
    except GeffectError:  # a ValueError, too
        raise
    except BROKEN as error:
        reason = f"There is no {ENVIRONMENT} of a run in {path}: {error}" if file.exists() else _absent(Path(path))
        remedy = "Name a directory written by geffect"
        raise GeffectError(reason, remedy=remedy if Path(path).exists() else missing_path(path, remedy)) from error
    return {key: value for key, value in content.items() if key != "format"}


def _absent(path: Path) -> str:
    """What a path is that holds no run."""
    kind = f"which has no {ENVIRONMENT}" if path.is_dir() else "which is a file" if path.exists() else ""
    return f"There is no run in {path}, {kind}" if kind else f"There is no directory {path}"


def check_run(path: StrPath) -> None:
    """Refuse a directory that is no run, or a run in another format."""
    read_environment(path)


def check_directories(paths: Iterable[Path]) -> None:
    """Refuse a directory that is not there, or holds no run; what a run holds is not read."""
    for path in paths:
        if not (path / ENVIRONMENT).is_file():
            check_run(path)


def read_document(file: Path) -> dict[str, Any]:
    """The content of a JSON file written by `geffect.record.writer.write_json`, without the format."""
    try:
        content = _json_object(read_bytes(file))
    except Unreadable as error:
        raise GeffectError(f"{file} cannot be read: {error}", remedy=RESTORE) from error
    _check_format(file, content)
    return {key: value for key, value in content.items() if key != "format"}


def read_metrics(path: StrPath) -> dict[str, Any]:
    """A finished directory's ``metrics.json`` without the format; its keys are those of the command that wrote it."""
    return read_document(Path(path) / METRICS)


def read_config(path: StrPath) -> dict[str, Any]:
    """A run's ``config.yaml``, of whichever command: setting → value. A file without a format has this one."""
    file = Path(path) / CONFIG
    try:
        first = read_text(file).partition("\n")[0]
        if first.startswith(FORMAT_COMMENT):
            written = first.removeprefix(FORMAT_COMMENT).strip()
            _check_format(file, {"format": int(written) if written.isdecimal() else written})
        content = read_yaml(file)
    except Unreadable as error:
        raise GeffectError(f"{file} cannot be read: {error}", remedy=RESTORE) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise GeffectError(f"{file} holds no names with values ({type(content).__name__})", remedy=RESTORE)
    return content


def check_format(path: StrPath) -> None:
    """Refuse a run whose environment has another format; one that is missing or broken is refused where it is read."""
    file = Path(path) / ENVIRONMENT
    try:
        content = _json_object(read_bytes(file))
    except (OSError, ValueError):
        return
    _check_format(file, content)


def _check_format(file: Path, content: Mapping[str, Any]) -> None:
    written = content.get("format")
    if type(written) is int and written == FORMAT:
        return
    what = "has no format, as before format 1" if written is None else f"has format {written!r:.50}"
    raise GeffectError(
        f"{file} {what}{_writer(file, content)}; this geffect reads format {FORMAT}",
        remedy="Read it with the geffect that wrote it, or make the run again from its config.yaml",
    )


def _writer(file: Path, content: Mapping[str, Any]) -> str:
    """The version of geffect that wrote a file, by its run's environment; empty where that cannot be read."""
    if "versions" not in content:
        try:
            content = _json_object(read_bytes(file.parent / ENVIRONMENT))
        except (OSError, ValueError):
            return ""
    versions = content.get("versions")
    return f" (written by geffect {versions.get('geffect')})" if isinstance(versions, dict) else ""


def _json_object(text: bytes) -> dict[str, Any]:
    content = parse_json(text)
    if not isinstance(content, dict):
        raise Unreadable(type(content).__name__)
    return content


def _part(line: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = line.get(name) or {}
    if not isinstance(part, Mapping):
        raise TypeError(f"{name} is no object")
    return part


LENGTHS = ("steps", "epochs")  # settings that a resumed run may raise


def lengthened(path: Path, config: object) -> dict[str, tuple[int, int]]:
    """The settings of a run's length that a configuration raises: name → recorded, asked."""
    recorded = read_config(path)
    pairs = {name: (recorded.get(name), getattr(config, name, None)) for name in LENGTHS}
    return {name: (a, b) for name, (a, b) in pairs.items() if type(a) is int and type(b) is int and 0 < a < b}


def check_unfinished(path: Path, config: object = None) -> None:
    """Refuse to resume where there is no run, it has another format, or it is finished and ``config`` is no longer."""
    check_format(path)
    if not (path / CONFIG).is_file():
        remedy = "Restore it" if (path / STEPS).exists() else "Leave --resume out to start the run"
        raise GeffectError(f"There is no run in {path} to --resume: it has no {CONFIG}", remedy=remedy)
    if is_finished(path) and not lengthened(path, config):
        longer = (
            ", or ask for more --steps"
            if read_config(path).get("objective") and (path / "checkpoints").is_dir()
            else ""
        )
        raise GeffectError(f"The run in {path} is finished", remedy=f"Name another --out for another run{longer}")


@damage_refused
def check_resumable(path: Path, environment: Mapping[str, Any], config: object = None) -> None:
    """Refuse to resume with other weights, data, prompts or processes than the run began with; warn of threads."""
    check_unfinished(path, config)
    recorded = read_environment(path)
    before, now = (str(content["start"]["sha256"])[:12] for content in (recorded, environment))
    if before != now:
        raise GeffectError(
            f"{path} began with weights {before}; those in {environment['start']['path']} are {now}",
            remedy="Restore them, or name where they lie with --model",
        )
    check_same_data(path, environment)
    before, now = (content["batch"]["processes"] for content in (recorded, environment))
    if before != now:
        raise GeffectError(f"{path} began with {before} processes; these are {now}", remedy=f"Launch {before}")
    if recorded["threads"] != environment["threads"]:
        threads = recorded["threads"], environment["threads"]
        LOGGER.warning("the run began with %d threads and continues with %d: last digits may differ", *threads)


@damage_refused
def check_same_data(path: Path, environment: Mapping[str, Any]) -> None:
    """Refuse a run of which a set, or a part that decides prompts, has changed since it began; the first is named."""
    recorded = read_environment(path)["data"]
    for name, now in environment["data"].items():
        before = recorded.get(name)
        if before != now:
            what = name if name in ("masks", "answers") else f"{name} set"
            raise GeffectError(
                f"The {what} of {path} has changed: sha256 {str((before or {}).get('sha256'))[:12]} when it began,"
                f" {now['sha256'][:12]} now",
                remedy="Restore its file",
            )
    for name, before in recorded_prompts(path).items():
        if environment["prompts"].get(name) != before:
            remedy = f"Restore its tokenizer's files, or start anew; {ENVIRONMENT} records what it was"
            raise GeffectError(f"The {PROMPTS.get(name, name)} is not the one that {path} began with", remedy=remedy)


@damage_refused
def recorded_start(path: StrPath) -> str:
    """The directory or name of the model that a run began with."""
    return str(read_environment(path)["start"]["path"])


def recorded_prompts(path: Path) -> dict[str, Any]:
    """The recorded parts that decide the prompts of a run, or of a checkpoint's run; empty without a record."""
    run = path.parent.parent if path.parent.name == "checkpoints" else path
    try:
        prompts = read_environment(run).get("prompts") if (run / ENVIRONMENT).is_file() else None
    except (GeffectError, RecursionError):
        return {}
    return prompts if isinstance(prompts, dict) else {}
