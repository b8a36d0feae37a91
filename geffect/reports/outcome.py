"""The outcome of a run: was forgetting selective, or was everything forgotten alike?

Each example is paired with itself at the first evaluation. Intervals are bootstraps over examples.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from geffect.core.splits import role_of
from geffect.core.statistics import Numbers, over_examples
from geffect.io.readers import StrPath
from geffect.record.reader import StepLine, damage_refused, evaluations, step_lines
from geffect.record.writer import plain
from geffect.reports.findings import nats, number, percent, within

Statistic = Callable[[Numbers], Numbers]
NLL, RIGHT, TOKENS = slice(0, 2), slice(2, 4), 4  # columns of `examples_of`: the first two at both ends


class Interval(NamedTuple):
    """A number with its 95 % interval over examples; the ends are NaN for fewer than four examples."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def known(self) -> bool:
        """Whether there is an interval."""
        return math.isfinite(self.low) and math.isfinite(self.high)


class Change(NamedTuple):
    """A score at the first and the last evaluation, and its change."""

    start: float
    end: float
    change: Interval


class SetChange(NamedTuple):
    """What became of one set."""

    name: str  # forget, heldout or retain
    examples: int
    accuracy: Change  # of tokens; its change is the share lost, 1 − end/start
    loss: Change  # nats a token; its change is the rise, end − start


def rise(examples: Numbers) -> Numbers:
    """The rise of the loss in nats a token, ``[…, examples, 5]`` → ``[…]``."""
    rises: Numbers = (examples[..., 1] - examples[..., 0]).sum(-1) / examples[..., TOKENS].sum(-1)
    return rises


def lost_accuracy(examples: Numbers) -> Numbers:
    """The share of the tokens right at the start that is gone, net of those won, ``[…, examples, 5]`` → ``[…]``."""
    shares: Numbers = 1 - examples[..., 3].sum(-1) / examples[..., 2].sum(-1)
    return shares


def lost_probability(examples: Numbers) -> Numbers:
    """The share that the probability exp(−loss) of a token lost, 1 − exp(−rise), ``[…, examples, 5]`` → ``[…]``."""
    return 1 - np.exp(-rise(examples))


def examples_of(first: StepLine, last: StepLine, role: str) -> Numbers:
    """The examples of a role in two evaluations, those of all domains together: ``[examples, 5]``.

    Σ −log p at both ends, right tokens at both ends, and labeled tokens. A loss that is not finite counts as infinite.
    Right tokens are NaN where the record has none by example.
    """
    sets = []
    for name in (name for name in first.examples if role_of(name) == role):
        start, end = (line.examples[name] for line in (first, last))
        unknown = [math.nan] * len(start.tokens)
        columns = [start.nll, end.nll, *(each.right or unknown for each in (start, end)), start.tokens]
        sets.append(np.array(columns, dtype=np.float64).T)
    examples = np.concatenate(sets)
    examples[:, NLL] = np.nan_to_num(examples[:, NLL], nan=np.inf, posinf=np.inf)
    return examples


def change_of(first: StepLine, last: StepLine, role: str) -> SetChange:
    """What became of the sets of a role; of several domains, of all their examples together."""
    examples = examples_of(first, last, role)
    losses, accuracies = ((examples[:, each].sum(0) / examples[:, TOKENS].sum()).tolist() for each in (NLL, RIGHT))
    if any(map(math.isnan, accuracies)):
        accuracies = [
            float(np.mean([score.accuracy for name, score in line.scores.items() if role_of(name) == role]))
            for line in (first, last)
        ]
    accuracy = Change(accuracies[0], accuracies[1], interval(lost_accuracy, examples))
    return SetChange(role, len(examples), accuracy, Change(losses[0], losses[1], interval(rise, examples)))


def interval(statistic: Callable[..., Numbers], *sets: Numbers) -> Interval:
    """A statistic of examples with its interval, by `over_examples`; without one where there are too few examples."""
    estimate = over_examples(list(sets), statistic)
    if estimate is not None:
        return Interval(estimate.value, *estimate.interval())
    with np.errstate(divide="ignore", invalid="ignore"):
        return Interval(float(statistic(*sets)))


