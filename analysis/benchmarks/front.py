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
TYPO = [sys.executable, "-m", "geffect", "unlearn", "--model", "builtin:tiny", "--objective", "npoo"]
OTHERS = [sys.executable, "-c", "from transformers import Trainer; import peft"]


def benchmark(repeats: int) -> tuple[list[Finding], Seconds]:
    """Start the command, mistype an objective and, beside both, import what a Trainer-based script imports.

    Args:
        repeats: of each.

    Returns:
        The findings, and the seconds they were made of.
    """
    variants = {"help": _running(HELP), "typo": _running(TYPO, code=2), "Trainer and peft": _running(OTHERS)}
    seconds = interleave_with(child_seconds, variants, repeats)
    found = {name: StandardErrors.of(each) for name, each in seconds.items()}
    return [Finding(key, "–", found[key], found["Trainer and peft"]) for key in ("help", "typo")], seconds


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


def _running(command: list[str], environment: dict[str, str] | None = None, code: int = 0) -> Callable[[], object]:
    """A function that runs a command, and raises where it ends with another code."""

    def run() -> None:
        found = subprocess.run(command, capture_output=True, env=environment)
        if found.returncode != code:
            raise subprocess.CalledProcessError(found.returncode, command, found.stdout, found.stderr)

    return run
