"""The user's cache: directories named by the hash of all that decides their content, complete or absent."""

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout
from safetensors import SafetensorError

import geffect
from geffect.core.architectures import CausalLM
from geffect.errors import GeffectError
from geffect.io.readers import read_json

LOGGER = logging.getLogger(__name__)
MANIFEST = ".manifest.json"  # the hash of every other file; an entry without it is not complete
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST)
CODE = ("core", "data", "evaluation", "models", "objectives", "training/setup.py")  # computes cached numbers
LIBRARIES = ("torch", "transformers", "tokenizers", "peft")
HARMLESS = {
    *("_name_or_path", "base_model_name_or_path"),
    *("transformers_version", "peft_version", "revision", "inference_mode"),
}


def cache_home() -> Path:
    """``$GEFFECT_CACHE``, else the platform's cache directory of geffect (on Linux ``~/.cache/geffect``)."""
    return Path(os.environ.get("GEFFECT_CACHE") or platformdirs.user_cache_dir("geffect", appauthor=False))


def cached_directory(name: str, key: str, make: Callable[[Path], None]) -> Path:
    """A directory made once for a key, by one process at a time; a damaged one is made again.

    ``key`` is all that its content depends on, ``name`` is for people. ``make`` fills an empty directory, which is
    renamed into place, with its manifest, once this returns.
    """
    path = cache_home() / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if is_complete(path):
        LOGGER.info("reused from the cache, by its content: %s", path)
        return path
    with _write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path):
            if not is_complete(path):  # else another process has made it meanwhile
                _remove_leftovers(path)
                _make(path, make)
    return path


def _make(path: Path, make: Callable[[Path], None]) -> None:
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        make(partial)
        manifest = json.dumps({name: file_sha256(partial / name) for name in _files(partial)})
        (partial / MANIFEST).write_text(manifest, encoding="utf-8")
        partial.chmod(0o777 & ~_umask())  # mkdtemp's mode is for its user alone
        try:
            partial.rename(path)
        except OSError:  # a process out of reach of this file system's locks may have made the same entry
            if not is_complete(path):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove_leftovers(path: Path) -> None:
    """Remove a damaged entry and the partial entries of killed processes; the lock excludes other writers."""
    if path.exists():
        LOGGER.warning("damaged, and made again: %s", path)
    for leftover in (path, *path.parent.glob(f".{path.name}.*")):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover)
        elif leftover == path:
            leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an entry's lock, which the system frees when a process dies."""
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
def _write_errors(home: Path) -> Iterator[None]:
    """Report a full or read-only cache as one error."""
    try:
        yield
    except (OSError, NotImplementedError, SafetensorError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        is_full = isinstance(error, OSError) and error.errno in UNWRITABLE
        if not is_full and not any(text in reason for text in (*map(os.strerror, UNWRITABLE), "locks")):
            raise
        remedy = "Free disk space, make the directory writable, or set GEFFECT_CACHE to another one"
        raise GeffectError(f"The cache directory {home} cannot be written to: {reason}", remedy=remedy) from error


def is_complete(path: Path) -> bool:
    """Whether an entry has every file of its manifest, with the content it had when it was made."""
    try:
        if not path.is_dir() or path.is_symlink():
            return False
        files = {name: (path / name).stat() for name in (MANIFEST, *_files(path))}
    except OSError:
        return False
    return _matches(path, tuple((name, status.st_size, status.st_mtime_ns) for name, status in files.items()))


@functools.lru_cache(maxsize=256)
def _matches(path: Path, stamps: tuple[tuple[str, int, int], ...]) -> bool:
    """Compare the hashes once for files of these sizes and times: a process reads a model's several times."""
    try:
        manifest = read_json(path / MANIFEST)
        return bool(manifest == {name: file_sha256(path / name) for name, *_ in stamps if name != MANIFEST})
    except (OSError, ValueError, RecursionError):
        return False


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


def fingerprint(model: CausalLM, sha256: str, directories: Iterable[Path]) -> str:
    """The hash of all that decides what a model computes and generates.

    These are the hash of its weights, its configuration and its adapter's, generation settings, code in ``directories``
    (the model's and its base's), the kind of device, and the versions of the libraries and of the code here that
    compute. The model is taken before its adapter is merged.
    """
    home = Path(geffect.__file__).parent
    parts = [
        sha256,
        _plain(model.config),
        getattr(model.config, "_attn_implementation", None),
        _plain(getattr(model, "generation_config", None)),
        {name: _plain(config) for name, config in getattr(model, "peft_config", {}).items()},
        _sha256(file for directory in directories for file in sorted(directory.glob("*.py"))),
        {name: _version(name) for name in LIBRARIES},
        _sha256(file for name in CODE for file in _sources(home / name)),
        str(next(model.parameters()).device.type),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _sources(path: Path) -> list[Path]:
    return sorted(file for kind in ("*.py", "*.json") for file in path.rglob(kind)) or [path]


def _sha256(files: Iterable[Path]) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _plain(config: Any) -> Any:
    """A configuration as JSON, sets sorted, without paths and versions, which change no number."""
    content = config.to_dict() if hasattr(config, "to_dict") else config
    if isinstance(content, dict):
        return {str(key): _plain(value) for key, value in content.items() if key not in HARMLESS}
    if isinstance(content, set | frozenset):
        return sorted(map(str, content))
    return [_plain(value) for value in content] if isinstance(content, list | tuple) else content