SELECTIVE, NOT_SELECTIVE, NOTHING, NOT_TOLD = "selective", "not selective", "nothing forgotten", "not told"
HEADS = {
    SELECTIVE: "Selective",
    NOT_SELECTIVE: "Not selective",
    NOTHING: "Nothing was forgotten",
    NOT_TOLD: "Not told from noise whether forgetting was selective",
}
REMEDIES = {
    NOTHING: "Try a larger --learning-rate or more --steps.",
    NOT_TOLD: "Evaluate more examples of each set, or take more --steps.",
}
COMPARED = ("heldout", "retain")  # the first that was evaluated is what the forget set is compared with
SCALES: dict[str, Statistic] = {"accuracy": lost_accuracy, "probability": lost_probability}
HALF = 0.5  # selective: the other set lost less than this part of what the forget set lost
TRIVIAL = 0.05  # a share below this is not lost


class Outcome(NamedTuple):
    """Whether a run forgot selectively.

    ``difference`` holds, of ``accuracy``, the share that the forget set lost less that of the other set, and of
    ``loss`` the rise of the forget loss less that of the other set's (nats a token).
    """

    verdict: str  # selective, not selective, nothing forgotten or not told
    sentence: str  # the verdict in plain words, the numbers it rests on, and what to try where that helps
    judged_by: str | None = None  # accuracy, or probability (exp(−loss) of a token) where accuracies do not tell
    steps: tuple[int, int] | None = None  # of the first and the last evaluation
    forget: SetChange | None = None  # None where nothing can be compared
    compared: SetChange | None = None  # of the heldout set, or of the retain set where no heldout set was evaluated
    difference: Mapping[str, Interval] | None = None

    def to_json(self) -> dict[str, Any]:
        """The same as objects, numbers and null, for JSON."""
        content: dict[str, Any] = plain(self)
        return content


@damage_refused
def outcome(path: StrPath) -> Outcome:
    """Whether a run forgot selectively, from its first to its last evaluation."""
    return judge(step_lines(path))


def judge(lines: Sequence[StepLine]) -> Outcome:
    """Judge the evaluations of a run.

    L is the share that a set lost. Forgetting is selective where ½·L(forget) − L(other) lies above zero, and not where
    it lies below, by its 95 % interval; nothing was forgotten where L(forget) lies below 0.05. Token accuracies are
    asked first. Where they do not tell, the probability of a token is: it moves before any first choice does.
    """
    scored = [line for line in lines if line.examples]
    roles = {role_of(name) for name in scored[0].examples} if scored else set()
    compared = next((role for role in COMPARED if role in roles), None)
    if "forget" not in roles or compared is None or len(scored) < 2:
        return Outcome(NOT_TOLD, f"Whether forgetting was selective is unknown: {_missing(roles)}.")
    return _judge(scored[0], scored[-1], compared)


def _missing(roles: set[str]) -> str:
    """What a judgment lacks, and how to get it, from the sets that a run evaluated."""
    if not roles:
        return "no set was evaluated. Add --evaluate forget and --evaluate heldout, or leave --evaluate out"
    if not roles & {"forget", *COMPARED}:
        return f"no set is called forget; what became of {', '.join(sorted(roles))} stands below"
    if "forget" not in roles:
        return f"only {', '.join(sorted(roles))} was evaluated. Add --evaluate forget, or leave --evaluate out"
    if not roles & set(COMPARED):
        return (
            f"of the sets to retain none was evaluated, only {', '.join(sorted(roles))}. "
            "Add --evaluate retain or --evaluate heldout, or leave --evaluate out"
        )
    return "the sets were evaluated only once. Let the run end"


def _judge(first: StepLine, last: StepLine, compared: str) -> Outcome:
    sets = [examples_of(first, last, role) for role in ("forget", compared)]
    verdicts = {scale: _verdict(sets, lost) for scale, lost in SCALES.items()}
    verdict, scale = _decisive(verdicts)
    forget, other = (change_of(first, last, role) for role in ("forget", compared))
    difference = {"accuracy": lost_accuracy, "loss": rise}
    return Outcome(
        verdict,
        _sentence(verdict, scale, sets, (forget, other)),
        scale,
        (first.step, last.step),
        forget,
        other,
        {name: _apart(sets, statistic) for name, statistic in difference.items()},
    )


