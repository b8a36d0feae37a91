"""Inner products of rows: per parameter tensor, summed when looked at.

Rows are huge and short-lived; their Gram ``G[i, j] = ⟨row_i, row_j⟩`` is tiny, exact to float32 rounding of the
products, and enough for every norm, cosine, G-effect and projection.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from geffect.core.gradients import NamedTensors
from geffect.core.layers import depth_key

if TYPE_CHECKING:
    import pandas as pd
import math

import numpy.typing as npt
import pandas as pd

from geffect.errors import GeffectError

CHUNK = 1024  # elements summed in float32 before float64 takes over; 4096 is no faster and four times less exact
DIGITS = 9  # significant ones of a recorded inner product: more than float32 products hold
SLAB = 256  # chunks multiplied at once: small enough to stay in cache


def inner_products(rows: Sequence[Tensor | None]) -> Tensor:
    """All inner products of M tensors of one shape.

    Products are taken in float32 (float64 for float64 tensors) over chunks of 1024 elements by one batched
    matrix product; the chunks are summed in float64. A plain float32 dot product over an embedding matrix is wrong in
    the fourth digit.

    Args:
        rows: M tensors of N elements each, None standing for zeros.

    Returns:
        G ``[M, M]``, float64, on the CPU; entry (i, j) is ⟨rows_i, rows_j⟩.

    >>> inner_products([torch.tensor([1.0, 2.0]), None, torch.tensor([3.0, -1.0])]).tolist()
    [[5.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 10.0]]
    """
    present = [i for i, row in enumerate(rows) if row is not None]
    gram = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    if not present:
        return gram
    flat = [row.detach().reshape(-1) for row in rows if row is not None]
    with _own_precision(flat[0].device.type):
        gram[torch.tensor(present)[:, None], torch.tensor(present)] = _products(flat).cpu()
    return gram


def _own_precision(device: str) -> AbstractContextManager[Any]:
    """Outside of a caller's autocast, which would round what is multiplied to 16 bits."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _products(flat: list[Tensor]) -> Tensor:
    dtype = torch.promote_types(flat[0].dtype, torch.float32)
    device = flat[0].device
    without_float64 = device.type == "mps"  # Apple's GPUs have none
    total = torch.zeros(len(flat), len(flat), dtype=torch.float64, device="cpu" if without_float64 else device)
    for start in range(0, flat[0].numel(), CHUNK * SLAB):
        slab = torch.stack([row[start : start + CHUNK * SLAB].to(dtype) for row in flat])  # [M, n]
        whole = slab.shape[1] // CHUNK * CHUNK
        chunks = slab[:, :whole].unflatten(1, (-1, CHUNK)).transpose(0, 1)  # [C, M, CHUNK]
        for part in (chunks, slab[None, :, whole:]):
            products = torch.bmm(part, part.transpose(1, 2))  # [C, M, M]
            total += (products.cpu() if without_float64 else products).sum(0, dtype=torch.float64)
    return total


