"""The checkpoints of a run, in order."""

from pathlib import Path

from geffect.errors import GeffectError


def checkpoints(run: Path) -> list[Path]:
    """The directories ``checkpoints/checkpoint-N`` of a run, by N; none where it has none."""
    folders = [each for each in run.glob("checkpoints/checkpoint-*") if each.name.rpartition("-")[2].isdigit()]
    return sorted(folders, key=lambda each: int(each.name.rpartition("-")[2]))


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