def _apart(sets: list[Numbers], statistic: Statistic) -> Interval:
    return interval(lambda a, b: statistic(a) - statistic(b), *sets)


def _verdict(sets: list[Numbers], lost: Statistic) -> str | None:
    """By one scale; None where it has no intervals."""
    forgot, harmed = (interval(lost, each) for each in sets)
    contrast = interval(lambda a, b: HALF * lost(a) - lost(b), *sets)
    if not (forgot.known and harmed.known and contrast.known):
        return None
    if forgot.high < TRIVIAL:
        return NOT_SELECTIVE if harmed.low > 0 and harmed.value > TRIVIAL else NOTHING
    if contrast.high < 0:
        return NOT_SELECTIVE
    return SELECTIVE if forgot.low > 0 and contrast.low > 0 else NOT_TOLD


def _decisive(verdicts: Mapping[str, str | None]) -> tuple[str, str | None]:
    """The verdict of the first scale that model_key, and that scale."""
    for scale, verdict in verdicts.items():
        if verdict in {SELECTIVE, NOT_SELECTIVE}:
            return verdict, scale
    return (NOTHING if set(verdicts.values()) - {None} == {NOTHING} else NOT_TOLD), None


def _sentence(verdict: str, scale: str | None, sets: list[Numbers], both: tuple[SetChange, SetChange]) -> str:
    """``Not selective: forget accuracy 0.93 → 0.51, heldout accuracy 0.94 → 0.55 (…). …``."""
    accuracies, losses = (
        ", ".join(
            f"{each.name} {kind} {show(getattr(each, kind).start)} → {show(getattr(each, kind).end)}" for each in both
        )
        for kind, show in (("accuracy", number), ("loss", nats))
    )
    parts = [f"{HEADS[verdict]}: {accuracies}; {losses} nats a token.", _shares(verdict, scale, sets)]
    parts += ["No heldout set was evaluated."] if both[1].name == "retain" else []
    return " ".join([*parts, *([REMEDIES[verdict]] if verdict in REMEDIES else [])])


def _shares(verdict: str, scale: str | None, sets: list[Numbers]) -> str:
    """What each set lost by the scale that decided, and how the two differ."""
    for name in [scale] if scale else SCALES:
        each, apart = [interval(SCALES[name], rows) for rows in sets], _apart(sets, SCALES[name])
        if apart.known and all(one.known for one in each):
            what = "accuracy" if name == "accuracy" else "probability of a token"
            noise = (
                "the difference is not told from noise"
                if apart.low <= 0 <= apart.high
                else "less than half of it would be selective"
            )
            remark = f"; {noise}" if verdict in {NOT_SELECTIVE, NOT_TOLD} else ""
            return f"Share lost of the {what}: {' against '.join(map(_share, each))}{remark}."
    return "There are too few examples for an interval."


def _share(lost: Interval) -> str:
    value, low, high = (0.0 if abs(each) < 0.005 else each for each in lost)
    return f"{percent(value)} {within(100 * low, 100 * high, 0)}"


WORST = ["set", "example", "nats a token, start", "nats a token, end", "rise"]


def worst_examples(path: StrPath, count: int = 3) -> pd.DataFrame:
    """The examples of every evaluated set that moved the wrong way most, or the right way least; columns are `WORST`.

    Of a forget set those whose −log p rose least, of any other those whose rose most; empty where fewer than two
    evaluations recorded their examples.
    """
    scored = [line.examples for line in evaluations(path) if line.examples and not line.diverged]
    if len(scored) < 2:
        return pd.DataFrame(columns=WORST)
    worst = []
    for name, first in scored[0].items():
        frame = pd.DataFrame({"start": first.nll, "end": scored[-1][name].nll}).div(first.tokens, axis=0)
        frame["rise"] = frame["end"] - frame["start"]
        most = frame.sort_values("rise", ascending=role_of(name).startswith("forget")).head(count)  # or forget_val
        worst.append(most.rename_axis("example").reset_index().assign(set=name))
    return pd.concat(worst)[["set", "example", "start", "end", "rise"]].set_axis(WORST, axis=1)
