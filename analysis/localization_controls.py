"""Draw ``figures/localization/`` and write ``docs/results/localization.md``: localizers against random masks.

    python -m analysis.localization_controls [RUNS] [--seeds N] [--trainings N] [--draws N] [--steps N]

Two questions of the tiny built-in model. Planted: people of the privacy domain are fine-tuned into a random 5 % of each
tensor's entries and nowhere else; how much of these does each importance find? Confined: the authors are unlearned in
the region of GRAIL, MemFlex, WAGLE and the z-score, and in random regions of the same sizes; what is the heldout
accuracy where the forget loss comes to 2 and to 4 nats a token (read off as in `analysis.frontier`)?
"""

import itertools
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from analysis.grail_settings import REGION
from analysis.runs import AUTHORS, command_line, ensure, keep_configs
from geffect.api import load_model
from geffect.core.layers import trainable_parameters
from geffect.localization.storage import read_planted
from geffect.localization.truth import Recovery
from geffect.record.frames import read_steps
from geffect.reports import plots
from geffect.reports.compare import at_forget_loss

SHARE, LEVELS = 0.05, (2.0, 4.0)
WEIGHTS = "weight size"
REFERENCES = (WEIGHTS, "random")
CONTROL = "random:0-4"  # random importances on the planted entries
LOCALIZERS: dict[str, dict[str, Any]] = {
    "mean_abs": {},
    "mean_square": {},
    "zscore": {},
    "ratio": {},
    "wagle": {},
    "wagle, μ = 0.01": {"importance": "wagle", "mu": 0.01},
}
BLUE, ORANGE = "#0072b2", "#d55e00"  # distinct to the color-blind, and their markers differ
PLANT: dict[str, Any] = {
    "model": "builtin:tiny",
    "train": ["builtin:domains/privacy/unlearn/train[:24]"],
    "epochs": 80,
    "learning_rate": 1e-2,
    "until_accuracy": 0.95,
}


class Region(NamedTuple):
    """A confined unlearning.

    Attributes:
        rule: the rectifier.
        control: the same in a random region, with a place for the seed.
        rate: the learning rate of both.
        localized: settings of the localization that both read.
    """

    rule: str
    control: str
    rate: float
    localized: dict[str, Any]


REGIONS = {
    "GRAIL": Region("grail", "random(grail, seed={})", 3e-4, {"share": [0.1, 0.2]}),
    "MemFlex": Region(REGION, f"random({REGION}, seed={{}}, scope=model)", 3e-4, {"share": [0.1, 0.2]}),
    "WAGLE": Region(
        "confine", "random(confine, seed={})", 1e-3, {"importance": "wagle", "labels": "true", "share": [0.1]}
    ),
    "z-score": Region(
        "confine", "random(confine, seed={})", 1e-3, {"importance": "zscore", "labels": "true", "share": [0.1]}
    ),
}


def main(
    runs: Path = Path("runs/localization"),
    out: Path = Path("figures/localization"),
    page: Path = Path("docs/results/localization.md"),
    *,
    seeds: int = 3,
    trainings: int = 3,
    draws: int = 5,
    steps: int = 80,
    objective: str = "ga",
) -> None:
    """Run what is missing, then tabulate, draw and tell."""
    started, made = time.perf_counter(), list[Path]()
    found = planted(runs, seeds, made)
    curves = confined(runs, trainings, draws, {"steps": steps, "objective": objective}, made)
    table = tabulate(curves)
    plots.save(draw(found, table), out / "localization", curves)
    found.to_csv(out / "planted.csv", index=False, float_format="%.4f")
    table.to_csv(out / "confined.csv", index=False, float_format="%.4f")
    keep_configs(made, out)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(tell(found, table, (seeds, trainings, draws), objective), encoding="utf-8")
    print(found.groupby("localizer", sort=False)[["precision", "recall", "auc"]].mean().to_string(float_format="%.3f"))
    print(table.to_string(index=False, float_format="%.3f"))
    print(f"{len(made)} runs, {(time.perf_counter() - started) / 60:.1f} min")


