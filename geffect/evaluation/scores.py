"""Scores of one example or of a whole set: memorization, membership, and TOFU's truth ratio and what is made of it.

A membership score is of one text or answer, and has the orientation of a loss: *lower* for one that looks trained on.
"""

import math
import sys
import zlib as compression
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from geffect.errors import GeffectError
from geffect.evaluation.view import TokenScores

LARGEST = math.log(sys.float_info.max)
K = 0.4  # MUSE's and open-unlearning's share of the least likely tokens

Aggregation = Literal["arithmetic", "geometric"]


def exponential(value: float) -> float:
    """exp(x), non-negative; infinite beyond what a float64 holds, where `math.exp` raises, and NaN of NaN.

    >>> exponential(0.0), exponential(710.0), exponential(-800.0)
    (1.0, inf, 0.0)
    """
    return math.inf if value > LARGEST else math.exp(value)


def answer_probability(answer: TokenScores) -> float:
    """P = exp((1/n) Σ log p) ∈ (0, 1] over an answer's n labeled tokens, its end included (TOFU, arXiv 2401.06121)."""
    return exponential(-answer.nll)


def perplexity(example: TokenScores) -> float:
    """exp(−(1/n) Σ log p) over an example's n labeled tokens.

    Of a set, ``perplexity`` is exp of the exponent's mean over examples, the geometric mean of this number (arXiv
    2407.01920's, and that of `geffect.evaluation.success`), and ``mean_perplexity`` the arithmetic mean, which is
    larger. Infinite beyond 709 nats a token, NaN where n = 0.
    """
    return exponential(example.nll)


def exact_memorization(answer: TokenScores) -> float:
    """Share of an answer's tokens but the last (the end) that are the most likely ones (as open-unlearning has it).

    KnowUnDo's accuracy (`geffect.evaluation.success`) counts the last, too. NaN where there is no token but the last.
    """
    right = answer.right[:-1]
    return right.double().mean().item() if len(right) else math.nan


def extraction_strength(answer: TokenScores, *, floor: bool = False) -> float:
    """ES = 1 − k/n, with k the fewest tokens of the answer after which all others are the most likely ones.

    The last labeled token, the end, does not count (arXiv 2406.09179; teacher-forced as in open-unlearning). NaN where
    there is no other. ``floor`` is open-unlearning's code, whose k is at most n − 1: the least ES is then 1/n, that of
    an answer of which only the last token is right, and 0 for an empty answer.
    """
    right = answer.right[:-1].tolist()
    n = len(right)
    if not n:
        return 0.0 if floor else math.nan
    k = next((n - i for i, each in enumerate(reversed(right)) if not each), 0)
    return 1 - min(k, n - 1 if floor else n) / n


def loss(text: TokenScores) -> float:
    """LOSS: mean −log p (arXiv 1709.01604)."""
    return text.nll


def zlib(text: TokenScores, content: str) -> float:
    """LOSS over the bytes the text takes when compressed, in nats a token and byte (arXiv 2012.07805)."""
    return text.nll / len(compression.compress(content.encode()))


def min_k(text: TokenScores, k: float = K) -> float:
    """Min-K %: the mean −log p, in nats, of the share k ∈ (0, 1] of least likely tokens (arXiv 2310.16789).

    They are ⌊k·n⌋ of the n tokens before the last, one at least: the last, of an answer its end, does not count, as in
    open-unlearning's code. NaN where there is no other (open-unlearning has 0).
    """
    return -_least(text.log_p, k)


def min_k_plus_plus(text: TokenScores, k: float = K) -> float:
    """Min-K%++: as `min_k`, of (log p − μ)/σ over the vocabulary (arXiv 2404.02936); σ² is 1e-6 at least."""
    return -_least((text.log_p - text.mean) / text.std.clamp_min(1e-3), k)


def _least(values: torch.Tensor, k: float) -> float:
    values = values[:-1]
    if not len(values):
        return math.nan
    count = max(1, int(k * len(values)))
    return values.sort().values[:count].mean().item()


def auc(members: Sequence[float], others: Sequence[float]) -> float:
    """P(a member's score < another's) + ½ P(they are equal): the area under the ROC curve.

    Members were trained on (the forget set), others never (a holdout); a score is lower for a likelier text. 1: members
    look trained on, each likelier than every other text; 0.5: the two are alike; 0: members look less trained on than
    texts never seen. Other code may score by log p, or label the other way round: that is 1 − AUC.

    Raises:
        GeffectError: a side is empty or has NaN.

    >>> auc([0.1, 0.2], [0.3, 0.2])
    0.875
    """
    from scipy.stats import mannwhitneyu

    values = np.asarray([*members, *others], dtype=np.float64)
    if not len(members) or not len(others) or np.isnan(values).any():
        counts = f"{len(members)} and {len(others)} scores, {np.isnan(values).sum()} of them NaN"
        remedy = "Remove the examples of fewer than two labeled tokens"
        raise GeffectError(f"The AUC needs scores of members and of others, and there are {counts}", remedy=remedy)
    wins = mannwhitneyu(others, members, alternative="two-sided", method="asymptotic").statistic
    return float(wins / (len(members) * len(others)))


