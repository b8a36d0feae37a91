"""Unlearning objectives by name, each a pure function of one forward pass's outputs."""

from typing import Any

from geffect.core.forward import IGNORE_INDEX, Outputs, forward
from geffect.core.grammar import choose, parse
from geffect.errors import GeffectError
from geffect.objectives.base import SETS, Counts, Objective, risk, window_counts
from geffect.objectives.npo import NPO, TNPO, WTNPO, SimNPO
from geffect.objectives.preference import DPO, PO, AdversarialLabels, RandomLabels
from geffect.objectives.retain import GD, KL, RR
from geffect.objectives.rmu import RMU
from geffect.objectives.weighted import GA, WGA, SatImp

__all__ = [
    "IGNORE_INDEX",
    "OBJECTIVES",
    "SETS",
    "Counts",
    "Objective",
    "Outputs",
    "forward",
    "make_objective",
    "risk",
    "window_counts",
]


def make_objective(text: str) -> Objective:
    """Build an objective from its text.

    Args:
        text: terms as in ``npo(beta=0.1) + 1.0*gd``; see `OBJECTIVES` for the names.

    Returns:
        The objective.

    Raises:
        GeffectError: a name or parameter is unknown, or no term unlearns.

    >>> [(weight, term.on) for weight, term in make_objective("ga + 0.5*kl(on=general)").terms]
    [(1.0, 'forget'), (0.5, 'general')]
    """
    terms = tuple((call.weight, choose(OBJECTIVES, call, "objective")) for call in parse(text))
    if not any(term.on in ("forget", "alternative") for _, term in terms):
        raise GeffectError(
            "at least one term on the forget set (ga, npo, …)", repr(text), "add one, as in 'ga + 1.0*gd'"
        )
    return Objective(text, terms)


OBJECTIVES: dict[str, type[Any]] = {
    "adversarial": AdversarialLabels,
    "dpo": DPO,
    "ga": GA,
    "gd": GD,
    "kl": KL,
    "npo": NPO,
    "po": PO,
    "random": RandomLabels,
    "rmu": RMU,
    "rr": RR,
    "satimp": SatImp,
    "simnpo": SimNPO,
    "tnpo": TNPO,
    "wga": WGA,
    "wtnpo": WTNPO,
}
