"""Fail at every write of a run, one after another, then resume it and compare it with the run left alone.

    python -m tests.support.faults [--verb unlearn] [--how all] [--stride 1]

A run is done once to count its writes, renames, fsyncs and removals below its directory. Then it is done again for
every n: the n-th of them raises ENOSPC or EIO, or the process is killed there. A write that fails has written half of
its bytes. What is left must be refused in one sentence, or resume to the same record and weights. Each run is a forked
process: the first one has imported everything.
"""

import builtins
import contextlib
import errno
import gc
import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
import typer

import geffect
import geffect.reports.run
from geffect.errors import GeffectError

DONE, CONFIG = "DONE", "config.yaml"
TIMED = ("environment.json", "trainer_state.json", "checksums.json")  # tell of the process, not of what it measured
TIMES = ("seconds", "peak_memory_gb")
SETS = {"forget": "builtin:authors/forget[:4]", "retain": "builtin:authors/retain[:4]"}
RESUMED = ("unlearn", "finetune", "inspect")  # verbs with --resume
VERBS = ("unlearn", "finetune", "inspect", "localize", "evaluate")
HOWS = ("ENOSPC", "EIO", "KILL")
How = Literal["all", "turn", "ENOSPC", "EIO", "KILL"]  # every kind at each operation, each in turn, or one
REFUSED, COMPLETED, RAISED, KILLED = "refused", "completed", "raised", "killed"
SAME, DIFFERENT = "the same record and weights", "DIFFERENT"


