"""What the measured gradients of a run show beyond noise: conflict with the retain set, its start, place and removal.

`conflict`, `start` and `layers` speak of the objective's gradient before any rectifier, and say so where one ran:
``subject`` is what the sentence calls it.
"""

import math
import re
from typing import NamedTuple

import numpy as np
import pandas as pd

from geffect.core.effects import direction_name, inner_by_label, total_cosine
from geffect.core.splits import TARGETS, role_of
from geffect.core.statistics import Estimate, Numbers, block_length, moving_blocks, over_steps
from geffect.io.readers import StrPath
from geffect.record.frames import read, read_effects, read_standard_errors, read_targets
from geffect.record.reader import damage_refused, num_micro_batches, read_config


class Finding(NamedTuple):
    """One result of a run that its test distinguishes from noise, its number with a 95 % interval."""

    kind: str  # conflict, start, layers, removed or applied; of a monitored training effect
    text: str  # in plain words, with the number and its interval
    value: float
    low: float
    high: float
    gradient: str = (
        "objective"  # before any rectifier; or rectified; or applied or update, what the optimizer made of it
    )
    run: str = ""


def number(value: float, digits: int = 2) -> str:
    """A number as it is printed, with a real minus."""
    return f"{value:.{digits}f}".replace("-", "−")


def nats(value: float) -> str:
    """A loss as it is printed: three digits, or whole from 100 on; – for none."""
    if math.isnan(value):
        return "–"
    return (f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}").replace("-", "−")


def percent(share: float) -> str:
    """A share as it is printed: ``71 %``, never broken into two lines."""
    return f"{number(100 * share, 0)}\N{NO-BREAK SPACE}%"


def within(low: float, high: float, digits: int = 2) -> str:
    """An interval as it is printed: ``[0.60, 0.75]``, never broken into two lines."""
    return f"[{number(low, digits)},\N{NO-BREAK SPACE}{number(high, digits)}]"


@damage_refused
def read_findings(path: StrPath, run: str = "", scheme: str = "thirds") -> list[Finding]:
    """What a run shows beyond noise, most important first; empty where nothing does.

    Five claims on gradients are tested, each at `geffect.core.statistics.LEVEL`: over steps by the moving-block
    bootstrap, over checkpoints by their standard errors where an inspection recorded them. The layers of the harm to
    the retain set, and its removal, are tested only where there is such harm. `outcome` says what became of the sets.
    """
    rectifier = str(read_config(path).get("rectifier", "none"))  # grail(k_unlearn=0.1) + gru(decay=0.2): GRAIL + GRU
    name = "" if rectifier == "none" else re.sub(r"\(.*?\)", "", rectifier).upper()
    frame = read(path, "group", scheme)
    if not (frame["gradient"] == "objective").any():  # another training, which was monitored
        effects = read_effects(path, "group", scheme)
        return [each._replace(run=run) for each in target_effects(effects)]
    findings = findings_of(frame, name)
    batches = num_micro_batches(path)
    if batches and not any(finding.kind == "conflict" for finding in findings):
        findings = [*_present(conflict_at_checkpoints(read_standard_errors(path, "total"), batches)), *findings]
    further = [name for name in read_targets(path) if role_of(name) not in TARGETS]
    if further and (frame["gradient"] == "applied").any():
        effects = read_effects(path, "group", scheme)
        findings = [*findings, *target_effects(effects[effects["target"].isin(further)])]
    return [finding._replace(run=run) for finding in findings]


def findings_of(frame: pd.DataFrame, rectifier: str = "") -> list[Finding]:
    """What a record's tidy frame by group shows; ``rectifier`` is what changed the objective's gradient, if any."""
    rectifier = rectifier or ("the rectifier" if frame["gradient"].isin(["rectified", "masked"]).any() else "")
    subject = f"The objective before {rectifier}" if rectifier else "The objective"
    harm = _present(conflict(frame, subject), start(frame, subject))
    where = _present(layers(frame, subject), removal(frame, rectifier[:1].upper() + rectifier[1:])) if harm else []
    return [*harm, *where, *_present(optimizer_harm(frame))]


def target_effects(effects: pd.DataFrame) -> list[Finding]:
    """Which targets the steps harm, and which they help, by the mean effect over the measured steps; harm first."""
    found = []
    for target in effects["target"].unique():
        rows = effects[effects["target"] == target].pivot(index="step", columns="group", values="effect").dropna()
        values = rows.to_numpy(np.float64)
        estimate = over_steps(values, lambda x: x.sum(-1).mean(-1)) if len(values) else None
        if estimate is None or not (estimate.above(0) or estimate.below(0)):
            continue
        harms, total = estimate.value > 0, values.sum(-1)
        low, high = estimate.interval()
        place = int(np.argmax(values.sum(0) if harms else -values.sum(0)))
        group = NAMES.get(str(rows.columns[place]), f"{rows.columns[place]} carries")
        share = percent(float(values[:, place].sum() / total.sum()))
        verb, change = ("harm", "raised") if harms else ("help", "lowered")
        agree, interval = (
            percent(float(np.mean((total > 0) == harms))),
            f"[{_small(low)},\N{NO-BREAK SPACE}{_small(high)}]",
        )
        text = (
            f"The steps {verb} {target}: {agree} of {len(total)} measured ones {change} its loss to first order, by "
            f"{_small(estimate.value)} {interval} nats a token on average. {group} most of it, {share}."
        )
        found.append(Finding("effect", text, estimate.value, low, high, "update"))
    return sorted(found, key=lambda each: -each.value)


