"""Tables of runs side by side, and runs at equal forgetting: what each retains, and in which settings they differ."""

import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geffect.core.effects import direction_name, g_effect, objective_name, total_cosine
from geffect.core.splits import TARGETS, role_of
from geffect.core.statistics import Numbers, bootstrap, chance_jaccard
from geffect.errors import GeffectError, visible_text
from geffect.io.readers import StrPath
from geffect.record.frames import read, read_effects, read_overlap, read_settings, read_standard_errors, read_steps
from geffect.record.reader import damage_refused, evaluations, num_micro_batches


def summarize(runs: Sequence[StrPath]) -> pd.DataFrame:
    """What each run forgot and retained at its last evaluation, its cosines, and its summed G-effects.

    Returns:
        One row a run: accuracies and losses (nats a token) of the ``forget`` and the ``heldout`` set (else of the
        ``retain`` set); ``cos, start`` and ``cos, end``, of the objective's and the retain gradient; ``conflict``, the
        share of steps whose retain G-effect is below 0; ``Σe_u`` and ``Σe_r``, the unlearn and retain G-effects of
        what was descended, summed over the measured steps.

    Raises:
        GeffectError: a run is damaged, named twice, or has no measured step.
    """
    return pd.DataFrame([{"run": name} | _row(path) for name, path in named(runs).items()])


@damage_refused
def _row(run: StrPath) -> dict[str, Any]:
    gram, steps = read(run), read_steps(run)
    effects = g_effect(gram, direction_name(gram))
    cosine = total_cosine(gram, objective_name(gram), "retain")
    last = _with_roles(steps.iloc[-1])
    other = "heldout" if "heldout_loss" in last else "retain"
    return {
        **{f"{role} acc.": last.get(f"{role}_accuracy") for role in ("forget", other)},
        **{f"{role} loss": last.get(f"{role}_loss") for role in ("forget", other)},
        "cos, start": cosine.iloc[0],
        "cos, end": cosine.iloc[-1],
        "conflict": (effects.groupby("step")["retain"].sum() < 0).mean(),
        "Σe_u": effects["unlearn"].sum(),
        "Σe_r": effects["retain"].sum(),
    }


def _with_roles(scores: "pd.Series[float]") -> "pd.Series[float]":
    """Scores with those of each role, where a run has domains: the mean over them."""
    for role, kind in itertools.product(TARGETS, ("accuracy", "loss")):
        parts = [value for name, value in scores.items() if re.fullmatch(rf"{role}/.*{kind}", str(name))]
        if parts:
            scores[f"{role}_{kind}"] = sum(parts) / len(parts)
    return scores


def at_checkpoints(path: StrPath) -> pd.DataFrame:
    """What an inspection measured at every checkpoint.

    Columns ``step``, the sets' losses, ``unlearn`` and ``retain`` (G-effects, nats a token per unit of learning rate),
    their standard errors ``± unlearn`` and ``± retain`` where recorded, and ``cosine`` (of the objective's and the
    retain gradient).
    """
    gram, steps = read(path), read_steps(path).set_index("step")
    effects = g_effect(gram).groupby("step")[["unlearn", "retain"]].sum()
    losses = [name for name in ("forget_loss", "retain_loss", "heldout_loss") if name in steps]
    parts = [steps[losses], effects]
    if num_micro_batches(path):
        errors = read_standard_errors(path, "total")
        for effect, target in zip(("unlearn", "retain"), TARGETS, strict=True):
            pair = errors[(errors["gradient"] == "objective") & (errors["other"] == target)].set_index("step")
            parts.append(pair["standard_error"].rename(f"± {effect}").to_frame())
    parts.append(total_cosine(gram, "objective", "retain").rename("cosine").to_frame())
    return pd.concat(parts, axis=1).rename_axis("step").reset_index()


def descended(gram: pd.DataFrame) -> pd.DataFrame:
    """The G-effects of the descended direction: the rectified gradient where a rectifier ran, else the objective's."""
    return g_effect(gram, direction_name(gram))


