"""Rectifiers by name: they change the update, never the loss. State is in the open: ``init``, then ``update``."""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from geffect.errors import GeffectError
from geffect.grammar import choose, parse
from geffect.rectify.gru import GRU, projection, rectify
from geffect.rows import NamedTensors

__all__ = ["RECTIFIERS", "NoRectifier", "Rectifier", "make_rectifier", "projection", "rectify"]


class Rectifier(Protocol):
    """A combination of rows in place of the objective's."""

    @property
    def memory(self) -> str | None:
        """The row kept between steps, None where there is none."""

    @property
    def add_retain(self) -> float:
        """The weight of this step's raw retain row, added after rectification."""

    def init(self) -> NamedTensors:
        """The state before the first step."""

    def update(self, state: NamedTensors, name: str, retain: Tensor | None) -> Tensor | None:
        """Fold one tensor of this step's retain row into the state; its memory row's tensor."""

    def coefficients(self, objective: float, conflict: float, memory: float) -> dict[str, float]:
        """Row → coefficient of the rectified row, from ‖objective‖², ⟨objective, memory⟩ and ‖memory‖²."""

    @property
    def corrects(self) -> bool:
        """Whether θ is corrected once the optimiser has stepped."""

    def correction(self, update: float, conflict: float, memory: float) -> float:
        """How much of the memory is taken off θ, from ‖update‖², ⟨update, memory⟩ and ‖memory‖²."""


@dataclass(frozen=True)
class NoRectifier:
    """Descend the objective's row as it is."""

    @property
    def memory(self) -> str | None:
        """No row is kept."""
        return None

    @property
    def add_retain(self) -> float:
        """Nothing is added."""
        return 0.0

    def init(self) -> NamedTensors:
        """An empty state."""
        return {}

    def update(self, state: NamedTensors, name: str, retain: Tensor | None) -> Tensor | None:
        """Nothing to fold."""
        return None

    def coefficients(self, objective: float, conflict: float, memory: float) -> dict[str, float]:
        """The objective itself."""
        return {"objective": 1.0}

    @property
    def corrects(self) -> bool:
        """The optimiser's step stands."""
        return False

    def correction(self, update: float, conflict: float, memory: float) -> float:
        """Nothing is taken off."""
        return 0.0


def make_rectifier(text: str) -> Rectifier:
    """Build a rectifier from its text, as in ``gru(decay=0.2)``.

    Args:
        text: one name of `RECTIFIERS` with named parameters.

    Returns:
        The rectifier.

    Raises:
        GeffectError: the name or a parameter is unknown, or more than one is asked for.
    """
    calls = parse(text)
    if len(calls) != 1 or calls[0].weight != 1.0:
        raise GeffectError("one rectifier without a weight", repr(text), "write for example 'gru(decay=0.2)'")
    rectifier: Rectifier = choose(RECTIFIERS, calls[0], "rectifier")
    return rectifier


RECTIFIERS: dict[str, type[Any]] = {"gru": GRU, "none": NoRectifier}
