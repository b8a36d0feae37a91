"""The checkpoints of a run, in order."""

import re
from pathlib import Path

from geffect.errors import GeffectError

NAME = re.compile(r"checkpoint-([0-9]{1,9})")  # of ASCII's digits: other scripts have digits, too


def number_of(folder: Path) -> int | None:
    """N of a directory ``checkpoint-N``; None of another."""
    match = NAME.fullmatch(folder.name)
    return int(match[1]) if match else None


def checkpoints(run: Path) -> list[Path]:
    """The directories ``checkpoints/checkpoint-N`` of a run, by N; none where it has none."""
    return children(run / "checkpoints") if (run / "checkpoints").is_dir() else []


def children(folder: Path) -> list[Path]:
    """The directories ``checkpoint-N`` right below one, or below its ``checkpoints``, by N.

    Args:
        folder: the directory.

    Returns:
        Their paths; none where it has none.

    Raises:
        GeffectError: two have one number.
    """
    found: dict[int, Path] = {}
    for each in sorted(folder.iterdir()):
        if (number := number_of(each)) is None or not each.is_dir():
            continue
        if number in found:
            raise GeffectError(
                f"one checkpoint of step {number} in {folder}", f"{found[number].name} and {each.name}", "move one away"
            )
        found[number] = each
    return [found[number] for number in sorted(found)] or checkpoints(folder)


def series(run: str) -> list[tuple[str, str]]:
    """Every checkpoint of a run directory.

    Args:
        run: the directory.

    Returns:
        (``checkpoint-N``, its path), by N.

    Raises:
        GeffectError: there is none.
    """
    folders = checkpoints(Path(run).expanduser())
    if not folders:
        remedy = "name a run of geffect unlearn --save-every, or leave --checkpoints out"
        raise GeffectError(f"a run directory with checkpoints at {run}", "none", remedy)
    return [(each.name, str(each)) for each in folders]
