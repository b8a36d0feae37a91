"""Taking up a run where its last whole checkpoint stands."""

import itertools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from geffect.errors import GeffectError
from geffect.models.checkpoints import checkpoints
from geffect.record.reader import as_written, check_format, each_line, read_environment, read_lines
from geffect.record.writer import CONFIG, DONE, ENVIRONMENT, POINTS, STEPS, TOKENS

PROMPTS = {"template": "chat template", "date": "template's date", "system": "system turn"}


def check_unfinished(path: Path) -> None:
    """Raise unless a run can be taken up.

    Args:
        path: the run directory.

    Raises:
        GeffectError: there is no run, it has another format, or it is finished.
    """
    check_format(path)
    if not (path / CONFIG).is_file():
        remedy = "restore it" if (path / STEPS).exists() else "leave --resume out to start it"
        raise GeffectError(f"an unfinished run in {path} to --resume", f"no {CONFIG}", remedy)
    if (path / DONE).exists():
        raise GeffectError(f"an unfinished run in {path} to --resume", "a finished one", "name another --out for more")


def check_same_start(path: Path, environment: Mapping[str, Any]) -> None:
    """Raise where the weights of the start are no longer those the run began with.

    Args:
        path: the run directory.
        environment: as the run would record it now.

    Raises:
        GeffectError: they differ.
    """
    begun, now = (str(each["start"]["sha256"])[:12] for each in (read_environment(path), environment))
    if begun != now:
        where = environment["start"]["path"]
        raise GeffectError(
            f"the start of {path} (weights {begun})",
            f"{where} (weights {now})",
            "restore it, or name where it is now with --model",
        )


@as_written
def check_same_data(path: Path | str, environment: Mapping[str, Any]) -> None:
    """Raise where a set, or what decides its prompts, is no longer what the run began with.

    Args:
        path: the run directory.
        environment: as the run would record it now.

    Raises:
        GeffectError: the set, or the part of the prompts, is named.
    """
    begun = read_environment(Path(path))["data"]
    for name, now in environment["data"].items():
        if begun.get(name) != now:
            what = name if name in ("masks", "answers") else f"{name} set"
            raise GeffectError(
                f"the {what} of {path} (sha256 {str(begun.get(name, {}).get('sha256'))[:12]})",
                f"another (sha256 {now['sha256'][:12]})",
                "restore its file",
            )
    for name, then in recorded_prompts(Path(path)).items():
        if environment["prompts"].get(name) != then:
            remedy = f"restore its tokenizer's files, or start anew; {ENVIRONMENT} records what it was"
            raise GeffectError(f"the {PROMPTS.get(name, name)} that {path} began with", "another", remedy)


def recorded_prompts(path: Path) -> dict[str, Any]:
    """What decided the prompts of the run that a directory is, or is a checkpoint of.

    Args:
        path: a directory; it need not be a run's.

    Returns:
        As of `geffect.data.prompts.described`; empty where nothing is recorded.
    """
    run = path.parent.parent if path.parent.name == "checkpoints" else path
    try:
        found = read_environment(run).get("prompts") if (run / ENVIRONMENT).is_file() else None
    except (GeffectError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def last_checkpoint(path: Path) -> Path | None:
    """The run's last whole checkpoint, None where there is none yet."""
    return next(reversed(checkpoints(path)), None)


def check_lines(path: Path, expected: Sequence[int]) -> None:
    """Raise unless a record holds a line for every step before it goes on, each once and in order.

    Args:
        path: the run directory.
        expected: those steps.

    Raises:
        GeffectError: the first step that is missing, doubled or out of order.
    """
    found = steps_of(path)
    counts = Counter(found)
    for number, (step, here) in enumerate(itertools.zip_longest(expected, found[: len(expected)]), start=1):
        if here != step or counts[step] > 1:
            told = f"{counts[step]} of it" if counts[step] > 1 else "none" if here is None else f"that of step {here}"
            raise GeffectError(
                f"the line of step {step}, once, as line {number} of {path / STEPS}",
                told,
                "restore the file from a copy, or begin again with another --out",
            )


def steps_of(path: Path) -> list[int | None]:
    """The step of every line of a record, in order; None of a line that names none."""
    steps = (line.get("step") for line in each_line(path))
    return [step if type(step) is int else None for step in steps]


def cut_back(path: Path, step: int) -> None:
    """Keep of a run's lines those before a step: the rest will be written anew, the same."""
    for name in (STEPS, TOKENS, POINTS):
        if (path / name).exists():
            _cut_back(path, name, step)


def _cut_back(path: Path, name: str, step: int) -> None:
    file = path / name
    kept = sum(line["step"] < step for line in read_lines(path, name))
    shorter = file.with_suffix(".shorter")
    with shorter.open("wb") as stream:
        stream.write(b"".join(text + b"\n" for text in file.read_bytes().split(b"\n")[:kept]))
        stream.flush()
        os.fsync(stream.fileno())
    shorter.replace(file)
