"""Bootstrap intervals of means over examples."""

import math
from collections.abc import Sequence

import numpy as np

from geffect.evaluation.metrics.memorization import exponential


def mean_interval(values: Sequence[float], confidence: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """A mean over examples and its percentile bootstrap interval; NaN does not count.

    It tells what other rows of the same kind would have given, not what another seed of training would.

    Args:
        values: one an example.
        confidence: of the interval.
        seed: of the resampling, 2000 times.

    Returns:
        Mean, lower and upper end; all NaN without a value, the mean three times with one or with equal ones.

    >>> mean_interval([1.0, 1.0]), mean_interval([float("nan")])[0]
    ((1.0, 1.0, 1.0), nan)
    """
    from scipy.stats import bootstrap

    present = np.asarray(values, dtype=np.float64)
    present = present[~np.isnan(present)]
    if not len(present):
        return float("nan"), float("nan"), float("nan")
    with np.errstate(invalid="ignore"):  # ∞ − ∞
        mean = float(present.mean())
    if not np.isfinite(mean) or np.ptp(present) == 0:
        return mean, mean, mean
    found = bootstrap(
        (present,),
        np.mean,
        n_resamples=2000,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return mean, float(found.confidence_interval.low), float(found.confidence_interval.high)


def geometric_interval(values: Sequence[float], confidence: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """A geometric mean over examples and its percentile bootstrap interval: exp of `mean_interval` of the logarithms.

    Args:
        values: one an example, positive.
        confidence: of the interval.
        seed: of the resampling.

    Returns:
        Mean, lower and upper end.

    >>> [round(each, 9) for each in geometric_interval([2.0, 8.0])]
    [4.0, 2.0, 8.0]
    """
    mean, low, high = mean_interval([math.log(each) for each in values], confidence, seed)
    return exponential(mean), exponential(low), exponential(high)
