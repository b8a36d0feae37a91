"""Files as they were written, of a checkpoint or a localization: a flipped bit would load without a word."""

import json
from collections.abc import Iterable
from pathlib import Path

from geffect.errors import GeffectError
from geffect.io.readers import read_json
from geffect.models.cache import file_sha256
from geffect.record.writer import write

CHECKSUMS = "checksums.json"
REMEDY = "restore it, or go on from the checkpoint before by moving this one away"


def write_checksums(directory: Path, files: Iterable[Path] | None = None) -> None:
    """Write the hashes of a directory's files beside them.

    Args:
        directory: in which ``checksums.json`` is written.
        files: those meant, in it or below; all that are right in it by default.
    """
    chosen = files if files is not None else (file for file in directory.iterdir() if file.is_file())
    sums = {file.relative_to(directory).as_posix(): file_sha256(file) for file in sorted(chosen)}
    write(directory / CHECKSUMS, json.dumps(sums, indent=1) + "\n")


def check_checksums(directory: Path, pattern: str = "*", remedy: str = REMEDY) -> None:
    """Raise where a file is not the one that was written.

    Args:
        directory: as `write_checksums` left it.
        pattern: of the files looked at.
        remedy: what to do.

    Raises:
        GeffectError: a file is missing or another, or there are no checksums; the first such is named.
    """
    sums = read_checksums(directory, remedy)
    for name in (each for each in sums if Path(each).match(pattern)):
        file = directory / name
        if not file.is_file() or file_sha256(file) != sums[name]:
            found = "another" if file.is_file() else "none"
            raise GeffectError(f"{name} in {directory} as it was written (sha256 {sums[name][:12]})", found, remedy)


def read_checksums(directory: Path, remedy: str = REMEDY) -> dict[str, str]:
    """What `write_checksums` wrote.

    Args:
        directory: in which ``checksums.json`` lies.
        remedy: what to do.

    Returns:
        File, by its path from there → hash.

    Raises:
        GeffectError: there are none, or one is of a file elsewhere.
    """
    try:
        sums = {str(name): str(each) for name, each in read_json(directory / CHECKSUMS).items()}
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise GeffectError(f"checksums in {directory / CHECKSUMS}", reason, remedy) from error
    for name in sums:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise GeffectError(f"checksums of files below {directory} in {CHECKSUMS}", repr(name), remedy)
    return sums
