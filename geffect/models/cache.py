"""The user's cache: directories keyed by content, complete or absent."""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

LOGGER = logging.getLogger(__name__)


def cache_home() -> Path:
    """``$GEFFECT_CACHE``, else ``geffect`` below the platform's cache directory."""
    if os.environ.get("GEFFECT_CACHE"):
        return Path(os.environ["GEFFECT_CACHE"])
    home = os.environ.get("LOCALAPPDATA") if os.name == "nt" else os.environ.get("XDG_CACHE_HOME")
    return Path(home or Path.home() / ".cache") / "geffect"


def cached(name: str, key: str, make: Callable[[Path], None]) -> Path:
    """A directory made once for a key.

    Args:
        name: what it is, for people.
        key: everything its content depends on.
        make: fills an empty directory; it is renamed into place only when this returns.

    Returns:
        The directory.
    """
    path = cache_home() / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if not path.is_dir():
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            make(partial)
            _settle(partial, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    else:
        LOGGER.info("reused from the cache, by its content: %s", path)
    return path


def _settle(partial: Path, path: Path) -> None:
    try:
        partial.rename(path)
    except OSError:
        if not path.is_dir():  # else another process made the same one meanwhile
            raise


def file_sha256(path: Path) -> str:
    """The hash of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def weights_sha256(directory: Path) -> str:
    """One hash over a model or adapter directory's safetensors, in name order."""
    hashes = [file_sha256(path) for path in sorted(directory.glob("*.safetensors"))]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()
