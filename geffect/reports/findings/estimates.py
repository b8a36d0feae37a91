"""Estimates with standard errors: over the steps of a run, which depend on one another, and over rows."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
Statistic = Callable[[Numbers], Any]
LEVEL = 0.001  # of each kind's test; with five kinds fewer than one page in a hundred shows what is noise
RESAMPLES = 2000
FEWEST = 9  # steps: three blocks of three


class Estimate(NamedTuple):
    """A number, its standard error, and the degrees of freedom of that error."""

    value: float
    error: float
    freedom: float

    def interval(self, level: float = 0.05) -> tuple[float, float]:
        """The two-sided interval value ± t·error, with Student's t.

        Args:
            level: what is left outside it.

        Returns:
            Its lower and upper end.

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


def block_length(series: Numbers) -> int:
    """How many consecutive steps are drawn together: n^⅓, and more where steps resemble the ones before them.

    That is Carlstein's rule (1986), (2ρ / (1 − ρ²))^⅔ · n^⅓ for the lag-one autocorrelation ρ, once the series'
    straight trend, which is no dependence, is taken out. At most a third of the steps.

    Args:
        series: ``[n]``.

    Returns:
        The length.

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


def influence(values: Numbers, statistic: Statistic) -> Numbers:
    """What each step adds to a statistic: its value on all steps less that without the step, ``[n]``."""
    whole = statistic(values)
    return np.array([whole - statistic(np.delete(values, step, axis=0)) for step in range(len(values))])


def resampled(steps: int, block: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Moving blocks: ``[RESAMPLES, n]`` places of n steps, runs of so many drawn with replacement."""
    starts = np.random.default_rng(seed).integers(steps - block + 1, size=(RESAMPLES, -(-steps // block)))
    return (starts[..., None] + np.arange(block)).reshape(RESAMPLES, -1)[:, :steps]


def over_steps(values: Numbers, statistic: Statistic) -> Estimate | None:
    """A statistic of a run's steps, with its standard error by the moving-block bootstrap (Künsch 1989).

    Consecutive steps share weights and an optimizer's state, so that blocks of them are drawn, not single ones.
    The error is the replicates' spread, times √(n / (n − block)) for blocks cut from one series; its degrees of
    freedom are the whole blocks in n less one, which keeps a short run from claiming much.

    Args:
        values: ``[n, k]``, k numbers a step.
        statistic: ``[…, n, k]`` → ``[…]``.

    Returns:
        The estimate; None for fewer than nine steps, or where it is not finite.

    >>> over_steps(np.ones((5, 1)), lambda x: x.mean((-2, -1))) is None
    True
    >>> over_steps(np.arange(16.0)[:, None], lambda x: x.mean((-2, -1))).value
    7.5
    """
    steps = len(values)
    if steps < FEWEST:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        single = influence(values, statistic)
        if not np.isfinite(single).all():
            return None
        block = block_length(single)
        parts = np.array_split(resampled(steps, block), 20)  # a long run's replicates are not in memory at once
        replicates = np.concatenate([statistic(values[part]) for part in parts])
        error = float(np.std(replicates)) * math.sqrt(steps / (steps - block))
        found = Estimate(float(statistic(values)), error, steps // block - 1)
    return found if math.isfinite(found.value) and math.isfinite(found.error) else None


def over_rows(groups: list[Numbers], statistic: Callable[..., Any], seed: int = 0) -> Estimate | None:
    """A statistic of independent rows of several sets, with its standard error by the bootstrap over each set's rows.

    Args:
        groups: ``[rows, k]`` a set.
        statistic: of as many arguments ``[…, rows, k]`` → ``[…]``.
        seed: of the resampling.

    Returns:
        The estimate; None where a set has fewer than four rows, or where it is not finite.
    """
    fewest = min(len(each) for each in groups)
    if fewest < 4:
        return None
    generator = np.random.default_rng(seed)
    drawn = [each[generator.integers(len(each), size=(RESAMPLES, len(each)))] for each in groups]
    with np.errstate(divide="ignore", invalid="ignore"):
        error = float(np.std(statistic(*drawn))) * math.sqrt(fewest / (fewest - 1))
        found = Estimate(float(statistic(*groups)), error, fewest - 1)
    return found if math.isfinite(found.value) and math.isfinite(found.error) else None
