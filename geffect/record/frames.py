"""A run's Grams and overlaps as tidy frames."""

import itertools
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geffect.core.layers import depth, layer_groups
from geffect.errors import GeffectError
from geffect.record.reader import as_written, each_line, read_environment
from geffect.record.writer import STEPS

Summed = tuple[tuple[str, ...], "np.ndarray[Any, Any]"]  # the rows, and [labels, pairs]


@as_written
def read(path: Path | str, by: str = "group", scheme: str = "thirds") -> pd.DataFrame:
    """The inner products of a run's rows.

    Args:
        path: the run directory.
        by: sum parameters up to ``group``, ``layer``, or not at all (``parameter``).
        scheme: how layers make groups (`geffect.core.layers.block_groups`).

    Returns:
        Columns ``step``, ``by``, ``gradient``, ``other``, ``inner``; each unordered pair of rows once.

    Raises:
        GeffectError: no run is there, or ``by`` is unknown.
    """
    path = Path(path)
    onto, names = _onto(path, by, scheme)
    found = [(line["step"], *_summed(line["gram"], onto, names)) for line in each_line(path) if "gram" in line]
    if not found:
        raise GeffectError(f"at least one measured step in {path}", "none", "name a run of geffect unlearn")
    return _frame(found, names, by)


@as_written
def read_published(path: Path | str, by: str = "group", scheme: str = "paper_script") -> pd.DataFrame:
    """The published script's running averages (`geffect.measurement.ema`), in its own groups.

    Args:
        path: the run directory.
        by: sum parameters up to ``group``, ``layer``, or not at all (``parameter``).
        scheme: how layers make groups; the script cuts at blocks 10 and 20, and a tied tensor is ``embed``.

    Returns:
        Columns ``step`` (of the checkpoint), ``call`` (micro-batches averaged: 3, 7, …), ``by``, ``gradient``,
        ``other``, ``inner``.

    Raises:
        GeffectError: no run is there, ``by`` is unknown, or no such estimates were recorded.
    """
    path = Path(path)
    onto, names = _onto(path, by, scheme)
    frames = [
        _frame([(line["step"], *_summed(each["gram"], onto, names))], names, by).assign(call=each["call"])
        for line in each_line(path)
        for each in line.get("paper") or []
    ]
    if not frames:
        remedy = "run geffect unlearn with --mode paper and a forget set of three micro-batches or more"
        raise GeffectError(f"the published script's estimates in {path / STEPS}", "none", remedy)
    return pd.concat(frames, ignore_index=True)


@as_written
def read_overlap(path: Path | str, by: str = "group", scheme: str = "thirds") -> pd.DataFrame:
    """The overlaps of the overlaps of a run's rows (`geffect.core.topk`), counted in entries.

    Args:
        path: the run directory.
        by: sum parameters up to ``group``, ``layer``, or not at all (``parameter``).
        scheme: how layers make groups (`geffect.core.layers.block_groups`).

    Returns:
        Columns ``step``, ``by``, ``gradient``, ``other``, ``intersection``, ``union``, ``share``, ``jaccard`` (of the
        summed counts; NaN where the union is empty); each unordered pair of two rows once.

    Raises:
        GeffectError: no run is there, ``by`` is unknown, or no overlaps were recorded.
    """
    path = Path(path)
    onto, names = _onto(path, by, scheme)
    frames = [_overlap_frame(line, onto, names, by) for line in each_line(path) if line.get("overlap")]
    if not frames:
        raise GeffectError(f"overlaps in {path / STEPS}", "none", "run geffect unlearn with --overlap 0.1")
    frame = pd.concat(frames, ignore_index=True)
    return frame.assign(jaccard=frame["intersection"] / frame["union"].where(frame["union"] > 0))


def _onto(path: Path, by: str, scheme: str) -> tuple[list[int], list[str]]:
    # each parameter's place among the labels, and the labels: layers and groups from the embedding to the head
    labels = _labels(read_environment(path)["parameters"], by, scheme)
    names = list(dict.fromkeys(labels))
    if by != "parameter":
        names.sort(key=depth)
    return [names.index(label) for label in labels], names


def _labels(table: Mapping[str, Any], by: str, scheme: str) -> list[str]:
    groups = layer_groups(table["num_blocks"], scheme)
    columns = {
        "parameter": table["names"],
        "layer": table["layers"],
        "group": [groups[each] for each in table["layers"]],
    }
    if by not in columns:
        raise GeffectError(f"by among {', '.join(columns)}", repr(by), "choose one of these")
    labels: list[str] = columns[by]
    return labels


def _summed(part: Mapping[str, Any], onto: list[int], names: list[str]) -> Summed:
    return tuple(part["rows"]), _sums(part, onto, len(names), float)


def _frame(found: Sequence[tuple[int, *Summed]], names: list[str], by: str) -> pd.DataFrame:
    # (step, rows, sums) of every line; steps with the same rows share their keys, which is most of a frame's cost
    frames = []
    for rows, lines in itertools.groupby(found, key=operator.itemgetter(1)):
        steps, _, sums = zip(*lines, strict=True)
        keys = _keys(0, by, names, list(rows), *np.triu_indices(len(rows)))
        whole = keys.iloc[np.tile(np.arange(len(keys)), len(steps))]
        frames.append(whole.assign(step=np.repeat(steps, len(keys)), inner=np.concatenate(sums).ravel()))
    return pd.concat(frames, ignore_index=True)


def _overlap_frame(line: Mapping[str, Any], onto: list[int], names: list[str], by: str) -> pd.DataFrame:
    rows = line["overlap"]["rows"]
    upper, (i, j) = np.triu_indices(len(rows)), np.triu_indices(len(rows), 1)
    counts = np.zeros((len(names), len(rows), len(rows)), dtype=np.int64)
    counts[:, *upper] = _sums(line["overlap"], onto, len(names), np.int64)
    both = counts[:, i, j]
    either = counts[:, i, i] + counts[:, j, j] - both
    return _keys(line["step"], by, names, rows, i, j).assign(
        intersection=both.ravel(), union=either.ravel(), share=line["overlap"]["share"]
    )


def _sums(part: Mapping[str, Any], onto: list[int], size: int, dtype: type) -> "np.ndarray[Any, Any]":
    # upper triangles summed onto labels, [labels, pairs]; not by a matrix product, whose 0 · NaN is NaN
    values: np.ndarray[Any, Any] = np.asarray(part["values"], dtype)
    sums = np.zeros((size, values.shape[1]), values.dtype)
    np.add.at(sums, onto, values)
    return sums


def _keys(step: int, by: str, names: list[str], rows: list[str], first: Any, second: Any) -> pd.DataFrame:
    pairs = {"gradient": [rows[i] for i in first] * len(names), "other": [rows[j] for j in second] * len(names)}
    return pd.DataFrame({"step": step, by: np.repeat(names, len(first))} | pairs)