def privleak(auc_unlearned: float, auc_retrained: float = 0.5) -> float:
    """PrivLeak = 100 · ((1 − AUC_u) − (1 − AUC_ref)) / (1 − AUC_ref + 1e-10), of `min_k` with K = 40 % (MUSE), in %.

    Of the `auc` of the unlearned model, forget set against holdout, and of one trained without the forget set. 0 is
    ideal; below: under-unlearned, still looks trained on; above: over-unlearned.

    >>> privleak(0.5), privleak(1.0), privleak(0.0)
    (0.0, -99.99999998, 99.99999998)
    """
    return 100 * ((1 - auc_unlearned) - (1 - auc_retrained)) / (1 - auc_retrained + 1e-10)


def relative_difference(auc_unlearned: float, auc_retrained: float) -> float:
    """100 · (AUC_u − AUC_ref) / AUC_ref, in %, of the unlearned model's `auc` and a retrained one's; NaN if that is 0.

    >>> relative_difference(0.75, 0.5), relative_difference(0.5, 0.5)
    (50.0, 0.0)
    """
    return 100 * (auc_unlearned - auc_retrained) / auc_retrained if auc_retrained else math.nan


def privacy(aucs: Sequence[float], retrained: Sequence[float]) -> float:
    """The harmonic mean over attacks of 1 − |AUC_u − AUC_ref| / max(AUC_ref, 1 − AUC_ref), in [0, 1].

    1: every attack does as well as on a model that never saw the forget set; 0: one does as differently as it can.

    >>> privacy([0.5, 0.75], [0.5, 0.5])
    0.6666666666666666
    """
    pairs = zip(aucs, retrained, strict=True)
    return harmonic_mean([1 - abs(ours - theirs) / max(theirs, 1 - theirs) for ours, theirs in pairs])


def harmonic_mean(numbers: Sequence[float]) -> float:
    """The harmonic mean of numbers of 0 or more: 0 where one is 0, NaN where one is NaN or there are none.

    >>> harmonic_mean([1.0, 0.5, 0.5]), harmonic_mean([1.0, 0.0]), harmonic_mean([1.0, math.nan])
    (0.6, 0.0, nan)
    """
    if not numbers or any(map(math.isnan, numbers)):
        return math.nan
    return len(numbers) / math.fsum(1 / each for each in numbers) if min(numbers) > 0 else 0.0


def log_truth_ratio(right: float, wrong: Sequence[float], aggregation: Aggregation = "arithmetic") -> float:
    """log TR, in nats: TR = agg_j P(wrong_j) / P(right) of length-normalized probabilities (TOFU, arXiv 2401.06121).

    ``right`` is log P of the paraphrased answer, or of the answer where there is no paraphrase, ``wrong`` that of each
    wrong one. Below 0 the right answer is likelier. The sources disagree on agg: TOFU's utility code takes the
    arithmetic mean of probabilities, its forget quality and the forks of NPO and GRU the geometric one. No probability
    is formed, so that answers of any length and likelihood have their ratio: infinite where P(right) is exactly 0, NaN
    where those of the wrong answers are too.

    >>> round(log_truth_ratio(-760, [-760, -761]), 6), log_truth_ratio(-760, [-760, -761], "geometric")
    (-0.379885, -0.5)
    """
    logs = np.asarray(wrong, dtype=np.float64)
    if aggregation == "geometric":
        return float(logs.mean()) - right
    return float(np.logaddexp.reduce(logs)) - math.log(len(logs)) - right


def forget_truth(log_ratio: float) -> float:
    """min(TR, 1/TR) of a forget example: 1 where right and wrong are equally likely, small where one is likelier."""
    return math.exp(-abs(log_ratio))


def retain_truth(log_ratio: float) -> float:
    """max(0, 1 − TR) of an example to retain: 1 where the wrong answers are impossible."""
    return -math.expm1(log_ratio) if not log_ratio >= 0 else 0.0


def normalized_probability(right: float, wrong: Sequence[float]) -> float:
    """P(right) / (P(right) + Σ_j P(wrong_j) + 1e-10) ∈ [0, 1), of sets with choices (real authors, world facts).

    >>> round(normalized_probability(0.3, [0.1, 0.2]), 6)
    0.5
    """
    return right / (right + math.fsum(wrong) + 1e-10)


def model_utility(numbers: Sequence[float]) -> float:
    """The harmonic mean of probability, ROUGE-L recall and max(0, 1 − TR) of every set to retain; 0 where one is 0.

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

    TR an example, of the unlearned model and of one trained on the retain set alone. High: the unlearned model looks
    like one that never saw the set. Transforms that keep or turn the order, as log TR or 1/TR, do not change it.

    >>> forget_quality([0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
    1.0
    """
    from scipy.stats import ks_2samp

    return float(ks_2samp(unlearned, retained).pvalue)
