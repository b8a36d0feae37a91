"""Confine a training to a localization's mask, or to a random one of the same size: the control (2505.16252)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from geffect.core.masks import GradientMask, Localization, PackedMasks, complement, pack, shuffled, union_of_masks
from geffect.core.registry import Share
from geffect.core.splits import of_role
from geffect.errors import GeffectError
from geffect.rectifiers.base import Freezing


@dataclass(frozen=True)
class Confine(Freezing):
    """Train only the entries in ∪ T_forget, T the top-k masks of a localization; freeze all others.

    With ``geffect localize --importance wagle`` this is WAGLE's confinement (arXiv 2410.17509).

    Attributes:
        k: share of each tensor in a mask.
    """

    k: Share = 0.1

    def gradient_mask(self, parameters: Mapping[str, nn.Parameter], localized: Localization) -> GradientMask:
        """All entries outside the forget masks of a localization that has masks of the share."""
        outside = complement(union_of_masks(of_role(localized.at(self.k), "forget")), parameters)
        return GradientMask(parameters, outside, outside)


@dataclass(frozen=True)
class RandomMask(Freezing):
    """Freeze as many entries as another rule does, drawn by lot: the control that the rule has to beat.

    Attributes:
        rule: the rule, as in ``random(grail)``.
        seed: of the draw.
        scope: ``parameter``: as many of each tensor as the rule freezes there; ``model``: as many in all, the same
            share of every tensor, for a rule that freezes whole tensors, as ``memflex``.
    """

    rule: Freezing
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    scope: Literal["parameter", "model"] = "parameter"

    def gradient_mask(self, parameters: Mapping[str, nn.Parameter], localized: Localization) -> GradientMask:
        """The rule's mask with the entries of every tensor in another order, the same order for both sides."""
        mask = self.rule.gradient_mask(parameters, localized)
        shares = mask.shares()
        if self.scope == "parameter" and all(each in (0, 1) for side in shares.values() for each in side.values()):
            message = "This rule freezes whole tensors, which entries drawn within each tensor cannot change"
            raise GeffectError(message, remedy="Write scope=model, as in random(memflex, scope=model)")
        forget = self._drawn(mask, "forget", parameters)
        return GradientMask(parameters, forget, forget if mask.symmetric else self._drawn(mask, "retain", parameters))

    def _drawn(self, mask: GradientMask, side: str, parameters: Mapping[str, nn.Parameter]) -> PackedMasks:
        masks = {name: mask.mask(side, name, torch.device("cpu")) for name in parameters}
        if self.scope == "model":
            frozen = sum(int(each.sum()) for each in masks.values() if each is not None)
            share = frozen / sum(parameter.numel() for parameter in parameters.values())
            masks = {name: _first(parameter, share) for name, parameter in parameters.items()}
        return {n: pack(shuffled(each, f"{self.seed} {n}")) for n, each in masks.items() if each is not None}


def _first(parameter: Tensor, share: float) -> Tensor | None:
    count = round(share * parameter.numel())
    return torch.arange(parameter.numel()).lt(count).view(parameter.shape) if count else None
