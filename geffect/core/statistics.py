"""Standard errors and intervals by the bootstrap: over examples, and over the steps of a run.

Intervals over examples say what other examples of the kind would give, not other seeds.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
Statistic = Callable[..., Any]
LEVEL = 0.001  # of each kind of finding's test; with five kinds fewer than one page in a hundred shows what is noise
RESAMPLES = 2000
FEWEST_STEPS, FEWEST_EXAMPLES = 9, 4  # three blocks of three steps


class Estimate(NamedTuple):
    """A number, its standard error, and the degrees of freedom of that error."""

    value: float
    error: float
    freedom: float

    def interval(self, level: float = 0.05) -> tuple[float, float]:
        """The two-sided interval value ± t·error, with Student's t; ``level`` lies outside it.

        >>> low, high = Estimate(1.0, 0.5, 4).interval()
        >>> round(low, 3), round(high, 3)
        (-0.388, 2.388)
        """
        from scipy.stats import t

        reach = float(t.isf(level / 2, self.freedom)) * self.error
        return self.value - reach, self.value + reach

    def below(self, bound: float, tests: int = 1) -> bool:
        """Whether the interval at `LEVEL`, shared among so many tests, lies below a bound."""
        return self.interval(LEVEL / tests)[1] < bound

    def above(self, bound: float, tests: int = 1) -> bool:
        """Whether the interval at `LEVEL`, shared among so many tests, lies above a bound."""
        return self.interval(LEVEL / tests)[0] > bound


def bootstrap(sets: Sequence[Numbers], statistic: Statistic, seed: int = 0) -> Numbers:
    """A statistic of `RESAMPLES` resamples (`scipy.stats.bootstrap`), ``[RESAMPLES]``; each set is resampled by itself.

    The sets are ``[examples, …]``; the columns of an example stay together, so that what is paired within a set
    stays paired. The statistic takes as many arguments ``[…, examples, …]`` and returns ``[…]``.
    """
    from scipy.stats import DegenerateDataWarning
    from scipy.stats import bootstrap as resample

    def of_places(*places: Any, axis: int = -1) -> Any:
        return statistic(*(values[place.astype(int)] for values, place in zip(sets, places, strict=True)))

    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # of scipy's own interval, which is not used
        result = resample(
            [np.arange(len(values)) for values in sets],
            of_places,
            n_resamples=RESAMPLES,
            vectorized=True,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    distribution: Numbers = result.bootstrap_distribution
    return distribution


def over_examples(sets: Sequence[Numbers], statistic: Statistic, seed: int = 0) -> Estimate | None:
    """A statistic of sets of independent examples with its standard error (`bootstrap`).

    None where a set has fewer than four examples, or where the estimate is not finite.
    """
    fewest = min(map(len, sets))
    if fewest < FEWEST_EXAMPLES:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(*sets))
        error = float(np.std(bootstrap(sets, statistic, seed))) * math.sqrt(fewest / (fewest - 1))
    return _finite(Estimate(value, error, fewest - 1))


def paired_change(before: Sequence[float], after: Sequence[float], tokens: Sequence[int]) -> tuple[float, float]:
    """The change of a token-mean loss and its standard error, from the nats of the same examples before and after.

    With n examples of t_i tokens and changes d_i = after_i − before_i the change is m = Σd_i / Σt_i, and its error as
    of a sample of examples √(n/(n − 1) · Σ(d_i − m·t_i)²) / Σt_i; NaN of one example.

    >>> paired_change([1.0, 4.0], [2.0, 4.0], [1, 1])
    (0.5, 0.5)
    """
    changes, sizes = np.subtract(after, before, dtype=float), np.asarray(tokens, dtype=float)
    count, total = len(sizes), sizes.sum()
    mean = float(changes.sum() / total)
    if count < 2:
        return mean, math.nan
    spread = float(np.square(changes - mean * sizes).sum()) * count / (count - 1)
    return mean, math.sqrt(spread) / float(total)


def block_length(series: Numbers) -> int:
    """How many consecutive steps are drawn together: n^⅓, and more where steps resemble the ones before them.

    That is Carlstein's rule (1986), (2ρ / (1 − ρ²))^⅔ · n^⅓ for the lag-one autocorrelation ρ, once the series'
    straight trend, which is no dependence, is taken out. At most a third of the n steps.

    >>> block_length(np.arange(27.0)), block_length(np.repeat([1.0, -1.0, 2.0], 9))
    (3, 9)
    """
    from scipy.signal import detrend

    rest = detrend(series)
    power = float(rest @ rest)
    known = power > 1e-18 * float(series @ series)
    rho = min(max(float(rest[1:] @ rest[:-1]) / power, 0.0), 0.99) if known else 0.0
    length: float = max(1.0, (2 * rho / (1 - rho**2)) ** (2 / 3)) * len(series) ** (1 / 3)
    return max(1, min(math.ceil(length - 1e-9), len(series) // 3))


def moving_blocks(steps: int, block: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Places of resampled steps ``[RESAMPLES, steps]``: blocks of so many steps, drawn with replacement.

    No block joins the last step to the first (a circular bootstrap): measured series have a trend, and a joint
    between its two ends is no pair of neighbors.
    """
    starts = np.random.default_rng(seed).integers(steps - block + 1, size=(RESAMPLES, -(-steps // block)))
    return (starts[..., None] + np.arange(block)).reshape(RESAMPLES, -1)[:, :steps]


def over_steps(values: Numbers, statistic: Statistic) -> Estimate | None:
    """A statistic ``[…, n, k]`` → ``[…]`` of a run's steps ``[n, k]`` and its error by the moving-block bootstrap.

    Consecutive steps share weights and an optimizer's state, so that blocks of them are drawn, not single ones
    (Künsch 1989). The error is the replicates' standard deviation, times √(n / (n − block)) for blocks cut from one
    series; its degrees of freedom are the whole blocks in n less one, which keeps a short run from claiming much.
    None for fewer than nine steps, or where the estimate is not finite.

    >>> over_steps(np.ones((5, 1)), lambda x: x.mean((-2, -1))) is None
    True
    >>> over_steps(np.arange(16.0)[:, None], lambda x: x.mean((-2, -1))).value
    7.5
    """
    steps = len(values)
    if steps < FEWEST_STEPS:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        value = statistic(values)
        influence = np.array([value - statistic(np.delete(values, step, axis=0)) for step in range(steps)])
        if not np.isfinite(influence).all():
            return None
        block = block_length(influence)
        parts = np.array_split(moving_blocks(steps, block), 20)  # a long run's replicates are not in memory at once
        replicates = np.concatenate([statistic(values[part]) for part in parts])
        error = float(np.std(replicates)) * math.sqrt(steps / (steps - block))
    return _finite(Estimate(float(value), error, steps // block - 1))


def _finite(estimate: Estimate) -> Estimate | None:
    return estimate if math.isfinite(estimate.value) and math.isfinite(estimate.error) else None


def percentile_interval(distribution: Numbers, confidence: float = 0.95) -> tuple[float, float]:
    """The percentile interval of a bootstrap distribution: lower and upper end.

    >>> [round(end, 9) for end in percentile_interval(np.arange(101.0), 0.9)]
    [5.0, 95.0]
    """
    low, high = np.quantile(distribution, [(1 - confidence) / 2, 1 - (1 - confidence) / 2])
    return float(low), float(high)


def chance_jaccard(share: float) -> float:
    """The Jaccard index of two independent random masks of a large tensor: share / (2 − share)."""
    return share / (2 - share)
