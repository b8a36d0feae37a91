"""Unlearning objectives by name, each a pure function of one forward pass's outputs."""

from typing import Any

from geffect.errors import GeffectError
from geffect.grammar import choose, parse
from geffect.objectives.npo import NPO
from geffect.objectives.objective import Counts, Objective, risk
from geffect.objectives.outputs import IGNORE_INDEX, Outputs, forward, token_nll
from geffect.objectives.retain import GD
from geffect.objectives.weighted import GA, WGA

__all__ = [
    "IGNORE_INDEX",
    "OBJECTIVES",
    "Counts",
    "Objective",
    "Outputs",
    "forward",
    "make_objective",
    "risk",
    "token_nll",
]


def make_objective(text: str) -> Objective:
    """Build an objective from its text.

    Args:
        text: terms as in ``npo(beta=0.1) + 1.0*gd``; see `OBJECTIVES` for the names.

    Returns:
        The objective.

    Raises:
        GeffectError: a name or parameter is unknown, or no term runs on the forget set.

    >>> [(weight, term.side) for weight, term in make_objective("ga + 0.5*gd").terms]
    [(1.0, 'forget'), (0.5, 'retain')]
    """
    terms = tuple((call.weight, choose(OBJECTIVES, call, "objective")) for call in parse(text))
    if not any(term.side == "forget" for _, term in terms):
        raise GeffectError(
            "at least one term on the forget set (ga, npo, …)", repr(text), "add one, as in 'ga + 1.0*gd'"
        )
    return Objective(text, terms)


OBJECTIVES: dict[str, type[Any]] = {"ga": GA, "gd": GD, "npo": NPO, "wga": WGA}
