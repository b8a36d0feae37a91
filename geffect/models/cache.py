"""The user's cache: directories keyed by content, complete or absent."""

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from geffect.errors import GeffectError

LOGGER = logging.getLogger(__name__)
MANIFEST = ".manifest.json"  # the hash of every other file; an entry without it is not complete
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)


def cache_home() -> Path:
    """``$GEFFECT_CACHE``, else ``geffect`` below the platform's cache directory."""
    if os.environ.get("GEFFECT_CACHE"):
        return Path(os.environ["GEFFECT_CACHE"])
    home = os.environ.get("LOCALAPPDATA") if os.name == "nt" else os.environ.get("XDG_CACHE_HOME")
    return Path(home or Path.home() / ".cache") / "geffect"


def cached(name: str, key: str, make: Callable[[Path], None]) -> Path:
    """A directory made once for a key, by one process at a time; a damaged one is made again.

    Args:
        name: what it is, for people.
        key: everything its content depends on.
        make: fills an empty directory; it is renamed into place, with its manifest, only when this returns.

    Returns:
        The directory.

    Raises:
        GeffectError: the cache cannot be written to.
    """
    path = cache_home() / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if is_whole(path):
        LOGGER.info("reused from the cache, by its content: %s", path)
        return path
    with _writable(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _held(path):
            if not is_whole(path):  # else another process has made it meanwhile
                _remove_rest(path)
                _make(path, make)
    return path


def _make(path: Path, make: Callable[[Path], None]) -> None:
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        make(partial)
        manifest = json.dumps({name: file_sha256(partial / name) for name in _files(partial)})
        (partial / MANIFEST).write_text(manifest, encoding="utf-8")
        partial.chmod(0o777 & ~_umask())  # mkdtemp's own is for its user alone
        _settle(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _settle(partial: Path, path: Path) -> None:
    """Give an entry its name, unless a process that this file system's locks do not reach has made the same."""
    try:
        partial.rename(path)
    except OSError:
        if not is_whole(path):
            raise


def _remove_rest(path: Path) -> None:
    """Remove a damaged entry and what killed processes have left of it; the lock tells that nobody writes them."""
    if path.exists():
        LOGGER.warning("damaged, and made again: %s", path)
    for rest in (path, *path.parent.glob(f".{path.name}.*")):
        if rest.is_dir() and not rest.is_symlink():
            shutil.rmtree(rest)
        elif rest == path:
            rest.unlink(missing_ok=True)


@contextlib.contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold an entry's lock, which the system frees when a process dies."""
    from filelock import FileLock, Timeout

    lock = FileLock(path.with_name(f".{path.name}.lock"), mode=0o666)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        LOGGER.info("waiting for another process that makes %s", path)
        lock.acquire()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # open files stay on some systems
            Path(lock.lock_file).unlink()
        lock.release()


@contextlib.contextmanager
def _writable(home: Path) -> Iterator[None]:
    """Tell a full or read-only cache in one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, NotImplementedError, SafetensorError, RuntimeError) as error:
        text = str(error).strip().partition("\n")[0]
        full = isinstance(error, OSError) and error.errno in UNWRITABLE
        if not full and not any(each in text for each in (*map(os.strerror, UNWRITABLE), "locks")):
            raise
        remedy = "make room or make it writable, or set GEFFECT_CACHE to another directory"
        raise GeffectError(f"a cache directory {home} that can be written to", text, remedy) from error


def is_whole(path: Path) -> bool:
    """Whether an entry has every file of its manifest, with the content it had when it was made."""
    try:
        if not path.is_dir() or path.is_symlink():
            return False
        stamps = tuple((name, *_stamp(path / name)) for name in (MANIFEST, *_files(path)))
    except OSError:
        return False
    return _matches(path, stamps)


@functools.lru_cache(maxsize=256)
def _matches(path: Path, stamps: tuple[tuple[str, int, int], ...]) -> bool:
    """Compare the hashes once for files of these sizes and times: a model's are read several times in a process."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        return bool(manifest == {name: file_sha256(path / name) for name, *_ in stamps if name != MANIFEST})
    except (OSError, ValueError, RecursionError):
        return False


def _stamp(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def _files(directory: Path) -> list[str]:
    """The files of an entry but its manifest, by their path in it."""
    files = (each.relative_to(directory).as_posix() for each in directory.rglob("*") if each.is_file())
    return sorted(name for name in files if name != MANIFEST)


def _umask() -> int:
    """The process's mask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def file_sha256(path: Path) -> str:
    """The hash of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def weights_sha256(directory: Path) -> str:
    """One hash over a model or adapter directory's safetensors, in name order."""
    hashes = [file_sha256(path) for path in sorted(directory.glob("*.safetensors"))]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()
