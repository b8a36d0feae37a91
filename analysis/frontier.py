"""Draw ``figures/frontier/``: what rectifiers and weighted retain terms keep at equal forgetting.

    python -m analysis.frontier [RUNS]             the built-in model, three seeds
    python -m analysis.frontier --real START DATA  SmolLM2 fitted to TOFU in START, one seed

The built-in authors, gradient ascent by AdamW at 3e-4, three seeds, at most 60 steps. Each method is a rectifier, a
weighted retain term, or both; terms have several weights, so that each stands at its best. Compared is the heldout
accuracy where the forget loss comes to 2 and to 4 nats a token, read off between the two steps around it, with the
number of steps and of passes that it took: a forward and a backward pass over a batch of forget or of retain examples
is one. A small model of 1.7 million parameters on generated text: what holds here need not hold elsewhere.

SmolLM2: AdamW at 5e-5, batches of 4, at most 40 steps, each second one evaluated on 24 forget and 24 heldout
examples.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from analysis.runs import AUTHORS, command_line, ensure, keep_configs
from geffect.record.frames import read_steps
from geffect.reports import plots
from geffect.reports.compare import at_forget_loss

METHODS: dict[str, tuple[str, str]] = {
    "GA": ("ga", "none"),
    "GRU": ("ga", "gru"),
    "GRU, both spaces": ("ga", "gru(space=both)"),
    "PCGrad": ("ga", "pcgrad"),
    "BLUR": ("ga", "blur"),
    "NGDiff": ("ga", "ngdiff"),
    "GEM, 6": ("ga", "gem(memory=6)"),
    "HAMU, 0.4": ("ga", "hamu(gain=0.4)"),
    "HAMU, 0.6": ("ga", "hamu(gain=0.6)"),
    "SAGO": ("ga", "sago"),
    "disruption": ("ga", "disruption"),
    **{f"GA + {w} GD": (f"ga + {w}*gd", "none") for w in (1, 3, 10)},
    **{f"GA + {w} GD, GRU": (f"ga + {w}*gd", "gru") for w in (1, 3, 10)},
    "GA + 3 GD, GEM": ("ga + 3*gd", "gem(memory=6)"),
}
LEVELS = (2.0, 4.0)
TINY = AUTHORS | {"learning_rate": 3e-4, "steps": 60, "evaluate_every": 1}
REAL = {
    "forget": "tofu:forget01[:24]",
    "retain": "tofu:retain99[40:80]",
    "heldout": "tofu:retain99[:24]",
    "batch_size": 4,
    "learning_rate": 5e-5,
    "steps": 40,
    "evaluate_every": 2,
}
REAL_METHODS = (
    *("GA", "GA + 3 GD", "GRU", "GA + 3 GD, GRU", "HAMU, 0.6", "GEM, 6", "GA + 3 GD, GEM"),
    *("GA + 1 GD", "GA + 1 GD, GRU", "HAMU, 0.4", "GRU, both spaces", "NGDiff", "PCGrad"),
)


def main(
    common: dict[str, Any] = TINY,
    methods: Sequence[str] = tuple(METHODS),
    seeds: Sequence[int] = (0, 1, 2),
    runs: Path = Path("runs/frontier"),
    out: Path = Path("figures/frontier"),
) -> None:
    """Run what is missing, then draw and tabulate."""
    started = time.perf_counter()
    cells = [(name, seed) for name in methods for seed in seeds]
    paths = ensure([common | settings(name, seed, runs, common["steps"]) for name, seed in cells])
    columns = ["step", "forget_loss", "forget_accuracy", "heldout_loss", "heldout_accuracy"]
    frame = pd.concat(
        [
            read_steps(path)[columns].dropna().assign(method=name, seed=seed)
            for path, (name, seed) in zip(paths, cells, strict=True)
        ],
        ignore_index=True,
    )
    table = tabulate(frame)
    plots.save(draw(table), out / "frontier", frame)
    table.to_csv(out / "table.csv", index=False, float_format="%.4f")
    keep_configs(paths, out)
    print(table.to_string(index=False, float_format="%.3f"))
    print(f"{len(paths)} runs, {(time.perf_counter() - started) / 60:.1f} min")


def settings(name: str, seed: int, runs: Path, steps: int) -> dict[str, Any]:
    """Of one run of so many steps at most, beside what is common; it ends soon after the last level."""
    objective, rectifier = METHODS[name]
    return {
        "objective": objective,
        "rectifier": rectifier,
        "seed": seed,
        "stop": f"forget_loss(level={LEVELS[-1] + 0.3:g})",
        "evaluate": ["forget", "heldout"],
        "diagnose_every": steps,
        "out": runs / f"{name.replace(' ', '').replace(',', '-').replace('+', '-')}-{seed}",
    }


def passes(name: str) -> int:
    """Passes of a step: one over forget examples, and one over retain examples where anything reads these."""
    return 1 + (METHODS[name] != METHODS["GA"])


def tabulate(frame: pd.DataFrame) -> pd.DataFrame:
    """A method and level a row, best first.

    Columns ``method``, ``forget loss``, ``seeds`` that came to it, ``heldout accuracy`` (their mean; NaN unless all
    came), ``low`` and ``high`` (over seeds), ``steps`` and ``passes`` until then.
    """
    rows = []
    for name, runs in frame.groupby("method", sort=False):
        by_seed = [run for _, run in runs.sort_values("step").groupby("seed")]
        for level in LEVELS:
            kept = np.array([at_forget_loss(run, "heldout_accuracy", level) for run in by_seed])
            steps = np.array([at_forget_loss(run, "step", level) for run in by_seed])
            rows.append({
                "method": name,
                "forget loss": level,
                "seeds": int(np.isfinite(kept).sum()),
                "heldout accuracy": kept.mean(),
                "low": kept.min(),
                "high": kept.max(),
                "steps": steps.mean(),
                "passes": steps.mean() * passes(str(name)),
            })
    return pd.DataFrame(rows).sort_values(["forget loss", "heldout accuracy"], ascending=[True, False])


def draw(table: pd.DataFrame) -> Any:
    """Heldout accuracy at each level, a line a method with the seeds' range; methods in the order of the last level."""
    wide = table.pivot(index="method", columns="forget loss", values="heldout accuracy")
    order = wide.sort_values(list(reversed(wide.columns)), na_position="first").index
    with plt.rc_context(plots.STYLE):
        figure, panels = plt.subplots(
            1, len(LEVELS), figsize=(7, 0.24 * len(order) + 0.9), sharey=True, layout="constrained"
        )
        for axes, level in zip(panels, LEVELS, strict=True):
            rows = table[table["forget loss"] == level].set_index("method").loc[order]
            places = np.arange(len(rows))
            mixed = rows.index.str.contains("GD") & ~rows.index.str.contains("NGDiff")
            for chosen, color, marker in ((mixed, "#0072b2", "o"), (~mixed, "#d55e00", "s")):
                axes.hlines(places[chosen], rows["low"][chosen], rows["high"][chosen], color=color, lw=1.2)
                axes.plot(rows["heldout accuracy"][chosen], places[chosen], marker, color=color, ms=4)
            for place in places[rows["heldout accuracy"].isna()]:
                axes.text(
                    0.02, place, "not reached", transform=axes.get_yaxis_transform(), va="center", size=6, color="0.4"
                )
            axes.set(title=f"forget loss {level:g}", xlabel="heldout accuracy", yticks=places, yticklabels=rows.index)
            axes.grid(axis="y", color="0.9", lw=0.6)
    return figure


if __name__ == "__main__":
    parser = command_line(__doc__, Path("runs/frontier"))
    parser.add_argument("--real", nargs=2, metavar=("START", "DATA"), help="the study of SmolLM2")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", help=f"of {'; '.join(METHODS)}")
    chosen = parser.parse_args()
    if chosen.real:
        start, data = chosen.real
        out = Path("figures/frontier_real")
        main(REAL | {"model": start, "data_dir": data}, chosen.methods or REAL_METHODS, (0,), chosen.runs / "real", out)
    else:
        main(methods=chosen.methods or tuple(METHODS), runs=chosen.runs)
