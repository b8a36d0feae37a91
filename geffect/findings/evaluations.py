"""What the evaluations of a run show: how much more was forgotten than was lost of what must stay.

Both claims compare two sets, for a risk that rises on both alike tells nothing of forgetting. Intervals are over rows:
they tell of other rows of the kind, not of other seeds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from geffect.findings.estimates import Numbers, over_rows
from geffect.findings.finding import Finding, number, within

TRIVIAL = 0.05  # nats a token


def evaluations(lines: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Compare the rise of the forget risk with that of what must stay, from the first evaluation to the last.

    Args:
        lines: of ``steps.jsonl``.

    Returns:
        ``forgotten``: the difference of both rises (nats a token); ``kept``: the ratio of the kept set's to the
        forget set's. Neither where the difference is not told from noise.
    """
    scored = [line for line in lines if "evaluation_rows" in line]
    kept = next((name for name in ("held", "retain") if scored and name in scored[0]["evaluation_rows"]), None)
    if kept is None or "forget" not in scored[0]["evaluation_rows"]:
        return []
    groups = [_rises(scored, name) for name in ("forget", kept)]
    difference = over_rows(groups, lambda a, b: _mean(a) - _mean(b))
    if difference is None or not difference.above(0) or difference.value < TRIVIAL:
        return []
    first, last = (scored[place]["evaluation"] for place in (0, -1))
    low, high = difference.interval()
    text = (f"Forgetting: the forget risk went from {_ends(first, last, 'forget', 'risk')} nats a token and its "
            f"accuracy from {_ends(first, last, 'forget', 'accuracy')}; the risk rose {number(difference.value)} "
            f"{within(low, high)} more than the {kept} set's.")  # fmt: skip
    found = [Finding("forgotten", text, difference.value, low, high)]
    ratio = over_rows(groups, lambda a, b: _mean(b) / _mean(a))
    if ratio is not None and ratio.below(1):
        low, high = ratio.interval()
        text = (f"Keeping: for each nat that the forget risk rose, the {kept} risk rose {number(ratio.value)} "
                f"{within(low, high)}; its accuracy went from {_ends(first, last, kept, 'accuracy')}.")  # fmt: skip
        found.append(Finding("kept", text, ratio.value, low, high))
    return found


def _rises(scored: Sequence[Mapping[str, Any]], name: str) -> Numbers:
    """``[rows, 2]``: the rise of each row's Σ −log p, and its labelled tokens."""
    first, last = (scored[place]["evaluation_rows"][name] for place in (0, -1))
    rise = np.asarray(last["nll"], float) - np.asarray(first["nll"], float)
    return np.stack([rise, np.asarray(first["tokens"], float)], axis=-1)


def _mean(rows: Numbers) -> Any:
    """Rise a token, ``[…, rows, 2]`` → ``[…]``."""
    return rows[..., 0].sum(-1) / rows[..., 1].sum(-1)


def _ends(first: Mapping[str, Any], last: Mapping[str, Any], name: str, kind: str) -> str:
    return " to ".join(number(each[name][kind]) for each in (first, last))
