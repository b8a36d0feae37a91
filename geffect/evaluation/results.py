"""The results of an evaluation: writing, reading, means with intervals, and numbers of several sets."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geffect.config import EvaluateConfig
from geffect.core.statistics import bootstrap, percentile_interval
from geffect.errors import GeffectError
from geffect.evaluation.metrics import METRICS
from geffect.evaluation.scores import exponential
from geffect.evaluation.suites import Derived, Values, compared, totals
from geffect.io.readers import StrPath
from geffect.record.reader import check_format, damage_refused
from geffect.record.schema import FORMAT
from geffect.record.writer import write

EXAMPLES, TEXTS = "examples.csv", "texts.jsonl"
Scores = dict[str, dict[str, float]]  # task → metric → value
KEEP = ["set", "sha256", "index", "metric", "value"]


def summary(
    config: EvaluateConfig,
    examples: pd.DataFrame,
    reference: Values | None,
    numbers: Mapping[str, tuple[Mapping[str, float], Scores]],
) -> dict[str, Any]:
    """Each model's means with their intervals, numbers of several sets, and scores on tasks, as ``metrics.json``.

    ``numbers`` holds a model's own numbers (such as α of a mixture) and its scores on tasks.
    """
    models = {}
    for model, (own_numbers, tasks) in numbers.items():
        values = values_by_metric(examples[examples["model"] == model])
        means: dict[tuple[str, str], float] = {}
        sets: dict[str, dict[str, Any]] = {}
        for (name, kind), each in values.items():
            interval = geometric_interval if METRICS[kind].geometric else mean_interval
            mean, low, high = interval(each, config.confidence, config.seed)
            means[name, kind] = mean
            sets.setdefault(name, {})[kind] = {"mean": mean, "low": low, "high": high, "rows": len(each)}
        totals_ = totals(config, means, values, reference) | dict(own_numbers)
        models[model] = {"sets": sets, "totals": totals_} | ({"tasks": tasks} if tasks else {})
    return models


def values_by_metric(frame: pd.DataFrame) -> dict[tuple[str, str], list[float]]:
    """(set, metric) → a value an example, in the examples' order."""
    groups = frame.groupby(["set", "metric"], sort=False)["value"]
    return {(str(key[0]), str(key[1])): each.tolist() for key, each in groups}


def read_reference(config: EvaluateConfig, examples: pd.DataFrame) -> Values | None:
    """The values of the evaluation that ``config.reference`` names; None without one."""
    if config.reference is None:
        return None
    other = read_evaluation(config.reference)
    label = other["model"].iloc[0]
    other = other[other["model"] == label]
    for number in compared(config):
        for name in number.sets:
            _check_comparable(config, number, *(frame[frame["set"] == name] for frame in (other, examples)))
    return values_by_metric(other)


def _check_comparable(config: EvaluateConfig, number: Derived, theirs: pd.DataFrame, ours: pd.DataFrame) -> None:
    """Raise where a set's examples in the reference differ from these, or lack what a number is computed from."""
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
    """The values of an evaluation, one an example, metric and model.

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
    """The values of a file, to the last bit."""
    # Python's own float reads back what was written; pandas 2's parser may be off by a last bit
    return pd.read_csv(file, converters={"value": lambda text: float(text or "nan")})


def write_texts(directory: Path, texts: Sequence[Mapping[str, Any]]) -> None:
    """Write a model's answers, a JSON object a line."""
    lines = "".join(json.dumps({"format": FORMAT, **each}, ensure_ascii=False) + "\n" for each in texts)
    write(directory / TEXTS, lines)


def mean_interval(values: Sequence[float], confidence: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """A mean over examples and its percentile bootstrap interval; NaN does not count.

    The interval covers other examples of the kind, not other seeds of training. Mean, lower and upper end are NaN
    without a value, and the mean three times with one or with equal ones.

    >>> mean_interval([1.0, 1.0]), mean_interval([float("nan")])[0]
    ((1.0, 1.0, 1.0), nan)
    """
    present = np.asarray(values, dtype=np.float64)
    present = present[~np.isnan(present)]
    if not len(present):
        return float("nan"), float("nan"), float("nan")
    with np.errstate(invalid="ignore"):  # ∞ − ∞
        mean = float(present.mean())
    if not np.isfinite(mean) or np.ptp(present) == 0:
        return mean, mean, mean
    return mean, *percentile_interval(bootstrap([present], lambda drawn: drawn.mean(-1), seed), confidence)


def geometric_interval(values: Sequence[float], confidence: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
    """A geometric mean over examples and its percentile bootstrap interval: exp of `mean_interval` of the logarithms.

    >>> [round(each, 9) for each in geometric_interval([2.0, 8.0])]
    [4.0, 2.0, 8.0]
    """
    mean, low, high = mean_interval([math.log(each) for each in values], confidence, seed)
    return exponential(mean), exponential(low), exponential(high)
