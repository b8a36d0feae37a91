"""Token-weighted ascent: L = (1/N) Σ_i w_i log p_i over the labeled tokens, weights detached."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from geffect.core.forward import IGNORE_INDEX, Outputs, shift_labels
from geffect.objectives.base import Term


@dataclass(frozen=True)
class GA(Term):
    """Gradient ascent: L = (1/N) Σ_i log p_i, the forget loss with its sign turned; w_i = 1."""

    multiple_of_loss: ClassVar[float | None] = -1.0

    def weights(self, outputs: Outputs) -> Tensor:
        """``[B, T]`` ones on labeled tokens, zeros elsewhere."""
        return outputs.mask.to(outputs.nll.dtype)

    def loss(self, outputs: Outputs) -> Tensor:
        """Σ_i log p_i over the batch's labeled tokens; the caller divides by their count N."""
        return -outputs.nll.sum()


class WeightedAscent(Term):
    """L = (1/N) Σ_i w_i log p_i: a subclass writes its weights."""

    @abstractmethod
    def weights(self, outputs: Outputs) -> Tensor:
        """``[B, T]`` w_i on labeled tokens, zeros elsewhere; no graph."""

    def loss(self, outputs: Outputs) -> Tensor:
        """Σ_i w_i log p_i over the batch's labeled tokens; the caller divides by their count N."""
        return -(self.weights(outputs) * outputs.nll).sum()


@dataclass(frozen=True)
class WGA(WeightedAscent):
    """Weighted gradient ascent: w_i = p_i^α, detached (arXiv 2502.19301).

    Its gradient at α = 1 is the mean ∇p_i: the factor 1/p_i of ∇log p_i cancels. α = 0 is `GA`.

    Attributes:
        alpha: the exponent α; 1 by default (the published training script falls back to 5).
    """

    alpha: float = 1.0

    def weights(self, outputs: Outputs) -> Tensor:
        """``[B, T]`` w_i = p_i^α on labeled tokens, zeros elsewhere; no graph."""
        return torch.exp(-self.alpha * outputs.nll.detach()) * outputs.mask


@dataclass(frozen=True)
class SatImp(WeightedAscent):
    """Saturation and importance: w_i = p_i^β₁ (1 − p_i)^β₂, detached; β₂ = 0 is `WGA` (as open-unlearning has it).

    Attributes:
        beta1: β₁ ≥ 0, how much already unlikely tokens count less.
        beta2: β₂ ≥ 0, how much certain tokens count less.
    """

    beta1: float = 5.0
    beta2: float = 1.0

    def weights(self, outputs: Outputs) -> Tensor:
        """``[B, T]`` w_i = p_i^β₁ (1 − p_i)^β₂ on labeled tokens, zeros elsewhere; no graph."""
        nll = outputs.nll.detach()
        return torch.exp(-self.beta1 * nll) * (-torch.expm1(-nll)) ** self.beta2 * outputs.mask


@dataclass(frozen=True)
class CEU(WeightedAscent):
    """CE-U: w_i = p_i/(1 − p_i), detached; the gradient of the mean CE(p, q), q the model's own p without the label.

    With q = softmax(z), the label's logit at −∞, without a graph, ∇CE(p_i, q_i) = w_i ∇log p_i (arXiv 2503.01224). So
    the gradient on a logit never exceeds 1, however sure the label is; 1 − p is a sum over the other tokens.

    Attributes:
        skip: labeled tokens at the start of each example that are left out, and not counted; 1 in the published code.
    """

    skip: Annotated[int, Field(ge=0)] = 0

    @property
    def unit(self) -> str:
        """Labeled tokens, or those of the labeling that leaves out each example's first."""
        return f"skipped_{self.skip}_labels" if self.skip else "token"

    @property
    def needs(self) -> frozenset[str]:
        """That labeling."""
        return frozenset({self.unit} if self.skip else ())

    def weights(self, outputs: Outputs) -> Tensor:
        """``[B, T]`` w_i = p_i/(1 − p_i) = 1/(e^(−log p_i) − 1) on the tokens that count, zeros elsewhere; no graph."""
        nll = outputs.nll.detach()
        counts = shift_labels(outputs.labeling(self.unit)) != IGNORE_INDEX if self.skip else outputs.mask
        return torch.expm1(nll.clamp(min=torch.finfo(nll.dtype).tiny)).reciprocal() * counts
