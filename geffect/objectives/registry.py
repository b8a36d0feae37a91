"""The names of objectives, and the objective that a text names."""

from geffect.core.registry import ALIASES, Registry, expand, parse
from geffect.errors import GeffectError
from geffect.objectives.base import Objective, Term
from geffect.objectives.dual import Dual
from geffect.objectives.logits import PDU, UNDIAL
from geffect.objectives.npo import NPO, TNPO, WTNPO, SimNPO
from geffect.objectives.preference import DPO, FLAT, PO, AdversarialLabels, RandomLabels
from geffect.objectives.retain import GD, KL, RR
from geffect.objectives.rmu import RMU
from geffect.objectives.sam import SAM
from geffect.objectives.weighted import CEU, GA, WGA, SatImp

TERMS: dict[str, type[Term]] = {
    "adversarial": AdversarialLabels,
    "ceu": CEU,
    "dpo": DPO,
    "dual": Dual,
    "flat": FLAT,
    "ga": GA,
    "gd": GD,
    "kl": KL,
    "npo": NPO,
    "pdu": PDU,
    "po": PO,
    "random": RandomLabels,
    "rmu": RMU,
    "rr": RR,
    "sam": SAM,
    "satimp": SatImp,
    "simnpo": SimNPO,
    "tnpo": TNPO,
    "undial": UNDIAL,
    "wga": WGA,
    "wtnpo": WTNPO,
}
OBJECTIVES: Registry[Term] = Registry("an objective", TERMS, ALIASES)
register_objective = OBJECTIVES.register


def make_objective(text: str) -> Objective:
    """The objective of a text, as in ``npo(beta=0.1) + 1.0*gd``; ``geffect list objectives`` prints the names.

    Raises:
        GeffectError: a name or parameter is unknown, or no term unlearns.

    >>> [(weight, term.on) for weight, term in make_objective("ga + 0.5*kl(on=general)").terms]
    [(1.0, 'forget'), (0.5, 'general')]
    """
    terms = tuple(
        (call.weight, OBJECTIVES.build(call)) for each in parse(text) for call in expand(each, OBJECTIVES.aliases)
    )
    if not any(term.on in ("forget", "alternative") for _, term in terms):
        raise GeffectError(f"{text!r} has no term on the forget set", remedy="Add one, as in 'ga + 1.0*gd'")
    of_forget = [term for _, term in terms if term.on == "forget"]
    if len(of_forget) > 1 and any(term.rho is not None for term in of_forget):
        raise GeffectError(f"{text!r} has terms on the forget set beside sam", remedy="Leave sam or the others out")
    return Objective(text, terms)
