"""A run directory's lines and environment, as they stand."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import pandas as pd

from geffect.errors import GeffectError
from geffect.io.readers import Unreadable, byte_lines, parse_json, read_bytes, read_yaml
from geffect.record.schema import Lines, check_environment
from geffect.record.writer import CONFIG, ENVIRONMENT, FORMAT, POINTS, STEPS, TOKENS

NO_RUN = "name a directory written by geffect unlearn, fit or inspect"
MADE_BY = {TOKENS: "make them with geffect inspect --tokens 3", POINTS: "make them with geffect inspect --points ga"}
RESTORE = "restore its files from a copy"
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
NESTED = {"gram", "overlap", "prediction", "standard_errors", "paper", "evaluation", "evaluation_examples", "stopped"}


def as_written(
    read: Callable[Concatenate[Path | str, Parameters], Result],
) -> Callable[Concatenate[Path | str, Parameters], Result]:
    """A reader of a run whose files may have been harmed: whatever it then stumbles over becomes one line."""

    @functools.wraps(read)
    def checked(path: Path | str, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return read(path, *args, **kwargs)
        except GeffectError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise GeffectError(f"a record as geffect writes it in {path}", reason, RESTORE) from error

    return checked


@as_written
def read_steps(path: Path | str) -> pd.DataFrame:
    """A run's scalars: one row a step, evaluations as ``forget_loss``, ``heldout_accuracy`` and so on.

    Args:
        path: the run directory.

    Returns:
        A frame with ``step`` and whatever was recorded; NaN where a step did not record it.
    """
    lines = []
    for line in each_line(Path(path)):
        scores = {
            f"{name}_{kind}": value for name, both in line.get("evaluation", {}).items() for kind, value in both.items()
        }
        lines.append({k: v for k, v in line.items() if k not in NESTED} | scores)
    return pd.DataFrame(lines)


def read_lines(path: Path, name: str = STEPS) -> list[dict[str, Any]]:
    """The lines of ``steps.jsonl`` or of a file beside it; a torn last line is dropped.

    Args:
        path: the run directory.
        name: of the file.

    Returns:
        The lines in order.

    Raises:
        GeffectError: there is no record, or a line other than the last cannot be read.
    """
    return list(each_line(path, name))


def each_line(path: Path, name: str = STEPS) -> Iterator[dict[str, Any]]:
    """As `read_lines`, one at a time: a long record is larger than memory once it is parsed.

    Args:
        path: the run directory.
        name: of the file.

    Yields:
        The lines in order.

    Raises:
        GeffectError: there is no record, or a line other than the last cannot be read.
    """
    check_format(path)
    file = path / name
    if not file.is_file():
        raise GeffectError(f"a run with {name} in {path}", "none", MADE_BY.get(name, NO_RUN))
    table = read_environment(path).get("parameters") if (path / ENVIRONMENT).exists() else None
    lines, number = Lines(table, repeats=name != STEPS), 0
    try:
        for text in byte_lines(file):
            number += 1
            if not text.endswith(b"\n"):
                return  # torn
            line = _json_object(text)
            lines.check(line)
            yield line
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"{error} in line {number}" if number else str(error)
        raise GeffectError(f"one JSON object a line in {file}, as geffect writes it", reason, RESTORE) from error


def read_environment(path: Path) -> dict[str, Any]:
    """A run's ``environment.json``.

    Args:
        path: the run directory.

    Returns:
        Its content, without the format.

    Raises:
        GeffectError: there is none, it cannot be read, or the run has another format.
    """
    try:
        content = _json_object(read_bytes(path / ENVIRONMENT))
        _refuse_other_format(path, content)
        check_environment(content)
    except GeffectError:  # a ValueError, too
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise GeffectError(
            f"a run with {ENVIRONMENT} in {path}", str(error), "name a directory written by geffect"
        ) from error
    return {key: value for key, value in content.items() if key != "format"}


def check_format(path: Path) -> None:
    """Raise where a run was written in another format than this geffect reads.

    Args:
        path: the run directory; one without a readable environment is left to whoever reads that.

    Raises:
        GeffectError: the formats differ; both are named.
    """
    try:
        content = _json_object(read_bytes(path / ENVIRONMENT))
    except (OSError, ValueError):
        return
    _refuse_other_format(path, content)


def _refuse_other_format(path: Path, content: dict[str, Any]) -> None:
    found = content.get("format")
    if type(found) is int and found == FORMAT:
        return
    versions = content.get("versions")
    writer = f" (written by geffect {versions.get('geffect')})" if isinstance(versions, dict) else ""
    told = "no format, as before format 1" if found is None else f"format {found}"
    raise GeffectError(
        f"a run in format {FORMAT}, which this geffect reads, in {path}",
        told + writer,
        "read it with the geffect that wrote it, or make it again from its config.yaml",
    )


def read_config(path: Path) -> dict[str, Any]:
    """A run's ``config.yaml``, of whichever command.

    Args:
        path: the run directory.

    Returns:
        Setting → value.

    Raises:
        GeffectError: there is none, or it cannot be read.
    """
    try:
        content = read_yaml(path / CONFIG)
    except Unreadable as error:
        raise GeffectError(f"a readable {CONFIG} in {path}", str(error), RESTORE) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise GeffectError(f"names with values in {path / CONFIG}", type(content).__name__, RESTORE)
    return content


def _json_object(text: bytes) -> dict[str, Any]:
    content = parse_json(text)
    if not isinstance(content, dict):
        raise Unreadable(type(content).__name__)
    return content
