"""The names of rectifiers; one that combines gradients (GRU) and one that freezes (GRAIL, MemFlex) may go together."""

from dataclasses import dataclass

from geffect.core.registry import Registry, parse
from geffect.errors import GeffectError
from geffect.rectifiers.base import Freezing, Rectifier
from geffect.rectifiers.combined import BLUR, HAMU, NGDiff, OrthoGrad, PCGrad
from geffect.rectifiers.confined import Confine, RandomMask
from geffect.rectifiers.elementwise import SAGO, Consistent, Disruption
from geffect.rectifiers.gem import GEM, GU
from geffect.rectifiers.grail import GRAIL
from geffect.rectifiers.gru import GRU
from geffect.rectifiers.memflex import MemFlex
from geffect.rectifiers.weightings import TorchJD


@dataclass(frozen=True)
class NoRectifier(Rectifier):
    """Descend the objective's gradient as it is."""


RULES: dict[str, type[Rectifier | Freezing]] = {
    "blur": BLUR,
    "confine": Confine,
    "consistent": Consistent,
    "disruption": Disruption,
    "gem": GEM,
    "grail": GRAIL,
    "gru": GRU,
    "gu": GU,
    "hamu": HAMU,
    "memflex": MemFlex,
    "ngdiff": NGDiff,
    "none": NoRectifier,
    "orthograd": OrthoGrad,
    "pcgrad": PCGrad,
    "random": RandomMask,
    "sago": SAGO,
    "torchjd": TorchJD,
}
RECTIFIERS: Registry[Rectifier | Freezing] = Registry("a rectifier", RULES)
register_rectifier = RECTIFIERS.register


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
    """The rules of a text, names of `RECTIFIERS`: at most one that freezes and one that combines gradients.

    Raises:
        GeffectError: a name or a parameter is unknown, there are too many, or they do not go together.

    >>> both = make_rectification("grail(k_unlearn=0.05) + gru")
    >>> both.freezing, type(both.rule).__name__
    (GRAIL(k_unlearn=0.05, k_retain=0.2, reading='frozen_set', sets='both'), 'GRU')
    """
    calls = parse(text)
    rules = [RECTIFIERS.build(call) for call in calls]
    freezing = [each for each in rules if isinstance(each, Freezing)]
    others = [each for each in rules if isinstance(each, Rectifier)]
    if len(freezing) > 1 or len(others) > 1 or any(call.weight != 1.0 for call in calls):
        message = f"{text!r} is more than one rectifier that combines gradients and one that freezes, or has weights"
        raise GeffectError(message, remedy="Write for example 'gru(decay=0.2)' or 'grail + gru'")
    rule = others[0] if others else NoRectifier()
    unmasked = set(rule.gradients) - {"objective", *rule.memories}
    if freezing and unmasked:
        names = ", ".join(sorted(unmasked))
        raise GeffectError(
            f"{text!r} freezes entries and combines {names}, which is not masked", remedy="Leave one out"
        )
    return Rectification(text, rule, freezing[0] if freezing else None)


def make_rectifier(text: str) -> Rectifier:
    """The rule of `make_rectification` that combines gradients."""
    return make_rectification(text).rule


def make_freezing(text: str) -> Freezing | None:
    """The rule of `make_rectification` that freezes entries."""
    return make_rectification(text).freezing
