"""Runs at equal forgetting: what each retains where all have forgotten as much, and in which settings they differ."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from geffect.core.splits import role_of
from geffect.core.statistics import Numbers, bootstrap
from geffect.errors import GeffectError
from geffect.io.readers import StrPath
from geffect.record.frames import read_settings, read_steps
from geffect.record.reader import damage_refused, evaluations
from geffect.reports.compare import named


def at_forget_loss(run: pd.DataFrame, column: str, at: float) -> float:
    """A column where the forget loss first reaches a level, linear between evaluations.

    Its value; NaN where the level is never reached, or was passed before the first evaluation.
    """
    place = _place(run["forget_loss"].to_numpy(), at)
    return float("nan") if place is None else _between(run[column].to_numpy(), *place)


def _place(losses: Any, at: float) -> tuple[int, float] | None:
    """The evaluation at which a level is reached, and how far it lies between that before and it."""
    above = np.flatnonzero(losses >= at)
    if not len(above) or (above[0] == 0 and losses[0] > at):
        return None
    if above[0] == 0:
        return 1, 0.0
    i = int(above[0])
    return i, float((at - losses[i - 1]) / (losses[i] - losses[i - 1]))


def _between(values: Any, i: int, share: float) -> Any:
    return values[i - 1] + share * (values[i] - values[i - 1])


def compare(runs: Mapping[str, StrPath] | Sequence[StrPath], at: float | None = None, seed: int = 0) -> pd.DataFrame:
    """The matched comparison: what runs retain at the same forget loss, not at the same step.

    ``gained`` is the rise of the forget loss from the start, ``harm`` that of the ``heldout`` set's loss (else of the
    ``retain`` set's), and ``gained per harm`` their ratio. The last columns compare each run with the first: ``more
    harm`` with its 95 % interval, of 2000 bootstrap samples of the examples that all runs have in common. It tells of
    other examples of the kind, not of other seeds.

    Args:
        runs: run directories, or name → run directory.
        at: the forget loss (nats a token); the largest that every run reached by default.
        seed: of the bootstrap.

    Returns:
        One row a run; NaN where it never reached the level.

    Raises:
        GeffectError: a run has no evaluations, they start beyond the level, sets differ, or a number is out of range.
    """
    if at is not None and not math.isfinite(at):
        raise GeffectError(f"--at {at} is no finite forget loss", remedy="Name another")
    if not 0 <= seed < 2**32:
        raise GeffectError(f"--seed {seed} is not from 0 to {2**32 - 1}", remedy="Name another")
    runs = runs if isinstance(runs, Mapping) else named(runs)
    curves = {name: _curve(path) for name, path in runs.items()}
    other = "heldout" if all("heldout_loss" in curve for curve in curves.values()) else "retain"
    level = min(curve["forget_loss"].max() for curve in curves.values()) if at is None else at
    start = max(curve["forget_loss"].iloc[0] for curve in curves.values())
    if not level > start:
        raise GeffectError(
            f"The forget loss to compare runs at, {level:.3g}, is not above the start's {start:.3g}",
            remedy="Name a higher one with --at, or runs that forget",
        )
    harms = {name: _harm(path, other, level) for name, path in runs.items()}
    _check_same_examples(harms, other)
    first = next(iter(harms.values()))
    rows = {name: _at_level(curve, other, level) | _paired(harms[name], first, seed) for name, curve in curves.items()}
    return pd.DataFrame(list(rows.values())).assign(run=list(rows))[["run", *next(iter(rows.values()))]]


@damage_refused
def _curve(path: StrPath) -> pd.DataFrame:
    steps = read_steps(path)
    if "forget_loss" not in steps and any(role_of(str(name)) == "forget" for name in steps):
        remedy = "Compare the domains' own curves, from geffect.read_steps"
        raise GeffectError(f"{path} has several domains, not one forget set", remedy=remedy)
    if not {"forget_loss", "retain_loss"} & set(steps) or "forget_loss" not in steps:
        raise GeffectError(f"{path} has no evaluations of a forget set", remedy="Name a run of geffect unlearn")
    return steps.dropna(subset=["forget_loss"]).reset_index(drop=True)


def _at_level(curve: pd.DataFrame, other: str, level: float) -> dict[str, float]:
    start = curve.iloc[0]
    harm = at_forget_loss(curve, f"{other}_loss", level) - start[f"{other}_loss"]
    gained = level - start["forget_loss"]
    return {
        "step": at_forget_loss(curve, "step", level),
        "forget loss": level,
        "forget acc.": at_forget_loss(curve, "forget_accuracy", level),
        f"{other} loss": at_forget_loss(curve, f"{other}_loss", level),
        f"{other} acc.": at_forget_loss(curve, f"{other}_accuracy", level),
        "gained": gained,
        "harm": harm,
        "gained per harm": gained / harm if harm > 0 else float("nan"),
    }


def examples_at(path: StrPath, other: str, level: float) -> tuple[Any, Any, Any] | None:
    """The examples of a set where the forget loss first reaches a level, linear between evaluations.

    Arrays, a number an example: Σ −log p there, that of the first evaluation, labeled tokens. None where the level is
    never reached, or examples were not recorded.
    """
    lines = [line for line in evaluations(path) if not line.diverged]
    place = _place(np.array([line.scores["forget"].loss for line in lines]), level)
    if place is None or not all(other in line.examples for line in lines):
        return None
    nll = np.array([line.examples[other].nll for line in lines])
    return _between(nll, *place), nll[0], np.array(lines[0].examples[other].tokens)


Harm = tuple[Any, Any] | None  # rise of each example's Σ −log p, and its labeled tokens


def _harm(path: StrPath, other: str, level: float) -> Harm:
    found = examples_at(path, other, level)
    return None if found is None else (found[0] - found[1], found[2])


def _check_same_examples(harms: Mapping[str, Harm], other: str) -> None:
    counts = [each[1].tolist() for each in harms.values() if each is not None]
    if any(each != counts[0] for each in counts):
        raise GeffectError(
            f"The runs were evaluated on different {other} examples", remedy="Compare runs of the same sets"
        )


def _paired(own: Harm, first: Harm, seed: int) -> dict[str, float]:
    if own is None or first is None:
        return {"more harm": float("nan"), "low": float("nan"), "high": float("nan")}
    difference, tokens = own[0] - first[0], own[1]
    resampled = bootstrap([np.stack([difference, tokens], axis=-1)], _rate, seed)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {"more harm": float(difference.sum() / tokens.sum()), "low": float(low), "high": float(high)}


def differences(runs: Mapping[str, StrPath]) -> pd.DataFrame:
    """Every setting, data set and version in which runs differ.

    Args:
        runs: name → run directory.

    Returns:
        Indexed by setting, a column a run; ``–`` where it has none. Directories and times of the runs do not count.
    """
    settings = {name: read_settings(path) for name, path in runs.items()}
    keys = dict.fromkeys(key for each in settings.values() for key in each)
    rows = {key: [each.get(key, "–") for each in settings.values()] for key in keys}
    return pd.DataFrame({key: values for key, values in rows.items() if len(set(values)) > 1}, index=list(settings)).T


def _rate(examples: Numbers) -> Any:
    """Σ differences over Σ tokens, ``[…, examples, 2]`` → ``[…]``."""
    return examples[..., 0].sum(-1) / examples[..., 1].sum(-1)
