"""The checkpoints of a run, in order."""

from pathlib import Path

from geffect.errors import GeffectError


def number_of(folder: Path) -> int | None:
    """N of a directory ``checkpoint-N``; None of another."""
    name, _, number = folder.name.rpartition("-")
    return int(number) if name == "checkpoint" and number.isdigit() else None


def checkpoints(run: Path) -> list[Path]:
    """The directories ``checkpoints/checkpoint-N`` of a run, by N; none where it has none."""
    return children(run / "checkpoints") if (run / "checkpoints").is_dir() else []


def children(folder: Path) -> list[Path]:
    """The directories ``checkpoint-N`` right below one, or below its ``checkpoints``, by N; none where it has none."""
    found = {number: each for each in folder.iterdir() if (number := number_of(each)) is not None and each.is_dir()}
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
