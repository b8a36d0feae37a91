"""GEM and GU: no conflict with the retain gradients of this step and of the last ones.

GEM (arXiv 1706.08840) projects the gradient, or any optimizer's update; GU (arXiv 2511.17100) the update of Adam, in
Adam's metric.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy.optimize import nnls
from torch import Tensor

from geffect.core.registry import Metric
from geffect.core.splits import MOST_REMEMBERED, REMEMBERED
from geffect.rectifiers.base import InnerProducts, Memories, Rectifier, Scope

Array = npt.NDArray[np.float64]
ROUNDING = 1e-8  # of a coefficient of unit vectors, whose products are exact to twice the digits of their root


class Remembering(Rectifier):
    """The projection on ⟨x, m_i⟩ ≥ −``tolerance`` of the ``memory`` newest retain gradients m_i."""

    @property
    def memory(self) -> int:
        """How many retain gradients are remembered."""
        return 1

    @property
    def space(self) -> Literal["gradient", "update", "both"]:
        """What is projected: the gradient, the update −Δθ that the optimizer makes of it, or both."""
        return "update"

    @property
    def tolerance(self) -> float:
        """How far ⟨x, m_i⟩ may lie below 0."""
        return 0.0

    @property
    def memories(self) -> tuple[str, ...]:
        """This step's retain gradient, ``retain_0``, and those of earlier ones, the newest first."""
        return REMEMBERED[: self.memory]

    @property
    def gradients(self) -> tuple[str, ...]:
        """The objective's and the memories."""
        return ("objective", *self.memories)

    @property
    def corrects(self) -> bool:
        """Whether θ is corrected once the optimizer has stepped."""
        return self.space in ("update", "both")

    def update(self, state: Memories, name: str, retain: Tensor | None) -> None:
        """Move one tensor of every memory on by a step, the oldest out, and copy this step's in."""
        oldest = state[self.memories[-1]].pop(name, None)
        for older, newer in zip(self.memories[:0:-1], self.memories[-2::-1], strict=True):
            if name in state[newer]:
                state[older][name] = state[newer].pop(name)
        if retain is not None:
            reused = oldest is not None and oldest.dtype == retain.dtype
            state[self.memories[0]][name] = oldest.copy_(retain) if oldest is not None and reused else retain.clone()

    def coefficients(self, gram: InnerProducts) -> dict[str, float]:
        """1 of the objective's gradient, and of every memory its λ where the gradient is projected.

        Of inner products without memories, as a run without this rule records them, ``retain`` is the only one.

        >>> import torch
        >>> gram = InnerProducts(("objective", "retain_0"), torch.tensor([[1.0, -0.5], [-0.5, 0.25]]))
        >>> GEM(memory=1).coefficients(gram)
        {'objective': 1.0, 'retain_0': 2.0}
        """
        here = self.space in ("gradient", "both")
        memories = self._multipliers(gram, "objective") if here else dict.fromkeys(self._among(gram), 0.0)
        return {"objective": 1.0, **memories}

    def correction(self, gram: InnerProducts) -> dict[str, float]:
        """Memory → λ of the projection of the update −Δθ; nothing in gradient space."""
        return self._multipliers(gram, "update") if self.corrects else {}

    def numbers(self, gram: InnerProducts, coefficients: Mapping[str, float]) -> dict[str, float]:
        """``kkt_residual`` of the projection; nothing where that space is not projected."""
        here, names = "objective" in coefficients, self._among(gram)
        if not (self.space in ("gradient", "both") if here else self.corrects):
            return {}
        matrix = _matrix(gram, ["objective" if here else "update", *names])
        weights = np.array([coefficients.get(name, 0.0) for name in names])
        return {"kkt_residual": kkt_residual(matrix, weights, self.tolerance)}

    def _among(self, gram: InnerProducts) -> tuple[str, ...]:
        known = tuple(name for name in self.memories if name in gram.names)
        return known or ("retain",)

    def _multipliers(self, gram: InnerProducts, projected: str) -> dict[str, float]:
        names = self._among(gram)
        found = multipliers(_matrix(gram, [projected, *names]), self.tolerance)
        return dict(zip(names, map(float, found), strict=True))


@dataclass(frozen=True)
class GEM(Remembering):
    """x = argmin ‖x − g‖² subject to ⟨x, m_i⟩ ≥ 0 for all i, that is g + Σ λ_i m_i with λ ≥ 0.

    g is the objective's gradient and m_0, m_1, … the retain gradients of this step, of the one before, and so on: the
    ``memory`` newest of them, as few as there are at first. λ solves the dual problem of so many unknowns in float64;
    the record has its ``kkt_residual`` (`kkt_residual`).

    Guarantee: ⟨x, m_i⟩ ≥ 0, so to first order plain gradient descent raises the loss of none of these retain batches
    (of the older ones, as seen from the weights they were taken at); and ⟨g, x⟩ = ‖x‖² ≥ 0, so the objective does not
    rise. In the space of updates the same holds of what any optimizer applied.

    Attributes:
        memory: how many retain gradients; each takes the memory of the trained parameters. 1 is GRU without average.
        space: what is projected: the ``gradient``, the ``update`` −Δθ that the optimizer makes of it, or ``both``.
        scope: the part of the model over which the guarantee holds.
    """

    memory: Annotated[int, Field(ge=1, le=MOST_REMEMBERED)] = 4
    space: Literal["gradient", "update", "both"] = "gradient"
    scope: Scope = "model"


