"""How many processes ``torchrun`` or ``accelerate launch`` started, read without importing torch."""

import os

from geffect.errors import GeffectError


def launched() -> tuple[int, int]:
    """This process's rank, and how many were started: (0, 1) where nothing was launched."""
    size = int(os.environ.get("WORLD_SIZE") or 1)
    return (int(os.environ.get("RANK") or 0) if size > 1 else 0), size


def refuse_several(what: str) -> None:
    """Raise where something that works in one process was launched in several.

    Args:
        what: the something.

    Raises:
        GeffectError: there are several.
    """
    if launched()[1] > 1:
        raise GeffectError(f"one process for {what}", f"{launched()[1]}", "start it without a launcher")
