"""Inner products of gradients: per parameter tensor, summed when a record is read.

Gradients are huge and short-lived; their Gram ``G[i, j] = ⟨g_i, g_j⟩`` is tiny, exact to float32 rounding of the
products, and enough for every norm, cosine, G-effect and projection.
"""

import contextlib
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self, TypedDict

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from geffect.core.devices import Pairwise, matrices
from geffect.core.gradients import NamedTensors
from geffect.core.groups import depth_key

CHUNK = 1024  # elements summed in float32 before float64 takes over; 4096 is no faster and four times less exact
DIGITS = 9  # significant ones of a recorded inner product: more than float32 products hold
SLAB = 256  # chunks multiplied at once on the CPU: small enough to stay in cache; another number, other last digits
DEVICE_SLAB = 2**26  # entries, of all tensors together, multiplied at once elsewhere: launches cost more than memory


def inner_products(vectors: Sequence[Tensor | None]) -> Tensor:
    """All inner products of M tensors of one shape, None standing for zeros: ``[M, M]``, float64, on the CPU.

    Products are taken in float32 (float64 for float64 tensors) over chunks of 1024 elements by one batched
    matrix product; the chunks are summed in float64. A plain float32 dot product over an embedding matrix is wrong in
    the fourth digit.

    >>> inner_products([torch.tensor([1.0, 2.0]), None, torch.tensor([3.0, -1.0])]).tolist()
    [[5.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 10.0]]
    """
    return matrices([pairwise_products(vectors)])[0]


def pairwise_products(vectors: Sequence[Tensor | None]) -> Pairwise:
    """`inner_products`, left on the tensors' device; on the CPU where that has no float64."""
    present = tuple(i for i, each in enumerate(vectors) if each is not None)
    flat = [each.detach().reshape(-1) for each in vectors if each is not None]
    if not flat:
        return Pairwise(len(vectors), (), torch.zeros(0, 0, dtype=torch.float64))
    device = flat[0].device.type  # a caller's autocast would round what is multiplied to 16 bits
    with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else contextlib.nullcontext():
        return Pairwise(len(vectors), present, _products(flat))