def planted(runs: Path, seeds: int, made: list[Path]) -> pd.DataFrame:
    """A row a localizer and seed: precision and recall of the forget masks of the planted size, and the AUC."""
    frames = []
    for seed in range(seeds):
        mask = f"random:{seed}:{SHARE}"
        place: dict[str, Any] = {"out": runs / f"planted-{seed}"}
        (start,) = ensure([PLANT | {"only_mask": mask, "seed": seed} | place], "finetune")
        common = {
            "model": str(start),
            "domain": [f"planted={PLANT['train'][0]},{AUTHORS['retain']}[:40]"],
            "share": [SHARE],
            "labels": "true",
            "truth": mask,
            "masks_only": True,
        }
        for name, changes in LOCALIZERS.items():
            control = {"control": [CONTROL]} if name == "mean_abs" else {}
            place = {"out": runs / f"found-{name.replace(', μ = ', '-')}-{seed}"}
            (path,) = ensure([common | {"importance": name} | changes | control | place], "localize")
            rows = pd.DataFrame(json.loads((path / "metrics.json").read_text(encoding="utf-8"))["truth"])
            rows = rows[(rows["size"] == "planted") & rows["split"].str.startswith("forget")]
            frames.append(rows.replace({"localizer": {changes.get("importance", name): name}}).assign(seed=seed))
            made.append(path)
        frames.append(_sizes_of_weights(start, mask).assign(seed=seed))
        made.append(start)
    frame = pd.concat(frames, ignore_index=True)
    frame["draw"] = frame["localizer"].str.partition(":")[2]
    frame["localizer"] = frame["localizer"].str.partition(":")[0]
    return frame[["localizer", "seed", "draw", "precision", "recall", "auc"]]


def _sizes_of_weights(start: Path, mask: str) -> pd.DataFrame:
    """What |θ| finds that reads no gradient: planting at a high rate makes weights large."""
    parameters = trainable_parameters(load_model(str(start), device="cpu").model)
    shapes = {name: list(parameter.shape) for name, parameter in parameters.items()}
    recovery = Recovery(read_planted(mask, shapes), {name: each.numel() for name, each in parameters.items()})
    for name, parameter in parameters.items():
        recovery.add("forget", WEIGHTS, name, parameter.detach().abs(), {})
    return pd.DataFrame(recovery.rows())


def confined(runs: Path, seeds: int, draws: int, shared: dict[str, Any], made: list[Path]) -> pd.DataFrame:
    """Every step's losses and accuracies: of a region's own masks a seed each, of random ones a draw each."""
    frames = []

    def unlearn(name: str, kind: str, seed: int, number: int, settings: dict[str, Any]) -> None:
        stop = {"stop": f"forget_loss(level={LEVELS[-1] + 0.3:g})", "evaluate": ["forget", "heldout"]}
        often = {"evaluate_every": 1, "diagnose_every": shared["steps"], "seed": seed}
        (path,) = ensure([AUTHORS | shared | stop | often | settings | {"out": runs / f"{name}-{kind}-{number}"}])
        columns = ["step", "forget_loss", "forget_accuracy", "heldout_loss", "heldout_accuracy"]
        frames.append(read_steps(path)[columns].assign(method=name, mask=kind, number=number))
        made.append(path)

    for seed in range(seeds):
        unlearn("all entries", "own", seed, seed, {"learning_rate": 3e-4})
    for number, (name, region) in itertools.product(range(max(seeds, draws)), REGIONS.items()):
        seed = number % seeds
        settings = {"learning_rate": region.rate, "masks": _localized(runs, seed, region.localized, made)}
        if number < seeds:
            unlearn(name, "own", seed, number, settings | {"rectifier": region.rule})
        if number < draws:
            unlearn(name, "random", seed, number, settings | {"rectifier": region.control.format(number)})
    return pd.concat(frames, ignore_index=True)


def _localized(runs: Path, seed: int, settings: dict[str, Any], made: list[Path]) -> Path:
    name = f"localized-{settings.get('importance', 'mean_abs')}-{seed}"
    domain = {"domain": [f"authors={AUTHORS['forget']},{AUTHORS['retain']}"], "model": AUTHORS["model"], "seed": seed}
    (path,) = ensure([domain | settings | {"out": runs / name}], "localize")
    made.extend([path] if path not in made else [])
    return path


