"""Truth ratio, model utility and forget quality of TOFU (arXiv 2401.06121)."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from geffect.errors import GeffectError

Aggregation = Literal["arithmetic", "geometric"]


def truth_ratio(right: float, wrong: Sequence[float], aggregation: Aggregation = "arithmetic") -> float:
    """TR = agg_j P(wrong_j) / P(right), of length-normalised probabilities; below 1 the right answer is likelier.

    The sources disagree on agg: TOFU's utility code takes the arithmetic mean of probabilities, its forget quality and
    the forks of NPO and GRU the geometric one.

    Args:
        right: P of the paraphrased answer, or of the answer where there is no paraphrase.
        wrong: P of each wrong answer.
        aggregation: of the wrong ones.

    Returns:
        Non-negative; infinite where P(right) is 0.

    >>> truth_ratio(0.5, [0.1, 0.4]), round(truth_ratio(0.5, [0.1, 0.4], "geometric"), 3)
    (0.5, 0.4)
    """
    values = np.asarray(wrong, dtype=np.float64)
    with np.errstate(divide="ignore"):
        together = values.mean() if aggregation == "arithmetic" else np.exp(np.log(values).mean())
    return float(together / right) if right else math.inf


def forget_truth(ratio: float) -> float:
    """min(TR, 1/TR) of a forget row: 1 where right and wrong are equally likely, small where they are told apart."""
    return min(ratio, 1 / ratio) if ratio else 0.0


def retain_truth(ratio: float) -> float:
    """max(0, 1 − TR) of a row to be kept: 1 where the wrong answers are impossible."""
    return max(0.0, 1 - ratio)


def normalised_probability(right: float, wrong: Sequence[float]) -> float:
    """P(right) / (P(right) + Σ_j P(wrong_j) + 1e-10), of sets with choices (real authors, world facts).

    Args:
        right: P of the answer.
        wrong: P of each wrong answer.

    Returns:
        In [0, 1).

    >>> round(normalised_probability(0.3, [0.1, 0.2]), 6)
    0.5
    """
    return right / (right + math.fsum(wrong) + 1e-10)


def model_utility(numbers: Sequence[float]) -> float:
    """The harmonic mean of probability, ROUGE-L recall and max(0, 1 − TR) of every set to be kept; 0 where one is 0.

    Args:
        numbers: three a set: nine of TOFU's.

    Returns:
        In [0, 1].

    Raises:
        GeffectError: there are none, or one is NaN or negative.

    >>> round(model_utility([1.0, 0.5, 0.5]), 6), model_utility([1.0, 0.0])
    (0.6, 0.0)
    """
    from scipy.stats import hmean

    if not len(numbers) or not all(each >= 0 for each in numbers):
        raise GeffectError("numbers of 0 or more for the model utility", str(list(numbers)), "evaluate every set of it")
    return float(hmean(numbers)) if min(numbers) > 0 else 0.0


def forget_quality(unlearned: Sequence[float], retained: Sequence[float]) -> float:
    """The p-value of the two-sided Kolmogorov–Smirnov test between truth ratios of the forget set.

    High: the unlearned model cannot be told from one that never saw the set. Transforms that keep or turn the order, as
    1/TR, do not change it.

    Args:
        unlearned: TR a row, of the unlearned model.
        retained: TR a row, of a model trained on the retain set alone.

    Returns:
        In [0, 1].

    >>> forget_quality([0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
    1.0
    """
    from scipy.stats import ks_2samp

    return float(ks_2samp(unlearned, retained).pvalue)
