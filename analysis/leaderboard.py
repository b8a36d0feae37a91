"""Draw ``figures/leaderboard/``: every objective, with and without GRU, at equal forgetting on the built-in authors.

    python -m analysis.leaderboard [RUNS] [RUNS_TO_LEVEL]

The curves are those of ``analysis.trade_off``. What heldout authors' answers are worth where the forget loss comes to 3
nats a token is read off between the two steps around it: the probability of heldout answers from the record, with
intervals over examples and seeds, and model utility from the two checkpoints of a second run that ends there. A small
model of 1.7 million parameters on generated text: what holds here need not hold elsewhere.
"""

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.runs import command_line, ensure, keep_configs
from analysis.trade_off import AT_LOSS, Cell, curves, settings
from geffect.core.statistics import bootstrap, percentile_interval
from geffect.evaluation.scores import model_utility
from geffect.models.checkpoints import checkpoints
from geffect.record.frames import read_steps
from geffect.reports import plots
from geffect.reports.compare import at_forget_loss, examples_at

Numbers = npt.NDArray[np.float64]
SEED = 0
LEVELS = np.round(np.arange(0.1, 6.01, 0.1), 2)
TO_LEVEL = {
    "stop": f"forget_loss(level={AT_LOSS:g})",
    "save_every": 1,
    "evaluate": ["forget", "heldout"],
    "diagnose_every": 25,
}
UTILITY = ("probability", "rouge_l_recall", "retain_truth")
HELDOUT = "heldout answer probability"


def main(
    runs: Path = Path("runs/trade_off"),
    to_level: Path = Path("runs/leaderboard"),
    out: Path = Path("figures/leaderboard"),
) -> None:
    """Run what is missing, then draw and tabulate."""
    started = time.perf_counter()
    cells, paths = curves(runs)
    methods = grouped(cells, paths)
    board = pd.DataFrame([at_level(name, methods, AT_LOSS) for name in methods])
    there = [not math.isnan(at_forget_loss(read_steps(path), "step", AT_LOSS)) for path in paths]
    to_level_settings = [each for each, reached in zip(settings(to_level), there, strict=True) if reached]
    stopped = ensure([each | TO_LEVEL for each in to_level_settings])
    found = iter(map(utility, stopped))
    utilities = {cell: next(found) if reached else math.nan for cell, reached in zip(cells, there, strict=True)}
    board = board.merge(pd.DataFrame(utility_rows(utilities)), on=["objective", "rectifier"])
    board = board.sort_values("mean", ascending=False, na_position="last")
    bands = pd.DataFrame([
        {"objective": name[0], "rectifier": name[1], "forget_loss": level} | interval(probabilities(each, level))
        for name, each in methods.items()
        for level in LEVELS
    ])
    label = f"{HELDOUT}\nat a forget loss of {AT_LOSS:g} nats a token"
    plots.save(plots.leaderboard(board, label), out / "board", board)
    plots.save(plots.trade_off_bands(bands, HELDOUT), out / "bands", bands)
    board.to_csv(out / "table.csv", index=False, float_format="%.4f")
    keep_configs(stopped, out)
    print(board.to_string(index=False, float_format="%.3f"))
    print(f"{len(paths) + len(stopped)} runs, {(time.perf_counter() - started) / 60:.1f} min")


def grouped(cells: list[Cell], paths: list[Path]) -> dict[tuple[str, str], list[Path]]:
    """(objective, rectifier) → its seeds' runs."""
    found: dict[tuple[str, str], list[Path]] = {}
    for (objective, rectifier, _), path in zip(cells, paths, strict=True):
        found.setdefault((objective, rectifier), []).append(path)
    return found


def probabilities(paths: list[Path], level: float) -> Numbers | None:
    """exp(−NLL / tokens) of every heldout example at a forget loss, ``[seeds, examples]``; None if a seed misses it."""
    found = [examples_at(path, "heldout", level) for path in paths]
    if any(each is None for each in found):
        return None
    return np.array([np.exp(-each[0] / each[2]) for each in found if each is not None])


def interval(values: Numbers | None) -> dict[str, float]:
    """Mean over seeds and examples, and its 95 % bootstrap interval, both drawn anew."""
    if values is None:
        return {"mean": math.nan, "low": math.nan, "high": math.nan}
    numbers = values

    def mean(seeds: Numbers, examples: Numbers) -> Numbers:
        places = seeds.astype(int)[..., :, None], examples.astype(int)[..., None, :]
        average: Numbers = numbers[places].mean((-2, -1))
        return average

    low, high = percentile_interval(bootstrap([np.arange(float(size)) for size in numbers.shape], mean, SEED))
    return {"mean": float(numbers.mean()), "low": low, "high": high}


def at_level(name: tuple[str, str], methods: dict[tuple[str, str], list[Path]], level: float) -> dict[str, Any]:
    """A method's line: heldout answer probability at a forget loss, and how much more than GA's, by example."""
    own, first = (probabilities(methods[each], level) for each in (name, ("GA", "none")))
    more = interval(None if own is None or first is None else own - first)
    steps = [at_forget_loss(read_steps(path), "step", level) for path in methods[name]]
    return (
        {"objective": name[0], "rectifier": name[1], "step": float(np.mean(steps))}
        | interval(own)
        | {f"more than GA{', ' + key if key != 'mean' else ''}": value for key, value in more.items()}
    )


def utility(run: Path) -> float:
    """Held model utility where a run's forget loss comes to the level, between the checkpoints around it."""
    steps = read_steps(run)
    place = at_forget_loss(steps, "step", AT_LOSS)
    if math.isnan(place):
        return math.nan
    before, after = math.floor(place), math.ceil(place)
    for folder in checkpoints(run):  # the two are kept, of twenty megabytes each
        if folder.name not in {f"checkpoint-{before}", f"checkpoint-{after}"}:
            shutil.rmtree(folder)
    found = [_utility(run, step) for step in (before, after)]
    return found[0] + (place - before) * (found[1] - found[0])


def _utility(run: Path, step: int) -> float:
    model = str(run / "checkpoints" / f"checkpoint-{step}") if step else "builtin:tiny"
    given = {"model": model, "metric": list(UTILITY), "set": ["heldout=builtin:authors/heldout"]}
    (path,) = ensure([given | {"out": run.parent / "utility" / f"{run.name}-{step}"}], "evaluate")
    (scores,) = json.loads((path / "metrics.json").read_text(encoding="utf-8"))["models"].values()
    return model_utility([scores["sets"]["heldout"][name]["mean"] for name in UTILITY])


def utility_rows(found: dict[Cell, float]) -> list[dict[str, Any]]:
    """Means over seeds with the smallest and largest; NaN where a seed never got there."""
    names = dict.fromkeys((objective, rectifier) for objective, rectifier, _ in found)
    rows = []
    for name in names:
        values = np.array([value for cell, value in found.items() if cell[:2] == name])
        rows.append({
            "objective": name[0],
            "rectifier": name[1],
            "heldout utility": values.mean(),
            "heldout utility, min": values.min(),
            "heldout utility, max": values.max(),
        })
    return rows


if __name__ == "__main__":
    parser = command_line(__doc__, Path("runs/trade_off"))
    default = Path("runs/leaderboard")
    parser.add_argument(
        "to_level", metavar="RUNS_TO_LEVEL", nargs="?", type=Path, default=default, help=f"(default: {default})"
    )
    chosen = parser.parse_args()
    main(chosen.runs, chosen.to_level)
