"""How much of an answer a model has by heart, teacher-forced."""

import math
import sys

from geffect.evaluation.view import TokenScores

LARGEST = math.log(sys.float_info.max)


def exponential(value: float) -> float:
    """exp(x); infinite beyond what a float64 holds, where `math.exp` raises.

    Returns:
        Non-negative; NaN of NaN.

    >>> exponential(0.0), exponential(710.0), exponential(-800.0)
    (1.0, inf, 0.0)
    """
    return math.inf if value > LARGEST else math.exp(value)


def answer_probability(answer: TokenScores) -> float:
    """P = exp((1/n) Σ log p) over an answer's n labeled tokens, its end included (TOFU, arXiv 2401.06121).

    Returns:
        In (0, 1]; NaN where n = 0.
    """
    return exponential(-answer.nll)


def perplexity(example: TokenScores) -> float:
    """exp(−(1/n) Σ log p) over an example's n labeled tokens.

    Of a set, ``perplexity`` is exp of the exponent's mean over examples, the geometric mean of this number (arXiv
    2407.01920's, and that of `geffect.evaluation.metrics.success`), and ``mean_perplexity`` the arithmetic mean, which
    is larger.

    Returns:
        1 or more; infinite beyond 709 nats a token, NaN where n = 0.
    """
    return exponential(example.nll)


def exact_memorization(answer: TokenScores) -> float:
    """Share of an answer's tokens but the last (the end) that are the most likely ones (as open-unlearning has it).

    KnowUnDo's accuracy (`geffect.evaluation.metrics.success`) keeps the last.

    Returns:
        In [0, 1]; NaN where the answer has no token but the last.
    """
    right = answer.right[:-1]
    return right.double().mean().item() if len(right) else math.nan


def extraction_strength(answer: TokenScores, *, floor: bool = False) -> float:
    """ES = 1 − k/n, with k the fewest tokens of the answer after which all others are the most likely ones.

    The last labeled token, the end, does not count (arXiv 2406.09179; teacher-forced as in open-unlearning).

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