def _small(value: float) -> str:
    return f"{value:+.2g}".replace("-", "−").replace("e−0", "e−")


def _present(*findings: Finding | None) -> list[Finding]:
    return [finding for finding in findings if finding is not None]


TRIVIAL = 0.02  # a mean cosine nearer to zero is not reported
CLEAR = 0.1  # a share of the harm, beyond what is compared with


def conflict(frame: pd.DataFrame, subject: str = "The objective") -> Finding | None:
    """Whether the objective's gradient conflicts with the retain gradient: mean cosine over steps below zero."""
    cosine = np.asarray(total_cosine(frame, "objective", "retain").dropna(), dtype=np.float64)
    estimate = over_steps(cosine[:, None], _mean)
    if estimate is None or not estimate.below(0) or estimate.value > -TRIVIAL:
        return None
    low, high = _clipped(estimate, -1, 1)
    share = percent(float(np.mean(cosine < 0)))
    text = (
        f"{subject} conflicts with the retain set: at {share} of {len(cosine)} steps a step along its gradient "
        f"would raise the retain loss (mean cosine {number(estimate.value)} {within(low, high)})."
    )
    return Finding("conflict", text, estimate.value, low, high)


def start(frame: pd.DataFrame, subject: str = "The objective") -> Finding | None:
    """The first step from which the smoothed cosine of the objective's and the retain gradient stays below zero.

    The steps before it must not be in conflict by the same test, and those from it on must be, at `LEVEL` shared among
    all possible starts. Its interval repeats the search on the smoothed curve with blocks of its residuals. None where
    the conflict begins with the first step, or there is none.
    """
    cosine = total_cosine(frame, "objective", "retain").dropna()
    values, steps = np.asarray(cosine, dtype=np.float64), cosine.index.to_numpy()
    if not len(values):
        return None
    smooth = _smoothed(values)
    place = int(_start(smooth))
    after = over_steps(values[place:, None], _mean)
    if not 0 < place < len(values) or values[:place].mean() < 0:
        return None
    if after is None or not after.below(0, tests=len(values)) or after.value > -TRIVIAL:
        return None
    rest: Numbers = values - smooth
    drawn = smooth + rest[moving_blocks(len(values), block_length(values))]
    ends = np.quantile(_start(_smoothed(drawn)), [0.025, 0.975]).clip(max=len(values) - 1)
    low, high = (float(steps[int(end)]) for end in ends)
    text = (
        f"{subject} conflicts with the retain set from step {steps[place]} "
        f"[{low:.0f},\N{NO-BREAK SPACE}{high:.0f}] on, to the end."
    )
    return Finding("start", text, float(steps[place]), low, high)


def layers(frame: pd.DataFrame, subject: str = "The objective") -> Finding | None:
    """The layer group with the largest share of the retain harm, where it is more than an equal share.

    The share is Σ e_g / Σ e of the retain G-effects ⟨∇R_r, objective⟩ over the measured steps.
    """
    effects = inner_by_label(frame, "retain", "objective").unstack().dropna(how="any")
    effects = effects.loc[:, (effects != 0).any()]
    if effects.shape[1] < 2 or not len(effects):
        return None
    values, place = effects.to_numpy(np.float64), int(effects.sum().argmin())
    estimate = over_steps(values, lambda x: x[..., place].sum(-1) / x.sum((-2, -1)))
    equal = 1 / values.shape[1]
    if estimate is None or not estimate.above(equal, tests=values.shape[1]) or estimate.value < equal + CLEAR:
        return None
    low, high = _clipped(estimate, 0, np.inf)
    name = NAMES.get(str(effects.columns[place]), str(effects.columns[place]))
    share, lower = f"{percent(estimate.value)} {within(100 * low, 100 * high, 0)}", subject[0].lower() + subject[1:]
    text = (
        f"{name} {share} of the harm that {lower} would do to the retain set, to first order; "
        f"an equal share of {values.shape[1]} groups would be {percent(equal)}."
    )
    return Finding("layers", text, estimate.value, low, high)


