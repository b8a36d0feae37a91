"""Retain parts: what is descended on the retain set beside an unlearning objective."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from geffect.objectives.outputs import Outputs


@dataclass(frozen=True)
class GD:
    """Gradient descent on the retain risk: L = −(1/N) Σ_i log p_i over the retain batch's labelled tokens."""

    unit: ClassVar[str] = "token"
    needs: ClassVar[frozenset[str]] = frozenset()
    side: ClassVar[str] = "retain"
    multiple_of_risk: ClassVar[float | None] = 1.0

    def weights(self, outputs: Outputs) -> Tensor:
        """``[B, T]`` ones on labelled tokens, zeros elsewhere."""
        return outputs.mask.to(outputs.nll.dtype)

    def loss(self, outputs: Outputs) -> Tensor:
        """−Σ_i log p_i over the batch's labelled tokens; the caller divides by their count N."""
        return outputs.nll.sum()
