"""Draw ``figures/frontier/``: what rectifiers and weighted retain terms keep at equal forgetting.

    python -m analysis.frontier [RUNS]             the built-in model, three seeds
    python -m analysis.frontier --measured         the built-in model, and what the accuracy at a level does not tell
    python -m analysis.frontier --real START DATA  SmolLM2 fitted to TOFU in START, one seed

The built-in authors, gradient ascent by AdamW at 3e-4, three seeds, at most 60 steps. Each method is a rectifier, a
weighted retain term, or both; terms have several weights, so that each stands at its best. Compared is the heldout
accuracy where the forget loss comes to 2 and to 4 nats a token, read off between the two steps around it, with the
number of steps and of passes that it took: a forward and a backward pass over a batch of forget or of retain examples
is one. A small model of 1.7 million parameters on generated text: what holds here need not hold elsewhere.

``--measured`` draws ``figures/frontier_measured/``: the same methods in runs of their own, every step measured, at the
first weights at or past each level. What the retain loss has risen by, above what the price says is the least along the
way (`geffect.price` in Adam's metric, of the batches that were trained on), what the heldout answers are worth (the
utility of the leaderboard), and the forget loss after 5 and 20 steps of relearning.

SmolLM2: AdamW at 5e-5, batches of 4, at most 40 steps, each second one evaluated on 24 forget and 24 heldout
examples.
"""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from analysis.leaderboard import UTILITY
from analysis.runs import AUTHORS, command_line, ensure, keep_configs
from geffect.evaluation.scores import model_utility
from geffect.models.checkpoints import checkpoints
from geffect.record.frames import read_steps
from geffect.reports import plots
from geffect.reports.compare import at_forget_loss
from geffect.reports.plots.style import NOTE
from geffect.reports.price import price