NAMES = {
    "embed": "The embedding carries",
    "shallow": "Shallow layers carry",
    "middle": "Middle layers carry",
    "deep": "Deep layers carry",
    "lm_head": "The output head carries",
    "shared": "Parameters that several blocks share carry",
    "tied": "The tied embedding carries",
}


def removal(frame: pd.DataFrame, subject: str = "The rectifier") -> Finding | None:
    """How much of the retain harm a rectifier or frozen entries took out: 1 − Σ max(0, −e_after) / Σ max(0, −e_before).

    None where nothing rectified.
    """
    after = next((name for name in ("rectified", "masked") if (frame["gradient"] == name).any()), None)
    if after is None:
        return None
    effects = [inner_by_label(frame, "retain", name).groupby("step").sum() for name in ("objective", after)]
    harm = np.maximum(0, -pd.concat(effects, axis=1).dropna().to_numpy(np.float64))
    estimate = over_steps(harm, lambda x: 1 - x[..., 1].sum(-1) / x[..., 0].sum(-1)) if len(harm) else None
    if estimate is None or not estimate.above(0) or estimate.value < CLEAR:
        return None
    low, high = _clipped(estimate, -np.inf, 1)
    text = (
        f"{subject} removed {percent(estimate.value)} {within(100 * low, 100 * high, 0)} of the harm that the "
        "objective's gradient would do to the retain set: to first order, on the examples of each step, and before "
        "the optimizer."
    )
    return Finding("removed", text, estimate.value, low, high, "rectified")


def optimizer_harm(frame: pd.DataFrame) -> Finding | None:
    """Whether what the optimizer applied harms the retain set where the gradient it was given does not.

    The number is the mean cosine of ``applied`` and the retain gradient; None where it was not recorded.
    """
    if not (frame["gradient"] == "applied").any() and not (frame["other"] == "applied").any():
        return None
    names = (direction_name(frame), "applied")
    both = pd.concat([total_cosine(frame, name, "retain") for name in names], axis=1).dropna().to_numpy(np.float64)
    descended, applied = (over_steps(column[:, None], _mean) for column in both.T)
    apart = over_steps(both, lambda x: (x[..., 1] - x[..., 0]).mean(-1))
    if applied is None or descended is None or apart is None:
        return None
    if not applied.below(0) or not apart.below(0) or descended.value < 0 or applied.value > -TRIVIAL:
        return None
    low, high = _clipped(applied, -1, 1)
    text = (
        f"What the optimizer applied harms the retain set although the gradient it was given does not: mean cosine "
        f"{number(applied.value)} {within(low, high)} against {number(descended.value)}; their signs differ at "
        f"{percent(float(np.mean(both[:, 0] * both[:, 1] < 0)))} of {len(both)} steps."
    )
    return Finding("applied", text, applied.value, low, high, "applied")


def _mean(values: Numbers) -> Numbers:
    means: Numbers = values.mean((-2, -1))
    return means


def _clipped(estimate: Estimate, least: float, most: float) -> tuple[float, float]:
    low, high = estimate.interval()
    return max(low, least), min(high, most)


def _smoothed(values: Numbers) -> Numbers:
    """A centered moving average over about √n steps, the ends repeated."""
    from scipy.ndimage import uniform_filter1d

    smooth: Numbers = uniform_filter1d(values, round(values.shape[-1] ** 0.5), axis=-1, mode="nearest")
    return smooth


def _start(smooth: Numbers) -> Numbers:
    """Place from which a curve stays below zero to its end; its length where the end is not below."""
    above = smooth[..., ::-1] >= 0
    place: Numbers = np.where(above.any(-1), smooth.shape[-1] - above.argmax(-1), 0)
    return place


def conflict_at_checkpoints(errors: pd.DataFrame, batches: int) -> Finding | None:
    """Whether a step on the objective would raise the retain loss at the checkpoint where it would most surely.

    The number is the retain G-effect there (nats a token per unit of learning rate); None where no checkpoint's is
    below zero at `LEVEL` shared among the checkpoints.
    """
    rows = errors[(errors["gradient"] == "objective") & (errors["other"] == "retain")].dropna()
    if rows.empty or batches < 3:
        return None
    estimates = {
        int(step): Estimate(float(inner), float(error), batches - 1)
        for step, inner, error in rows[["step", "inner", "standard_error"]].itertuples(index=False)
    }
    below = [step for step, estimate in estimates.items() if estimate.below(0, tests=len(estimates))]
    if not below:
        return None
    value, (low, high) = estimates[max(below)].value, estimates[max(below)].interval()
    digits = int(np.clip(3 - np.floor(np.log10(abs(value))), 0, 6))
    text = (
        f"The objective conflicts with the retain set at {len(below)} of {len(estimates)} checkpoints; at step "
        f"{max(below)} the retain G-effect is {number(value, digits)} {within(low, high, digits)}."
    )
    return Finding("conflict", text, value, low, high)
