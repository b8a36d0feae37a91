"""`check`: whether a run kept limits on its sets' losses, in words, for a pipeline that ships models."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from geffect.core.splits import role_of
from geffect.errors import GeffectError, nearest
from geffect.io.readers import StrPath
from geffect.record.reader import StepLine, evaluations


class Verdict(NamedTuple):
    """Whether one limit was kept; losses are in nats a token."""

    name: str  # of the set
    kept: bool
    sentence: str
    limit: float
    rise: float | None  # of the loss, from the first evaluation to the last; None where the last is not finite
    start: float
    end: float | None


def check(run: StrPath, max_harm: Mapping[str, float] | None = None, min_forget: float | None = None) -> list[Verdict]:
    """Whether a run kept limits on how much the losses of its sets rose, from its first evaluation to its last.

    Args:
        run: the directory of a run, or of a monitored training.
        max_harm: set → the largest rise of its loss that is allowed (nats a token). A loss that is not finite is
            above every limit.
        min_forget: the smallest rise of the forget set's loss; of several domains, of each.

    Returns:
        A verdict a limit.

    Raises:
        GeffectError: no limit is given, a set was not evaluated, or the run has not been evaluated twice.
    """
    limits = dict(max_harm or {})
    if not limits and min_forget is None:
        raise GeffectError("There is no limit to check", remedy="Add --max-harm NAME=NATS or --min-forget NATS")
    for name, limit in [*limits.items(), *([] if min_forget is None else [("--min-forget", min_forget)])]:
        if not math.isfinite(limit):
            raise GeffectError(f"The limit of {name} is {limit}", remedy="Write a number of nats a token, such as 0.1")
    lines = evaluations(run)
    if len(lines) < 2:
        raise GeffectError(f"{run} was evaluated fewer than two times", remedy="Let the run end, or resume it")
    first, last = lines[0], lines[-1]
    verdicts = [_verdict(first, last, name, limit, most=True) for name, limit in limits.items()]
    if min_forget is not None:
        forgotten = [name for name in first.scores if role_of(name) == "forget"] or ["forget"]
        verdicts += [_verdict(first, last, name, min_forget, most=False) for name in forgotten]
    return verdicts


def _verdict(first: StepLine, last: StepLine, name: str, limit: float, *, most: bool) -> Verdict:
    if not (name in first.scores and name in last.scores):
        known = [each for each in first.scores if each in last.scores]
        remedy = f"{nearest(name, known)}Name one of {', '.join(known)}"
        raise GeffectError(f"The run did not evaluate {name}", remedy=remedy)
    start, end = (line.scores[name].loss for line in (first, last))
    finite = end is not None and math.isfinite(end)
    rise = end - start if finite else None
    kept = bool((rise is not None and rise <= limit) if most else (rise is None or rise >= limit))
    asked = f"{'at most' if most else 'at least'} {limit:g} was asked"
    told = "is not finite any more"
    if rise is not None:
        told = f"{'rose' if rise >= 0 else 'fell'} by {abs(rise):.4g} nats a token ({start:.4g} to {end:.4g})"
    return Verdict(name, kept, f"{name}: its loss {told}, {asked}", limit, rise, start, end if finite else None)
