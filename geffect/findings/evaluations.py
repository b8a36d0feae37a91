"""What the evaluations of a run show: how much more was forgotten than was lost of what must stay.

Both claims compare two sets, for a risk that rises on both alike tells nothing of forgetting. Intervals are over rows:
they tell of other rows of the kind, not of other seeds.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from geffect.findings.estimates import Numbers, over_rows
from geffect.findings.finding import Finding, number, within
from geffect.scopes import role_of

TRIVIAL = 0.05  # nats a token


def evaluations(lines: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """Compare the rise of the forget risk with that of what must stay, from the first evaluation to the last.

    Args:
        lines: of ``steps.jsonl``.

    Returns:
        ``forgotten``: the difference of both rises (nats a token); ``kept``: the ratio of the kept set's to the
        forget set's. Neither where the difference is not told from noise.
    """
    scored = [line for line in lines if "evaluation_rows" in line and "diverged" not in line]
    roles = {role_of(name) for name in scored[0]["evaluation_rows"]} if scored else set()
    kept = next((role for role in ("held", "retain") if role in roles), None)
    if kept is None or "forget" not in roles:
        return []
    groups = [_rises(scored, role) for role in ("forget", kept)]
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


def _rises(scored: Sequence[Mapping[str, Any]], role: str) -> Numbers:
    """``[rows, 2]``: the rise of each row's Σ −log p, and its labelled tokens; the rows of all domains together."""
    first, last = (scored[place]["evaluation_rows"] for place in (0, -1))
    parts = [(last[name]["nll"], first[name]["nll"], first[name]["tokens"]) for name in first if role_of(name) == role]
    after, before, tokens = (np.concatenate(each) for each in zip(*parts, strict=True))
    return np.stack([after - before, tokens.astype(np.float64)], axis=-1)


def _mean(rows: Numbers) -> Any:
    """Rise a token, ``[…, rows, 2]`` → ``[…]``."""
    return rows[..., 0].sum(-1) / rows[..., 1].sum(-1)


def _ends(first: Mapping[str, Any], last: Mapping[str, Any], role: str, kind: str) -> str:
    """Of several domains their mean."""
    return " to ".join(
        number(float(np.mean([scores[kind] for name, scores in each.items() if role_of(name) == role])))
        for each in (first, last)
    )
