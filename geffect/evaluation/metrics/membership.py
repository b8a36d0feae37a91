"""Membership inference: from how likely a text is, was it trained on?

Every score is of one text or answer, and has the orientation of a loss: *lower* for one that looks trained on.
"""

import math
import zlib as compression
from collections.abc import Sequence

import numpy as np
import torch

from geffect.errors import GeffectError
from geffect.evaluation.view import TokenScores

K = 0.4  # MUSE's and open-unlearning's share of the least likely tokens


def loss(text: TokenScores) -> float:
    """LOSS: mean −log p (arXiv 1709.01604)."""
    return text.nll


def zlib(text: TokenScores, content: str) -> float:
    """LOSS over the bytes the text takes when compressed (arXiv 2012.07805).

    Returns:
        Nats per token and byte.
    """
    return text.nll / len(compression.compress(content.encode()))


def min_k(text: TokenScores, k: float = K) -> float:
    """Min-K %: the mean −log p of the share k of least likely tokens (arXiv 2310.16789).

    The last labeled token, of an answer its end, does not count, as in open-unlearning's code.

    Args:
        text: its scores.
        k: in (0, 1]; ⌊k·n⌋ of the n tokens before the last, one at least.

    Returns:
        In nats; NaN where there is no token but the last (open-unlearning has 0).
    """
    return -_least(text.log_p, k)


def min_k_plus_plus(text: TokenScores, k: float = K) -> float:
    """Min-K%++: as `min_k`, the last token left out, of (log p − μ)/σ over the vocabulary (arXiv 2404.02936).

    Args:
        text: its scores.
        k: in (0, 1].

    Returns:
        In standard deviations; σ² is 1e-6 at least. NaN where there is no token but the last.
    """
    return -_least((text.log_p - text.mean) / text.std.clamp_min(1e-3), k)


def reference(own: float, under_reference: float) -> float:
    """LOSS − LOSS under a reference model (arXiv 2012.07805)."""
    return own - under_reference


def _least(values: torch.Tensor, k: float) -> float:
    values = values[:-1]
    if not len(values):
        return math.nan
    count = max(1, int(k * len(values)))
    return values.sort().values[:count].mean().item()


def auc(members: Sequence[float], others: Sequence[float]) -> float:
    """P(a member's score < another's) + ½ P(they are equal): the area under the ROC curve.

    1: members look trained on, each likelier than every other text; 0.5: they cannot be told apart; 0: members look
    less trained on than texts never seen. Other code may score by log p, or label the other way round: that is 1 − AUC.

    Args:
        members: scores of what was trained on (the forget set), lower for likelier.
        others: scores of what never was (a holdout).

    Returns:
        In [0, 1].

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
    """PrivLeak = 100 · ((1 − AUC_u) − (1 − AUC_ref)) / (1 − AUC_ref + 1e-10), of `min_k` with K = 40 % (MUSE).

    Args:
        auc_unlearned: `auc` of the unlearned model, forget set against holdout.
        auc_retrained: that of a model trained without the forget set.

    Returns:
        In %; 0 is ideal, below: under-unlearned, still looks trained on; above: over-unlearned.

    >>> privleak(0.5), privleak(1.0), privleak(0.0)
    (0.0, -99.99999998, 99.99999998)
    """
    return 100 * ((1 - auc_unlearned) - (1 - auc_retrained)) / (1 - auc_retrained + 1e-10)
