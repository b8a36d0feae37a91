"""Evaluate a model, part by part: one number a row and metric, kept by content, and their means."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

import geffect
from geffect.config import EvaluateConfig
from geffect.data import QASet, RowSet
from geffect.errors import GeffectError
from geffect.metrics.intervals import mean_interval
from geffect.metrics.rounding import rounded
from geffect.metrics.table import check_fields, metric
from geffect.metrics.view import View
from geffect.models import Loaded
from geffect.models.cache import cached
from geffect.preparation import encode, read_set
from geffect.record import as_written
from geffect.suites import DERIVED, Part, Values, totals

EXAMPLES, TEXTS = "examples.csv", "texts.jsonl"
CODE = ("metrics", "objectives/outputs.py", "data/encode.py")  # what a kept result depends on
KEEP = ["set", "sha256", "index", "metric", "value"]


def evaluated(
    config: EvaluateConfig, chosen: Sequence[tuple[Part, RowSet]], loaded: Loaded, label: str
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Every metric of every row under one model; what was computed before is taken from the cache, and said.

    Args:
        config: how.
        chosen: the parts and their rows.
        loaded: the model.
        label: its name in the result.

    Returns:
        A frame with ``model``, ``set``, ``sha256`` (of the set), ``index``, ``metric``, ``value``, and the texts that
        the model wrote.
    """
    frames, texts = [], []
    for weights in ("", "8bit") if config.rounded else ("",):
        name = f"{label} {weights}".strip()
        for part, rows in tqdm(chosen, desc=name, unit="set", disable=None):
            make = partial(_write, config, part, rows, loaded, weights)
            frame, said = _kept(_key(config, part, rows, loaded, weights), make)
            frames.append(frame.assign(model=name))
            texts += [{"model": name} | each for each in said]
    return pd.concat(frames, ignore_index=True)[["model", *KEEP]], texts


def rows_of(config: EvaluateConfig, part: Part) -> RowSet:
    """The rows of a part, checked for what its metrics need.

    Args:
        config: columns and limit.
        part: set and metrics.

    Returns:
        The set.

    Raises:
        GeffectError: there is no such set, or it lacks a column.
    """
    rows = read_set(config, part.spec)
    for name in part.metrics:
        check_fields(name, rows)
    return replace(rows, rows=rows.rows[: config.limit]) if config.limit else rows


