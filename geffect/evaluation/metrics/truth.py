"""Truth ratio, model utility and forget quality of TOFU (arXiv 2401.06121)."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from geffect.errors import GeffectError
from geffect.evaluation.metrics.memorization import exponential

Aggregation = Literal["arithmetic", "geometric"]


def log_truth_ratio(right: float, wrong: Sequence[float], aggregation: Aggregation = "arithmetic") -> float:
    """log TR, with TR = agg_j P(wrong_j) / P(right) of length-normalized probabilities.

    Below 0 the right answer is likelier. The sources disagree on agg: TOFU's utility code takes the arithmetic mean of
    probabilities, its forget quality and the forks of NPO and GRU the geometric one. No probability is formed, so that
    answers of any length and likelihood have their ratio.

    Args:
        right: log P of the paraphrased answer, or of the answer where there is no paraphrase.
        wrong: log P of each wrong answer.
        aggregation: of the wrong ones.

    Returns:
        In nats; infinite where P(right) is exactly 0, NaN where those of the wrong answers are too.

    >>> round(log_truth_ratio(-760, [-760, -761]), 6), log_truth_ratio(-760, [-760, -761], "geometric")
    (-0.379885, -0.5)
    """
    logs = np.asarray(wrong, dtype=np.float64)
    if aggregation == "geometric":
        return float(logs.mean()) - right
    return float(np.logaddexp.reduce(logs)) - math.log(len(logs)) - right


def truth_ratio(log_ratio: float) -> float:
    """TR of its logarithm; infinite beyond what a float64 holds.

    Returns:
        Non-negative.

    >>> round(truth_ratio(math.log(0.5)), 12), truth_ratio(800.0)
    (0.5, inf)
    """
    return exponential(log_ratio)


def forget_truth(log_ratio: float) -> float:
    """min(TR, 1/TR) of a forget example: 1 where right and wrong are equally likely, small where one is likelier."""
    return math.exp(-abs(log_ratio))


def retain_truth(log_ratio: float) -> float:
    """max(0, 1 − TR) of a row to be kept: 1 where the wrong answers are impossible."""
    return -math.expm1(log_ratio) if not log_ratio >= 0 else 0.0


def normalized_probability(right: float, wrong: Sequence[float]) -> float:
    """P(right) / (P(right) + Σ_j P(wrong_j) + 1e-10), of sets with choices (real authors, world facts).

    Returns:
        In [0, 1).

    >>> round(normalized_probability(0.3, [0.1, 0.2]), 6)
    0.5
    """
    return right / (right + math.fsum(wrong) + 1e-10)


def model_utility(numbers: Sequence[float]) -> float:
    """The harmonic mean of probability, ROUGE-L recall and max(0, 1 − TR) of every set to be kept; 0 where one is 0.

    Returns:
        In [0, 1].

    Raises:
        GeffectError: there are none, or one is NaN or negative.

    >>> round(model_utility([1.0, 0.5, 0.5]), 6), model_utility([1.0, 0.0])
    (0.6, 0.0)
    """
    from scipy.stats import hmean

    if not len(numbers) or not all(each >= 0 for each in numbers):
        raise GeffectError(
            f"The model utility needs numbers of 0 or more, not {list(numbers)}", remedy="Evaluate every set of it"
        )
    return float(hmean(numbers)) if min(numbers) > 0 else 0.0


def forget_quality(unlearned: Sequence[float], retained: Sequence[float]) -> float:
    """The p-value of the two-sided Kolmogorov–Smirnov test between truth ratios of the forget set.

    High: the unlearned model cannot be told from one that never saw the set. Transforms that keep or turn the order, as
    log TR or 1/TR, do not change it.

    Args:
        unlearned: TR a row, or its logarithm, of the unlearned model.
        retained: the same of a model trained on the retain set alone.

    Returns:
        In [0, 1].

    >>> forget_quality([0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
    1.0
    """
    from scipy.stats import ks_2samp

    return float(ks_2samp(unlearned, retained).pvalue)
