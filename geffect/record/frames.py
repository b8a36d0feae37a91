"""Read a run's record as tidy frames."""

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from geffect.core.effects import inner_by_label
from geffect.core.groups import depth_key, layer_groups
from geffect.core.statistics import paired_change
from geffect.errors import GeffectError
from geffect.io.readers import StrPath
from geffect.record.reader import (
    Damaged,
    Examples,
    damage_refused,
    each_line,
    read_config,
    read_environment,
    step_lines,
)
from geffect.record.schema import POINTS, STEPS, STRUCTURES, TOKENS

Summed = tuple[tuple[str, ...], npt.NDArray[Any]]  # the gradients, and [labels, pairs]
READINGS = ("gradient", "update")
APPLIED = ("applied", "update")  # −Δθ: after every correction, and the optimizer's own
CHANGEABLE = ("python", "versions", "git", "processor", "threads", "attention")  # of an environment: may move digits


@damage_refused
def read(path: StrPath, by: str = "group", scheme: str = "thirds") -> pd.DataFrame:
    """The inner products of a run's gradients.

    Args:
        path: the run directory.
        by: sum parameters up to ``group``, ``layer``, or not at all (``parameter``).
        scheme: how layers make groups (`geffect.core.layers.block_groups`).

    Returns:
        Columns ``step``, ``by``, ``gradient``, ``other``, ``inner``; each unordered pair of gradients once.

    Raises:
        GeffectError: no run is there, ``by`` is unknown, or none were recorded. So do all readers of a run.
    """
    onto, names = _onto(path, by, scheme)
    lines = [(line["step"], *_summed(line["gram"], onto, names)) for line in each_line(path) if "gram" in line]
    if not lines:
        raise GeffectError(f"{path} has no measured step", remedy="Name a run of geffect unlearn")
    return _gram_frame(lines, names, by)


@damage_refused
def read_published(path: StrPath, by: str = "group", scheme: str = "paper_script") -> pd.DataFrame:
    """The published script's running averages (`geffect.measurement.ema`), in its own groups.

    Arguments as of `read`; the script cuts groups at blocks 10 and 20, and a tied tensor is ``embed``.

    Returns:
        Columns ``step`` (of the checkpoint), ``call`` (micro-batches averaged: 3, 7, …), ``by``, ``gradient``,
        ``other``, ``inner``.
    """
    onto, names = _onto(path, by, scheme)
    frames = (
        _gram_frame([(line["step"], *_summed(call["gram"], onto, names))], names, by).assign(call=call["call"])
        for line in each_line(path)
        for call in line.get("paper") or []
    )
    remedy = "Run geffect unlearn with --mode paper and a forget set of three micro-batches or more"
    return _joined(frames, path, "estimates of the published script", remedy)


@damage_refused
def read_targets(path: StrPath) -> list[str]:
    """The sets whose losses' gradients a run measured, in the order of its gradients; empty where it measured none."""
    names: list[str] = next((line["gram"]["gradients"] for line in each_line(path) if "gram" in line), [])
    return _targets(path, names)


def _targets(path: StrPath, names: Iterable[str]) -> list[str]:
    sets = read_sets(path)
    return [name for name in dict.fromkeys(names) if name in sets]


@damage_refused
def read_sets(path: StrPath) -> list[str]:
    """The names of the sets that a run read."""
    return list(read_environment(path).get("data", {}))


@damage_refused
def read_groups(path: StrPath, scheme: str = "thirds") -> dict[str, str]:
    """Parameter → layer group, in the order of a record's inner products; empty where there are none."""
    table = read_environment(path).get("parameters", {"names": [], "layers": [], "num_blocks": 0})
    groups = layer_groups(table["num_blocks"], scheme)
    return {name: groups[layer] for name, layer in zip(table["names"], table["layers"], strict=True)}


@damage_refused
def read_layers(path: StrPath) -> dict[str, str]:
    """Parameter → layer, in the order of a record's inner products; empty where there are none."""
    table = read_environment(path).get("parameters", {"names": [], "layers": []})
    return dict(zip(table["names"], table["layers"], strict=True))


