"""Peak memory of single steps, each in a process: ``python -m analysis.benchmarks.memory KIND MODEL ROWS``."""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from analysis.benchmarks.table import Finding
from analysis.benchmarks.timing import Seconds, StandardErrors

KINDS = ("plain", "ga", "npo", "three backwards")
PAUSE = 0.002  # seconds between two looks


@contextmanager
def watched() -> Iterator[list[int]]:
    """The resident bytes of this process while a block runs: the first is from before it, the last the highest."""
    process, done = psutil.Process(), threading.Event()
    seen = [process.memory_info().rss] * 2

    def look() -> None:
        while not done.is_set():
            seen[1] = max(seen[1], process.memory_info().rss)
            time.sleep(PAUSE)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


@contextmanager
def watched_on(device: torch.device) -> Iterator[list[int]]:
    """As `watched`, of a GPU's memory that torch has allocated."""
    torch.cuda.reset_peak_memory_stats(device)
    seen = [torch.cuda.memory_allocated(device)] * 2
    yield seen
    seen[1] = torch.cuda.max_memory_allocated(device)


def measure(kind: str, model: str, examples: int, data_dir: Path | None = None) -> dict[str, float]:
    """Two steps of one kind in this process.

    Args:
        kind: one of `KINDS`.
        model: a model spec.
        examples: of each batch.
        data_dir: see `make_setting`.

    Returns:
        Bytes: resident once the model is ``loaded``, at the ``peak``, and of one ``gradient``.
    """
    from analysis.benchmarks.published import ThreeBackwards
    from analysis.benchmarks.setting import make_setting
    from geffect.core.layers import trainable_parameters

    setting = make_setting(model, examples, data_dir)
    made: dict[str, Callable[[], Callable[[], object]]] = {
        "plain": lambda: setting.plain("forget", "retain"),
        "ga": lambda: setting.stepping("ga"),
        "npo": lambda: setting.stepping("npo(beta=0.1)"),
        "three backwards": lambda: ThreeBackwards(setting),
    }
    step, device = made[kind](), setting.model.device
    with watched_on(device) if device.type == "cuda" else watched() as seen:
        for _ in range(2):
            setting.clear()
            step()
    gradient = sum(p.numel() * p.element_size() for p in trainable_parameters(setting.model).values())
    return {"loaded": seen[0], "peak": seen[1], "gradient": gradient}


def benchmark(model: str, examples: int, repeats: int, data_dir: Path | None = None) -> tuple[list[Finding], Seconds]:
    """A process a kind, in turn.

    Args:
        model: a model spec.
        examples: of each batch.
        repeats: of each.
        data_dir: see `make_setting`.

    Returns:
        The findings, and the bytes above the loaded model that they were made of.
    """
    above: Seconds = {kind: [] for kind in KINDS}
    gradient, whole = 1.0, dict.fromkeys(KINDS, 0.0)
    for _ in range(repeats):
        for kind in KINDS:
            command = [sys.executable, "-m", "analysis.benchmarks.memory", kind, model, str(examples)]
            command += [str(data_dir)] if data_dir else []
            told = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            )
            above[kind].append(told["peak"] - told["loaded"])
            gradient, whole[kind] = told["gradient"], told["peak"]
    parts = {kind: StandardErrors.of(a / b for a, b in zip(above[kind], above["plain"], strict=True)) for kind in KINDS}
    extra = StandardErrors.of((a - b) / gradient for a, b in zip(above["npo"], above["ga"], strict=True))
    note = "of the whole process: {:.2f} ×, published {:.2f} ×".format(
        *(whole[kind] / whole["plain"] for kind in ("ga", "three backwards"))
    )
    return [
        Finding("memory", model, parts["ga"], parts["three backwards"], note),
        Finding("memory gradient", model, extra, note=f"one gradient is {gradient / 1e6:.0f} MB"),
    ], above


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", metavar="KIND", choices=KINDS, help=", ".join(KINDS))
    parser.add_argument("model", metavar="MODEL", help="a model's name")
    parser.add_argument("examples", metavar="ROWS", type=int, help="examples a batch")
    parser.add_argument("data", metavar="DATA", nargs="?", type=Path, help="directory of the data sets")
    chosen = parser.parse_args()
    print(json.dumps(measure(chosen.kind, chosen.model, chosen.examples, chosen.data)))
