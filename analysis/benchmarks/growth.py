"""How cost grows: with tokens, layers and examples of a step, steps of a record, checkpoints inspected."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from analysis.benchmarks.drawing import OURS, PLAIN, draw, slope
from analysis.benchmarks.records import smollm2_layout, synthesize
from analysis.benchmarks.setting import BUILT_IN, Setting, random_batch
from analysis.benchmarks.table import Finding
from analysis.benchmarks.timing import Seconds, StandardErrors, interleave
from geffect.api import builtin_tiny, inspect
from geffect.config import InspectConfig
from geffect.models.builtin import SHAPE
from geffect.models.load import quiet_transformers
from geffect.record.frames import read
from geffect.reports import plots

VOCABULARY, TINY = 1600, "builtin:tiny-untrained"
SIZES = {
    "tokens": (16, 32, 64, 128, 256),
    "layers": (2, 4, 8, 16),
    "examples": (2, 4, 8, 16, 32),
    "steps": (25, 50, 100, 200, 400),
    "checkpoints": (1, 2, 4, 8),
}
Sizes = Mapping[str, Sequence[int]]


class Point(NamedTuple):
    """What is timed at one size."""

    axis: str
    size: int
    what: str

    @property
    def name(self) -> str:
        """The name of its variant."""
        return f"{self.what}, {self.axis} {self.size}"


Points = dict[Point, Callable[[], object]]


def benchmark(repeats: int, out: Path, sizes: Sizes | None = None) -> tuple[list[Finding], Seconds]:
    """Time all sizes of every axis, fit a power law to each, and draw them.

    Args:
        repeats: of every size.
        out: where ``growth.png``, ``.pdf`` and ``.csv`` go.
        sizes: axis → sizes; `SIZES` by default.

    Returns:
        The exponents, and the seconds they were fitted to.
    """
    found: Seconds = {}
    rows, findings = [], []
    with tempfile.TemporaryDirectory() as folder:
        for axis, each in (sizes or SIZES).items():
            points = _points(axis, each, Path(folder))
            seconds = interleave({point.name: run for point, run in points.items()}, repeats, label=f"growth, {axis}")
            found |= seconds
            rows += [(*point, float(np.median(seconds[point.name]))) for point in points]
    frame = pd.DataFrame(rows, columns=["axis", "size", "what", "seconds"])
    for axis in frame["axis"].unique():
        own = frame[(frame["axis"] == axis) & (frame["what"] == OURS)]
        findings.append(Finding(f"growth, {axis}", "–", StandardErrors.of([slope(own)]), note=_words(own)))
    plots.save(draw(frame), out / "growth", frame)
    return findings, found


def _words(frame: pd.DataFrame) -> str:
    first, last = frame.iloc[0], frame.iloc[-1]
    times, more = last["size"] / first["size"], last["seconds"] / first["seconds"]
    return f"{times:g} times as many take {more:.3g} times as long ({first['size']} to {last['size']})"


def _points(axis: str, sizes: Sequence[int], folder: Path) -> Points:
    if axis in ("steps", "checkpoints"):
        return {Point(axis, size, OURS): (_reading if axis == "steps" else _inspecting)(size, folder) for size in sizes}
    found: Points = {}
    for size in sizes:
        shape = {"tokens": 64, "layers": 6, "examples": 8} | {axis: size}
        setting = random_setting(**shape)
        found |= {
            Point(axis, size, OURS): _cleared(setting, setting.stepping("ga")),
            Point(axis, size, PLAIN): _cleared(setting, setting.plain("forget", "retain")),
        }
    return found


def random_setting(tokens: int, layers: int, examples: int) -> Setting:
    """A Llama of the tiny model's width with random weights, and random examples of equal length.

    Args:
        tokens: of every example.
        layers: of the model.
        examples: of each batch.

    Returns:
        The setting.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = SHAPE | {"num_hidden_layers": layers, "vocab_size": VOCABULARY, "model_type": "llama"}
    generator = torch.Generator().manual_seed(0)
    batches = {name: random_batch(VOCABULARY, examples, tokens, generator) for name in ("forget", "retain")}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape)).eval()
    return Setting("random", model, batches)


def _cleared(setting: Setting, run: Callable[[], object]) -> Callable[[], None]:
    def both() -> None:
        run()
        setting.clear()

    return both


def _reading(steps: int, folder: Path) -> Callable[[], object]:
    run = synthesize(folder / f"steps-{steps}", steps, smollm2_layout(6))
    return lambda: read(run, by="group")


def _inspecting(count: int, folder: Path) -> Callable[[], object]:
    from geffect.api import load_model

    loaded, paths = load_model(str(builtin_tiny(TINY))), [folder / f"checkpoint-{i}" for i in range(count)]
    for path in paths:
        if not path.exists():
            with quiet_transformers():
                loaded.model.save_pretrained(path)
                loaded.tokenizer.save_pretrained(path)
    sets = {name: f"{source}[:4]" for name, source in BUILT_IN.items()}

    def run() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            checkpoints = [str(path) for path in paths]
            inspect(InspectConfig.read(checkpoints=checkpoints, out=Path(out, "record"), objective="ga", **sets))

    return run
