"""Rectifiers by name: they change the update, never the loss. State is in the open: ``init``, then ``update``.

GRU projects; GRAIL and MemFlex freeze. One of either kind may go together: what is frozen is masked first.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from geffect.core.gradients import NamedTensors
from geffect.core.grammar import choose, parse
from geffect.errors import GeffectError
from geffect.rectifiers.grail import GRAIL
from geffect.rectifiers.gru import GRU, projection, rectify
from geffect.rectifiers.memflex import MemFlex

__all__ = [
    "RECTIFIERS",
    "Freezing",
    "NoRectifier",
    "Rectifier",
    "make_freezing",
    "make_rectifier",
    "projection",
    "rectify",
]
Freezing = GRAIL | MemFlex


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
        """Whether θ is corrected once the optimizer has stepped."""

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
        """The optimizer's step stands."""
        return False

    def correction(self, update: float, conflict: float, memory: float) -> float:
        """Nothing is taken off."""
        return 0.0


def make_rectifier(text: str) -> Rectifier:
    """Build what projects an update from a rectifier's text, as in ``gru(decay=0.2)`` or ``grail + gru``.

    Args:
        text: names of `RECTIFIERS` with named parameters: at most one that freezes and one that projects.

    Returns:
        The rectifier; `NoRectifier` where the text only freezes.

    Raises:
        GeffectError: a name or a parameter is unknown, or there are too many.
    """
    rectifier: Rectifier = _read(text)[1] or NoRectifier()
    return rectifier


def make_freezing(text: str) -> Freezing | None:
    """What freezes entries, from the same text; None where nothing does.

    Args:
        text: of a rectifier.

    Returns:
        What freezes.

    >>> make_freezing("grail(k_unlearn=0.05) + gru"), make_freezing("gru")
    (GRAIL(k_unlearn=0.05, k_retain=0.2, reading='frozen_set', sets='both'), None)
    """
    freezing: Freezing | None = _read(text)[0]
    return freezing


def _read(text: str) -> tuple[Any, Any]:
    calls = parse(text)
    built = [choose(RECTIFIERS, call, "rectifier") for call in calls]
    freezing = [each for each in built if isinstance(each, GRAIL | MemFlex)]
    others = [each for each in built if not isinstance(each, GRAIL | MemFlex)]
    if len(freezing) > 1 or len(others) > 1 or any(call.weight != 1.0 for call in calls):
        raise GeffectError(
            "one rectifier, or one that freezes and one that projects, without weights",
            repr(text),
            "write for example 'gru(decay=0.2)' or 'grail + gru'",
        )
    return next(iter(freezing), None), next(iter(others), None)


RECTIFIERS: dict[str, type[Any]] = {"grail": GRAIL, "gru": GRU, "memflex": MemFlex, "none": NoRectifier}