def _sha256(rows: RowSet) -> str:
    """Of all columns: a wrong answer counts as much as the right one."""
    return hashlib.sha256(json.dumps(rows.rows, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _key(config: EvaluateConfig, part: Part, rows: RowSet, loaded: Loaded, weights: str) -> str | None:
    """Everything a result depends on; None where the model's weights have no hash."""
    if loaded.sha256 is None:
        return None
    options = config.model_dump(include={"max_length", "max_new_tokens", "dtype"})
    content = [_code(), loaded.sha256, weights, _sha256(rows), part.name, part.metrics, options]
    return json.dumps(content, sort_keys=True)


def _code() -> str:
    home = Path(geffect.__file__).parent
    files = [
        file
        for name in CODE
        for file in sorted((home / name).rglob("*.py") if (home / name).is_dir() else [home / name])
    ]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _kept(key: str | None, make: Callable[[Path], None]) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    import tempfile

    with tempfile.TemporaryDirectory() if key is None else nullcontext("") as scratch:
        if key is None:
            make(Path(scratch))
        directory = Path(scratch) if key is None else cached("evaluation", key, make)
        frame = _read(directory / EXAMPLES)
        lines = (directory / TEXTS).read_text(encoding="utf-8").splitlines()
        return frame, [json.loads(line) for line in lines]


def _write(config: EvaluateConfig, part: Part, rows: RowSet, loaded: Loaded, weights: str, directory: Path) -> None:
    with rounded(loaded.model) if weights else nullcontext():
        view = View(loaded.model, loaded.tokenizer, rows, partial(encode, config, loaded), config.batch_size,
                    config.max_new_tokens)  # fmt: skip
        values = {name: metric(name)(view) for name in part.metrics}
    sha256 = _sha256(rows)
    frame = pd.DataFrame([
        {"set": part.name, "sha256": sha256, "index": i, "metric": name, "value": value}
        for name, each in values.items()
        for i, value in enumerate(each)
    ])
    frame.to_csv(directory / EXAMPLES, index=False)
    texts = [{"set": part.name, "index": i, "question": row["question"], "true": row["answer"], "said": said}
             for i, (row, said) in enumerate(_said(view))]  # fmt: skip
    write_texts(directory, texts)


def _said(view: View) -> Iterator[tuple[dict[str, Any], str]]:
    if view.wrote and isinstance(view.rows, QASet):
        yield from zip(view.rows.rows, view.said(), strict=True)


def write_texts(directory: Path, texts: Sequence[Mapping[str, Any]]) -> None:
    """Write what a model wrote, a JSON object a line."""
    lines = "".join(json.dumps(dict(each), ensure_ascii=False) + "\n" for each in texts)
    (directory / TEXTS).write_text(lines, encoding="utf-8")


def summary(config: EvaluateConfig, examples: pd.DataFrame, reference: Values | None) -> dict[str, Any]:
    """Means with their intervals, and the numbers made of several sets.

    Args:
        config: suite, metrics, confidence and seed.
        examples: as of `evaluated`.
        reference: the rows of the reference's evaluation; None without one.

    Returns:
        Model → ``sets`` (set → metric → ``mean``, ``low``, ``high``, ``rows``) and ``totals``.
    """
    found = {}
    for model, frame in examples.groupby("model", sort=False):
        values = rows_by_metric(frame)
        means: dict[tuple[str, str], float] = {}
        sets: dict[str, dict[str, Any]] = {}
        for (name, kind), each in values.items():
            mean, low, high = mean_interval(each, config.confidence, config.seed)
            means[name, kind] = mean
            sets.setdefault(name, {})[kind] = {"mean": mean, "low": low, "high": high, "rows": len(each)}
        found[str(model)] = {"sets": sets, "totals": totals(config, means, values, reference)}
    return found


def rows_by_metric(frame: pd.DataFrame) -> dict[tuple[str, str], list[float]]:
    """(set, metric) → a value a row, in the rows' order."""
    groups = frame.groupby(["set", "metric"], sort=False)["value"]
    return {(str(key[0]), str(key[1])): each.tolist() for key, each in groups}


def read_reference(config: EvaluateConfig, examples: pd.DataFrame) -> Values | None:
    """The rows of the evaluation that ``config.reference`` names.

    Args:
        config: which.
        examples: this evaluation's, which must be of the same rows.

    Returns:
        (set, metric) → a value a row; None where no reference is named.

    Raises:
        GeffectError: it is no evaluation of one model, or of other rows.
    """
    if config.reference is None:
        return None
    other = read_evaluation(config.reference)
    label = other["model"].iloc[0]
    other = other[other["model"] == label]
    needed = {"forget_quality"} if config.suite in ("builtin", "tofu") else set()
    for name in needed | (set(config.metric) & set(DERIVED)):
        for one in DERIVED[name].sets:
            theirs, ours = (frame.loc[frame["set"] == one, "sha256"].unique().tolist() for frame in (other, examples))
            if theirs != ours:
                found = "no such set" if not theirs else f"other rows ({len(other[other['set'] == one])} values)"
                raise GeffectError(f"the same {one} rows in {config.reference}", found,
                                   "evaluate the reference with the same sets and --limit")  # fmt: skip
    return rows_by_metric(other)


@as_written
def read_evaluation(path: Path | str) -> pd.DataFrame:
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
        raise GeffectError(f"an evaluation with {EXAMPLES} in {path}", "none", "name a directory of geffect evaluate")
    return _read(file)[["model", *KEEP]]


def _read(file: Path) -> pd.DataFrame:
    # Python's own float reads back what was written; pandas 2's parser may be off by a last bit
    return pd.read_csv(file, converters={"value": lambda text: float(text or "nan")})
