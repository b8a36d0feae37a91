"""Masks over the parameters: those a localization makes, and those that freezing leaves."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from geffect.core.distributed import part_of
from geffect.core.gram import Gram, cosine
from geffect.core.splits import TARGETS, of_role, role_of
from geffect.core.topk import Overlap, mask_count, mask_intersection, mask_union, unpack
from geffect.errors import GeffectError

if TYPE_CHECKING:
    import pandas as pd

PackedMasks = dict[str, Tensor]  # parameter → packed mask; missing: empty


def union_of_masks(masks: Sequence[PackedMasks]) -> PackedMasks:
    """Parameter → the packed mask of every entry in any of some masks."""
    names = dict.fromkeys(name for each in masks for name in each)
    return {name: mask_union([each[name] for each in masks if name in each]) for name in names}


def intersection_of_masks(masks: Sequence[PackedMasks]) -> PackedMasks:
    """Parameter → the packed mask of every entry in all of some masks; empty ones are missing."""
    common = [name for name in masks[0] if all(name in each for each in masks)]
    found = {name: mask_intersection([each[name] for each in masks]) for name in common}
    return {name: mask for name, mask in found.items() if mask_count(mask)}


@dataclass(repr=False)
class Localization:
    """What localizing leaves behind.

    Attributes:
        masks: share → split → parameter → packed mask; empty ones are missing.
        overlaps: share → the overlaps of the splits' masks.
        gram: inner products of the splits' mean gradients.
        magnitudes: split → parameter → mean |ḡ| over its entries; ``forget`` is that of all domains' examples.
        examples: split → N.
    """

    masks: dict[float, dict[str, PackedMasks]]
    overlaps: dict[float, Overlap] = field(default_factory=dict)
    gram: Gram = field(default_factory=lambda: Gram(()))
    magnitudes: dict[str, dict[str, float]] = field(default_factory=dict)
    examples: dict[str, int] = field(default_factory=dict)

    def at(self, share: float) -> dict[str, PackedMasks]:
        """The masks of a share.

        Args:
            share: of each tensor's entries.

        Returns:
            Split → parameter → packed mask.

        Raises:
            GeffectError: they were not made.
        """
        if share not in self.masks:
            have = ", ".join(f"{each:g}" for each in self.masks)
            raise GeffectError(
                f"There are no masks of the largest {share:g} of each tensor, only of {have}",
                remedy=f"Localize with --share {share:g} too",
            )
        return self.masks[share]

    def cosines(self) -> dict[str, float]:
        """Parameter → cosine of all domains' forget and retain mean gradients, weighed by examples; 0 of a zero one.

        Returns:
            The cosines.

        Raises:
            GeffectError: the mean gradients were left out.
        """
        if not self.gram.rows:
            raise GeffectError(
                "The localization has masks and no mean gradients", remedy="Localize without --masks-only"
            )
        total = {role: sum(of_role(self.examples, role)) for role in TARGETS}
        weights = {
            role: {each: n / total[role] for each, n in self.examples.items() if role_of(each) == role}
            for role in TARGETS
        }
        pooled = self.gram.combine(weights)
        found = {name: cosine(g, pooled.rows, *TARGETS) for name, g in pooled.values.items()}
        return {name: 0.0 if math.isnan(value) else value for name, value in found.items()}

    def to_frame(self) -> "pd.DataFrame":
        """A line a split: its examples, and how many entries each share's masks hold.

        Returns:
            Columns ``examples`` and ``top 10 %``, say, indexed by split.
        """
        import pandas as pd

        sizes = {
            f"top {100 * share:g} %": {split: sum(map(mask_count, masks.values())) for split, masks in splits.items()}
            for share, splits in self.masks.items()
        }
        return pd.DataFrame({"examples": self.examples} | sizes).rename_axis("split")

    def __repr__(self) -> str:
        return f"Localization({', '.join(self.examples)}; shares {', '.join(f'{each:g}' for each in self.masks)})"

    def _repr_html_(self) -> str:
        return f"<p>entries in the masks of each split</p>{self.to_frame().to_html()}"


class GradientMask:
    """Two masks a tensor: which entries the forget side's gradients do not reach, and which the retain side's do not.

    A side is everything the objective back-propagates to that end. An entry that neither reaches never moves.

    Args:
        parameters: what a row covers, by canonical name.
        forget: packed masks of what is frozen to the forget side.
        retain: packed masks of what is frozen to the retain side.

    Attributes:
        forget: parameter → bool mask of its shape, on its device; missing: empty.
        retain: the same for the retain side.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], forget: PackedMasks, retain: PackedMasks) -> None:
        self._names = list(parameters)
        self.forget = _unpacked(parameters, forget)
        self.retain = self.forget if retain is forget else _unpacked(parameters, retain)
        self._still = {n: self.forget[n] & self.retain[n] for n in self.forget if n in self.retain}
        sides = {"forget": self.forget, "retain": self.retain}
        self._closed = {(side, n) for side, masks in sides.items() for n, mask in masks.items() if bool(mask.all())}

    def free(self, side: str, name: str, tensor: Tensor | None) -> Tensor | None:
        """One side's gradient with zeros where it is frozen; what is given is not changed.

        Args:
            side: ``forget`` or ``retain``.
            name: the parameter.
            tensor: its gradient, None for zeros.

        Returns:
            The gradient; None where nothing of it is left.
        """
        mask = (self.forget if side == "forget" else self.retain).get(name)
        if tensor is None or mask is None:
            return tensor
        return None if (side, name) in self._closed else tensor.masked_fill(mask, 0)

    def cut(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Keep what of the masks belongs to this process; a tensor is closed to a side where the whole of it is.

        Args:
            parameters: the same ones, by now in parts.
        """
        for masks in {id(each): each for each in (self.forget, self.retain, self._still)}.values():
            masks |= {name: part_of(mask, parameters[name]) for name, mask in masks.items()}

    def still(self, name: str) -> Tensor | None:
        """The mask of one tensor's entries that never move; None where all may."""
        return self._still.get(name)

    def shares(self) -> dict[str, dict[str, float]]:
        """Parameter → share of its entries frozen, to either side (``forget``, ``retain``) and to both (``never``)."""
        sides = {"forget": self.forget, "retain": self.retain, "never": self._still}
        return {
            side: {n: float(masks[n].double().mean()) if n in masks else 0.0 for n in self._names}
            for side, masks in sides.items()
        }

    @torch.no_grad()
    def put_back(self, name: str, parameter: Tensor, before: Tensor) -> None:
        """Undo what an optimizer did to entries that never move: weight decay, momentum from before."""
        still = self.still(name)
        if still is not None:
            parameter.copy_(torch.where(still, before, parameter))


def _unpacked(parameters: Mapping[str, nn.Parameter], masks: PackedMasks) -> dict[str, Tensor]:
    return {name: unpack(bits, parameters[name].shape).to(parameters[name].device) for name, bits in masks.items()}