@dataclass
class Gram:
    """The inner products of named rows, per parameter tensor.

    Attributes:
        rows: the M row names, the order of every matrix here.
        values: canonical parameter name → ``[M, M]``, float64, symmetric.
    """

    rows: tuple[str, ...]
    values: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Mapping[str, NamedTensors]) -> Self:
        """The Gram of rows at hand, as `geffect.capture` returns them.

        Args:
            rows: row name → parameter name → tensor; a parameter that is missing counts as zero.

        Returns:
            Its inner products.

        >>> Gram.of({"a": {"w": torch.tensor([1.0, 2.0])}, "b": {}}).values["w"].tolist()
        [[5.0, 0.0], [0.0, 0.0]]
        """
        names = dict.fromkeys(name for row in rows.values() for name in row)
        return cls(tuple(rows), {name: inner_products([row.get(name) for row in rows.values()]) for name in names})

    def total(self, names: Iterable[str] | None = None) -> Tensor:
        """The sum over the named parameters (all by default), ``[M, M]``."""
        chosen = self.values.values() if names is None else [self.values[name] for name in names]
        return sum(chosen, torch.zeros(len(self.rows), len(self.rows), dtype=torch.float64))

    def by(self, labels: Mapping[str, str]) -> dict[str, Tensor]:
        """The sums under each label (a layer or group a parameter), from the embedding to the head (`depth_key`)."""
        members: dict[str, list[str]] = {}
        for name in self.values:
            members.setdefault(labels[name], []).append(name)
        return {label: self.total(members[label]) for label in sorted(members, key=depth_key)}

    def combine(self, combinations: Mapping[str, Mapping[str, float]]) -> "Gram":
        """The Gram of rows that are linear combinations of these: C G Cᵀ, no gradient needed.

        Args:
            combinations: new row → {row of this Gram: coefficient}.

        Returns:
            The Gram of the new rows, in their order.

        >>> gram = Gram(("forget",), {"w": torch.tensor([[4.0]], dtype=torch.float64)})
        >>> gram.combine({"forget": {"forget": 1}, "objective": {"forget": -1}}).values["w"].tolist()
        [[4.0, -4.0], [-4.0, 4.0]]
        """
        matrix = torch.tensor(
            [[float(parts.get(row, 0.0)) for row in self.rows] for parts in combinations.values()], dtype=torch.float64
        )
        return Gram(tuple(combinations), {name: matrix @ g @ matrix.T for name, g in self.values.items()})

    def to_frame(self, labels: Mapping[str, str] | None = None, by: str = "group") -> "pd.DataFrame":
        """The inner products as a record's tidy frame has them, without a step.

        Args:
            labels: parameter → label to sum under, such as `geffect.core.layers.Layout.groups`; none are summed by
                default.
            by: what the labels are, the name of their column: ``group`` or ``layer``.

        Returns:
            Columns ``by`` (``parameter`` without labels), ``gradient``, ``other``, ``inner``; each unordered pair once.
        """
        import pandas as pd

        sums = self.values if labels is None else self.by(labels)
        pairs = [(i, j) for i in range(len(self.rows)) for j in range(i, len(self.rows))]
        lines = [(label, self.rows[i], self.rows[j], float(g[i, j])) for label, g in sums.items() for i, j in pairs]
        return pd.DataFrame(lines, columns=["parameter" if labels is None else by, "gradient", "other", "inner"])

    def to_record(self) -> dict[str, Any]:
        """The names, and each tensor's upper triangle, line by line, to nine significant digits."""
        triangles = [[float(f"{x:.{DIGITS}g}") for x in upper_triangle(matrix)] for matrix in self.values.values()]
        return {"gradients": list(self.rows), "values": triangles}

    @classmethod
    def from_record(cls, record: Mapping[str, Any], parameters: Sequence[str]) -> Self:
        """What `to_record` gave, of these parameters; null is NaN."""
        return cls(tuple(record["gradients"]), dict(zip(parameters, map(_symmetric, record["values"]), strict=True)))

    def __repr__(self) -> str:
        return f"Gram({', '.join(self.rows)}; {len(self.values)} tensors)"

    def _repr_html_(self) -> str:
        import pandas as pd

        whole = pd.DataFrame(self.total().numpy(), self.rows, self.rows)
        title = f"inner products, summed over {len(self.values)} tensors"
        return f"<p>{title}</p>{whole.to_html(float_format='{:.4g}'.format)}"


_upper = functools.cache(np.triu_indices)  # a Gram a tensor asks for the same ones


def upper_triangle(matrices: Tensor) -> list[Any]:
    """The upper triangles of ``[…, M, M]``, line by line: lists ``[…, M (M + 1) / 2]``."""
    i, j = _upper(matrices.shape[-1])
    triangle: list[Any] = matrices.numpy()[..., i, j].tolist()
    return triangle


def _symmetric(upper: Sequence[float | None]) -> Tensor:
    """A symmetric matrix from its upper triangle, line by line."""
    size = int((2 * len(upper)) ** 0.5)
    i, j = map(torch.from_numpy, _upper(size))
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix[i, j] = matrix[j, i] = torch.tensor([float("nan") if x is None else x for x in upper], dtype=torch.float64)
    return matrix


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