def _products(flat: list[Tensor]) -> Tensor:
    device, dtype = flat[0].device, _factor_dtype(flat)
    size = CHUNK * (SLAB if device.type == "cpu" else max(1, DEVICE_SLAB // (CHUNK * len(flat))))
    summed_on_host = device.type == "mps"  # Apple's GPUs have no float64
    total = torch.zeros(len(flat), len(flat), dtype=torch.float64, device="cpu" if summed_on_host else device)
    for start in range(0, flat[0].numel(), size):
        slab = _stack([each[start : start + size].to(dtype) for each in flat])  # [M, n]
        even = slab.shape[1] // CHUNK * CHUNK
        chunks = slab[:, :even].unflatten(1, (-1, CHUNK)).transpose(0, 1)  # [C, M, CHUNK]
        for part in (each for each in (chunks, slab[None, :, even:]) if each.numel()):
            products = _multiply(part)
            total += (products.cpu() if summed_on_host else products).sum(0, dtype=torch.float64)
    return total


def _stack(flat: list[Tensor]) -> Tensor:
    return torch.stack(flat) if len(flat) > 1 else flat[0][None]


def _multiply(part: Tensor) -> Tensor:
    """Products ``[C, M, M]`` of ``[C, M, n]``, in float32 or better."""
    if part.dtype.itemsize == 2:
        return torch.bmm(part, part.transpose(1, 2), out_dtype=torch.float32)
    return torch.bmm(part, part.transpose(1, 2))


def _factor_dtype(flat: Sequence[Tensor]) -> torch.dtype:
    """The dtype to multiply in: float32 or better, or 16 bits where a device sums products of those in float32."""
    dtype, device = flat[0].dtype, flat[0].device.type
    if all(each.dtype == dtype for each in flat) and dtype.itemsize == 2 and _sums_halves(device, dtype):
        return dtype
    return torch.promote_types(dtype, torch.float32)


@functools.cache
def _sums_halves(device: str, dtype: torch.dtype) -> bool:
    if device == "cpu":  # it would be slower, to other digits
        return False
    one = torch.ones(1, 1, 1, dtype=dtype, device=device)
    try:
        torch.bmm(one, one, out_dtype=torch.float32)
    except (RuntimeError, TypeError):  # a device without it; a torch without it
        return False
    return True


@dataclass
class Gram:
    """The inner products of named gradients, per parameter tensor.

    Attributes:
        names: of the M gradients, the order of every matrix here.
        values: canonical parameter name → ``[M, M]``, float64, symmetric.
    """

    names: tuple[str, ...]
    values: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, gradients: Mapping[str, NamedTensors]) -> Self:
        """The Gram of gradients in memory (name → parameter name → tensor), as of `geffect.capture_gradients`.

        A parameter that is missing counts as zero.

        >>> Gram.of({"a": {"w": torch.tensor([1.0, 2.0])}, "b": {}}).values["w"].tolist()
        [[5.0, 0.0], [0.0, 0.0]]
        """
        parameters = dict.fromkeys(name for each in gradients.values() for name in each)
        return cls.reduce(tuple(gradients), parameters, gradients)

    @classmethod
    def reduce(
        cls, names: Sequence[str], parameters: Iterable[str], gradients: Mapping[str, Mapping[str, Tensor]]
    ) -> Self:
        """The Gram of these gradients over these parameters, moved to the host by one copy a device."""
        order = list(parameters)
        products = [pairwise_products([gradients[each].get(name) for each in names]) for name in order]
        return cls(tuple(names), dict(zip(order, matrices(products), strict=True)))

    def total(self, names: Iterable[str] | None = None) -> Tensor:
        """The sum over the named parameters (all by default), ``[M, M]``."""
        matrices = self.values.values() if names is None else [self.values[name] for name in names]
        return sum(matrices, torch.zeros(len(self.names), len(self.names), dtype=torch.float64))

    def norms(self) -> dict[str, float]:
        """‖gradient‖ over the whole model, as the scalar ``norm_NAME`` of a record."""
        total = self.total()
        return {f"norm_{name}": norm(total, self.names, name) for name in self.names}

    def by(self, labels: Mapping[str, str]) -> dict[str, Tensor]:
        """The sums under each label (a layer or group a parameter), from the embedding to the head (`depth_key`)."""
        members: dict[str, list[str]] = {}
        for name in self.values:
            members.setdefault(labels[name], []).append(name)
        return {label: self.total(members[label]) for label in sorted(members, key=depth_key)}

    def combine(self, combinations: Mapping[str, Mapping[str, float]]) -> "Gram":
        """The Gram of linear combinations (new name → {name in this Gram: coefficient}): C G Cᵀ, no gradient needed.

        >>> gram = Gram(("forget",), {"w": torch.tensor([[4.0]], dtype=torch.float64)})
        >>> gram.combine({"forget": {"forget": 1}, "objective": {"forget": -1}}).values["w"].tolist()
        [[4.0, -4.0], [-4.0, 4.0]]
        """
        matrix = torch.tensor(
            [[float(parts.get(name, 0.0)) for name in self.names] for parts in combinations.values()],
            dtype=torch.float64,
        )
        return Gram(tuple(combinations), {name: matrix @ g @ matrix.T for name, g in self.values.items()})

    def to_frame(self, labels: Mapping[str, str] | None = None, by: str = "group") -> pd.DataFrame:
        """The inner products as a tidy frame like a record's, without a step; each unordered pair once.

        ``labels`` says what a parameter is summed under, such as `geffect.core.layers.Layout.groups`, and ``by`` what
        these labels are: ``group`` or ``layer``. The columns are ``by`` (``parameter`` without labels), ``gradient``,
        ``other`` and ``inner``.
        """
        sums = self.values if labels is None else self.by(labels)
        pairs = [(i, j) for i in range(len(self.names)) for j in range(i, len(self.names))]
        lines = [(label, self.names[i], self.names[j], float(g[i, j])) for label, g in sums.items() for i, j in pairs]
        return pd.DataFrame(lines, columns=["parameter" if labels is None else by, "gradient", "other", "inner"])

    def to_record(self) -> "GramRecord":
        """The names, and each tensor's upper triangle, line by line, to nine significant digits."""
        triangles: list[list[float | None]] = [
            [float(f"{x:.{DIGITS}g}") for x in upper_triangle(matrix)] for matrix in self.values.values()
        ]
        return {"gradients": list(self.names), "values": triangles}

    @classmethod
    def from_record(cls, record: "GramRecord", parameters: Sequence[str]) -> Self:
        """The Gram of a `to_record` over these parameters; null becomes NaN."""
        matrices = _symmetric(np.array(record["values"], dtype=np.float64), len(record["gradients"]))
        return cls(tuple(record["gradients"]), dict(zip(parameters, matrices, strict=True)))

    def __repr__(self) -> str:
        return f"Gram({', '.join(self.names)}; {len(self.values)} tensors)"

    def _repr_html_(self) -> str:
        table = pd.DataFrame(self.total().numpy(), self.names, self.names)
        title = f"inner products, summed over {len(self.values)} tensors"
        return f"<p>{title}</p>{table.to_html(float_format='{:.4g}'.format)}"


class GramRecord(TypedDict):
    """A Gram as a record holds it."""

    gradients: list[str]
    values: list[list[float | None]]  # a tensor each: the upper triangle, line by line; null where it is not finite


_upper = functools.cache(np.triu_indices)  # a Gram a tensor asks for the same ones


def upper_triangle(matrices: Tensor) -> list[float]:
    """The upper triangles of ``[…, M, M]``, line by line: lists ``[…, M (M + 1) / 2]``."""
    i, j = _upper(matrices.shape[-1])
    triangle: list[float] = matrices.numpy()[..., i, j].tolist()
    return triangle


def _symmetric(upper: npt.NDArray[np.float64], size: int) -> Tensor:
    """Symmetric matrices ``[P, M, M]`` from their upper triangles, line by line, ``[P, M (M + 1) / 2]``."""
    i, j = _upper(size)
    matrices = np.zeros((len(upper), size, size))
    matrices[:, i, j] = matrices[:, j, i] = upper
    return torch.from_numpy(matrices)


def inner(gram: Tensor, names: Sequence[str], a: str, b: str) -> float:
    """⟨a, b⟩ from a Gram matrix ``[M, M]`` whose order is ``names``."""
    return float(gram[names.index(a), names.index(b)])


def norm(gram: Tensor, names: Sequence[str], a: str) -> float:
    """‖a‖₂."""
    return math.sqrt(max(inner(gram, names, a, a), 0.0))


def cosine(gram: Tensor, names: Sequence[str], a: str, b: str) -> float:
    """⟨a, b⟩ / (‖a‖‖b‖), in [−1, 1]; NaN where either is zero."""
    scale = norm(gram, names, a) * norm(gram, names, b)
    return max(-1.0, min(1.0, inner(gram, names, a, b) / scale)) if scale else math.nan


def effects_by_group(
    gram: Gram, groups: Mapping[str, str], targets: Iterable[str], applied: str
) -> dict[str, dict[str, float]]:
    """Target → layer group → −⟨∇R, applied⟩: what a step does to a target's loss R, in nats; ``""`` is the whole model.

    ``groups`` maps a parameter to its group, ``applied`` names −Δθ among the gradients.
    """
    parts, names = {"": gram.total(), **gram.by(groups)}, gram.names
    found = {
        target: {group: -inner(each, names, target, applied) for group, each in parts.items()} for target in targets
    }
    if not any(each.get("tied") for each in found.values()):  # its two uses count under embed and lm_head
        for each in found.values():
            each.pop("tied", None)
    return found