class _Stream:
    """A stream that counts each write; the one that fails writes half of its content."""

    def __init__(self, stream: Any, faults: "Faults", path: Any) -> None:
        self._stream, self._faults, self._path = stream, faults, path

    def write(self, content: Any) -> Any:
        if self._faults.due("write", self._path):
            self._stream.write(content[: len(content) // 2])
            self._stream.flush()
            self._faults.fail(self._path)
        return self._stream.write(content)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> Any:
        self._stream.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._stream.__exit__(*error)

    def __iter__(self) -> Any:
        return iter(self._stream)


class Faults:
    """Counts what is done to files below a directory, and fails at one of these operations.

    Args:
        root: the directory.
        at: the operation that fails, from 1; 0 fails never.
        how: ``ENOSPC`` or ``EIO``, which it raises, or ``KILL``.
    """

    def __init__(self, root: Path, at: int = 0, how: str = "ENOSPC") -> None:
        self.root, self.at, self.how = os.path.realpath(root), at, how
        self.count = 0
        self.names: list[str] = []

    def due(self, name: str, path: Any) -> bool:
        """Count an operation on a path; whether it is the one to fail."""
        if not os.path.realpath(os.fspath(path)).startswith(self.root):
            return False
        self.count += 1
        self.names.append(f"{name} {os.path.relpath(os.fspath(path), self.root)}")
        return self.count == self.at

    def fail(self, path: Any) -> None:
        """End the process, or raise as the operating system does."""
        if self.how == "KILL":
            os.kill(os.getpid(), signal.SIGKILL)
        code = getattr(errno, self.how)
        raise OSError(code, os.strerror(code), os.fspath(path))

    def before(self, name: str, function: Callable[..., Any], place: int = 0) -> Callable[..., Any]:
        """A function of ``os`` that fails before it does anything; ``place`` of its arguments is the path."""

        def replaced(*args: Any, **kwargs: Any) -> Any:
            path = args[place]
            if isinstance(path, int):
                path = _path_of(path)
            if self.due(name, path):
                self.fail(path)
            return function(*args, **kwargs)

        return replaced

    def halved(self, name: str, function: Callable[..., Any], place: int) -> Callable[..., Any]:
        """A function that writes a whole file; where it fails half of the file is there."""

        def replaced(*args: Any, **kwargs: Any) -> Any:
            path: Any = args[place] if len(args) > place else kwargs.get("filename", kwargs.get("f"))
            if isinstance(path, io.IOBase) or not self.due(name, path):
                return function(*args, **kwargs)
            function(*args, **kwargs)
            os.truncate(path, os.path.getsize(path) // 2)
            return self.fail(path)

        return replaced

    def open(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``open`` whose streams count each write; the one that fails writes half of its bytes."""

        def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if isinstance(file, int) or not set(mode) & set("wax+"):
                return function(file, mode, *args, **kwargs)
            if self.due("open", file):
                self.fail(file)
            return _Stream(function(file, mode, *args, **kwargs), self, file)

        return opened

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """While this lasts files are written through this object."""
        opened = self.open(io.open)
        places: list[tuple[Any, str, Any]] = [
            (builtins, "open", opened),
            (io, "open", opened),
            (os, "fsync", self.before("fsync", os.fsync)),
            (os, "replace", self.before("rename", os.replace, 1)),
            (os, "rename", self.before("rename", os.rename, 1)),
            (os, "mkdir", self.before("mkdir", os.mkdir)),
            (os, "unlink", self.before("remove", os.unlink)),
            (os, "remove", self.before("remove", os.remove)),
            (torch, "save", self.halved("save", torch.save, 1)),
            (safetensors.torch, "serialize_file", self.halved("save", safetensors.torch.serialize_file, 1)),
        ]
        originals = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
        for owner, name, replacement in places:
            setattr(owner, name, replacement)
        try:
            yield
        finally:
            for owner, name, original in originals:
                setattr(owner, name, original)


def _path_of(descriptor: int) -> str:
    return os.readlink(f"/proc/self/fd/{descriptor}") if sys.platform == "linux" else os.devnull


def settings(verb: str, start: Path, out: Path) -> Any:
    """The configuration of a short run of a verb, which writes every kind of file that the verb can write."""
    if verb == "finetune":
        given = {"model": str(start), "train": list(SETS.values()), "steps": 4, "save_every": 2, "batch_size": 4}
        return geffect.FinetuneConfig.read(out=out, **given)
    if verb == "unlearn":
        return geffect.UnlearnConfig.read(
            **SETS,
            model=str(start),
            out=out,
            objective="npo(beta=0.5) + gd",
            rectifier="gru",
            steps=4,
            batch_size=2,
            save_every=2,
            evaluate_every=2,
            overlap=0.1,
            prediction=2,
            save_gradients=["retain"],
            learning_rate=1e-2,
        )
    if verb == "inspect":
        given = {
            "checkpoints": [str(start), str(start.with_name("second"))],
            "objective": ["ga", "gd + ga"],
            "tokens": 1,
            "points": ["ga"],
        }
        return geffect.InspectConfig.read(**SETS, out=out, batch_size=2, **given)
    if verb == "localize":
        domain = [f"a={SETS['forget']},{SETS['retain']}"]
        return geffect.LocalizeConfig.read(model=str(start), domain=domain, out=out)
    given = {"metric": ["loss", "rouge_l_recall"], "set": [f"{k}={v}" for k, v in SETS.items()], "max_new_tokens": 4}
    return geffect.EvaluateConfig.read(model=str(start), out=out, **given)


def run(verb: str, start: Path, out: Path, *, resume: bool = False) -> None:
    """Do the short run."""
    options = {"resume": True} if resume else {}
    getattr(geffect, verb)(settings(verb, start, out), **options)


def in_child(work: Callable[[], Any]) -> tuple[str, str]:
    """Do something in a forked process; how it ended, and what it raised."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_quiet, args=(work, sender))
    child.start()
    sender.close()
    try:
        outcome: tuple[str, str] = receiver.recv()
    except EOFError:
        outcome = (KILLED, "")
    child.join()
    return outcome


def _quiet(work: Callable[[], Any], sender: Any) -> None:
    torch.set_num_threads(1)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stderr = sys.stdout = nowhere
        try:
            sender.send((COMPLETED, str(work() or "")))
        except GeffectError as error:
            sender.send((REFUSED, str(error)))
        except BaseException as error:
            sender.send((RAISED, f"{type(error).__name__}: {error}"))


def count_operations(verb: str, start: Path, out: Path) -> list[str]:
    """The operations of an undisturbed run, in order; in this process, so that forked ones import nothing."""
    torch.set_num_threads(1)
    faults = Faults(out)
    with faults.installed():
        run(verb, start, out)
    gc.collect()
    gc.freeze()  # training collects garbage: in a forked process over what is new in it
    return faults.names


def fail_and_resume(verb: str, start: Path, out: Path, expected: dict[str, Any], at: int, how: str) -> tuple[str, str]:
    """Fail at one operation, then resume or repeat; how the first attempt and the second ended, each with its error."""

    def broken() -> None:
        with Faults(out, at, how).installed():
            run(verb, start, out)

    ended, text = in_child(broken)
    first = f"{ended} {text}" if ended == RAISED else ended
    if ended == RAISED:
        return first, COMPLETED
    if (out / DONE).exists():
        if verb == "finetune":  # its checkpoints are removed last; what is left of them changes nothing
            shutil.rmtree(out / "checkpoints", ignore_errors=True)
        return first, in_child(lambda: _draw(verb, out))[0]
    resume = verb in RESUMED and any(out.rglob(CONFIG))
    if verb not in RESUMED:
        read, text = in_child(lambda: _read(verb, out))
        if read == RAISED or (read == COMPLETED and not content(out).items() <= expected.items()):
            return first, f"{RAISED} by a reader: {read} {text}"
        shutil.rmtree(out, ignore_errors=True)
    second, text = in_child(lambda: run(verb, start, out, resume=resume))
    return first, f"{second} {text}".strip()


def judged(first: str, second: str, out: Path, expected: dict[str, Any]) -> tuple[str, bool]:
    """The outcome of both attempts in words, and whether it is right."""
    if second == COMPLETED:
        same = content(out) == expected
        return f"{first}, then {SAME if same else DIFFERENT}", same and not first.startswith(RAISED)
    right = second.startswith(REFUSED) and "\n" not in second
    return f"{first}, then {second.partition(' ')[0]}", right and not first.startswith(RAISED)


def _draw(verb: str, out: Path) -> None:
    """Draw what a localization draws once it is finished."""
    if verb == "localize":
        geffect.reports.run.plot([out])


def _read(verb: str, out: Path) -> None:
    geffect.read_evaluation(out) if verb == "evaluate" else geffect.read_localization(out)


def content(directory: Path) -> dict[str, Any]:
    """What a run measured and made, by file: records without times, and weights."""
    files = sorted(file for file in directory.rglob("*") if file.suffix in READERS and file.name not in TIMED)
    return {str(file.relative_to(directory)): READERS[file.suffix](file) for file in files}


def _timeless(line: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(line).items() if key not in TIMES}


def _tensors(file: Path) -> tuple[Any, bytes]:
    """The header, whose metadata stand in any order, and the bytes of the tensors."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


READERS: dict[str, Callable[[Path], Any]] = {
    ".jsonl": lambda file: [_timeless(line) for line in file.read_text(encoding="utf-8").splitlines()],
    ".json": lambda file: _timeless(file.read_text(encoding="utf-8")),
    ".safetensors": _tensors,
    ".csv": Path.read_bytes,
}


def points(count: int, how: How, stride: int) -> list[tuple[int, str]]:
    """The operations to fail at and how: every kind at each of them, one kind, or with ``turn`` each kind in turn."""
    chosen = range(1, count + 1, stride)
    if how == "turn":
        return [(at, HOWS[i % len(HOWS)]) for i, at in enumerate(chosen)]
    return [(at, kind) for kind in (HOWS if how == "all" else [how]) for at in chosen]


def make_starts(folder: Path) -> Path:
    """A tiny model's directory, and the same under another name beside it."""
    from geffect.models.builtin import make_tiny
    from tests.conftest import SHAPE

    model, tokenizer = make_tiny(**SHAPE)
    for name in ("second", "start"):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder / "start"


def main(verb: str = "unlearn", how: How = "all", stride: int = 1) -> None:
    """Print a line for every fault after which no run was the same, and the counts of all outcomes."""
    counts: Counter[str] = Counter()
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        start, whole, out = make_starts(Path(name)), Path(name, "whole"), Path(name, "run")
        names = count_operations(verb, start, whole)
        expected = content(whole)
        for at, kind in points(len(names), how, stride):
            shutil.rmtree(out, ignore_errors=True)
            first, second = fail_and_resume(verb, start, out, expected, at, kind)
            outcome, right = judged(first, second, out, expected)
            counts[f"{kind}: {outcome}"] += 1
            wrong += not right
            if SAME not in outcome:
                print(f"{'' if right else 'WRONG '}{kind} at {at}, {names[at - 1]}: {first}, then {second}", flush=True)
    print(f"{verb}: {len(names)} operations, {counts.total()} faults, {wrong} wrong")
    print("\n".join(f"{count:5} {outcome}" for outcome, count in sorted(counts.items())))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