@damage_refused
def read_effects(
    path: StrPath, by: str = "group", scheme: str = "thirds", direction: str | None = None
) -> pd.DataFrame:
    """What every measured step does to every target, to first order.

    Arguments as of `read`. ``direction`` is a gradient of the record; by default the applied update −Δθ, which a
    monitor records by default, and ``geffect unlearn`` with ``--target`` or ``--prediction``. An inspection applies no
    update: there ``objective`` is the step that plain gradient descent would take with a learning rate of 1.

    Returns:
        Columns ``step``, ``by``, ``target``, ``effect`` = −⟨∇R, direction⟩: the change of the target's loss R by the
        step, in nats a token. Above 0 the step harms that target, below 0 it helps. The effects of all labels add up
        to the whole model's.
    """
    frame = read(path, by, scheme)
    known = [*frame["gradient"].unique(), *frame["other"].unique()]
    applied = next((name for name in ((direction,) if direction else APPLIED) if name in known), None)
    if applied is None:
        choices = ", ".join(sorted({*known} - {*_targets(path, known)})) or "none"
        remedy = (
            f"Name one of the record's gradients ({choices}), or monitor with update=True, or unlearn with --target"
        )
        raise GeffectError(f"{path} recorded no {direction or 'applied update'}", remedy=remedy)
    parts = [
        inner_by_label(frame, target, applied).mul(-1).rename("effect").reset_index().assign(target=target)
        for target in _targets(path, known)
    ]
    effects = pd.concat(parts, ignore_index=True)[["step", by, "target", "effect"]]
    tied = effects[by].str.rpartition("@")[2] == "tied"  # its two uses have lines of their own, where they are told
    return effects[~tied | (effects["effect"] != 0)].reset_index(drop=True)


@damage_refused
def read_cosines(path: StrPath, by: str = "total", scheme: str = "thirds") -> pd.DataFrame:
    """The cosines of every two targets' gradients: below 0 a step that helps one harms the other.

    ``by`` is ``total``, ``group``, ``layer`` or ``parameter``, else arguments as of `read`.

    Returns:
        Columns ``step``, ``by``, ``target``, ``other``, ``cosine`` (NaN where a gradient is zero).
    """
    frame = read(path, "layer" if by == "total" else by, scheme)
    names = _targets(path, [*frame["gradient"], *frame["other"]])
    keys = ["step"] if by == "total" else ["step", by]
    products = {
        pair: inner_by_label(frame, *pair).groupby(level=keys).sum()
        for pair in itertools.combinations_with_replacement(names, 2)
    }
    parts = []
    for a, b in itertools.combinations(names, 2):
        scale = (products[a, a] * products[b, b]).clip(lower=0) ** 0.5
        cosine = (products[a, b] / scale.where(scale > 0)).clip(-1, 1)
        parts.append(cosine.rename("cosine").reset_index().assign(target=a, other=b))
    if not parts:
        raise GeffectError(f"{path} has fewer than two targets", remedy="Monitor two or more")
    frame = pd.concat(parts, ignore_index=True)
    return frame.assign(**({"total": "total"} if by == "total" else {}))[["step", by, "target", "other", "cosine"]]


@damage_refused
def read_overlap(path: StrPath, by: str = "group", scheme: str = "thirds") -> pd.DataFrame:
    """The overlaps of the top-k masks of a run's gradients (`geffect.core.masks`), counted in entries.

    Arguments as of `read`.

    Returns:
        Columns ``step``, ``by``, ``gradient``, ``other``, ``intersection``, ``union``, ``share``, ``jaccard`` (of the
        summed counts; NaN where the union is empty); each unordered pair of two gradients once.
    """
    onto, names = _onto(path, by, scheme)
    frames = (_overlap_frame(line, onto, names, by) for line in each_line(path) if line.get("overlap"))
    frame = _joined(frames, path, "overlaps", "Run geffect unlearn with --overlap 0.1")
    return frame.assign(jaccard=frame["intersection"] / frame["union"].where(frame["union"] > 0))


