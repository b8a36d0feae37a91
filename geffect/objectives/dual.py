"""A retain term's weight as a Lagrange multiplier: it rises while the term's loss lies above a ceiling."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from geffect.core.registry import Positive
from geffect.errors import GeffectError
from geffect.objectives.base import State, Wrapper


@dataclass(frozen=True)
class Dual(Wrapper):
    """λ · term, a term on a retain or general set; λ ← max(0, λ + η(L_term − ε)) once an optimizer step.

    Dual ascent on the constraint L_term ≤ ε (arXiv 2506.05314 with the retain loss): λ is the price of one unit of
    L_term in units of the other terms. L_term is the loss over the step's own examples, at the weights before the step.
    An inspection measures every checkpoint with λ = start.

    Attributes:
        eps: ε, the loss that the term may have.
        eta: η > 0, the step size of λ.
        start: λ of the first step.
    """

    eps: float = 0.3
    eta: Positive = 1.0
    start: Annotated[float, Field(ge=0)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.term.on not in ("retain", "general"):
            raise GeffectError(
                f"dual takes a term on a retain or general set, not {type(self.term).__name__}", remedy="Write dual(gd)"
            )
        if self.term.has_state:
            raise GeffectError("dual takes a term without a state of its own", remedy="Write dual once")

    def init_state(self) -> State:
        """λ of the first step."""
        return {"multiplier": self.start}

    def multiplier(self, state: State) -> float:
        """λ."""
        return state["multiplier"]

    def update_state(self, state: State, losses: Mapping[str, float]) -> State:
        """λ ← max(0, λ + η(L_term − ε))."""
        return {"multiplier": max(0.0, state["multiplier"] + self.eta * (losses["term"] - self.eps))}
