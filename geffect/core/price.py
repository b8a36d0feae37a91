"""The price of forgetting: how much a step must harm the retain set, at the least, for what it makes forget.

A step Δ of length R forgets by the gain B = ⟨g_f, Δ⟩ and harms by ρ = ⟨g_r, Δ⟩, to first order, where g_f and g_r are
the gradients of the two losses. Of all steps of that length and gain the harm lies between c(B) = R‖g_r‖ cos(φ + θ) and
R‖g_r‖ cos(φ − θ), with the angle θ between g_f and g_r and cos φ = B / (R‖g_f‖): both ends lie in the plane of the two
gradients (arXiv 2606.02119 names the cheapest direction). For B ≤ R‖g_f‖ sin θ the cheapest step harms nothing, and for
any B where the gradients point apart (θ > 90°).

All of this holds in any metric M, of lengths R = √⟨Δ, MΔ⟩ and products ⟨g, M⁻¹h⟩: put M^½Δ for Δ and M^−½g for g, and B
and ρ stay what they are. In Adam's, M = diag(√v̂ + ε), a step of Adam without momentum along a combination of the two
gradients lies in their plane, and costs one of the two ends: c(B) is what a step of its Adam-length must cost, to first
order, where in the Euclidean metric it is a bound that Adam does not come to.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:  # a stop rule is checked before torch is imported
    from torch import Tensor

Matrix: TypeAlias = "Tensor | Sequence[Sequence[float]]"


class AscentPrice(NamedTuple):
    """What gradient ascent on the forget loss costs, and how much of its gain a step of its length has for nothing.

    Attributes:
        harm: rise of the retain loss, in nats for each nat of forgetting, ⟨g_f, g_r⟩ / ‖g_f‖²; below 0 a gift.
        free: the share of its gain that the cheapest step of its length forgets without harm, sin θ; 1 for θ ≥ 90°.
    """

    harm: float
    free: float


def ascent_price(part: Matrix, names: Sequence[str]) -> AscentPrice | None:
    """The price at one point, before any step, from a matrix of inner products ``[M, M]``; None without a gradient.

    >>> AscentPrice(*(round(value, 3) for value in ascent_price([[1.0, 0.6], [0.6, 1.0]], ("forget", "retain"))))
    AscentPrice(harm=0.6, free=0.8)
    """
    forget, retain = (_norm(part, names, each) for each in ("forget", "retain"))
    product = _inner(part, names, "forget", "retain")
    if not (forget and retain and math.isfinite(product)):
        return None
    return AscentPrice(product / forget**2, math.sqrt(1 - _unit(max(product, 0) / (forget * retain)) ** 2))


def least_harm(part: Matrix, names: Sequence[str], gain: float) -> float | None:
    """c(B) at the length at which ascent forgets 1 nat, ‖g_r‖/‖g_f‖ · cos(acos B + θ); None without a gradient.

    >>> round(least_harm([[1.0, 0.6], [0.6, 1.0]], ("forget", "retain"), 1.0), 3)
    0.6
    """
    forget, retain = (_norm(part, names, each) for each in ("forget", "retain"))
    return retain / forget * math.cos(math.acos(gain) + _angle(part, names)) if forget and retain else None


def step_price(part: Matrix, names: Sequence[str], applied: str = "applied") -> dict[str, float]:
    """The numbers of `geffect.price` for a matrix of inner products ``[M, M]`` over a part of the model.

    >>> import torch
    >>> vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]], dtype=torch.float64)
    >>> found = step_price(vectors @ vectors.T, ("forget", "retain", "applied"))
    >>> {name: round(value, 3) for name, value in found.items() if name in ("gain", "harm", "free")}
    {'gain': 1.0, 'harm': 0.6, 'free': 0.8}
    """
    length, forget, retain = (_norm(part, names, each) for each in (applied, "forget", "retain"))
    gain, harm = (-_inner(part, names, each, applied) for each in ("forget", "retain"))
    if not (length and forget and retain):
        return {"gain": gain, "harm": harm, "cheapest": 0.0, "dearest": 0.0, "free": 0.0, "efficiency": math.nan}
    angle = _angle(part, names)
    share = math.acos(_unit(gain / (length * forget)))
    scale = length * retain
    cheapest, dearest = scale * math.cos(share + angle), scale * math.cos(share - angle)
    spread = dearest - cheapest
    return {
        "gain": gain,
        "harm": harm,
        "cheapest": cheapest,
        "dearest": dearest,
        "free": length * forget * (math.sin(angle) if angle <= math.pi / 2 else 1.0),
        "efficiency": _unit((dearest - harm) / spread) if spread > 1e-12 * scale else math.nan,
    }


def _angle(part: Matrix, names: Sequence[str]) -> float:
    """θ, between the two losses' gradients."""
    norms = _norm(part, names, "forget") * _norm(part, names, "retain")
    return math.acos(_unit(_inner(part, names, "forget", "retain") / norms))


def _unit(value: float) -> float:
    return max(-1.0, min(1.0, value))


def _inner(part: Matrix, names: Sequence[str], a: str, b: str) -> float:
    return float(part[names.index(a)][names.index(b)])


def _norm(part: Matrix, names: Sequence[str], a: str) -> float:
    return math.sqrt(max(_inner(part, names, a, a), 0.0))
