"""Fail at every write of a run, one after another, then resume it and compare it with the run left alone.

    python -m tests.support.faults [--verb unlearn] [--how ENOSPC] [--stride 1] [--offset 0]

A run is done once to count its writes, renames, fsyncs and removals below its directory. Then it is done again for
every n: the n-th of them raises ENOSPC or EIO, or the process is killed there. A write that fails has written half of
its bytes. What is left must be refused in one sentence, or resume to the same record and weights.
"""

import builtins
import contextlib
import errno
import io
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import typer

import geffect
from geffect.errors import GeffectError

DONE, CONFIG = "DONE", "config.yaml"
SETS = {"forget": "builtin:authors/forget[:4]", "retain": "builtin:authors/retain[:4]"}
RESUMED = ("unlearn", "finetune", "inspect")  # verbs with --resume
HOWS = ("ENOSPC", "EIO", "KILL")
TOLD, WENT_THROUGH, RAISED, KILLED = "told", "went through", "raised", "killed"


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
            save_rows=["retain"],
            learning_rate=1e-2,
        )
    if verb == "inspect":
        given = {"checkpoints": [str(start), str(start)], "objective": ["ga", "gd + ga"], "tokens": 1, "points": ["ga"]}
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
            sender.send((WENT_THROUGH, str(work() or "")))
        except GeffectError as error:
            sender.send((TOLD, str(error)))
        except BaseException as error:
            sender.send((RAISED, f"{type(error).__name__}: {error}"))


def count_operations(verb: str, start: Path, out: Path) -> list[str]:
    """The operations of an undisturbed run, in order."""

    def work() -> str:
        faults = Faults(out)
        with faults.installed():
            run(verb, start, out)
        return "\n".join(faults.names)

    how, text = in_child(work)
    assert how == WENT_THROUGH, text
    return text.split("\n")


def fail_and_resume(verb: str, start: Path, whole: Path, out: Path, at: int, how: str) -> tuple[str, str]:
    """Fail at one operation, then resume or repeat; how both ended: ``same`` or ``refused`` are right."""

    def broken() -> None:
        with Faults(out, at, how).installed():
            run(verb, start, out)

    first, text = in_child(broken)
    if first == RAISED:
        return first, f"RAISED {text}"
    if not (out / DONE).exists():
        resume = (verb in RESUMED and (out / CONFIG).exists()) or (verb == "inspect" and any(out.rglob(CONFIG)))
        if not resume and verb not in RESUMED:
            refused = in_child(lambda: _read(verb, out))
            if refused[0] not in (TOLD,):
                return first, f"READ {refused}"
            shutil.rmtree(out, ignore_errors=True)
        second, text = in_child(lambda: run(verb, start, out, resume=resume))
        if second == TOLD:
            return first, f"refused: {text}"
        if second != WENT_THROUGH:
            return first, f"RAISED on resuming: {text}"
    return first, "same" if content(out) == content(whole) else "DIFFERENT"


def _read(verb: str, out: Path) -> None:
    geffect.read_evaluation(out) if verb == "evaluate" else geffect.read_localization(out)


def content(directory: Path) -> dict[str, Any]:
    """What a run measured and made: records without times, and weights."""
    found: dict[str, Any] = {}
    for file in sorted(directory.rglob("*")):
        name = str(file.relative_to(directory))
        if file.suffix == ".jsonl":
            found[name] = [_timeless(line) for line in file.read_text(encoding="utf-8").splitlines()]
        elif file.suffix in (".safetensors", ".csv"):
            found[name] = file.read_bytes()
    return found


def _timeless(line: str) -> Any:
    import json

    return {key: value for key, value in json.loads(line).items() if key != "seconds"}


def main(verb: str = "unlearn", how: str = "all", stride: int = 1, offset: int = 0) -> None:
    """Print a line an operation that ended wrongly, and the counts of all outcomes."""
    from geffect.models.builtin import make_tiny
    from tests.conftest import SHAPE

    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, tokenizer = make_tiny(**SHAPE)
        model.save_pretrained(folder / "start")
        tokenizer.save_pretrained(folder / "start")
        names = count_operations(verb, folder / "start", folder / "whole")
        print(f"{verb}: {len(names)} operations", flush=True)
        for kind in HOWS if how == "all" else [how]:
            for at in range(1 + offset, len(names) + 1, stride):
                out = folder / "run"
                shutil.rmtree(out, ignore_errors=True)
                first, end = fail_and_resume(verb, folder / "start", folder / "whole", out, at, kind)
                counts[f"{kind}: {first}, then {end.partition(':')[0]}"] += 1
                if end != "same":
                    print(f"{kind} at {at}, {names[at - 1]}: {first}, then {end}", flush=True)
    print("\n".join(f"{count:5} {outcome}" for outcome, count in sorted(counts.items())))
    sys.exit(any(word in outcome for outcome in counts for word in ("RAISED", "DIFFERENT", "READ")))


if __name__ == "__main__":
    typer.run(main)
