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
from geffect.core.layers import depth

if TYPE_CHECKING:
    import pandas as pd

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
        """The sums under each label (a layer or group a parameter), from the embedding to the head (`depth`)."""
        members: dict[str, list[str]] = {}
        for name in self.values:
            members.setdefault(labels[name], []).append(name)
        return {label: self.total(members[label]) for label in sorted(members, key=depth)}

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
