"""Views of a Gram: G-effect, cosine, norms, conflict.

Sign, once: a *direction* is what an update descends (θ ← θ − lr·d). ⟨∇risk, d⟩ > 0 lowers that risk, < 0 raises it. So
the *unlearn* G-effect is wanted strongly negative and the *retain* G-effect at least zero (arXiv 2502.19301, Def. 1).
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

from geffect.errors import GeffectError


def inner(gram: Tensor, rows: Sequence[str], a: str, b: str) -> float:
    """⟨a, b⟩ from a Gram matrix ``[M, M]`` whose order is ``rows``."""
    return float(gram[rows.index(a), rows.index(b)])


def norm(gram: Tensor, rows: Sequence[str], a: str) -> float:
    """‖a‖₂."""
    return math.sqrt(max(inner(gram, rows, a, a), 0.0))


def cosine(gram: Tensor, rows: Sequence[str], a: str, b: str) -> float:
    """⟨a, b⟩ / (‖a‖‖b‖), in [−1, 1]; NaN where either row is zero."""
    scale = norm(gram, rows, a) * norm(gram, rows, b)
    return max(-1.0, min(1.0, inner(gram, rows, a, b) / scale)) if scale else math.nan


def pairs(frame: pd.DataFrame, a: str, b: str) -> "pd.Series[float]":
    """⟨a, b⟩ of a record's tidy frame.

    Args:
        frame: columns ``step``, a label column (``group``, ``layer`` or ``parameter``), ``gradient``, ``other`` and
            ``inner``; each unordered pair stands once.
        a: a row.
        b: a row.

    Returns:
        The inner products, indexed by (step, label).

    Raises:
        GeffectError: the record has no such row.
    """
    label = label_of(frame)
    known = sorted({*frame["gradient"], *frame["other"]})
    if missing := {a, b} - set(known):
        raise GeffectError(
            f"rows among {', '.join(known)}", repr(min(missing)), "a run without rectifier has no 'rectified'"
        )
    chosen = frame[
        ((frame["gradient"] == a) & (frame["other"] == b)) | ((frame["gradient"] == b) & (frame["other"] == a))
    ]
    return chosen.set_index(["step", label])["inner"]


def label_of(frame: pd.DataFrame) -> str:
    """The label column of a record's tidy frame: ``group``, ``layer`` or ``parameter``."""
    return next(name for name in ("group", "layer", "parameter") if name in frame.columns)


def direction_of(frame: pd.DataFrame) -> str:
    """The row an update descends: ``rectified`` where a rectifier ran, else what was asked for (`asked_of`)."""
    return "rectified" if (frame["gradient"] == "rectified").any() else asked_of(frame)


def asked_of(frame: pd.DataFrame) -> str:
    """The row of what was asked for: ``objective``; ``applied_gradient`` where another's training was watched."""
    return "applied_gradient" if (frame["gradient"] == "applied_gradient").any() else "objective"


def g_effect(frame: pd.DataFrame, direction: str = "objective") -> pd.DataFrame:
    """Unlearn and retain G-effect: e = ⟨∇risk, direction⟩, units of gradient².

    Args:
        frame: a record's tidy frame (see `pairs`).
        direction: ``objective`` (the paper's definition) or ``rectified`` (what the rectifier made of it).

    Returns:
        Columns ``step``, the label, ``unlearn`` (risk on the forget set) and ``retain`` (risk on the retain set). A
        tied tensor whose two uses stand under ``embed`` and ``lm_head`` has no line of its own.
    """
    return _without_rest(_effects(frame, direction))


def _effects(frame: pd.DataFrame, direction: str) -> pd.DataFrame:
    effects = {"unlearn": pairs(frame, "forget", direction), "retain": pairs(frame, "retain", direction)}
    return pd.DataFrame(effects).reset_index()


def _without_rest(effects: pd.DataFrame) -> pd.DataFrame:
    tied = effects[label_of(effects)].str.rpartition("@")[2] == "tied"  # of parameters NAME@tied
    return effects[~tied | effects[["unlearn", "retain"]].any(axis=1)].reset_index(drop=True)


def removed_g_effect(frame: pd.DataFrame) -> pd.DataFrame:
    """What freezing took out of the G-effect: ⟨∇risk, objective − masked⟩, units of gradient².

    Args:
        frame: a record's tidy frame of a run that froze entries.

    Returns:
        As `g_effect`; unlearn < 0: forgetting that was given up, retain < 0: harm that was averted.
    """
    whole, masked = (_effects(frame, row) for row in ("objective", "masked"))
    names = ["unlearn", "retain"]
    return _without_rest(whole.assign(**{name: whole[name] - masked[name] for name in names}))


