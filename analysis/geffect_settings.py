"""What `analysis.geffect_paper` runs: methods, checkpoints, and the figures' windows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.runs import AUTHORS

Settings = dict[str, Any]
PLAIN = {"GA": "ga", "WGA": "wga", "NPO": "npo", "TNPO": "tnpo", "WTNPO": "wtnpo", "PO": "po", "RMU": "rmu"}
REGULARIZED = {
    "GA + GD": "ga + gd",
    "GA + KL": "ga + kl",
    "NPO + GD": "npo + gd",
    "NPO + KL": "npo + kl",
    "NPO + RR": "npo + rr",
}
PLANE = ("GA", "WGA", "NPO", "TNPO", "WTNPO", "PO", "RMU", "GA + GD")  # at the start KL's gradient is zero
ZOOMED = ("GA", "WGA", "NPO", "TNPO")
BY_LAYER = ("GA", "NPO")
WEIGHTS = ("npo", "npo(beta=0.5)", "npo(beta=1)")  # β = 0.1 is the toolkit's default
RMU_GRID = {
    f"layer {layer}, c = {c}": f"rmu(layer={layer}, c={c})" for layer, c in ((1, 20), (3, 5), (3, 20), (3, 80), (6, 20))
}


@dataclass(frozen=True)
class Study:
    """One model and its runs.

    Attributes:
        runs: where they lie.
        base: settings that all share.
        methods: name → objective.
        at: the steps whose checkpoints are measured, beside the start.
        zoom: first and last step of Figure 3b's window.
        later: the step of the second picture of Figure 1.
        one_pass: leave out standard errors.
        rmu: name → objective of runs that are only scored at their end; empty: none.
    """

    runs: Path
    base: Settings
    methods: dict[str, str]
    at: tuple[int, ...]
    zoom: tuple[int, int]
    later: int
    one_pass: bool
    rmu: dict[str, str]


def tiny(runs: Path) -> Study:
    """The built-in model: 25 steps of AdamW at 3e-4.

    Args:
        runs: where the runs lie.

    Returns:
        The study.
    """
    base = AUTHORS | {"learning_rate": 3e-4, "steps": 25, "save_every": 1, "diagnose_every": 25, "evaluate_every": 25}
    return Study(runs, base, PLAIN | REGULARIZED, (1, 3, 5, 8, 12, 18, 25), (0, 5), 5, False, RMU_GRID)


def real(start: str, data: str, runs: Path) -> Study:
    """SmolLM2 fitted to TOFU forget01 and 120 retain examples: 15 steps of AdamW at 3e-5.

    Args:
        start: the fitted model's directory.
        data: directory that holds ``tofu``.
        runs: where the runs lie.

    Returns:
        The study.
    """
    base = {
        "model": start,
        "data_dir": data,
        "forget": "tofu:forget01",
        "retain": "tofu:retain99[:40]",
        "heldout": "tofu:retain99[80:120]",
        "batch_size": 8,
        "learning_rate": 3e-5,
        "steps": 15,
        "save_every": 5,
        "diagnose_every": 15,
        "evaluate_every": 15,
        "evaluate": ["forget"],
    }
    methods = {name: PLAIN[name] for name in ZOOMED}
    return Study(runs, base, methods, (5, 10, 15), (0, 10), 10, True, {})
