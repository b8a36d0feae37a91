"""G-effects, cosines and planes from a record's tidy frame of inner products; no torch is needed."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from geffect.errors import GeffectError


def inner_by_label(frame: pd.DataFrame, a: str, b: str) -> "pd.Series[float]":
    """⟨a, b⟩ by (step, label), from a record's tidy frame.

    The frame has the columns ``step``, a label (``group``, ``layer`` or ``parameter``), ``gradient``, ``other`` and
    ``inner``, each unordered pair once. A gradient that the record lacks is refused.
    """
    label = label_column(frame)
    known = sorted({*frame["gradient"].unique(), *frame["other"].unique()})
    if missing := {a, b} - set(known):
        message = f"There is no gradient {min(missing)!r}; there are {', '.join(known)}"
        raise GeffectError(message, remedy="Name one of these; a run without rectifier has no 'rectified'")
    gradient, other = frame["gradient"], frame["other"]
    rows = frame[((gradient == a) & (other == b)) | ((gradient == b) & (other == a))]
    return rows.set_index(["step", label])["inner"]


def label_column(frame: pd.DataFrame) -> str:
    """The label column of a record's tidy frame: ``group``, ``layer`` or ``parameter``."""
    return next(name for name in ("group", "layer", "parameter") if name in frame.columns)


def direction_name(frame: pd.DataFrame) -> str:
    """The gradient an update descends: ``rectified`` where a rectifier ran, else that of `objective_name`."""
    return "rectified" if (frame["gradient"] == "rectified").any() else objective_name(frame)


def objective_name(frame: pd.DataFrame) -> str:
    """The name of the objective's gradient: ``applied_gradient`` in a monitored training, else ``objective``."""
    return "applied_gradient" if (frame["gradient"] == "applied_gradient").any() else "objective"


def g_effect(frame: pd.DataFrame, direction: str = "objective") -> pd.DataFrame:
    """Unlearn and retain G-effect: e = ⟨∇loss, direction⟩, nats a token per unit of learning rate.

    Args:
        frame: a record's tidy frame (see `inner_by_label`).
        direction: ``objective`` (the paper's definition) or ``rectified`` (the rectifier's result).

    Returns:
        Columns ``step``, the label, ``unlearn`` (loss on the forget set) and ``retain`` (loss on the retain set). A
        tied tensor whose two uses count under ``embed`` and ``lm_head`` has no line of its own.
    """
    return _without_rest(_effects(frame, direction))


def _effects(frame: pd.DataFrame, direction: str) -> pd.DataFrame:
    losses = {"unlearn": "forget", "retain": "retain"}
    return pd.DataFrame({name: inner_by_label(frame, of, direction) for name, of in losses.items()}).reset_index()


def _without_rest(effects: pd.DataFrame) -> pd.DataFrame:
    tied = effects[label_column(effects)].str.rpartition("@")[2] == "tied"  # of parameters NAME@tied
    return effects[~tied | effects[["unlearn", "retain"]].any(axis=1)].reset_index(drop=True)


def removed_g_effect(frame: pd.DataFrame) -> pd.DataFrame:
    """The part of the G-effect that freezing removed: ⟨∇loss, objective − masked⟩.

    In nats a token per unit of learning rate. ``frame`` is a record's tidy frame of a run that froze entries, the
    result as that of `g_effect`; unlearn < 0: lost forgetting, retain < 0: averted harm.
    """
    objective, masked = (_effects(frame, name) for name in ("objective", "masked"))
    return _without_rest(objective.assign(**{name: objective[name] - masked[name] for name in ("unlearn", "retain")}))


def total_cosine(frame: pd.DataFrame, a: str, b: str) -> "pd.Series[float]":
    """The whole model's cosine of two gradients, indexed by step; NaN where either is zero."""
    ab, aa, bb = (inner_by_label(frame, *pair).groupby("step").sum() for pair in ((a, b), (a, a), (b, b)))
    scale = (aa * bb) ** 0.5
    return (ab / scale.where(scale > 0)).clip(-1.0, 1.0)


def cosines(frame: pd.DataFrame) -> pd.DataFrame:
    """The cosine with the retain gradient by ``step``: the objective's, and ``rectified`` (NaN without a rectifier)."""
    rectified = total_cosine(frame, "rectified", "retain") if direction_name(frame) == "rectified" else math.nan
    cosine = total_cosine(frame, objective_name(frame), "retain")
    return pd.DataFrame({"cosine": cosine, "rectified": rectified}).rename_axis("step").reset_index()


def gram_at(frame: pd.DataFrame, step: int | None = None) -> pd.DataFrame:
    """The whole model's inner products at one step ``[M, M]``: symmetric, names in order of first appearance.

    The labels of a record's tidy frame are summed. ``step`` may be None where there is one. NaN: a pair is missing.
    """
    steps = sorted(frame["step"].unique())
    if step is None and len(steps) == 1:
        step = steps[0]
    if step not in steps:
        problem = "No step is chosen" if step is None else f"There is no step {step}"
        raise GeffectError(f"{problem}; there are {', '.join(map(str, steps))}", remedy="Name one of these")
    sums = frame[frame["step"] == step].groupby(["gradient", "other"], sort=False)["inner"].sum(min_count=1)
    names = list(dict.fromkeys(name for pair in sums.index for name in pair))
    upper = sums.unstack("other").reindex(index=names, columns=names)
    return upper.combine_first(upper.T).loc[names, names].rename_axis(index=None, columns=None)


def plane_coordinates(gram: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Coordinates ``[M, 2]`` of M vectors in the plane of the first two, from their inner products ``[M, M]``.

    By Gram-Schmidt they are each vector's components along the first one, and along what of the second is
    orthogonal to it. The latter is 0 for all where the two are parallel (to 1e-12 of ‖second‖²); NaN where the
    first is zero.

    >>> plane_coordinates(np.array([[4.0, 2.0, -2.0], [2.0, 2.0, 3.0], [-2.0, 3.0, 99.0]])).tolist()
    [[2.0, 0.0], [1.0, 1.0], [-1.0, 4.0]]
    """
    length = math.sqrt(gram[0, 0]) or math.nan
    along = gram[:, 0] / length  # ⟨v, e₁⟩
    rest = gram[1, 1] - along[1] ** 2  # ‖second − ⟨second, e₁⟩e₁‖²
    across = gram[:, 1] - along[1] * along
    across[0] = 0.0
    if not rest <= 1e-12 * gram[1, 1]:  # NaN too
        return np.stack([along, across / math.sqrt(rest)], axis=1)
    return np.stack([along, np.zeros_like(along)], axis=1)


def r_squared(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """R² = 1 − Σ(measured − predicted)² / Σ(measured − mean)² of predicted changes, without a fit; may be negative.

    NaN where all measured changes are equal.

    >>> r_squared([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), r_squared([0.0, 0.0], [1.0, -1.0])
    (1.0, 0.0)
    """
    x, y = np.asarray(predicted, dtype=float), np.asarray(measured, dtype=float)
    spread = float(((y - y.mean()) ** 2).sum())
    return 1 - float(((y - x) ** 2).sum()) / spread if spread else math.nan
