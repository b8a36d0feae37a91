"""The run directory being written: once, line by line, never over anything."""

import contextlib
import functools
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import yaml
from torch import Tensor

from geffect.core.gram import Gram
from geffect.core.launch import launched
from geffect.core.layers import Layout
from geffect.core.topk import Overlap
from geffect.errors import GeffectError
from geffect.measurement.standard_errors import StandardErrors

STEPS, ENVIRONMENT, CONFIG, METRICS, DONE = "steps.jsonl", "environment.json", "config.yaml", "metrics.json", "DONE"
FORMAT = 2  # of a run directory: the first key of its environment; a change that an older reader misreads raises it
LOCK = ".lock"  # held, and there, while a process writes
TOKENS, POINTS = "tokens.jsonl", "points.jsonl"  # lines of a step that stand beside its own
DIGITS = 9  # significant digits of an inner product: more than float32 products hold
_triu_indices = functools.cache(np.triu_indices)  # a Gram a tensor asks for the same ones


class RunDirectory:
    """A run being written, by one process at a time: ``with RunDirectory(path) as run:``.

    Nothing that exists is ever overwritten. What is found in the directory once it is held stays as it is: what a run
    goes on from is read inside.

    Args:
        path: the directory; it must not exist, or hold no file.
        resume: it holds a run that goes on.

    Raises:
        GeffectError: it exists, or cannot be made.
    """

    def __init__(self, path: Path, *, resume: bool = False) -> None:
        self.path, self.resume = path, resume
        self._lock: Any = None
        self._made: list[Path] = []
        if not resume:
            refuse_existing(path)

    def __enter__(self) -> Self:
        """Keep other processes from writing here until the end, or until this one dies, however it does.

        Returns:
            This.

        Raises:
            GeffectError: another one writes, has written since the directory was found free, or nobody can.
        """
        if launched()[0] == 0:
            self._made = [each for each in (self.path, *self.path.parents) if not each.exists()]
            try:
                self._take()
                if not self.resume:
                    refuse_existing(self.path)
            except BaseException:
                self._let_go()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        """Let others write, and remove the directory where nothing has been written into it."""
        self._let_go()

    def _take(self) -> None:
        from filelock import FileLock, Timeout  # a seventh of a second, which reading a record need not wait

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / LOCK, timeout=0)
            lock.acquire()
        except Timeout:
            remedy = f"wait until it has ended, or stop it, and use --resume; if there is none, remove {LOCK}"
            raise GeffectError(f"no other process that writes {self.path}", "one at work", remedy) from None
        except OSError as error:
            found = str(error).partition("\n")[0]
            remedy = "make it writable" if self.resume else "choose another place"
            raise GeffectError(f"a directory to write --out {self.path} in", found, remedy) from error
        self._lock = lock

    def _let_go(self) -> None:
        if self._lock is not None:
            with contextlib.suppress(OSError):  # open files stay on some systems
                (self.path / LOCK).unlink()
            with contextlib.suppress(OSError):  # not empty, or not there
                (self.path / "checkpoints").rmdir()
            self._lock.release()
            self._lock = None
        for folder in self._made:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()

    def create(self, config: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Write the environment and, last, the configuration: both or neither."""
        try:
            self._json(ENVIRONMENT, {"format": FORMAT} | dict(environment))
            (self.path / CONFIG).write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
        except OSError:
            for name in (CONFIG, ENVIRONMENT):
                (self.path / name).unlink(missing_ok=True)
            raise

    def append(self, line: Mapping[str, Any], file: str = STEPS) -> None:
        """Add one line to ``steps.jsonl`` or a file beside it, and see it on disk; NaN and infinities become null."""
        text = json.dumps(_plain(dict(line)), allow_nan=False)
        with (self.path / file).open("a", encoding="utf-8") as stream:
            stream.write(text + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Write ``metrics.json``, then ``DONE``, last of all."""
        self._json(METRICS, metrics)
        (self.path / DONE).touch()

    def _json(self, name: str, content: Mapping[str, Any]) -> None:
        text = json.dumps(_plain(dict(content)), indent=1, allow_nan=False)
        (self.path / name).write_text(text + "\n", encoding="utf-8")


def refuse_existing(path: Path) -> None:
    """Raise where a run's directory is taken, or where none can be made.

    Args:
        path: the directory asked for.

    Raises:
        GeffectError: it holds a file, or what it would lie in cannot be written to.
    """
    if launched()[0]:  # of several processes the first writes, and may have begun
        return
    if _dangles(path) or (path.exists() and (not path.is_dir() or not _never_begun(path))):
        raise GeffectError(
            f"a new directory for --out {path}", "something there already", "choose another name or move it away"
        )
    full = path.absolute()
    ground = next(each for each in (full, *full.parents) if each.exists())
    if not ground.is_dir() or not os.access(ground, os.W_OK):
        raise GeffectError(f"a directory to write --out {path} in", str(ground), "choose another place")


def _dangles(path: Path) -> bool:
    """Whether a path is a symbolic link to nothing, which nothing can be made at."""
    return path.is_symlink() and not path.exists()


def _never_begun(path: Path) -> bool:
    """Whether a directory holds no file but, at most, what a start killed before its first line leaves behind."""
    left = path / ENVIRONMENT
    if any(each != left and each.name != LOCK and not each.is_dir() for each in path.rglob("*")):  # ends at the first
        return False
    return not left.is_file() or '"parameters"' in left.read_text(encoding="utf-8", errors="replace")


def layout_to_json(layout: Layout) -> dict[str, Any]:
    """The parameter table of a run's environment: names, layers, sizes, number of blocks."""
    names = list(layout.layers)
    return {
        "num_blocks": layout.num_blocks,
        "names": names,
        "layers": [layout.layers[name] for name in names],
        "numel": [layout.numel[name] for name in names],
    }


def _plain(value: Any) -> Any:
    """JSON's own types; a Gram or a Overlap as its upper triangles."""
    if isinstance(value, Gram):
        return {"rows": list(value.rows), "values": [[_rounded(x) for x in each] for each in _triangles(value)]}
    if isinstance(value, Overlap):
        return {"share": value.share, "rows": list(value.rows), "values": list(_triangles(value))}
    if isinstance(value, StandardErrors):
        matrices = {"linearized": value.linearized, "halves": value.halves}
        return {"rows": list(value.rows), "labels": list(value.halves)} | {
            name: [_plain(_upper(each)) for each in parts.values()] for name, parts in matrices.items()
        }
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return _rounded(value) if isinstance(value, float) and not math.isfinite(value) else value


def _triangles(part: Gram | Overlap) -> Iterator[list[Any]]:
    return (_upper(matrix) for matrix in part.values.values())


def _upper(matrices: Tensor) -> list[Any]:
    """``[…, M, M]`` → the upper triangles, line by line."""
    i, j = _triu_indices(matrices.shape[-1])
    found: list[Any] = matrices.numpy()[..., i, j].tolist()
    return found


def _rounded(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