def tabulate(curves: pd.DataFrame) -> pd.DataFrame:
    """A row a method, kind of mask (own, random) and level.

    Columns ``heldout accuracy`` (the mean; NaN unless all runs came to the level), ``low`` and ``high`` over ``runs``,
    ``reached`` (how many came), ``steps`` until then.
    """
    rows = []
    for (method, mask), part in curves.groupby(["method", "mask"], sort=False):
        each = [run.sort_values("step") for _, run in part.groupby("number")]
        for level in LEVELS:
            kept = np.array([at_forget_loss(run, "heldout_accuracy", level) for run in each])
            row = {"method": method, "mask": mask, "forget loss": level, "runs": len(each)}
            row |= {"reached": int(np.isfinite(kept).sum()), "heldout accuracy": kept.mean()}
            row |= {"low": kept.min(), "high": kept.max()}
            rows.append(row | {"steps": np.mean([at_forget_loss(run, "step", level) for run in each])})
    return pd.DataFrame(rows)


def draw(found: pd.DataFrame, table: pd.DataFrame) -> Any:
    """Above, the AUC on planted entries; below, heldout accuracy at both levels: means and ranges."""
    with plt.rc_context(plots.STYLE):
        figure = plt.figure(figsize=(3.4, 4.2), layout="constrained")
        parts: Any = figure.subfigures(2, 1)
        above, below = parts
        _planted_panel(above.subplots(), found)
        panels: Any = below.subplots(1, len(LEVELS), sharey=True)
        for axes, level in zip(panels, LEVELS, strict=True):
            _confined_panel(axes, table[table["forget loss"] == level])
            axes.set_title(f"forget loss {level:g}")
        handles, labels = panels[0].get_legend_handles_labels()
        below.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _planted_panel(axes: Any, found: pd.DataFrame) -> None:
    grouped = found.groupby("localizer", sort=False)["auc"]
    order = [*(name for name in grouped.groups if name not in REFERENCES), *REFERENCES]
    for place, name in enumerate(reversed(order)):
        values = grouped.get_group(name)
        color, marker = (ORANGE, "s") if name in REFERENCES else (BLUE, "o")
        axes.hlines(place, values.min(), values.max(), color=color, lw=1.2)
        axes.plot(values.mean(), place, marker, color=color, ms=4)
    axes.axvline(0.5, color="0.6", lw=0.6, ls=":")
    axes.set(yticks=range(len(order)), yticklabels=list(reversed(order)), xlabel="AUC on planted entries")
    axes.grid(axis="y", color="0.9", lw=0.6)


def _confined_panel(axes: Any, rows: pd.DataFrame) -> None:
    order = list(reversed(list(dict.fromkeys(rows["method"]))))
    for kind, label, color, marker, shift in (
        ("own", "localized", BLUE, "o", 0.14),
        ("random", "random", ORANGE, "s", -0.14),
    ):
        part = rows[rows["mask"] == kind]
        places = np.array([order.index(name) for name in part["method"]]) + shift
        axes.hlines(places, part["low"], part["high"], color=color, lw=1.2)
        axes.plot(part["heldout accuracy"], places, marker, color=color, ms=4, label=label)
    axes.set(xlabel="heldout accuracy", yticks=range(len(order)), yticklabels=order)
    axes.grid(axis="y", color="0.9", lw=0.6)


