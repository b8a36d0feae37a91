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
    "Rectification",
    "Rectifier",
    "make_freezing",
    "make_rectification",
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


@dataclass(frozen=True)
class Rectification:
    """What a rectifier's text names: one rule that combines gradients, and perhaps one that freezes entries.

    Attributes:
        text: as the user wrote it, such as ``grail + gru(decay=0.2)``.
        rule: combines gradients; `NoRectifier` where the text only freezes.
        freezing: masks gradients before the rule sees them; None where nothing is frozen.
    """

    text: str
    rule: Rectifier
    freezing: Freezing | None = None

    def __str__(self) -> str:
        return self.text


def make_rectification(text: str) -> Rectification:
    """Build both parts of a rectifier from its text.

    Args:
        text: names of `RECTIFIERS` with named parameters: at most one that freezes and one that projects.

    Returns:
        Both parts.

    Raises:
        GeffectError: a name or a parameter is unknown, or there are too many.

    >>> both = make_rectification("grail(k_unlearn=0.05) + gru")
    >>> both.freezing, type(both.rule).__name__
    (GRAIL(k_unlearn=0.05, k_retain=0.2, reading='frozen_set', sets='both'), 'GRU')
    """
    freezing, rule = _read(text)
    return Rectification(text, rule or NoRectifier(), freezing)


def make_rectifier(text: str) -> Rectifier:
    """The rule of `make_rectification`."""
    return make_rectification(text).rule


def make_freezing(text: str) -> Freezing | None:
    """The freezing part of `make_rectification`."""
    return make_rectification(text).freezing


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
