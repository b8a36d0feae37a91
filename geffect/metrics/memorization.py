"""How much of an answer a model has by heart, teacher-forced."""

import math

from geffect.metrics.tokenwise import TokenScores


def answer_probability(answer: TokenScores) -> float:
    """P = exp((1/n) Σ log p) over an answer's n labelled tokens, its end included (TOFU, arXiv 2401.06121).

    Args:
        answer: its scores.

    Returns:
        In (0, 1]; NaN where n = 0.
    """
    return math.exp(-answer.nll)


def exact_memorization(answer: TokenScores) -> float:
    """Share of an answer's tokens but the last (the end) that are the most likely ones (as open-unlearning has it).

    KnowUnDo's accuracy (`geffect.metrics.success`) keeps the last.

    Args:
        answer: its scores.

    Returns:
        In [0, 1]; NaN where the answer has no token but the last.
    """
    right = answer.right[:-1]
    return right.double().mean().item() if len(right) else math.nan


def extraction_strength(answer: TokenScores, *, floor: bool = False) -> float:
    """ES = 1 − k/n, with k the fewest tokens of the answer after which all others are the most likely ones.

    The last labelled token, the end, does not count (arXiv 2406.09179; teacher-forced as in open-unlearning).

    Args:
        answer: its scores.
        floor: as open-unlearning's code, whose k is at most n − 1: the least ES is then 1/n, that of an answer of which
            only the last token is right, and 0 for an empty answer.

    Returns:
        In [0, 1]; NaN where the answer has no token but the last, or 0 with ``floor``.
    """
    right = answer.right[:-1].tolist()
    n = len(right)
    if not n:
        return 0.0 if floor else math.nan
    k = next((n - i for i, each in enumerate(reversed(right)) if not each), 0)
    return 1 - min(k, n - 1 if floor else n) / n