def total_cosine(frame: pd.DataFrame, a: str, b: str) -> "pd.Series[float]":
    """The whole model's cosine of two rows, indexed by step; NaN where either row is zero."""
    ab, aa, bb = (pairs(frame, *pair).groupby("step").sum() for pair in ((a, b), (a, a), (b, b)))
    scale = (aa * bb) ** 0.5
    return (ab / scale.where(scale > 0)).clip(-1.0, 1.0)


def cosines(frame: pd.DataFrame) -> pd.DataFrame:
    """Cosine with the retain gradient by step, before and after rectification.

    Args:
        frame: a record's tidy frame.

    Returns:
        Columns ``step``, ``cosine`` (of `asked_of`), ``rectified`` (NaN where no rectifier ran).
    """
    rectified = total_cosine(frame, "rectified", "retain") if direction_of(frame) == "rectified" else math.nan
    cosine = total_cosine(frame, asked_of(frame), "retain")
    return pd.DataFrame({"cosine": cosine, "rectified": rectified}).rename_axis("step").reset_index()


def gram_at(frame: pd.DataFrame, step: int | None = None) -> pd.DataFrame:
    """The whole model's inner products of all rows at one step.

    Args:
        frame: columns ``step``, ``gradient``, ``other``, ``inner``; each unordered pair stands once a label (see
            `pairs`), and labels are summed.
        step: which; may be left out where there is one.

    Returns:
        ``[M, M]``, symmetric, rows and columns named in order of first appearance; NaN for a pair that is missing.

    Raises:
        GeffectError: there is no such step, or none was chosen among several.
    """
    steps = sorted(frame["step"].unique())
    if step is None and len(steps) == 1:
        step = steps[0]
    if step not in steps:
        found = "several, and none chosen" if step is None else str(step)
        raise GeffectError(f"a step among {', '.join(map(str, steps))}", found, "name one of these")
    sums = frame[frame["step"] == step].groupby(["gradient", "other"], sort=False)["inner"].sum(min_count=1)
    rows = list(dict.fromkeys(name for pair in sums.index for name in pair))
    upper = sums.unstack("other").reindex(index=rows, columns=rows)
    return upper.combine_first(upper.T).loc[rows, rows].rename_axis(index=None, columns=None)


def plane_coordinates(gram: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Where vectors fall in the plane of the first two of them, by Gram-Schmidt on their inner products.

    Args:
        gram: ``[M, M]``, the inner products of M ≥ 2 vectors.

    Returns:
        ``[M, 2]``: each vector's components along the first one, and along what of the second is orthogonal to it. The
        latter is 0 for all where the two are parallel (to 1e-12 of ‖second‖²); NaN where the first is zero.

    >>> plane_coordinates(np.array([[4.0, 2.0, -2.0], [2.0, 2.0, 3.0], [-2.0, 3.0, 99.0]])).tolist()
    [[2.0, 0.0], [1.0, 1.0], [-1.0, 4.0]]
    """
    length = math.sqrt(gram[0, 0]) or math.nan
    along = gram[:, 0] / length  # ⟨v, e₁⟩
    rest = gram[1, 1] - along[1] ** 2  # ‖second − ⟨second, e₁⟩e₁‖²
    across = gram[:, 1] - along[1] * along
    across[0] = 0.0
    if not rest <= 1e-12 * gram[1, 1]:  # NaN goes on
        return np.stack([along, across / math.sqrt(rest)], axis=1)
    return np.stack([along, np.zeros_like(along)], axis=1)


def r_squared(predicted: Sequence[float], measured: Sequence[float]) -> float:
    """R² = 1 − Σ(measured − predicted)² / Σ(measured − mean)² of a prediction nothing was fitted to; may be negative.

    Args:
        predicted: changes.
        measured: changes, as many.

    Returns:
        R²; NaN where all measured changes are equal.

    >>> r_squared([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]), r_squared([0.0, 0.0], [1.0, -1.0])
    (1.0, 0.0)
    """
    x, y = np.asarray(predicted, dtype=float), np.asarray(measured, dtype=float)
    spread = float(((y - y.mean()) ** 2).sum())
    return 1 - float(((y - x) ** 2).sum()) / spread if spread else math.nan