@damage_refused
def read_standard_errors(path: StrPath, by: str = "group", scheme: str = "thirds") -> pd.DataFrame:
    """Inner products with their standard errors (`geffect.measurement.basis`).

    ``by`` is ``total``, ``group`` or ``layer``, else arguments as of `read`.

    Returns:
        Columns ``step``, ``by``, ``gradient``, ``other``, ``inner`` (⟨gradient, other⟩ of the window),
        ``standard_error`` (std over its B micro-batches of the linearized products, over √B) and ``halves`` (the mean
        product of two disjoint halves: for a gradient with itself, ‖g‖² without the variance that ‖ĝ‖² adds).
    """
    if by not in ("total", "group", "layer"):
        raise GeffectError(f"by is {by!r}", remedy="Choose one of total, group, layer")
    groups = layer_groups(read_environment(path)["parameters"]["num_blocks"], scheme)
    label_of: dict[str, Callable[[str], str]] = {"total": lambda _: "total", "group": groups.__getitem__, "layer": str}
    frames = (_error_frame(line, by, label_of[by]) for line in each_line(path) if line.get("standard_errors"))
    return _joined(frames, path, "standard errors", "Run geffect unlearn with --standard-errors")


@damage_refused
def read_prediction(path: StrPath) -> pd.DataFrame:
    """Predicted and measured change of each target's loss, a row a step and reading (`geffect.measurement.update`).

    Returns:
        Columns ``step``, ``target`` (``forget``, ``retain``, or a monitor's), ``reading`` (``gradient``, ``update``;
        of a monitor ``update`` alone), ``predicted``, ``measured`` (nats a token), ``before`` and ``after``. Where
        every step was measured the changes add up to that of the whole run. A monitor's steps are there where the next
        one was measured, too, and with ``check`` everywhere. Theirs have a ``standard_error`` of the measured change,
        as of a sample of examples (`geffect.core.statistics.paired_change`); NaN elsewhere.
    """
    rows = []
    for line in each_line(path):
        for target, part in (line.get("prediction") or {}).items():
            before, after = part["before"], part["after"]
            measured = math.nan if before is None or after is None else after - before
            error = part.get("standard_error", math.nan)
            values = {"measured": measured, "before": before, "after": after, "standard_error": error}
            keys = {"step": line["step"], "target": target}
            rows += [keys | {"reading": name, "predicted": part[name]} | values for name in READINGS if name in part]
    return pd.DataFrame(rows) if rows else _monitored_prediction(path)


def _monitored_prediction(path: StrPath) -> pd.DataFrame:
    """A monitor measures its targets' losses on the same examples at every step that it measures."""
    lines = {line.step: line for line in step_lines(path)}
    rows = []
    for step, target, predicted in _whole_effects(path):
        known = [lines[at] for at in (step, step + 1) if at in lines and target in lines[at].scores]
        losses = [line.scores[target].loss for line in known]
        if len(losses) < 2 or None in losses:
            continue
        error = _error_of_change(*(line.examples.get(target) for line in known))
        keys = {"step": step, "target": target, "reading": "update", "predicted": predicted}
        change = {"measured": losses[1] - losses[0], "before": losses[0], "after": losses[1]}
        rows.append(keys | change | {"standard_error": error})
    if not rows:
        remedy = "Run geffect unlearn with --prediction 16, or monitor every step"
        raise GeffectError(f"{Path(path) / STEPS} has no prediction", remedy=remedy)
    return pd.DataFrame(rows)


def _error_of_change(before: Examples | None, after: Examples | None) -> float:
    if before is None or after is None or None in (*before.nll, *after.nll):
        return math.nan
    first, then = ([each or 0.0 for each in part.nll] for part in (before, after))
    return paired_change(first, then, before.tokens)[1]


def _whole_effects(path: StrPath) -> list[Any]:
    """(Step, target, effect of the whole model) of a record; empty where it has none."""
    try:
        frame = read_effects(path)
    except Damaged:
        raise
    except GeffectError:
        return []
    rows: list[Any] = frame.groupby(["step", "target"], sort=False)["effect"].sum().reset_index().to_numpy().tolist()
    return rows


