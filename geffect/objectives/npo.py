"""Negative preference optimisation (arXiv 2404.05868)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from geffect.errors import GeffectError
from geffect.objectives.outputs import Outputs


@dataclass(frozen=True)
class NPO:
    """L = −(2/β) (1/B) Σ_s log σ(β(ℓ(s) − ℓ₀(s))), with ℓ(s) the sequence NLL and ℓ₀ that of the reference.

    Its gradient is (1/B) Σ_s w(s) ∇log p(s) with w(s) = 2σ(−β(ℓ − ℓ₀)): at the start w = 1 and L = (2/β) ln 2. The sum
    runs over a row's tokens, so NPO's gradient is about a row's length times that of a token mean such as GA's.

    Attributes:
        beta: β > 0, the inverse temperature; β → 0 is GA on sequence sums.
    """

    beta: float = 0.1
    unit: ClassVar[str] = "row"
    needs: ClassVar[frozenset[str]] = frozenset({"ref_nll"})
    side: ClassVar[str] = "forget"
    multiple_of_risk: ClassVar[float | None] = None

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise GeffectError("beta > 0 for npo", str(self.beta), "0.1 is the usual value")

    def margin(self, outputs: Outputs) -> Tensor:
        """``[B]`` β(ℓ − ℓ₀): how much less likely each row is than under the reference, in units of 1/β nats."""
        return self.beta * (outputs.sequence_nll - outputs.ref.sum(1))

    def weights(self, outputs: Outputs) -> Tensor:
        """``[B, T]`` w(s) = 2σ(−β(ℓ − ℓ₀)) on the row's labelled tokens, zeros elsewhere; no graph."""
        return 2 * torch.sigmoid(-self.margin(outputs).detach())[:, None] * outputs.mask

    def loss(self, outputs: Outputs) -> Tensor:
        """−(2/β) Σ_s log σ(margin) over the batch's rows; the caller divides by their count B."""
        return -(2 / self.beta) * functional.logsigmoid(self.margin(outputs)).sum()
