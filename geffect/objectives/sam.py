"""A forget term's gradient at the weights where the term is locally largest: sharpness-aware unlearning."""

from dataclasses import dataclass
from typing import ClassVar

from geffect.core.registry import Positive
from geffect.errors import GeffectError
from geffect.objectives.base import Wrapper


@dataclass(frozen=True)
class SAM(Wrapper):
    """The term, differentiated at θ + ρ g/‖g‖ instead of θ, with g its gradient over the whole step (arXiv 2502.05374).

    Descent on what the term is nearby makes the forgotten harder to relearn. Every micro-batch of the step is passed
    twice; the weights between are θ again, bit for bit. The loss that is recorded is the one at θ + ρ g/‖g‖.

    Attributes:
        rho: ρ > 0, the distance over all trained weights.
    """

    rho: Positive = 0.01
    multiple_of_loss: ClassVar[None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.term.on != "forget" or self.term.has_state or self.term.rho is not None:
            remedy = "Write sam around one term such as npo, as in sam(npo) + gd"
            name = type(self.term).__name__
            raise GeffectError(f"sam takes a plain term on the forget set, not {name}", remedy=remedy)

    def weights(self, outputs: object) -> None:
        """None: the weights on ∇log p_i are those of other parameters."""
