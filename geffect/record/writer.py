"""Write a run directory: every byte, rename and sync of a record goes through the functions of this module.

A file is written aside and renamed, so that it is whole or absent; a line is on disk when `append_line` returns.
"""

import contextlib
import datetime
import itertools
import json
import math
import os
import platform
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil
import yaml

from geffect.errors import GeffectError
from geffect.io.system import rank_and_size
from geffect.record.reader import LENGTHS, each_line, read_config, read_document
from geffect.record.replacement import is_run, move_aside, refuse_taken, settle
from geffect.record.schema import (
    CONFIG,
    DONE,
    ENVIRONMENT,
    FORMAT,
    FORMAT_COMMENT,
    LOCK,
    METRICS,
    PARTIAL,
    POINTS,
    STEPS,
    TOKENS,
)

if TYPE_CHECKING:
    import torch

    from geffect.core.layers import Layout

PACKAGES = ("geffect", "torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy", "pandas")


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield a sibling that any library can write; it is synced and renamed to the file, or removed on an error."""
    aside = file.with_name(f".{file.name[:200]}.{os.getpid()}{PARTIAL}")
    try:
        yield aside
        _sync(aside)
        rename(aside, file)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise


def write(file: Path, content: str | bytes) -> None:
    """Write a whole file, text as UTF-8: after an error it is as it was before."""
    with replacing(file) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write an object as a whole file, its format first; NaN and infinities become null."""
    write(file, json.dumps({"format": FORMAT} | plain(dict(content)), indent=1, allow_nan=False) + "\n")


