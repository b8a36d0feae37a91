"""What an evaluation found: written, read, and made into means, intervals and numbers of several sets."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geffect.config import EvaluateConfig
from geffect.errors import GeffectError
from geffect.evaluation.harness import Scores
from geffect.evaluation.metrics.memorization import exponential
from geffect.evaluation.metrics.table import METRICS
from geffect.evaluation.suites import Derived, Values, compared, totals
from geffect.io.readers import StrPath
from geffect.record.reader import check_format, damage_refused
from geffect.record.schema import FORMAT
from geffect.record.writer import write

EXAMPLES, TEXTS = "examples.csv", "texts.jsonl"
KEEP = ["set", "sha256", "index", "metric", "value"]


def summary(
    config: EvaluateConfig,
    examples: pd.DataFrame,
    reference: Values | None,
    told: Mapping[str, tuple[Mapping[str, float], Scores]],
) -> dict[str, Any]:
    """Means with their intervals, and the numbers made of several sets."""
    found = {}
    for model, (numbers, tasks) in told.items():
        values = rows_by_metric(examples[examples["model"] == model])
        means: dict[tuple[str, str], float] = {}
        sets: dict[str, dict[str, Any]] = {}
        for (name, kind), each in values.items():
            interval = geometric_interval if METRICS[kind].geometric else mean_interval
            mean, low, high = interval(each, config.confidence, config.seed)
            means[name, kind] = mean
            sets.setdefault(name, {})[kind] = {"mean": mean, "low": low, "high": high, "rows": len(each)}
        whole = totals(config, means, values, reference) | dict(numbers)
        found[model] = {"sets": sets, "totals": whole} | ({"tasks": tasks} if tasks else {})
    return found


def rows_by_metric(frame: pd.DataFrame) -> dict[tuple[str, str], list[float]]:
    """(set, metric) → a value a row, in the rows' order."""
    groups = frame.groupby(["set", "metric"], sort=False)["value"]
    return {(str(key[0]), str(key[1])): each.tolist() for key, each in groups}


def read_reference(config: EvaluateConfig, examples: pd.DataFrame) -> Values | None:
    """The rows of the evaluation that ``config.reference`` names."""
    if config.reference is None:
        return None
    other = read_evaluation(config.reference)
    label = other["model"].iloc[0]
    other = other[other["model"] == label]
    for number in compared(config):
        for name in number.sets:
            _check_comparable(config, number, *(frame[frame["set"] == name] for frame in (other, examples)))
    return rows_by_metric(other)


def _check_comparable(config: EvaluateConfig, number: Derived, theirs: pd.DataFrame, ours: pd.DataFrame) -> None:
    """Raise where a set's examples in the reference are others than here, or lack what a number is computed from."""
    name = ours["set"].iloc[0]
    if theirs["sha256"].unique().tolist() != ours["sha256"].unique().tolist():
        state = f"has no set {name}" if theirs.empty else f"was made of other {name} examples ({len(theirs)} values)"
        remedy = "Evaluate the reference with the same sets and --limit"
        raise GeffectError(f"The reference {config.reference} {state}", remedy=remedy)
    if lacking := set(number.metrics) - set(theirs["metric"]):
        message = f"The reference {config.reference} lacks {min(lacking)} of the {name} examples, for {number.name}"
        raise GeffectError(message, remedy="Evaluate the reference again, with the same --suite or --metric")


@damage_refused
def read_evaluation(path: StrPath) -> pd.DataFrame:
    """The values of an evaluation, one a row, metric and model.

    Args:
        path: a directory of ``geffect evaluate``.

    Returns:
        Columns ``model``, ``set``, ``sha256``, ``index``, ``metric``, ``value``.

    Raises:
        GeffectError: none is there.
    """
    file = Path(path) / EXAMPLES
    if not file.is_file():
        raise GeffectError(
            f"There is no evaluation in {path}: no {EXAMPLES}", remedy="Name a directory of geffect evaluate"
        )
    check_format(Path(path))
    return read_values(file)[["model", *KEEP]]


def read_values(file: Path) -> pd.DataFrame:
    """The values as they were written, to the last bit."""
    # Python's own float reads back what was written; pandas 2's parser may be off by a last bit
    return pd.read_csv(file, converters={"value": lambda text: float(text or "nan")})


def write_texts(directory: Path, texts: Sequence[Mapping[str, Any]]) -> None:
    """Write what a model wrote, a JSON object a line."""
    lines = "".join(json.dumps({"format": FORMAT, **each}, ensure_ascii=False) + "\n" for each in texts)
    write(directory / TEXTS, lines)


def mean_interval(values: Sequence[float], confidence: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """A mean over examples and its percentile bootstrap interval; NaN does not count.

    It tells what other rows of the same kind would have given, not what another seed of training would.

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

    Returns:
        Mean, lower and upper end.

    >>> [round(each, 9) for each in geometric_interval([2.0, 8.0])]
    [4.0, 2.0, 8.0]
    """
    mean, low, high = mean_interval([math.log(each) for each in values], confidence, seed)
    return exponential(mean), exponential(low), exponential(high)
