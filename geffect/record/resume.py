"""Check an unfinished run before it is resumed, and cut its lines back to the step where it continues."""

import itertools
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from geffect.errors import GeffectError
from geffect.io.readers import StrPath
from geffect.record.reader import check_format, damage_refused, each_line, is_finished, read_environment, read_lines
from geffect.record.schema import CONFIG, ENVIRONMENT, POINTS, STEPS, TOKENS
from geffect.record.writer import write

LOGGER = logging.getLogger(__name__)
PROMPTS = {"template": "chat template", "date": "template's date", "system": "system turn"}


def check_unfinished(path: Path) -> None:
    """Refuse to resume where there is no run, it has another format, or it is finished."""
    check_format(path)
    if not (path / CONFIG).is_file():
        remedy = "Restore it" if (path / STEPS).exists() else "Leave --resume out to start the run"
        raise GeffectError(f"There is no run in {path} to --resume: it has no {CONFIG}", remedy=remedy)
    if is_finished(path):
        raise GeffectError(f"The run in {path} is finished", remedy="Name another --out for another run")


@damage_refused
def check_resumable(path: StrPath, environment: Mapping[str, Any]) -> None:
    """Refuse to resume with other weights, data, prompts or processes than the run began with; warn of threads."""
    path = Path(path)
    check_unfinished(path)
    recorded = read_environment(path)
    _check_same_start(path, recorded, environment)
    check_same_data(path, environment)
    before, now = (content["batch"]["processes"] for content in (recorded, environment))
    if before != now:
        raise GeffectError(f"{path} began with {before} processes; these are {now}", remedy=f"Launch {before}")
    if recorded["threads"] != environment["threads"]:
        threads = recorded["threads"], environment["threads"]
        LOGGER.warning("the run began with %d threads and continues with %d: last digits may differ", *threads)


def _check_same_start(path: Path, recorded: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
    before, now = (str(content["start"]["sha256"])[:12] for content in (recorded, environment))
    if before != now:
        where = environment["start"]["path"]
        raise GeffectError(
            f"{path} began with weights {before}; those in {where} are {now}",
            remedy="Restore them, or name where they lie with --model",
        )


@damage_refused
def check_same_data(path: StrPath, environment: Mapping[str, Any]) -> None:
    """Refuse a run of which a set, or a part that decides prompts, has changed since it began; the first is named."""
    path = Path(path)
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
    return str(read_environment(Path(path))["start"]["path"])


def recorded_prompts(path: Path) -> dict[str, Any]:
    """The recorded parts that decide the prompts of a run, or of a checkpoint's run; empty without a record."""
    run = path.parent.parent if path.parent.name == "checkpoints" else path
    try:
        prompts = read_environment(run).get("prompts") if (run / ENVIRONMENT).is_file() else None
    except (GeffectError, RecursionError):
        return {}
    return prompts if isinstance(prompts, dict) else {}


def check_lines(path: Path, expected: Sequence[int]) -> None:
    """Refuse a record in which a line of one of these steps is missing, doubled or out of order."""
    steps = steps_of(path)
    counts = Counter(steps)
    for number, (step, here) in enumerate(itertools.zip_longest(expected, steps[: len(expected)]), start=1):
        if here != step or counts[step] > 1:
            twice = f"step {step} has {counts[step]} lines"
            wrong = twice if counts[step] > 1 else "it is missing" if here is None else f"it is that of step {here}"
            raise GeffectError(
                f"Line {number} of {path / STEPS} is not the one line of step {step}: {wrong}",
                remedy="Restore the file from a copy, or begin again with another --out",
            )


def steps_of(path: Path) -> list[int | None]:
    """The step of every line of a record, in order; None of a line that names none. None written yet: no step."""
    steps = (line.get("step") for line in each_line(path)) if (path / STEPS).exists() else ()
    return [step if type(step) is int else None for step in steps]


def cut_back(path: Path, step: int) -> None:
    """Remove a run's lines from a step on, and a torn line: the resumed run writes them again, the same."""
    for file in (path / name for name in (STEPS, TOKENS, POINTS) if (path / name).exists()):
        count = sum(line["step"] < step for line in read_lines(path, file.name))
        write(file, b"".join(text + b"\n" for text in file.read_bytes().split(b"\n")[:count]))
