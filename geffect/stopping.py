"""Rules that end a run and choose its checkpoint: pure functions of the lines recorded so far."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from geffect.core.price import step_price
from geffect.core.registry import Configurable, Metric, Positive, Registry, Share, parse
from geffect.errors import GeffectError, shorten
from geffect.record.reader import NO_PRODUCTS, Score, StepLine, Stop

Lines = Sequence[StepLine]
STEPPED = ("applied", "update", "rectified", "masked", "objective")  # the first recorded one is the step, negated


class Rule(Configurable, ABC):
    """A rule that ends a run: a frozen dataclass, and a pure function of the lines so far."""

    @abstractmethod
    def broken(self, lines: Lines) -> str | None:
        """The reason to end the run after the last of these lines; None where there is none."""


@dataclass(frozen=True)
class Accuracy(Rule):
    """The token accuracy of the heldout set (else retain) falls below a share of its accuracy at the start.

    Attributes:
        share: of the accuracy at the start.
    """

    share: Share = 0.9

    def broken(self, lines: Lines) -> str | None:
        """As `Rule.broken`."""
        scores = _evaluations(lines)
        if not scores:
            return None
        name = _retain_side(scores[0])
        start, now = (each[name].accuracy for each in (scores[0], scores[-1]))
        reason = f"{name} accuracy {now:.3f} is below {self.share:g} of the start's {start:.3f}"
        return reason if now < self.share * start else None


@dataclass(frozen=True)
class Knee(Rule):
    """Since the last evaluation, the loss of heldout (else retain) rose by more than ``harm`` times that of forget.

    Attributes:
        harm: nats lost on the heldout or retain set per nat gained on the forget set.
    """

    harm: Positive = 1.0

    def broken(self, lines: Lines) -> str | None:
        """As `Rule.broken`."""
        scores = _evaluations(lines)
        if len(scores) < 2:
            return None
        name = _retain_side(scores[0])
        gained, lost = (scores[-1][each].loss - scores[-2][each].loss for each in ("forget", name))
        reason = f"{name} loss rose by {lost:.3g}, more than {self.harm:g} times the {gained:.3g} of the forget loss"
        return reason if lost > 0 and lost > self.harm * gained else None


@dataclass(frozen=True)
class Collapse(Rule):
    """The norm of the objective's gradient falls below a share of the first one: nothing more happens.

    Attributes:
        share: of the first measured norm.
    """

    share: Share = 0.01

    def broken(self, lines: Lines) -> str | None:
        """As `Rule.broken`."""
        norms = [line.norm_objective for line in lines if line.norm_objective is not None]
        if not norms or norms[-1] >= self.share * norms[0]:
            return None
        return f"the objective's gradient has norm {norms[-1]:.3g}, below {self.share:g} of the first's {norms[0]:.3g}"


@dataclass(frozen=True)
class ForgetLoss(Rule):
    """The forget loss reaches a level: enough is forgotten.

    Attributes:
        level: the level (nats a token).
    """

    level: Positive = 3.0

    def broken(self, lines: Lines) -> str | None:
        """As `Rule.broken`."""
        scores = _evaluations(lines)
        if not scores or scores[-1]["forget"].loss < self.level:
            return None
        return f"the forget loss {scores[-1]['forget'].loss:.3g} has reached {self.level:g}"


@dataclass(frozen=True)
class Dear(Rule):
    """Forgetting has become dear: even the cheapest step of the last measured one's length and gain costs too much.

    The step is the applied update where it is recorded (``--prediction``, ``--target``), else one along what was
    descended. Cost and gain are first-order changes of the retain and of the forget loss (`geffect.core.price`).

    Attributes:
        cost: nats of the retain loss for each nat of forgetting.
        metric: what a length is (`geffect.price`); ``adam`` needs --adam-metric.
    """

    cost: Positive = 1.0
    metric: Metric = "euclidean"

    def broken(self, lines: Lines) -> str | None:
        """As `Rule.broken`."""
        products = (line.products_in(self.metric) for line in reversed(lines))
        names, matrix = next((each for each in products if {"forget", "retain"} <= {*each.names}), NO_PRODUCTS)
        step = next((name for name in STEPPED if name in names), None)
        price = step_price(matrix, names, step) if step else {"gain": 0.0, "cheapest": 0.0}
        gain, cheapest = price["gain"], price["cheapest"]
        if not gain > 0 or cheapest <= self.cost * gain:
            return None
        least = f"a nat of forgetting costs at least {cheapest / gain:.3g} nats of retain loss at this length of step"
        return f"{least}, more than {self.cost:g}"


NAMED: dict[str, type[Rule]] = {
    "accuracy": Accuracy,
    "collapse": Collapse,
    "dear": Dear,
    "forget_loss": ForgetLoss,
    "knee": Knee,
}
RULES: Registry[Rule] = Registry("a stop rule", NAMED)
register_stop_rule = RULES.register


@dataclass(frozen=True)
class StopRules:
    """Rules that end a run as soon as one of them is broken.

    Attributes:
        text: as the user wrote it, such as ``accuracy(share=0.9) + collapse``.
        rules: name → rule, in the order written.
    """

    text: str = ""
    rules: Mapping[str, Rule] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.rules)

    def __str__(self) -> str:
        return self.text


def make_rules(text: str) -> StopRules:
    """Stop rules from their text, such as ``accuracy(share=0.9) + collapse``; none from an empty one.

    >>> dict(make_rules("accuracy(share=0.8) + knee").rules)
    {'accuracy': Accuracy(share=0.8), 'knee': Knee(harm=1.0)}
    """
    calls = parse(text) if text.strip() else []
    names = [call.name for call in calls]
    if any(call.weight != 1 for call in calls) or len(set(names)) < len(names):
        message = f"{shorten(repr(text))} weighs a stop rule or names one twice"
        raise GeffectError(message, remedy="Write 'accuracy(share=0.9) + collapse', for example")
    return StopRules(text, {call.name: RULES.build(call) for call in calls})


def first_broken(rules: StopRules, lines: Lines) -> Stop | None:
    """The first rule that ends a run after these lines, with its reason; None where the run continues."""
    for name, rule in rules.rules.items():
        reason = rule.broken(lines)
        if reason:
            return Stop(name, reason)
    return None


def checkpoint_choice(rules: StopRules, lines: Lines, checkpoints: Sequence[int]) -> dict[str, str | None]:
    """The last evaluated ``checkpoint`` before any rule was broken (``checkpoint-N``, or None), and the ``reason``."""
    evaluated = {line.step for line in lines if line.scores and not line.diverged}
    for step in sorted(set(checkpoints) & evaluated, reverse=True):
        if first_broken(rules, [line for line in lines if line.step <= step]) is None:
            reason = f"the last evaluated one with no rule broken ({' + '.join(rules.rules)})"
            return {"checkpoint": f"checkpoint-{step}", "reason": reason}
    return {"checkpoint": None, "reason": "none was saved and evaluated before a rule was broken: lower --save-every"}


def _evaluations(lines: Lines) -> list[Mapping[str, Score]]:
    return [line.scores for line in lines if line.scores and not line.diverged]


def _retain_side(evaluation: Mapping[str, Score]) -> str:
    return "heldout" if "heldout" in evaluation else "retain"
