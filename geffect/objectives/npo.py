"""Negative preference optimization and its kin: ascent that saturates once an example or token has become unlikely."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from geffect.core.forward import Outputs
from geffect.core.registry import Positive
from geffect.objectives.base import Term
from geffect.objectives.weighted import WeightedAscent


@dataclass(frozen=True)
class NPO(Term):
    """L = −(2/β) (1/B) Σ_s log σ(β(ℓ(s) − ℓ₀(s))), with ℓ(s) the sequence NLL and ℓ₀ that of the reference.

    Its gradient is (1/B) Σ_s w(s) ∇log p(s) with w(s) = 2σ(−β(ℓ − ℓ₀)): at the start w = 1 and L = (2/β) ln 2. The sum
    runs over an example's tokens, so NPO's gradient is about its length times that of a token mean such as GA's
    (arXiv 2404.05868).

    Attributes:
        beta: β > 0, the inverse temperature; β → 0 is GA on sequence sums.
    """

    beta: Positive = 0.1
    unit: ClassVar[str] = "example"
    needs: ClassVar[frozenset[str]] = frozenset({"ref_nll"})

    def margin(self, outputs: Outputs) -> Tensor:
        """``[B]`` β(ℓ − ℓ₀): how much less likely each example is than under the reference, in units of 1/β nats."""
        return self.beta * (outputs.sequence_nll - outputs.ref.sum(1))

    def weights(self, outputs: Outputs) -> Tensor:
        """``[B, T]`` w(s) = 2σ(−β(ℓ − ℓ₀)) on the example's labeled tokens, zeros elsewhere; no graph."""
        return 2 * torch.sigmoid(-self.margin(outputs).detach())[:, None] * outputs.mask

    def loss(self, outputs: Outputs) -> Tensor:
        """−(2/β) Σ_s log σ(margin) over the batch's examples; the caller divides by their count B."""
        return -(2 / self.beta) * functional.logsigmoid(self.margin(outputs)).sum()


@dataclass(frozen=True)
class SimNPO(NPO):
    """L = −(2/β) (1/B) Σ_s log σ(β(ℓ(s)/n(s) − γ)), n(s) its labeled tokens: no reference (arXiv 2410.07163).

    Its weight on ∇log p_i is w(s) = (2/n) σ(−β(ℓ/n − γ)). γ stands inside β(·), as in the published code.

    Attributes:
        beta: β > 0, the inverse temperature.
        gamma: γ, the mean NLL (nats a token) around which an example's weight halves.
    """

    beta: Positive = 2.5
    gamma: float = 0.0
    needs: ClassVar[frozenset[str]] = frozenset()

    def margin(self, outputs: Outputs) -> Tensor:
        """``[B]`` β(ℓ/n − γ)."""
        return self.beta * (outputs.sequence_nll / outputs.mask.sum(1) - self.gamma)

    def weights(self, outputs: Outputs) -> Tensor:
        """``[B, T]`` (2/n) σ(−β(ℓ/n − γ)) on the example's labeled tokens, zeros elsewhere; no graph."""
        saturation = torch.sigmoid(-self.margin(outputs).detach())
        return (2 * saturation / outputs.mask.sum(1))[:, None] * outputs.mask


@dataclass(frozen=True)
class TNPO(Term):
    """Token-wise NPO: L = (2/β) (1/N) Σ_i log(1 + (p_i/p0_i)^β), w_i = 2 p_i^β/(p_i^β + p0_i^β) (arXiv 2502.19301).

    On examples of one token it is `NPO`.

    Attributes:
        beta: β > 0.
        epsilon: added to the weight's denominator; the published 1e-5 decides where both probabilities are small.
    """

    beta: Positive = 4.0
    epsilon: float = 0.0
    needs: ClassVar[frozenset[str]] = frozenset({"ref_nll"})

    def weights(self, outputs: Outputs) -> Tensor:
        """``[B, T]`` w_i on labeled tokens, zeros elsewhere; no graph."""
        return _token_weights(outputs, self.beta, self.epsilon)

    def loss(self, outputs: Outputs) -> Tensor:
        """(2/β) Σ_i log((p_i^β + p0_i^β + ε)/p0_i^β); the caller divides by the count N of labeled tokens."""
        excess = torch.logaddexp(-self.beta * outputs.nll, _log_base(outputs, self.beta, self.epsilon))
        return (2 / self.beta) * ((excess + self.beta * outputs.ref) * outputs.mask).sum()


@dataclass(frozen=True)
class WTNPO(WeightedAscent):
    """Weighted token-wise NPO: w_i = 2 p_i^(β+α)/(p_i^β + p0_i^β), detached (arXiv 2502.19301); α = 0 is `TNPO`.

    Attributes:
        beta: β > 0.
        alpha: α, the exponent of `WGA`'s weight.
        epsilon: as in `TNPO`.
    """

    beta: Positive = 4.0
    alpha: float = 1.5
    epsilon: float = 0.0
    needs: ClassVar[frozenset[str]] = frozenset({"ref_nll"})

    def weights(self, outputs: Outputs) -> Tensor:
        """``[B, T]`` w_i on labeled tokens, zeros elsewhere; no graph."""
        saturation = _token_weights(outputs, self.beta, self.epsilon)
        return saturation * torch.exp(-self.alpha * outputs.nll.detach())


def _log_base(outputs: Outputs, beta: float, epsilon: float) -> Tensor:
    """log(p0^β + ε)."""
    log_ref = -beta * outputs.ref
    return torch.logaddexp(log_ref, torch.full_like(log_ref, epsilon).log()) if epsilon else log_ref


def _token_weights(outputs: Outputs, beta: float, epsilon: float) -> Tensor:
    """2 p^β/(p^β + p0^β + ε) on labeled tokens, by log-ratios: nothing under- or overflows."""
    log_ratio = -beta * outputs.nll.detach() - _log_base(outputs, beta, epsilon)
    return 2 * torch.sigmoid(log_ratio) * outputs.mask
