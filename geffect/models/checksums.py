"""A checkpoint's files as they were written: a flipped bit in its weights would load without a word."""

import json
from pathlib import Path

from geffect.errors import GeffectError
from geffect.models.cache import file_sha256

CHECKSUMS = "checksums.json"
REMEDY = "restore it, or go on from the checkpoint before by moving this one away"


def write_checksums(directory: Path) -> None:
    """Write the hash of every file of a directory beside them."""
    sums = {file.name: file_sha256(file) for file in sorted(directory.iterdir()) if file.is_file()}
    (directory / CHECKSUMS).write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")


def check_checksums(directory: Path, pattern: str = "*") -> None:
    """Raise where a file is not the one that was written.

    Args:
        directory: as `write_checksums` left it.
        pattern: of the files looked at.

    Raises:
        GeffectError: a file is missing or another, or there are no checksums; the first such is named.
    """
    try:
        sums = {str(name): str(each) for name, each in json.loads((directory / CHECKSUMS).read_bytes()).items()}
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise GeffectError(f"checksums in {directory / CHECKSUMS}", reason, REMEDY) from error
    for name in (each for each in sums if Path(each).match(pattern)):
        file = directory / Path(name).name
        if not file.is_file() or file_sha256(file) != sums[name]:
            found = "another" if file.is_file() else "none"
            raise GeffectError(f"{name} in {directory} as it was written (sha256 {sums[name][:12]})", found, REMEDY)