def inner_by_label(frame: pd.DataFrame, a: str, b: str) -> "pd.Series[float]":
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
    label = label_column(frame)
    known = sorted({*frame["gradient"], *frame["other"]})
    if missing := {a, b} - set(known):
        raise GeffectError(
            f"There is no gradient {min(missing)!r}; there are {', '.join(known)}",
            remedy="Name one of these; a run without rectifier has no 'rectified'",
        )
    chosen = frame[
        ((frame["gradient"] == a) & (frame["other"] == b)) | ((frame["gradient"] == b) & (frame["other"] == a))
    ]
    return chosen.set_index(["step", label])["inner"]


def label_column(frame: pd.DataFrame) -> str:
    """The label column of a record's tidy frame: ``group``, ``layer`` or ``parameter``."""
    return next(name for name in ("group", "layer", "parameter") if name in frame.columns)


def direction_name(frame: pd.DataFrame) -> str:
    """The row an update descends: ``rectified`` where a rectifier ran, else what was asked for (`objective_name`)."""
    return "rectified" if (frame["gradient"] == "rectified").any() else objective_name(frame)


def objective_name(frame: pd.DataFrame) -> str:
    """The row of what was asked for: ``objective``; ``applied_gradient`` where another training was monitored."""
    return "applied_gradient" if (frame["gradient"] == "applied_gradient").any() else "objective"


def g_effect(frame: pd.DataFrame, direction: str = "objective") -> pd.DataFrame:
    """Unlearn and retain G-effect: e = ⟨∇risk, direction⟩, units of gradient².

    Args:
        frame: a record's tidy frame (see `inner_by_label`).
        direction: ``objective`` (the paper's definition) or ``rectified`` (what the rectifier made of it).

    Returns:
        Columns ``step``, the label, ``unlearn`` (risk on the forget set) and ``retain`` (risk on the retain set). A
        tied tensor whose two uses stand under ``embed`` and ``lm_head`` has no line of its own.
    """
    return _without_rest(_effects(frame, direction))


def _effects(frame: pd.DataFrame, direction: str) -> pd.DataFrame:
    effects = {
        "unlearn": inner_by_label(frame, "forget", direction),
        "retain": inner_by_label(frame, "retain", direction),
    }
    return pd.DataFrame(effects).reset_index()


def _without_rest(effects: pd.DataFrame) -> pd.DataFrame:
    tied = effects[label_column(effects)].str.rpartition("@")[2] == "tied"  # of parameters NAME@tied
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
    ab, aa, bb = (inner_by_label(frame, *pair).groupby("step").sum() for pair in ((a, b), (a, a), (b, b)))
    scale = (aa * bb) ** 0.5
    return (ab / scale.where(scale > 0)).clip(-1.0, 1.0)


def cosines(frame: pd.DataFrame) -> pd.DataFrame:
    """Cosine with the retain gradient by step, before and after rectification.

    Args:
        frame: a record's tidy frame.

    Returns:
        Columns ``step``, ``cosine`` (of `objective_name`), ``rectified`` (NaN where no rectifier ran).
    """
    rectified = total_cosine(frame, "rectified", "retain") if direction_name(frame) == "rectified" else math.nan
    cosine = total_cosine(frame, objective_name(frame), "retain")
    return pd.DataFrame({"cosine": cosine, "rectified": rectified}).rename_axis("step").reset_index()


def gram_at(frame: pd.DataFrame, step: int | None = None) -> pd.DataFrame:
    """The whole model's inner products of all rows at one step.

    Args:
        frame: columns ``step``, ``gradient``, ``other``, ``inner``; each unordered pair stands once a label (see
            `inner_by_label`), and labels are summed.
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
        chosen = "No step is chosen" if step is None else f"There is no step {step}"
        raise GeffectError(f"{chosen}; there are {', '.join(map(str, steps))}", remedy="Name one of these")
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
    if not rest <= 1e-12 * gram[1, 1]:  # NaN too
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
