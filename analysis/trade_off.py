"""Draw ``figures/trade_off/``: every objective, with and without GRU, on the built-in authors, three seeds.

    python -m analysis.trade_off [RUNS]

Runs what is missing in RUNS (``runs/trade_off``). A small model of 1.7 million parameters on generated text: what
holds here need not hold elsewhere.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.runs import AUTHORS, command_line, ensure, keep_configs
from geffect.record.frames import read_steps
from geffect.reports import plots
from geffect.reports.compare import at_forget_loss

OBJECTIVES = {
    "GA": "ga",
    "WGA": "wga",
    "SatImp": "satimp",
    "NPO": "npo",
    "SimNPO": "simnpo",
    "TNPO": "tnpo",
    "WTNPO": "wtnpo",
    "PO": "po",
    "DPO": "dpo",
    "RMU + RR": "rmu + rr",
    "random labels": "random",
    "adversarial": "adversarial",
    "GA + GD": "ga + gd",
    "GA + KL": "ga + kl",
    "NPO + GD": "npo + gd",
    "NPO + KL": "npo + kl",
}
Cell = tuple[str, str, int]
RECTIFIERS = ("none", "gru")
SEEDS = (0, 1, 2)
STEPS, RATE = 25, 3e-4
AT_LOSS = 3.0  # nats a token: where heldout accuracies are compared


def main(runs: Path = Path("runs/trade_off"), out: Path = Path("figures/trade_off")) -> None:
    """Run what is missing, then draw and tabulate."""
    started = time.perf_counter()
    each, paths = curves(runs)
    frame = pd.concat([
        read_steps(path).assign(objective=name, rectifier=rectifier, seed=seed)
        for path, (name, rectifier, seed) in zip(paths, each, strict=True)
    ])
    drawn = frame[
        ["objective", "rectifier", "seed", "step", "forget_loss", "forget_accuracy", "heldout_loss", "heldout_accuracy"]
    ]
    plots.save(plots.trade_off_grid(drawn, x="forget_accuracy"), out / "by_accuracy", drawn)
    plots.save(plots.trade_off_grid(drawn), out / "by_loss", drawn)
    table = tabulate(drawn)
    table.to_csv(out / "table.csv", index=False, float_format="%.4f")
    keep_configs(paths, out)
    print(table.to_string(index=False, float_format="%.3f"))
    print(f"{len(paths)} runs, {(time.perf_counter() - started) / 60:.1f} min")


def settings(runs: Path) -> list[dict[str, Any]]:
    """Of every run, in the order of `cells`."""
    return [
        AUTHORS
        | {
            "objective": OBJECTIVES[name],
            "rectifier": rectifier,
            "seed": seed,
            "steps": STEPS,
            "learning_rate": RATE,
            "evaluate_every": 1,
            "diagnose_every": 5,
            "out": runs / f"{name.replace(' ', '')}-{rectifier}-{seed}",
        }
        for name, rectifier, seed in cells()
    ]


def cells() -> list[Cell]:
    """(objective, rectifier, seed) of every run."""
    return [(name, rectifier, seed) for name in OBJECTIVES for rectifier in RECTIFIERS for seed in SEEDS]


def curves(runs: Path) -> tuple[list[Cell], list[Path]]:
    """Run what is missing; what each run is, and where."""
    return cells(), ensure(settings(runs))


def tabulate(frame: pd.DataFrame, at: float = AT_LOSS) -> pd.DataFrame:
    """Per objective and rectifier: where runs end, and the heldout accuracy where the forget loss first passes ``at``.

    Args:
        frame: the evaluations of all runs.
        at: forget loss (nats a token).

    Returns:
        Means over seeds, with the smallest and largest; NaN where a seed never got there.
    """
    rows = []
    for (objective, rectifier), cell in frame.groupby(["objective", "rectifier"], sort=False):
        ends = cell.sort_values("step").groupby("seed").last()
        reached = [at_forget_loss(run, "heldout_accuracy", at) for _, run in cell.sort_values("step").groupby("seed")]
        rows.append({
            "objective": objective,
            "rectifier": rectifier,
            "forget acc.": ends["forget_accuracy"].mean(),
            "forget loss": ends["forget_loss"].mean(),
            "heldout acc.": ends["heldout_accuracy"].mean(),
            f"heldout acc. at forget loss {at:g}": np.mean(reached),
            "min": np.min(reached),
            "max": np.max(reached),
        })
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main(command_line(__doc__, Path("runs/trade_off")).parse_args().runs)
