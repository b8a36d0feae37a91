"""Where knowledge lies: importance of every entry for every scope, its masks, and what may be frozen by them."""

from geffect.localisation.freezing import Frozen
from geffect.localisation.importance import IMPORTANCES, Importance, scores
from geffect.localisation.passes import Localisation, localise
from geffect.localisation.sets import Masks, op_rr, op_ur, region, united

__all__ = [
    "IMPORTANCES", "Frozen", "Importance", "Localisation", "Masks", "localise", "op_rr", "op_ur",
    "region", "scores", "united",
]  # fmt: skip
