"""Reading long records and comparing many runs: synthetic ones, written by the toolkit's own writer."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from analysis.benchmarks.table import Finding
from analysis.benchmarks.timing import Seconds, StandardErrors, interleave
from geffect.core.gram import Gram
from geffect.core.layers import BOTH, EMBED, HEAD, Layout
from geffect.record.writer import RunDirectory, layout_to_json
from geffect.reports.compare import summarize

STEPS, RUNS, COMPARED = 5000, (1, 2, 4, 8), 60
ROWS = ("objective", "forget", "retain", "retain_average", "rectified")
BLOCK = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "norm1", "norm2")
READ = """
import json, sys, time, geffect
from geffect.record.writer import peak_memory_gb
from geffect.record import frames
loaded, began = peak_memory_gb(), time.process_time()
frame = geffect.read(sys.argv[1], by="group")
print(json.dumps([time.process_time() - began, peak_memory_gb(), loaded, len(frame)]))
"""


def smollm2_layout(num_blocks: int = 30) -> Layout:
    """The parameter table of a tied Llama of 30 blocks: the embedding's three parts, 270 tensors, the norm."""
    layers = {f"embed_tokens{part}": layer for part, layer in ((EMBED, "embed"), (HEAD, "lm_head"), (BOTH, "tied"))}
    layers |= {f"layers.{i}.{name}": f"block_{i}" for i in range(num_blocks) for name in BLOCK}
    layers |= {"norm": "final_norm"}
    return Layout(layers, dict.fromkeys(layers, 1), num_blocks)


def synthesize(path: Path, steps: int, layout: Layout) -> Path:
    """Write a record of so many steps of a GA + GRU run, with an evaluation on the first and the last.

    Args:
        path: the directory to make.
        steps: how many.
        layout: of the model.

    Returns:
        The directory.
    """
    generator, scores = torch.Generator().manual_seed(0), {"loss": 1.0, "accuracy": 0.5}
    with RunDirectory(path) as run:
        run.create({"steps": steps}, {"parameters": layout_to_json(layout)})
        for step in range(steps):
            rows = torch.randn(len(layout.layers), len(ROWS), 8, dtype=torch.float64, generator=generator)
            line: dict[str, Any] = {"step": step, "loss_objective": -1.0, "loss_forget": 1.0, "loss_retain": 1.0}
            line["gram"] = Gram(ROWS, dict(zip(layout.layers, rows @ rows.mT, strict=True)))
            if step in (0, steps - 1):
                line["evaluation"] = {name: scores for name in ("forget", "retain", "heldout")}
            run.append(line)
        run.finish({})
    return path


def read_apart(run: Path) -> tuple[float, float, float]:
    """CPU seconds of reading a record by group, peak memory of the process, and that before reading, in GB."""
    told = subprocess.run([sys.executable, "-c", READ, str(run)], check=True, capture_output=True, text=True).stdout
    seconds, peak, loaded, _ = json.loads(told)
    return seconds, peak, loaded


def benchmark(repeats: int, steps: int = STEPS, compared: int = COMPARED) -> tuple[list[Finding], Seconds]:
    """Write records, read the long one, and compare the short ones.

    Args:
        repeats: of every measurement.
        steps: of the long record.
        compared: steps of each of the compared runs.

    Returns:
        The findings, and the numbers they were made of.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = synthesize(Path(folder, "long"), steps, smollm2_layout())
        size = (run / "steps.jsonl").stat().st_size / 1e6
        read = [read_apart(run) for _ in range(repeats)]
        runs = [synthesize(Path(folder, f"run-{i}"), compared, smollm2_layout(6)) for i in range(max(RUNS))]
        variants = {f"compare {n}": lambda n=n: summarize(runs[:n]) for n in RUNS}
        seconds = interleave(variants, repeats, label="runs compared")
    each = [
        all_ / max(RUNS) / one for all_, one in zip(seconds[f"compare {max(RUNS)}"], seconds["compare 1"], strict=True)
    ]
    took, peak, loaded = zip(*read, strict=True)
    told = f"{steps} lines, {size:.0f} MB"
    return [
        Finding("record", "–", StandardErrors.of(took), note=told),
        Finding("record memory", "–", StandardErrors.of(peak), note=f"{loaded[0]:.2f} GB of it before reading"),
        Finding("compare", "–", StandardErrors.of(each)),
    ], seconds | {"read": list(took), "peak GB": list(peak)}