def tell(found: pd.DataFrame, table: pd.DataFrame, sizes: tuple[int, int, int], objective: str) -> str:
    """The page, in Markdown: both tables, and whether a random mask does as well; ``sizes`` are those of `main`."""
    seeds, trainings, draws = sizes
    return "\n".join([
        "# Localization against random masks",
        "",
        "*`python -m analysis.localization_controls` writes this page from its runs; `figures/localization/` has the",
        "figure, the tables and the configurations. The built-in tiny model of 1.7 million parameters: what",
        "holds here need not hold for another model or data set.*",
        "",
        "## Planted entries",
        "",
        f"24 people of the privacy domain were fine-tuned into a random {100 * SHARE:g} % of each tensor's",
        f"entries (`geffect finetune --only-mask`), {seeds} seeds. Importance is that of these examples, with true",
        "labels; the other split is 40 authors. Precision is that of masks with as many entries of each tensor as were",
        "planted there, where it equals recall; the AUC compares entries of one tensor, and 0.5 is chance.",
        "Means (lowest–highest).",
        f"`{WEIGHTS}` is |θ| alone, which reads no gradient: an importance that finds no more knows only that planting",
        "makes weights large.",
        "",
        *_planted_lines(found),
        "",
        "## Confined unlearning",
        "",
        f"The authors' forget set, objective `{objective}`, AdamW. Each method trains the entries that its rule leaves",
        f"free, {trainings} seeds; its control is the same training with the rule's mask drawn by lot, {draws} draws:",
        "as many entries of each tensor, or for MemFlex, which frees whole tensors, as many in all, the same share of",
        "each tensor. Heldout accuracy where the forget loss first comes to a level; mean (lowest–highest).",
        "At equal forgetting the order of GRAIL's harmonic score is that of what is retained.",
        f"A verdict says whether the ranges of {trainings} and {draws} runs touch; it is no test, and a random region",
        "may take several times the steps (`confined.csv`).",
        "",
        *_confined_lines(table),
        "",
    ])


def _planted_lines(found: pd.DataFrame) -> list[str]:
    lines = ["| importance | precision | AUC |", "|---|---|---|"]
    by_name = {str(name): part for name, part in found.groupby("localizer", sort=False)}
    names = [name for name in by_name if name not in REFERENCES]
    rows = [(name, _range(by_name[name]["precision"]), _range(by_name[name]["auc"])) for name in [*names, *REFERENCES]]
    lines += [f"| {name} | {precision} | {auc} |" for name, precision, auc in rows]
    ends = []
    for reference in REFERENCES:
        most = by_name[reference]["auc"].max()
        better = [name for name in names if by_name[name]["auc"].min() > most]
        ends.append(f"AUC above that of {reference} in every seed: {', '.join(better) or 'none'}.")
    return [*lines, "", *ends]


def _confined_lines(table: pd.DataFrame) -> list[str]:
    lines = ["| method | forget loss | localized | random | verdict |", "|---|---|---|---|---|"]
    for (method, level), part in table.groupby(["method", "forget loss"], sort=False):
        own, lot = (part[part["mask"] == kind] for kind in ("own", "random"))
        shown = [_reached(each.iloc[0]) if len(each) else "–" for each in (own, lot)]
        verdict = _verdict(own.iloc[0], lot.iloc[0]) if len(lot) else "no control"
        lines.append(f"| {method} | {level:g} | {shown[0]} | {shown[1]} | {verdict} |")
    return lines


def _verdict(own: Any, lot: Any) -> str:
    """Whether a random mask does as well: the ranges over runs touch, or they do not."""
    if own["reached"] < own["runs"] or lot["reached"] < lot["runs"]:
        return "not every run came to the level"
    if own["low"] > lot["high"]:
        return "the localized mask retains more"
    return "a random mask retains more" if own["high"] < lot["low"] else "a random mask does as well"


def _reached(row: Any) -> str:
    if row["reached"] < row["runs"]:
        return f"{row['reached']} of {row['runs']} runs came to it"
    return f"{row['heldout accuracy']:.3f} ({row['low']:.3f}–{row['high']:.3f})"


def _range(values: "pd.Series[float]") -> str:
    return f"{values.mean():.3f} ({values.min():.3f}–{values.max():.3f})"


if __name__ == "__main__":
    parser = command_line(__doc__, Path("runs/localization"))
    for flag, value, meaning in (
        ("--seeds", 3, "seeds of the planted entries"),
        ("--trainings", 3, "seeds of every confined unlearning"),
        ("--draws", 5, "random masks of each size"),
        ("--steps", 80, "largest number of steps of an unlearning"),
    ):
        parser.add_argument(flag, type=int, default=value, help=f"{meaning} (default: {value})")
    parser.add_argument("--objective", default="ga", help="what is descended (default: ga)")
    chosen = vars(parser.parse_args())
    main(chosen.pop("runs"), **chosen)