BLUE, ORANGE = "#0072b2", "#d55e00"
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
TINY: dict[str, Any] = AUTHORS | {"learning_rate": 3e-4, "steps": 60, "evaluate_every": 1}
REAL = {
    "forget": "tofu:forget01[:24]",
    "retain": "tofu:retain99[40:80]",
    "heldout": "tofu:retain99[:24]",
    "batch_size": 4,
    "learning_rate": 5e-5,
    "steps": 40,
    "evaluate_every": 2,
}
MEASURED = {"adam_metric": True, "diagnose_every": 1, "save_every": 1, "evaluate": ["forget", "retain", "heldout"]}
RELEARN = {"relearn": "5,20", "relearn_rate": 1e-4, "metric": ["loss"], "set": ["forget=builtin:authors/forget"]}
SHOWN = {  # column of the measured table → what it is
    "retain rise": "rise of the retain loss\n(nats a token)",
    "above the least": "… above the least price\n(nats a token)",
    "efficiency": "mean efficiency of the steps\n(0 to 1)",
    "utility": "heldout utility\n(0 to 1)",
    "relearned 5": "forget loss after 5 steps\nof relearning (nats a token)",
    "relearned 20": "forget loss after 20 steps\nof relearning (nats a token)",
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


def measured(methods: Sequence[str], seeds: Sequence[int], runs: Path, out: Path) -> None:
    """Run what is missing, measure at the first weights at or past each level, then draw and tabulate."""
    started, rows, paths = time.perf_counter(), list[dict[str, Any]](), list[Path]()
    for name, seed in ((name, seed) for name in methods for seed in seeds):
        given = (
            TINY | settings(name, seed, runs, TINY["steps"]) | MEASURED | {"stop": f"forget_loss(level={LEVELS[-1]:g})"}
        )
        (path,) = ensure([given])
        frame = along(path)
        at = {level: int((frame["forget_loss"] >= level).to_numpy().argmax()) for level in LEVELS}
        at = {level: place for level, place in at.items() if frame["forget_loss"][place] >= level}
        for folder in checkpoints(path):  # of twenty megabytes each
            if folder.name not in {f"checkpoint-{frame['step'][place]}" for place in at.values()}:
                shutil.rmtree(folder)
        rows += [{"method": name, "seed": seed, **at_level(path, frame, level, place)} for level, place in at.items()]
        paths.append(path)
    cells = pd.DataFrame(rows)
    table = cells.drop(columns="seed").groupby(["forget loss", "method"], sort=False).mean()
    table.insert(0, "seeds", cells.groupby(["forget loss", "method"]).size())
    table = table.reset_index().sort_values(["forget loss", "above the least"])
    plots.save(draw_measured(cells), out / "measured", cells)
    table.to_csv(out / "table.csv", index=False, float_format="%.4f")
    keep_configs(paths, out)
    print(table.to_string(index=False, float_format="%.3f"))
    print(f"{len(paths)} runs, {(time.perf_counter() - started) / 60:.1f} min")


def along(path: Path) -> pd.DataFrame:
    """A run's scores by step, and by then the retain loss's rise, sums of price and harm, and the mean efficiency."""
    frame = read_steps(path)[["step", "forget_loss", "retain_loss", "heldout_accuracy"]].dropna().reset_index(drop=True)
    told = price(path, metric="adam").set_index("step")
    told = told[["cheapest", "harm"]].cumsum().assign(efficiency=told["efficiency"].expanding().mean())
    sums = told.reindex(frame["step"] - 1).fillna(0.0).reset_index(drop=True)  # of the steps before
    rise = frame["retain_loss"] - frame["retain_loss"][0]
    found = {"retain rise": rise, "least": sums["cheapest"], "first order": sums["harm"]}
    return frame.assign(**found, efficiency=sums["efficiency"])


def at_level(path: Path, frame: pd.DataFrame, level: float, place: int) -> dict[str, Any]:
    """What a run is worth at a level: read off between steps where it can be, else at the first weights past it."""
    step = frame["step"][place]
    names = ("retain rise", "least", "first order", "efficiency", "heldout_accuracy")
    found = {name.replace("_", " "): at_forget_loss(frame, name, level) for name in names}
    found["above the least"] = found["retain rise"] - found["least"]
    common = {
        "model": str(path / "checkpoints" / f"checkpoint-{step}"),
        "out": path.with_name(f"{path.name}-at-{step}"),
    }
    heldout = {"metric": list(UTILITY), "set": ["heldout=builtin:authors/heldout"]}
    relearned = RELEARN | {"out": path.with_name(f"{path.name}-relearned-{step}")}
    kept, again = (models(each) for each in ensure([common | heldout, common | relearned], "evaluate"))
    found["utility"] = model_utility([kept[0]["sets"]["heldout"][name]["mean"] for name in UTILITY])
    losses = dict(zip(("at", "relearned 5", "relearned 20"), again, strict=True))
    losses = {name: each["sets"]["forget"]["loss"]["mean"] for name, each in losses.items()}
    return {"forget loss": level, "checkpoint": step} | found | losses


def models(path: Path) -> list[dict[str, Any]]:
    """The models of an evaluation, in order."""
    return list(json.loads((path / "metrics.json").read_text(encoding="utf-8"))["models"].values())


def draw_measured(cells: pd.DataFrame) -> Any:
    """A panel a number, a row a method, a mark a seed and level."""
    order = cells.groupby("method")["above the least"].max().sort_values(ascending=False).index
    with plt.rc_context(plots.STYLE):
        size = (plots.TWO_COLUMN, 0.4 * len(order) + 1.6)
        figure, grid = plt.subplots(2, len(SHOWN) // 2, figsize=size, sharey=True, layout="constrained")
        for axes, (column, label) in zip(grid.flat, SHOWN.items(), strict=True):
            for level, marker, color in zip(LEVELS, "os", (BLUE, ORANGE), strict=True):
                rows = cells[cells["forget loss"] == level]
                places = [order.get_loc(name) for name in rows["method"]]
                axes.plot(rows[column], places, marker, color=color, ms=4, label=f"forget loss {level:g} nats a token")
            if column == "above the least":
                axes.set_xscale("symlog", linthresh=1)
            axes.set(xlabel=label, yticks=range(len(order)), yticklabels=order, ylim=(-0.5, len(order) - 0.5))
            axes.grid(axis="y", color="0.9", lw=0.6)
        figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


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
            1, len(LEVELS), figsize=(plots.TWO_COLUMN, 0.22 * len(order) + 1.2), sharey=True, layout="constrained"
        )
        for axes, level in zip(panels, LEVELS, strict=True):
            rows = table[table["forget loss"] == level].set_index("method").loc[order]
            places = np.arange(len(rows))
            mixed = rows.index.str.contains("GD") & ~rows.index.str.contains("NGDiff")
            for chosen, color, marker, kind in ((mixed, BLUE, "o", "with"), (~mixed, ORANGE, "s", "without")):
                axes.hlines(places[chosen], rows["low"][chosen], rows["high"][chosen], color=color, lw=1.2)
                label = f"{kind} a weighted retain term"
                axes.plot(rows["heldout accuracy"][chosen], places[chosen], marker, color=color, ms=4, label=label)
            for place in places[rows["heldout accuracy"].isna()]:
                axes.text(0.02, place, "not reached", transform=axes.get_yaxis_transform(), va="center", **NOTE)
            axes.set(title=f"forget loss {level:g} nats a token", xlabel="heldout accuracy (0 to 1)")
            axes.set(yticks=places, yticklabels=rows.index)
            axes.grid(axis="y", color="0.9", lw=0.6)
        seeds = "mark: mean of the seeds, line: their range" if (table["high"] > table["low"]).any() else ""
        keys = panels[0].get_legend_handles_labels()
        figure.legend(*keys, title=seeds, title_fontsize=7, loc="outside lower center", ncols=2)
    return figure


if __name__ == "__main__":
    parser = command_line(__doc__, Path("runs/frontier"))
    parser.add_argument("--real", nargs=2, metavar=("START", "DATA"), help="the study of SmolLM2")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", help=f"of {'; '.join(METHODS)}")
    parser.add_argument("--measured", action="store_true", help="relearning, utility and the price's bound")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the built-in model")
    chosen = parser.parse_args()
    if chosen.measured:
        names = chosen.methods or tuple(METHODS)
        measured(names, chosen.seeds, chosen.runs / "measured", Path("figures/frontier_measured"))
    elif chosen.real:
        start, data = chosen.real
        out = Path("figures/frontier_real")
        main(REAL | {"model": start, "data_dir": data}, chosen.methods or REAL_METHODS, (0,), chosen.runs / "real", out)
    else:
        main(methods=chosen.methods or tuple(METHODS), seeds=chosen.seeds, runs=chosen.runs)