def append_line(file: Path, line: Mapping[str, Any]) -> None:
    """Append an object as a line, its format first, and sync it to disk; NaN and infinities become null."""
    text = json.dumps({"format": FORMAT} | plain(dict(line)), allow_nan=False)
    with file.open("ab") as stream:
        stream.write(text.encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def rename(source: Path, target: Path) -> None:
    """Rename a file or directory, in place of a file of that name, and sync the directory."""
    os.replace(source, target)
    if os.name == "posix":  # elsewhere a directory cannot be synced
        _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class RunDirectory:
    """A run directory that one process at a time writes: ``with RunDirectory(path) as run:``.

    No existing file is overwritten. Only this process changes the directory while it is entered, so that a resumed
    run reads it inside. Without ``resume`` the directory must not exist, or hold no file; with it, it holds an
    unfinished run. With ``overwrite`` it may hold any run, which is removed once this one begins
    (`geffect.record.replacement`).
    """

    def __init__(self, path: Path, *, resume: bool = False, overwrite: bool = False) -> None:
        self.path, self.resume, self.overwrite = path, resume, overwrite
        self._lock: Any = None
        self._new_folders: list[Path] = []
        if not resume:
            refuse_taken(path, overwrite=overwrite)

    def __enter__(self) -> Self:
        """Lock the directory until the end, or until this process dies; refuse one that another process writes."""
        if rank_and_size()[0] == 0:
            self._new_folders = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            try:
                self._acquire()
                if self.resume or self.overwrite:
                    settle(self.path)
                if not self.resume:
                    refuse_taken(self.path, overwrite=self.overwrite)
                    if is_run(self.path):
                        move_aside(self.path)
            except BaseException:
                self._release()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        """Unlock the directory, and remove it where nothing has been written into it."""
        self._release()

    def _acquire(self) -> None:
        from filelock import FileLock, Timeout  # a seventh of a second, which reading a record need not wait

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / LOCK, timeout=0)
            lock.acquire()
        except Timeout:
            remedy = f"Wait until it ends, or stop it, and use --resume; if there is none, remove {LOCK}"
            raise GeffectError(f"Another process writes {self.path}", remedy=remedy) from None
        except OSError as error:
            reason = str(error).partition("\n")[0]
            remedy = "Make it writable" if self.resume else "Choose another place"
            raise GeffectError(f"--out {self.path} cannot be written to: {reason}", remedy=remedy) from error
        self._lock = lock

    def _release(self) -> None:
        if self._lock is not None:
            with contextlib.suppress(OSError):  # the next --overwrite does it
                settle(self.path)
            with contextlib.suppress(OSError):  # open files stay on some systems
                (self.path / LOCK).unlink()
            with contextlib.suppress(OSError):  # not empty, or not there
                (self.path / "checkpoints").rmdir()
            self._lock.release()
            self._lock = None
        for folder in self._new_folders:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()

    def create(self, config: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Write the environment and, last, the configuration: both or neither."""
        try:
            write_json(self.path / ENVIRONMENT, environment)
            self._write_config(config)
            settle(self.path)
        except OSError:
            for name in (CONFIG, ENVIRONMENT):
                (self.path / name).unlink(missing_ok=True)
            raise

    def _write_config(self, config: Mapping[str, Any]) -> None:
        text = yaml.safe_dump(dict(config), sort_keys=False)
        write(self.path / CONFIG, f"{FORMAT_COMMENT}{FORMAT}\n{text}")

    def lengthen(self, config: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Record that a run takes more steps than it began with: it is unfinished again, then it has its new length.

        After a kill in between it is the shorter run or the longer one, unfinished, and can be resumed.
        """
        recorded, batch = read_config(self.path), environment.get("batch")
        if any(recorded.get(name) != config.get(name) for name in LENGTHS):
            for name in (DONE, METRICS):
                (self.path / name).unlink(missing_ok=True)
            self._write_config(recorded | {name: config[name] for name in LENGTHS if name in config})
        before = read_document(self.path / ENVIRONMENT)
        if "batch" in before and before["batch"] != batch:
            write_json(self.path / ENVIRONMENT, before | {"batch": batch})

    def append(self, line: Mapping[str, Any], file: str = STEPS) -> None:
        """Add one line to ``steps.jsonl`` or a file beside it (`append_line`)."""
        append_line(self.path / file, line)

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Write ``metrics.json``, then ``DONE``, last of all."""
        write_json(self.path / METRICS, metrics)
        write(self.path / DONE, "")


def check_lines(path: Path, expected: Sequence[int]) -> None:
    """Refuse a record in which a line of one of these steps is missing, doubled or out of order."""
    steps = steps_of(path)
    counts = Counter(steps)
    for number, (step, here) in enumerate(itertools.zip_longest(expected, steps[: len(expected)]), start=1):
        if here != step or counts[step] > 1:
            twice = f"step {step} has {counts[step]} lines"
            wrong = twice if counts[step] > 1 else "it is missing" if here is None else f"it is that of step {here}"
            raise GeffectError(
                f"Line {number} of {path / STEPS} is not the one line of step {step}: {wrong}",
                remedy="Restore the file from a copy, or begin again with another --out",
            )


def steps_of(path: Path) -> list[int | None]:
    """The step of every line of a record, in order; None of a line that names none. None written yet: no step."""
    steps = (line.get("step") for line in each_line(path)) if (path / STEPS).exists() else ()
    return [step if type(step) is int else None for step in steps]


def cut_back(path: Path, step: int) -> None:
    """Remove a run's lines from a step on, and a torn line: the resumed run writes them again, the same."""
    for file in (path / name for name in (STEPS, TOKENS, POINTS) if (path / name).exists()):
        count = sum(line["step"] < step for line in each_line(path, file.name))
        write(file, b"".join(text + b"\n" for text in file.read_bytes().split(b"\n")[:count]))


def layout_to_json(layout: "Layout") -> dict[str, Any]:
    """The parameter table of a run's environment: names, layers, sizes, number of blocks."""
    names = list(layout.layers)
    return {
        "num_blocks": layout.num_blocks,
        "names": names,
        "layers": [layout.layers[name] for name in names],
        "numel": [layout.numel[name] for name in names],
    }


def plain(value: object) -> Any:
    """A value in JSON's own types: an object by its ``to_record``, a named tuple by its names, NaN and ∞ as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "to_record"):
        return plain(value.to_record())
    if hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def describe(device: "torch.device | None" = None) -> dict[str, Any]:
    """The versions, git revision of the source tree, and hardware that a run is made with; and the device it took."""
    import torch

    from geffect.core.devices import device_name

    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "git": _git_revision(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        **({"device": str(device), "device_name": device_name(device)} if device else {}),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
    }


def batch_arithmetic(
    examples: int, batch_size: int, grad_accum_steps: int, steps: int, processes: int = 1
) -> dict[str, Any]:
    """The number of a set's examples in a step, and how often each is used; ``sentence`` says it in words.

    >>> batch_arithmetic(40, 4, 2, 25)["sentence"]
    '4 examples × 2 micro-batches × 1 process = 8 examples a step; 40 examples make 5 steps an epoch; \
25 steps are 5.0 epochs'
    """
    a_step = batch_size * grad_accum_steps * processes
    per_epoch = -(-examples // a_step)
    word = "process" if processes == 1 else "processes"
    return {
        "examples": examples,
        "batch_size": batch_size,
        "grad_accum_steps": grad_accum_steps,
        "processes": processes,
        "examples_a_step": a_step,
        "steps_an_epoch": per_epoch,
        "steps": steps,
        "sentence": f"{batch_size} examples × {grad_accum_steps} micro-batches × {processes} {word} = {a_step} "
        f"examples a step; {examples} examples make {per_epoch} steps an epoch; "
        f"{steps} steps are {steps / per_epoch:.1f} epochs",
    }


def peak_memory_gb() -> float:
    """The largest working set of this process so far, in GB."""
    if platform.system() == "Windows":
        return float(psutil.Process().memory_info().peak_wset) / 1e9  # type: ignore[attr-defined]
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if platform.system() == "Darwin" else peak * 1024 / 1e9


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """The revision of geffect's own source tree; None where it is installed without one."""
    tree = Path(__file__).resolve().parents[2]
    if not (tree / ".git").exists():
        return None
    command = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