@damage_refused
def read_steps(path: StrPath) -> pd.DataFrame:
    """A run's scalars: one row a step, evaluations as ``forget_loss``, ``heldout_accuracy`` and so on.

    Returns:
        A frame with ``step`` and whatever was recorded; NaN where a step did not record it.
    """
    rows = []
    for line in each_line(path):
        scores = line.get("evaluation", {}).items()
        columns = {f"{name}_{kind}": value for name, score in scores for kind, value in score.items()}
        rows.append({key: value for key, value in line.items() if key not in ("format", *STRUCTURES)} | columns)
    return pd.DataFrame(rows)


@damage_refused
def read_tokens(path: StrPath) -> pd.DataFrame:
    """The effect of the objective's direction on every token of the examples it serves worst (``--tokens``).

    Returns:
        A row a token: ``step``, ``set``, ``example``, ``position``, ``token``, ``labeled``, ``direction``, ``effect`` =
        ⟨∇ℓ, direction⟩ (below 0: a step along it makes the token less likely), and a column a layer group.
    """
    frames = []
    for line in each_line(path, TOKENS):
        columns = {"token": line["tokens"], "labeled": line["labeled"], "effect": line["effect"]} | line["groups"]
        keys = {name: line[name] for name in ("step", "set", "example")}
        frame = pd.DataFrame(columns).assign(**keys, direction=line["direction"], position=range(len(line["tokens"])))
        first = [*keys, "position", "token", "labeled", "direction", "effect"]
        frames.append(frame[[*first, *sorted(line["groups"], key=depth_key)]])
    return pd.concat(frames, ignore_index=True)


@damage_refused
def read_points(path: StrPath) -> pd.DataFrame:
    """Every forget example's own effects on both losses, and objectives' weights on it (``--points``).

    Returns:
        A row a forget example and step: ``step``, ``example``, ``unlearn`` and ``retain`` = ⟨∇R, ∇log p(s)⟩, ``nll``
        and ``reference_nll`` (nats of the whole example; NaN without a start), ``num_tokens``, and a column a weight.
    """
    lines = each_line(path, POINTS)
    rows = [{k: v for k, v in line.items() if k not in ("format", "weights")} | line["weights"] for line in lines]
    return pd.DataFrame(rows).astype({"reference_nll": float})


@damage_refused
def read_settings(path: StrPath) -> dict[str, str]:
    """A run's configuration, versions and hashes of data, flat, as text; without the place where the run lies."""
    environment = read_environment(path)
    machine = {key: environment.get(key) for key in CHANGEABLE}
    data = {f"data {name}": part["sha256"][:12] for name, part in environment.get("data", {}).items()}
    flat = _flat({**read_config(path), **machine, **data})
    return {key: str(value) for key, value in flat if key != "out"}


class Origin(NamedTuple):
    """What a run was made from, as far as it was recorded."""

    started: str  # ISO 8601; empty where unknown, as all texts here
    version: str  # of geffect
    optimizer: str
    steps: int | None  # planned
    weights: str  # hash of the weights it began with
    sets: Mapping[str, tuple[str, str]]  # name → the set as it was named, the hash of its content


@damage_refused
def read_origin(path: StrPath) -> Origin:
    """When, with which version, from which weights and with which sets a run was made."""
    content = read_environment(path)
    words = (content.get("started"), content.get("versions", {}).get("geffect"), content.get("optimizer"))
    started, version, optimizer = (str(each or "") for each in words)
    sets = {name: (str(part.get("set", "")), part["sha256"]) for name, part in content.get("data", {}).items()}
    weights = str(content.get("start", {}).get("sha256") or "")
    return Origin(started, version, optimizer, content.get("batch", {}).get("steps"), weights, sets)


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _joined(frames: Iterable[pd.DataFrame], path: StrPath, what: str, remedy: str) -> pd.DataFrame:
    """The frames of a record's lines in one; raise where no line has one."""
    frames = list(frames)
    if not frames:
        raise GeffectError(f"{Path(path) / STEPS} has no {what}", remedy=remedy)
    return pd.concat(frames, ignore_index=True)


