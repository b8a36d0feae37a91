"""The outcome of a run: was the forgetting selective, or was everything lost alike?

Each example is paired with itself at the first evaluation. Intervals are bootstraps over examples: they tell of other
examples of the kind, not of other seeds.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from geffect.core.splits import role_of
from geffect.record.reader import StepLine, damage_refused, step_lines
from geffect.reports.findings.changes import (
    Interval,
    SetChange,
    Statistic,
    change_of,
    examples_of,
    interval,
    lost_accuracy,
    lost_probability,
    plain,
    rise,
)
from geffect.reports.findings.estimates import Numbers
from geffect.reports.findings.finding import number, percent, within

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
KEPT = ("heldout", "heldout", "retain")  # roles that must stay; the first that was evaluated is compared with
SCALES: dict[str, Statistic] = {"accuracy": lost_accuracy, "probability": lost_probability}
HALF = 0.5  # selective: the kept set lost less than this part of what the forget set lost
TRIVIAL = 0.05  # a share below this is not lost


class Outcome(NamedTuple):
    """Whether a run forgot selectively.

    Attributes:
        verdict: ``selective``, ``not selective``, ``nothing forgotten`` or ``not told``.
        sentence: the verdict in plain words, the numbers it rests on, and what to try where that helps.
        judged_by: ``accuracy``, or ``probability`` (exp(−loss) of a token) where accuracies do not tell; None where
            neither does.
        steps: of the first and the last evaluation; None where there are not two.
        forget: what became of the forget set; None where nothing can be compared.
        kept: of the heldout set, or of the retain set where no heldout set was evaluated.
        difference: ``accuracy``: the share of its accuracy that the forget set lost, less that of the kept set.
            ``loss``: the rise of the forget loss, less that of the kept set's, nats a token.
    """

    verdict: str
    sentence: str
    judged_by: str | None = None
    steps: tuple[int, int] | None = None
    forget: SetChange | None = None
    kept: SetChange | None = None
    difference: Mapping[str, Interval] | None = None

    def to_json(self) -> dict[str, Any]:
        """The same as objects, numbers and null, for JSON."""
        found: dict[str, Any] = plain(self)
        return found


@damage_refused
def outcome(path: Path | str) -> Outcome:
    """Whether a run forgot selectively, from its first to its last evaluation.

    Args:
        path: the run directory.

    Returns:
        The outcome; ``not told`` where the forget set, or a set to compare it with, was not evaluated twice.
    """
    return judged(step_lines(path))


def judged(lines: Sequence[StepLine]) -> Outcome:
    """Judge the evaluations of a run.

    L is the share that a set lost. Forgetting is selective where ½·L(forget) − L(kept) lies above zero, and not where
    it lies below, by its 95 % interval; nothing was forgotten where L(forget) lies below 0.05. Token accuracies are
    asked first. Where they do not tell, the probability of a token is: it moves before any first choice does.

    Args:
        lines: of ``steps.jsonl``.

    Returns:
        The outcome.
    """
    scored = [line for line in lines if line.examples]
    roles = {role_of(name) for name in scored[0].examples} if scored else set()
    kept = next((role for role in KEPT if role in roles), None)
    if "forget" not in roles or kept is None or len(scored) < 2:
        missing = "a forget set and a heldout or retain set were not both evaluated at the start and at the end"
        return Outcome(NOT_TOLD, f"Not told whether forgetting was selective: {missing}.")
    return _compared(scored[0], scored[-1], kept)


def _compared(first: StepLine, last: StepLine, kept: str) -> Outcome:
    sets = [examples_of(first, last, role) for role in ("forget", kept)]
    verdicts = {scale: _verdict(sets, lost) for scale, lost in SCALES.items()}
    verdict, scale = _chosen(verdicts)
    forget, other = (change_of(first, last, role) for role in ("forget", kept))
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


def _chosen(verdicts: Mapping[str, str | None]) -> tuple[str, str | None]:
    """The verdict of the first scale that tells, and that scale."""
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
        for kind, show in (("accuracy", number), ("loss", _nats))
    )
    parts = [f"{HEADS[verdict]}: {accuracies}; {losses} nats a token.", _shares(verdict, scale, sets)]
    parts += ["No heldout set was evaluated."] if both[1].name == "retain" else []
    return " ".join([*parts, *([REMEDIES[verdict]] if verdict in REMEDIES else [])])


def _shares(verdict: str, scale: str | None, sets: list[Numbers]) -> str:
    """What each set lost by the scale that told, and how that differs."""
    for name in [scale] if scale else SCALES:
        each, apart = [interval(SCALES[name], rows) for rows in sets], _apart(sets, SCALES[name])
        if apart.known and all(one.known for one in each):
            what = "accuracy" if name == "accuracy" else "probability of a token"
            noise = (
                "the difference is not told from noise"
                if apart.low <= 0 <= apart.high
                else "less than half of it would be selective"
            )
            said = f"; {noise}" if verdict in {NOT_SELECTIVE, NOT_TOLD} else ""
            return f"Share lost of the {what}: {' against '.join(map(_share, each))}{said}."
    return "There are too few examples for an interval."


def _share(found: Interval) -> str:
    value, low, high = (0.0 if abs(each) < 0.005 else each for each in found)
    return f"{percent(value)} {within(100 * low, 100 * high, 0)}"


def _nats(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}".replace("-", "−")
