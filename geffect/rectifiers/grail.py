"""GRAIL: freeze, over several domains, what matters to both unlearning and retaining (arXiv 2504.12681)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from geffect.core.masks import GradientMask, Localization, PackedMasks, intersection_of_masks, union_of_masks
from geffect.core.registry import Share
from geffect.core.splits import of_role
from geffect.rectifiers.base import Freezing


@dataclass(frozen=True)
class GRAIL(Freezing):
    """Freeze OP-UR = (∪ T_forget) ∩ (∪ T_retain) and OP-RR = ∩ T_retain, T the top-k masks of a localization.

    ``frozen_set`` is the paper's text: neither set moves at all. ``micro_batch`` is its official code's: what the
    forget side back-propagates does not reach OP-UR, and what the retain side does not reach OP-RR, so that only the
    entries of both stand still. (That code masks the gradient accumulated so far; here each mask meets the gradients
    it belongs to, and no others.)

    Attributes:
        k_unlearn: share of each tensor in the masks OP-UR is made of.
        k_retain: the same for OP-RR.
        reading: ``frozen_set`` or ``micro_batch``.
        sets: ``both``, or the ablations ``op_ur`` and ``op_rr``: that set alone.
    """

    k_unlearn: Share = 0.1
    k_retain: Share = 0.2
    reading: Literal["frozen_set", "micro_batch"] = "frozen_set"
    sets: Literal["both", "op_ur", "op_rr"] = "both"

    def gradient_mask(self, parameters: Mapping[str, nn.Parameter], localized: Localization) -> GradientMask:
        """OP-UR and OP-RR of a localization that has masks of both shares."""
        unlearn, retain = self.masks(localized)
        if self.reading == "frozen_set":
            unlearn = retain = union_of_masks([unlearn, retain])
        return GradientMask(parameters, unlearn, retain)

    def masks(self, localized: Localization) -> tuple[PackedMasks, PackedMasks]:
        """OP-UR and OP-RR; the one an ablation leaves out is empty."""
        wide = localized.at(self.k_unlearn)
        unlearn = op_ur(of_role(wide, "forget"), of_role(wide, "retain"))
        retain = op_rr(of_role(localized.at(self.k_retain), "retain"))
        return (unlearn if self.sets != "op_rr" else {}), (retain if self.sets != "op_ur" else {})


def op_ur(forget: Sequence[PackedMasks], retain: Sequence[PackedMasks]) -> PackedMasks:
    """OP-UR = (∪_d T_forget,d) ∩ (∪_d T_retain,d): where unlearning and retaining overlap (arXiv 2504.12681).

    A mask T a domain says what matters to what it forgets or retains.
    """
    return intersection_of_masks([union_of_masks(forget), union_of_masks(retain)])


def op_rr(retain: Sequence[PackedMasks]) -> PackedMasks:
    """OP-RR = ∩_d T_retain,d: what matters to what every domain retains (arXiv 2504.12681)."""
    return intersection_of_masks(retain)