@dataclass(frozen=True)
class GU(Remembering):
    """Δ* = argmin ‖Δ − Δ⁰‖²_M subject to ⟨m_i, Δ⟩ ≤ tolerance: Δ⁰ − M⁻¹ Σ λ_i m_i with λ ≥ 0 (arXiv 2511.17100).

    Δ⁰ = Δθ is the update that the optimizer made, m_i the ``memory`` newest retain gradients, this step's among them,
    and M = diag(√v̂ + ε) with Adam's second moment v̂ as it is after the step: what Δ⁰ was divided by. λ solves the dual
    problem with K = G M⁻¹ Gᵀ in float64; the record has its ``update_kkt_residual``. An optimizer without second
    moments is refused.

    Guarantee: ⟨m_i, Δ*⟩ ≤ tolerance of what was applied: to first order no loss of these retain batches rises by more
    (of the older ones, as seen from the weights they were taken at).

    Attributes:
        memory: how many retain gradients; each takes the memory of the trained parameters.
        tolerance: the rise of each one's loss that is allowed in a step, to first order (nats a token).
        scope: the part of the model over which the guarantee holds.
    """

    memory: Annotated[int, Field(ge=1, le=9)] = 4
    tolerance: Annotated[float, Field(ge=0)] = 0.0
    scope: Scope = "model"
    metric: ClassVar[Metric] = "adam"


def _matrix(gram: InnerProducts, names: list[str]) -> Array:
    chosen = [gram.names.index(name) for name in names]
    matrix: Array = gram.matrix.double()[chosen][:, chosen].numpy()
    return matrix


def multipliers(matrix: Array, tolerance: float = 0.0) -> Array:
    """λ ≥ 0 of the point g + Σ λ_i m_i that is closest to g where ⟨x, m_i⟩ ≥ −tolerance for all i.

    ``matrix`` ``[1 + k, 1 + k]`` is the Gram of g, m_1, …, m_k; a zero memory gets 0. With unit vectors this is the
    non-negative least squares problem min ‖g + Σ λ_i m_i‖ of any vectors with this Gram; with a tolerance, that of
    Lawson and Hanson's least distance problem. The root of a Gram has half its digits, so the active set is solved for
    again, and corrected, by the inner products themselves.

    >>> multipliers(np.array([[1.0, -0.5, 0.2], [-0.5, 0.25, 0.0], [0.2, 0.0, 1.0]])).tolist()
    [2.0, 0.0]
    >>> multipliers(np.array([[1.0, -0.5], [-0.5, 0.25]]), tolerance=0.25).tolist()
    [1.0]
    """
    unit, lengths = _unit(matrix)
    wanted = unit[0, 1:] + _slack(lengths, tolerance)
    solution = np.zeros(len(unit) - 1)
    if not np.isfinite(matrix).all() or not lengths[0] or (wanted >= 0).all():
        return solution
    posed = unit.copy()
    if tolerance:
        posed[0, 0], posed[0, 1:], posed[1:, 0] = 1.0, wanted, wanted
        posed[1:, 1:] += np.outer(wanted, wanted)
    values, vectors = np.linalg.eigh(posed)
    root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T  # [1 + k, 1 + k], columns with the Gram's products
    present = np.flatnonzero(lengths[1:])  # SciPy's solver ends at a column of zeros
    found = np.zeros_like(solution)
    found[present] = nnls(root[:, 1:][:, present], -root[:, 0], maxiter=100 * len(unit))[0]
    found /= 1 + wanted @ found if tolerance else 1.0
    candidates, active = [found], found > ROUNDING
    for _ in range(2 * len(unit)):
        chosen, again = np.flatnonzero(active), np.zeros_like(found)
        again[chosen] = np.linalg.lstsq(unit[1:, 1:][np.ix_(chosen, chosen)], -wanted[chosen], rcond=None)[0]
        candidates.append(np.maximum(again, 0))
        if (again >= 0).all():
            products = wanted + unit[1:, 1:] @ again
            if products.min() >= 0 or active[products.argmin()]:
                break
            active[products.argmin()] = True
        active &= again >= 0
    solution = min(candidates, key=lambda each: _residual(unit, wanted, each))
    scaled: Array = solution * lengths[0]
    scaled[present] /= lengths[1:][present]
    return scaled


def kkt_residual(matrix: Array, weights: Array, tolerance: float = 0.0) -> float:
    """How far λ is from the optimum's conditions: the largest of −s_i, −λ_i and |λ_i s_i|, of unit vectors.

    ``matrix`` is as in `multipliers`, x = g + Σ λ_i m_i, s_i = ⟨x, m_i⟩ + tolerance, and λ_i counts in units of
    ‖g‖/‖m_i‖. 0 is optimal.
    """
    unit, lengths = _unit(matrix)
    if not lengths[0]:
        return 0.0
    return _residual(unit, unit[0, 1:] + _slack(lengths, tolerance), weights * lengths[1:] / lengths[0])


def _slack(lengths: Array, tolerance: float) -> Array:
    """The tolerance in units of ‖g‖‖m_i‖; 0 where one of them is zero."""
    products: Array = lengths[0] * lengths[1:]
    return np.divide(tolerance, products, out=np.zeros_like(products), where=products > 0)


def _unit(matrix: Array) -> tuple[Array, Array]:
    """The Gram of unit vectors, zeros where a vector is zero, and the vectors' lengths."""
    squares = matrix.diagonal()
    lengths = np.sqrt(np.where(squares >= np.finfo(np.float64).tiny, squares, 0.0))
    inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    unit: Array = matrix * inverse[:, None] * inverse[None, :]
    return unit, lengths


def _residual(unit: Array, wanted: Array, weights: Array) -> float:
    products = wanted + unit[1:, 1:] @ weights
    return float(max(0.0, (-products).max(), (-weights).max(), np.abs(weights * products).max()))
