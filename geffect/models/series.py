"""The checkpoints of a run, in order."""

from pathlib import Path

from geffect.errors import GeffectError


def series(run: str) -> list[tuple[str, str]]:
    """Every checkpoint of a run directory.

    Args:
        run: the directory.

    Returns:
        (``checkpoint-N``, its path), by N.

    Raises:
        GeffectError: there is none.
    """
    folders = [each for each in Path(run).expanduser().glob("checkpoints/checkpoint-*") if each.name[11:].isdigit()]
    if not folders:
        remedy = "name a run of geffect unlearn --save-every, or leave --checkpoints out"
        raise GeffectError(f"a run directory with checkpoints at {run}", "none", remedy)
    return [(each.name, str(each)) for each in sorted(folders, key=lambda each: int(each.name[11:]))]
