"""Stop a run with SIGKILL and SIGTERM at random moments, resume it, and compare it with one that was left alone.

    python -m tests.support.kills [--count 20] [--seed 0]

The first moment of each signal lies inside the writing of a checkpoint. Children are forked, so that a kill costs no
import.
"""

import gc
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
import typer

from geffect import api
from geffect.config import UnlearnConfig
from geffect.record.reader import read_lines
from geffect.record.schema import CONFIG, DONE

SETTINGS: dict[str, Any] = {
    "objective": "npo(beta=0.5) + 0.5*gd + kl",
    "rectifier": "gru(space=both)",
    "steps": 6,
    "batch_size": 2,
    "grad_accum_steps": 2,
    "forget": "builtin:authors/forget[:11]",
    "retain": "builtin:authors/retain[:20]",
    "heldout": "builtin:authors/heldout[:6]",
    "optimizer": "adamw_torch",
    "weight_decay": 0.1,
    "learning_rate": 1e-2,
    "lora": 2,
    "lora_dropout": 0.3,
    "keep_dropout": True,
    "schedule": "linear",
    "warmup_steps": 2,
    "save_every": 2,
    "evaluate_every": 3,
    "overlap": 0.1,
    "prediction": 4,
}


def main(count: int = 20, seed: int = 0) -> None:
    """Print a line a stop, and how many runs ended as they should."""
    from geffect.models.builtin import make_tiny
    from tests.conftest import SHAPE

    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = make_tiny(**SHAPE)
        model.save_pretrained(Path(folder, "start"))
        tokenizer.save_pretrained(Path(folder, "start"))
        same = kill_and_compare(Path(folder, "start"), Path(folder), count, seed)
    print(f"{sum(same)} of {len(same)} the same")
    sys.exit(0 if all(same) else 1)


def kill_and_compare(start: Path, folder: Path, count: int, seed: int) -> list[bool]:
    """Stop ``count`` runs by each signal, the first in a checkpoint; whether each ended as the one left alone."""
    chosen = UnlearnConfig.read(model=str(start), out=folder / "whole", **SETTINGS)
    torch.set_num_threads(1)
    api.unlearn(chosen)  # in this process, so that children import nothing
    gc.collect()
    gc.freeze()
    begun = time.perf_counter()
    if count > 1:
        _in_child(lambda: api.unlearn(chosen.model_copy(update={"out": folder / "timed"})))
    duration, draw = time.perf_counter() - begun, random.Random(seed)
    same = []
    for i, (signum, done) in product(range(count), ((signal.SIGKILL, "killed"), (signal.SIGTERM, "stopped"))):
        run = chosen.model_copy(update={"out": folder / f"run-{i}-{done}"})
        delay = None if i == 0 else draw.uniform(0, duration)
        state = _stopped(run, delay, signum)
        _in_child(lambda run=run: api.unlearn(run, resume=(run.out / CONFIG).exists()))  # type: ignore[misc]
        same.append(_same(chosen.out, run.out))
        moment = "in a checkpoint" if delay is None else f"after {delay:.2f} of {duration:.2f} s"
        end = "the same" if same[-1] else "DIFFERENT"
        print(f"{i}: {done} {moment}, {state}; {end}", flush=True)
    return same


def _stopped(run: UnlearnConfig, delay: float | None, signum: int) -> str:
    """Start a run and send it a signal; how far it came."""
    child = multiprocessing.get_context("fork").Process(target=_quiet, args=(lambda: api.unlearn(run),))
    child.start()
    if delay is None:
        partial = run.out / "checkpoints" / ".partial" / "checkpoint-4"
        while not list(partial.glob("*.safetensors")) and child.is_alive():
            time.sleep(0.0002)
    else:
        child.join(delay)
    if child.pid is not None and child.is_alive():
        os.kill(child.pid, signum)
    child.join()
    lines = len(read_lines(run.out)) if (run.out / "steps.jsonl").exists() else 0
    checkpoints = sorted(p.name for p in run.out.glob("checkpoints/checkpoint-*"))
    within = ", within one" if list(run.out.glob("checkpoints/.partial/*")) else ""
    return f"{lines} lines, {len(checkpoints)} checkpoints{within}{', finished' if (run.out / DONE).exists() else ''}"


def _in_child(work: Callable[[], Any]) -> None:
    child = multiprocessing.get_context("fork").Process(target=_quiet, args=(work,))
    child.start()
    child.join()


def _quiet(work: Callable[[], Any]) -> None:
    """In the child: one thread, as a fork after others is not safe; nothing on the terminal."""
    torch.set_num_threads(1)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        sys.stderr = sys.stdout = nowhere
        work()


def _same(whole: Path, run: Path) -> bool:
    lines = [[{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(each)] for each in (whole, run)]
    files = [{p.relative_to(each): p for p in each.rglob("*.safetensors")} for each in (whole, run)]
    kept = set(files[0]) <= set(files[1])  # a run that was stopped has a checkpoint of that step, too
    weights = kept and all(file.read_bytes() == files[1][name].read_bytes() for name, file in files[0].items())
    return lines[0] == lines[1] and weights and (run / DONE).exists()


if __name__ == "__main__":
    typer.run(main)
