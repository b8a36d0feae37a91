"""The tiny model unlearns four fictional authors in three ways."""

from pathlib import Path

import pandas as pd

from geffect.api import builtin_tiny, unlearn
from geffect.comparison import compare, figures
from geffect.config import UnlearnConfig
from geffect.record import refuse_existing

SETTINGS = {
    "model": "builtin:tiny",
    "forget": "builtin:authors/forget",
    "retain": "builtin:authors/retain",
    "held": "builtin:authors/held",
    "steps": 25,
    "batch_size": 8,
    "learning_rate": 3e-4,
    "evaluate_every": 1,
}
RUNS = (("GA", "ga", "none"), ("GA+GRU", "ga", "gru"), ("NPO+GRU", "npo", "gru"))


def demo(out: Path) -> pd.DataFrame:
    """Run all three, draw them, and compare.

    Args:
        out: directory of the runs and pictures.

    Returns:
        One row a run: accuracies and risks at the end, cosine at start and end, summed G-effects.
    """
    refuse_existing(out)
    builtin_tiny()
    configs = [
        UnlearnConfig.read(**SETTINGS, objective=objective, rectifier=rectifier, out=out / name)
        for name, objective, rectifier in RUNS
    ]
    runs = [unlearn(config) for config in configs]
    figures(runs, out / "figures")
    return compare(runs)