def effects_to_draw(
    path: StrPath, by: str = "group", scheme: str = "thirds", reading: str = "published"
) -> pd.DataFrame:
    """The G-effects that a figure draws, with the groups' ``total`` and standard errors.

    Args:
        path: a run.
        by: ``group`` or ``layer``, which has no total.
        scheme: how layers make groups.
        reading: ``published``, ⟨∇R, d⟩ of what was descended, or ``nats``, the change of a loss by the applied update.

    Returns:
        Columns ``step``, ``by``, ``unlearn`` and ``retain``, and ``± unlearn`` and ``± retain`` where their standard
        errors were recorded; in nats ``forget_change`` and ``retain_change`` (nats a token, above 0: the loss rises).
    """
    if reading == "nats":
        changes = read_effects(path, by, scheme)
        if missing := set(TARGETS) - set(changes["target"]):
            message = f"{Path(path)} has no target {min(missing)}"
            raise GeffectError(message, remedy="Draw the plot effects, a panel a target")
        wide = changes.pivot(index=["step", by], columns="target", values="effect")[list(TARGETS)]
        order = pd.MultiIndex.from_frame(changes[["step", by]].drop_duplicates())
        frame = wide.loc[order].add_suffix("_change").reset_index().rename_axis(columns=None)
    else:
        gram = read(path, by, scheme)
        frame = descended(gram)
    if by == "group":
        sums = frame.drop(columns=by).groupby("step").sum(min_count=1).reset_index()
        frame = pd.concat([sums.assign(group="total")[list(frame)], frame], ignore_index=True)
    if reading == "nats" or direction_name(gram) != "objective" or not num_micro_batches(path):
        return frame
    errors = read_standard_errors(path, by, scheme)
    if by == "group":
        errors = pd.concat([errors, read_standard_errors(path, "total").rename(columns={"total": by})])
    for effect, target in zip(("unlearn", "retain"), TARGETS, strict=True):
        pair = errors[(errors["gradient"] == "objective") & (errors["other"] == target)]
        frame = frame.merge(pair[["step", by, "standard_error"]], "left").rename(
            columns={"standard_error": f"± {effect}"}
        )
    return frame


def whole_overlaps(path: StrPath) -> pd.DataFrame:
    """Jaccard indices over the whole model, against chance.

    Columns ``share``, ``gradient``, ``other``, ``intersection``, ``union``, ``jaccard``, ``chance``.
    """
    counts = read_overlap(path).groupby(["share", "gradient", "other"], sort=False)[["intersection", "union"]].sum()
    frame = counts.reset_index()
    return frame.assign(
        jaccard=frame["intersection"] / frame["union"].where(frame["union"] > 0),
        chance=frame["share"].map(chance_jaccard),
    )


def named(runs: StrPath | Sequence[StrPath]) -> dict[str, Path]:
    """Directory of each run by its name, or by its path where two share a name; in visible form."""
    paths = [Path(run) for run in ([runs] if isinstance(runs, str | os.PathLike) else runs)]
    names = [path.resolve().name for path in paths]
    labels = [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]
    by_name = {visible_text(label, lines=False): path for label, path in zip(labels, paths, strict=True)}
    if len(by_name) < len(paths):
        raise GeffectError("A run is named twice", remedy="Name each once")
    return by_name


def at_forget_loss(run: pd.DataFrame, column: str, at: float) -> float:
    """A column's value where the forget loss first reaches a level, linear between evaluations.

    NaN where the level is never reached, or was passed before the first evaluation.
    """
    place = _place(run["forget_loss"].to_numpy(), at)
    return float("nan") if place is None else _between(run[column].to_numpy(), *place)


def _place(losses: Numbers, at: float) -> tuple[int, float] | None:
    """The evaluation at which a level is reached, and the share of the way to it from the one before."""
    above = np.flatnonzero(losses >= at)
    if not len(above) or (above[0] == 0 and losses[0] > at):
        return None
    if above[0] == 0:
        return 1, 0.0
    i = int(above[0])
    return i, float((at - losses[i - 1]) / (losses[i] - losses[i - 1]))


def _between(values: Numbers, i: int, share: float) -> Any:  # a number, or an array of them
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
        GeffectError: a run has no evaluations, they start above the level, sets differ, or a number is out of range.
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
    if len({tuple(harm[1]) for harm in harms.values() if harm is not None}) > 1:
        message = f"The runs were evaluated on different {other} examples"
        raise GeffectError(message, remedy="Compare runs of the same sets")
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


def examples_at(path: StrPath, other: str, level: float) -> tuple[Numbers, Numbers, Numbers] | None:
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


Harm = tuple[Numbers, Numbers] | None  # rise of each example's Σ −log p, and its labeled tokens


def _harm(path: StrPath, other: str, level: float) -> Harm:
    examples = examples_at(path, other, level)
    return None if examples is None else (examples[0] - examples[1], examples[2])


def _paired(harm: Harm, first: Harm, seed: int) -> dict[str, float]:
    if harm is None or first is None:
        return {"more harm": float("nan"), "low": float("nan"), "high": float("nan")}
    difference, tokens = harm[0] - first[0], harm[1]
    resampled = bootstrap([np.stack([difference, tokens], axis=-1)], _rate, seed)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {"more harm": float(difference.sum() / tokens.sum()), "low": float(low), "high": float(high)}


def differences(runs: Mapping[str, StrPath]) -> pd.DataFrame:
    """Every setting, data set and version in which runs differ: a row a setting and a column a run.

    ``–`` stands where a run does not have a setting. Directories and times of the runs do not count.
    """
    settings = pd.DataFrame({name: read_settings(path) for name, path in runs.items()}).fillna("–")
    return settings[settings.nunique(axis=1) > 1]


def _rate(examples: Numbers) -> Numbers:
    """Σ differences over Σ tokens, ``[…, examples, 2]`` → ``[…]``."""
    rates: Numbers = examples[..., 0].sum(-1) / examples[..., 1].sum(-1)
    return rates
