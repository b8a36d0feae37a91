"""Representation misdirection: push a layer's hidden states of forget tokens towards a random vector."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from geffect.core.forward import Outputs
from geffect.core.losses import widen
from geffect.errors import GeffectError
from geffect.objectives.base import Term


def hidden_layer(states: tuple[Tensor, ...], layer: int) -> Tensor:
    """One of L + 1 hidden states ``[B, T, d]`` (`RMU`), in float32 or better; −1 is the middle block's, ⌈L/2⌉."""
    last = len(states) - 1
    if not -1 <= layer <= last:
        remedy = f"Choose one from 0 (of the embedding) to {last} (of the last block), or -1 (of the middle one)"
        raise GeffectError(f"The model has no hidden state {layer}", remedy=remedy)
    return widen(states[(last + 1) // 2 if layer == -1 else layer])


@dataclass(frozen=True)
class RMU(Term):
    """L = (1/N) Σ_i ‖φ_i − c·u‖², φ_i a layer's hidden state where a labeled token is predicted (arXiv 2403.03218).

    Published forms differ: arXiv 2502.19301 writes ‖·‖² with u ~ U[0,1)^d, its code averages over the d dimensions
    with u not normalized, and RMU's own code averages with u of length 1. So c does not carry over between them.

    Attributes:
        layer: index of the hidden state: 0 the embedding's output, l that of block l; −1 the middle block's.
        c: the length of the target in units of u.
        vector: ``raw`` (u ~ U[0,1)^d) or ``normalized`` (of length 1).
        dims: ``mean`` over the d dimensions or their ``sum``.
        seed: of u, which is drawn once.
    """

    layer: int = -1
    c: float = 20.0
    vector: Literal["raw", "normalized"] = "normalized"
    dims: Literal["mean", "sum"] = "mean"
    seed: int = 0
    needs: ClassVar[frozenset[str]] = frozenset({"hidden"})

    def direction(self, size: int) -> Tensor:
        """u ``[d]``: the same for the same seed and d, on every machine."""
        u = torch.rand(size, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        return u / u.norm() if self.vector == "normalized" else u

    def loss(self, outputs: Outputs) -> Tensor:
        """Σ_i ‖φ_i − c·u‖² (or its mean over d) over the labeled tokens; the caller divides by their count N."""
        phi = hidden_layer(outputs.need("hidden"), self.layer)
        target = self.c * self.direction(phi.shape[-1]).to(phi)
        squares = (phi - target).square()
        return (reduce_dims(squares, self.dims) * outputs.mask).sum()


def reduce_dims(squares: Tensor, dims: str) -> Tensor:
    """``[B, T, d]`` → ``[B, T]`` by mean or sum."""
    return squares.mean(-1) if dims == "mean" else squares.sum(-1)
