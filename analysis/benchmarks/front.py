"""What a user waits for before anything happens, and the demonstration."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from analysis.benchmarks.table import Finding
from analysis.benchmarks.timing import Seconds, StandardErrors, child_seconds, interleave_with

HELP = [sys.executable, "-m", "geffect", "--help"]
OTHERS = [sys.executable, "-c", "from transformers import Trainer; import peft"]


def benchmark(repeats: int) -> tuple[list[Finding], Seconds]:
    """Start the command and, beside it, import what a Trainer-based script imports.

    Args:
        repeats: of each.

    Returns:
        The finding, and the seconds it was made of.
    """
    variants = {"help": _running(HELP), "Trainer and peft": _running(OTHERS)}
    seconds = interleave_with(child_seconds, variants, repeats)
    return [
        Finding("help", "–", StandardErrors.of(seconds["help"]), StandardErrors.of(seconds["Trainer and peft"]))
    ], seconds


def demonstration() -> tuple[list[Finding], Seconds]:
    """``geffect demo`` twice, the first time with an empty cache.

    Returns:
        The findings, and the seconds they were made of.
    """
    seconds: Seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"GEFFECT_CACHE": str(Path(folder, "cache"))}
        for key in ("demo first", "demo"):
            command = [sys.executable, "-m", "geffect", "demo", "--out", str(Path(folder, key))]
            seconds[key] = [child_seconds(_running(command, environment))]
    return [Finding(key, "builtin:tiny", StandardErrors.of(each)) for key, each in seconds.items()], seconds


def suite() -> tuple[list[Finding], Seconds]:
    """The whole test suite, by the wall's clock.

    Returns:
        The finding, and its seconds.
    """
    began = time.perf_counter()
    _running([sys.executable, "-m", "pytest", "-q"])()
    seconds = {"suite": [time.perf_counter() - began]}
    return [Finding("suite", "–", StandardErrors.of(seconds["suite"]))], seconds


def _running(command: list[str], environment: dict[str, str] | None = None) -> Callable[[], object]:
    return lambda: subprocess.run(command, check=True, capture_output=True, env=environment)