def _onto(path: StrPath, by: str, scheme: str) -> tuple[list[int], list[str]]:
    """Each parameter's place among the labels, and the labels: layers and groups from the embedding to the head."""
    table = read_environment(path)["parameters"]
    groups = layer_groups(table["num_blocks"], scheme)
    columns = {"parameter": table["names"], "layer": table["layers"], "group": [groups[x] for x in table["layers"]]}
    if by not in columns:
        raise GeffectError(f"by is {by!r}", remedy=f"Choose one of {', '.join(columns)}")
    names = list(dict.fromkeys(columns[by]))
    if by != "parameter":
        names.sort(key=depth_key)
    return [names.index(label) for label in columns[by]], names


def _summed(part: Mapping[str, Any], onto: list[int], names: list[str]) -> Summed:
    return tuple(part["gradients"]), _sums(part["values"], onto, len(names), float)


def _sums(values: list[Any], onto: list[int], size: int, dtype: type) -> npt.NDArray[Any]:
    """Values summed onto labels, ``[labels, …]``; not by a matrix product, whose 0 · NaN is NaN."""
    array: npt.NDArray[Any] = np.asarray(values, dtype)
    sums = np.zeros((size, *array.shape[1:]), array.dtype)
    np.add.at(sums, onto, array)
    return sums


def _gram_frame(lines: Sequence[tuple[int, *Summed]], names: list[str], by: str) -> pd.DataFrame:
    """The frame of (step, gradients, sums) of each line.

    Steps with the same gradients share their keys, which are most of a frame's cost.
    """
    frames = []
    for gradients, same in itertools.groupby(lines, key=operator.itemgetter(1)):
        steps, _, sums = zip(*same, strict=True)
        keys = _keys(0, by, names, gradients, *np.triu_indices(len(gradients)))
        repeated = keys.iloc[np.tile(np.arange(len(keys)), len(steps))]
        frames.append(repeated.assign(step=np.repeat(steps, len(keys)), inner=np.concatenate(sums).ravel()))
    return pd.concat(frames, ignore_index=True)


def _overlap_frame(line: Mapping[str, Any], onto: list[int], names: list[str], by: str) -> pd.DataFrame:
    part = line["overlap"]
    size = len(part["gradients"])
    upper, (i, j) = np.triu_indices(size), np.triu_indices(size, 1)
    counts = np.zeros((len(names), size, size), dtype=np.int64)
    counts[:, *upper] = _sums(part["values"], onto, len(names), np.int64)
    both = counts[:, i, j]
    either = counts[:, i, i] + counts[:, j, j] - both
    keys = _keys(line["step"], by, names, part["gradients"], i, j)
    return keys.assign(intersection=both.ravel(), union=either.ravel(), share=part["share"])


def _error_frame(line: Mapping[str, Any], by: str, label_of: Callable[[str], str]) -> pd.DataFrame:
    part = line["standard_errors"]
    labels = [label_of(layer) for layer in part["labels"]]
    names = sorted(dict.fromkeys(labels), key=depth_key)
    onto = [names.index(label) for label in labels]
    products = _sums(part["linearized"], onto, len(names), float)  # [labels, B, pairs]
    halves = _sums(part["halves"], onto, len(names), float)  # [labels, pairs]
    keys = _keys(line["step"], by, names, part["gradients"], *np.triu_indices(len(part["gradients"])))
    error = products.std(1, ddof=1) / np.sqrt(products.shape[1])
    return keys.assign(inner=products.mean(1).ravel(), standard_error=error.ravel(), halves=halves.ravel())


def _keys(
    step: int, by: str, names: list[str], gradients: Sequence[str], first: Iterable[int], second: Iterable[int]
) -> pd.DataFrame:
    """The first columns of a frame: a row a label and pair of gradients."""
    pairs = {"gradient": [gradients[i] for i in first], "other": [gradients[j] for j in second]}
    columns = {name: values * len(names) for name, values in pairs.items()}
    return pd.DataFrame({"step": step, by: np.repeat(names, len(pairs["other"]))} | columns)
