"""What became of a set of examples between the first and the last evaluation of a run."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from geffect.core.splits import role_of
from geffect.record.reader import StepLine
from geffect.reports.findings.estimates import Numbers, over_rows

Statistic = Callable[[Numbers], Any]
NAMES = {"forget": "forget", "heldout": "heldout", "retain": "retain"}  # of roles, as they are told
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
    """What became of one set.

    Attributes:
        name: ``forget``, ``heldout`` or ``retain``.
        examples: how many.
        accuracy: of tokens; its change is the share lost, 1 − end/start.
        loss: nats a token; its change is the rise, end − start.
    """

    name: str
    examples: int
    accuracy: Change
    loss: Change


def rise(examples: Numbers) -> Any:
    """The rise of the loss in nats a token, ``[…, examples, 5]`` → ``[…]``."""
    return (examples[..., 1] - examples[..., 0]).sum(-1) / examples[..., TOKENS].sum(-1)


def lost_accuracy(examples: Numbers) -> Any:
    """The share of the tokens right at the start that is gone, net of those won, ``[…, examples, 5]`` → ``[…]``."""
    return 1 - examples[..., 3].sum(-1) / examples[..., 2].sum(-1)


def lost_probability(examples: Numbers) -> Any:
    """The share that the probability exp(−loss) of a token lost, 1 − exp(−rise), ``[…, examples, 5]`` → ``[…]``."""
    return 1 - np.exp(-rise(examples))


def examples_of(first: StepLine, last: StepLine, role: str) -> Numbers:
    """The examples of a role in two evaluations, those of all domains together.

    Args:
        first: a line of ``steps.jsonl`` with an evaluation.
        last: another one.
        role: such as ``forget``.

    Returns:
        ``[examples, 5]``: Σ −log p at both ends, right tokens at both ends, labeled tokens. A loss that is not finite
        is infinite: a broken model knows nothing. Right tokens are NaN where a record has none an example.
    """
    names = [name for name in first.examples if role_of(name) == role]
    found = np.concatenate([_columns(first, last, name) for name in names])
    found[:, NLL] = np.nan_to_num(found[:, NLL], nan=np.inf, posinf=np.inf)
    return found


def _columns(first: StepLine, last: StepLine, name: str) -> Numbers:
    both = [line.examples[name] for line in (first, last)]
    tokens = np.array(both[0].tokens, dtype=np.float64)
    unknown = np.full(len(tokens), np.nan)
    parts = [*(each.nll for each in both), *(unknown if each.right is None else each.right for each in both), tokens]
    return np.stack([np.array(each, dtype=np.float64) for each in parts], axis=-1)


def change_of(first: StepLine, last: StepLine, role: str) -> SetChange:
    """What became of the sets of a role; of several domains, of all their examples together."""
    found = examples_of(first, last, role)
    losses, accuracies = ((found[:, each].sum(0) / found[:, TOKENS].sum()).tolist() for each in (NLL, RIGHT))
    if any(map(math.isnan, accuracies)):
        accuracies = [_mean_accuracy(line, role) for line in (first, last)]
    accuracy = Change(accuracies[0], accuracies[1], interval(lost_accuracy, found))
    return SetChange(NAMES[role], len(found), accuracy, Change(losses[0], losses[1], interval(rise, found)))


def _mean_accuracy(line: StepLine, role: str) -> float:
    return float(np.mean([score.accuracy for name, score in line.scores.items() if role_of(name) == role]))


def interval(statistic: Callable[..., Any], *sets: Numbers) -> Interval:
    """A statistic of examples with its interval, by `over_rows`; the number alone where there are too few."""
    found = over_rows(list(sets), statistic)
    if found is not None:
        return Interval(found.value, *found.interval())
    with np.errstate(divide="ignore", invalid="ignore"):
        return Interval(float(statistic(*sets)))


def plain(content: Any) -> Any:
    """Named tuples as dictionaries, and None in place of a number that JSON has not."""
    if hasattr(content, "_asdict"):
        content = content._asdict()
    if isinstance(content, Mapping):
        return {key: plain(each) for key, each in content.items()}
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return list(content) if isinstance(content, tuple) else content
