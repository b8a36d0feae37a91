"""Whether a directory can hold a new run; torch is not imported."""

import os
from pathlib import Path

from geffect.errors import GeffectError
from geffect.io.system import rank_and_size
from geffect.record.schema import ENVIRONMENT

LOCK = ".lock"  # exists, and is held, while a process writes
PARTIAL = ".partial"  # ends the name of a file that is being written
BEGINNING = b'{\n "format": '  # of what `geffect.record.writer.write_json` writes


def refuse_existing(path: Path) -> None:
    """Refuse a run directory that holds a file already, or that cannot be made."""
    if rank_and_size()[0]:  # of several processes the first writes, and may have begun
        return
    dangling = path.is_symlink() and not path.exists()
    if dangling or (path.exists() and not (path.is_dir() and _holds_no_run(path))):
        raise GeffectError(f"--out {path} exists already", remedy="Choose another name, or move it away")
    full = path.absolute()
    ground = next(folder for folder in (full, *full.parents) if folder.exists())
    if not ground.is_dir() or not os.access(ground, os.W_OK):
        raise GeffectError(
            f"--out {path} cannot be made: {ground} is no directory that can be written to",
            remedy="Choose another place",
        )


def _holds_no_run(path: Path) -> bool:
    """Whether a directory holds no file but, at most, what a run that was killed before its first line leaves."""
    left = path / ENVIRONMENT
    for file in path.rglob("*"):  # ends at the first
        partial = file.name.startswith(".") and file.name.endswith(PARTIAL)
        if not (file == left or file.name == LOCK or partial or file.is_dir()):
            return False
    if not left.is_file():
        return True
    with left.open("rb") as stream:
        return stream.read(len(BEGINNING)) == BEGINNING
