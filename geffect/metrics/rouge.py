"""ROUGE-L between two texts, by the scorer of TOFU's and MUSE's published evaluations."""

import functools
from typing import Any, Literal

Measure = Literal["recall", "fmeasure", "precision"]


def rouge_l(said: str, true: str, measure: Measure = "recall") -> float:
    """ROUGE-L with Porter's stemmer: the longest common subsequence of words, over those of the true text for recall.

    The scorer knows letters a–z and digits only: a text without any has 0.

    Args:
        said: what a model says.
        true: the reference.
        measure: ``recall`` (TOFU), ``fmeasure`` (MUSE) or ``precision``.

    Returns:
        In [0, 1].

    >>> rouge_l("the mentor was Oskar", "the mentor of Hanae was Oskar"), rouge_l("a b", "a b c d", "fmeasure")
    (0.6666666666666666, 0.6666666666666666)
    """
    return float(getattr(_scorer().score(true, said)["rougeL"], measure))


@functools.cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # brings nltk, a second to import

    return RougeScorer(["rougeL"], use_stemmer=True)
