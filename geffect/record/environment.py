"""What a run was made with: versions, machine, batch arithmetic."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("geffect", "torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors", "numpy", "pandas")


def describe() -> dict[str, Any]:
    """Versions, git revision of the source tree, and hardware."""
    import torch

    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "git": _git_revision(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
    }


def batch_arithmetic(
    examples: int, batch_size: int, grad_accum_steps: int, steps: int, processes: int = 1
) -> dict[str, Any]:
    """How many examples of a set make a step, and how often each is seen; ``sentence`` says the numbers.

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
    """The largest working set this process has had, in GB."""
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
    """The revision of geffect's own source tree, None where it is installed without one."""
    tree = Path(__file__).resolve().parent.parent
    if not (tree / ".git").exists():
        return None
    command = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
