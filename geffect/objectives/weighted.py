"""Token-weighted ascent: L = (1/N) Σ_i w_i log p_i over the labelled tokens, weights detached."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from geffect.objectives.outputs import Outputs


@dataclass(frozen=True)
class GA:
    """Gradient ascent: L = (1/N) Σ_i log p_i, the forget risk with its sign turned; w_i = 1."""

    unit: ClassVar[str] = "token"
    needs: ClassVar[frozenset[str]] = frozenset()
    side: ClassVar[str] = "forget"
    multiple_of_risk: ClassVar[float | None] = -1.0

    def weights(self, outputs: Outputs) -> Tensor:
        """``[B, T]`` ones on labelled tokens, zeros elsewhere."""
        return outputs.mask.to(outputs.nll.dtype)

    def loss(self, outputs: Outputs) -> Tensor:
        """Σ_i log p_i over the batch's labelled tokens; the caller divides by their count N."""
        return -outputs.nll.sum()


@dataclass(frozen=True)
class WGA:
    """Weighted gradient ascent: w_i = p_i^α, detached (arXiv 2502.19301).

    Its gradient at α = 1 is the mean ∇p_i: the factor 1/p_i of ∇log p_i cancels. α = 0 is `GA`.

    Attributes:
        alpha: the exponent α; 1 by default (the published training script falls back to 5).
    """

    alpha: float = 1.0
    unit: ClassVar[str] = "token"
    needs: ClassVar[frozenset[str]] = frozenset()
    side: ClassVar[str] = "forget"
    multiple_of_risk: ClassVar[float | None] = None

    def weights(self, outputs: Outputs) -> Tensor:
        """``[B, T]`` w_i = p_i^α on labelled tokens, zeros elsewhere; no graph."""
        return torch.exp(-self.alpha * outputs.nll.detach()) * outputs.mask

    def loss(self, outputs: Outputs) -> Tensor:
        """Σ_i w_i log p_i over the batch's labelled tokens; the caller divides by their count N."""
        return -(self.weights(outputs) * outputs.nll).sum()
