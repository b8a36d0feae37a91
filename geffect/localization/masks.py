"""Entries that updates leave alone."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from geffect.core.fsdp import part
from geffect.core.topk import unpack
from geffect.localization.selection import Masks


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

    def __init__(self, parameters: Mapping[str, nn.Parameter], forget: Masks, retain: Masks) -> None:
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
            masks |= {name: part(mask, parameters[name]) for name, mask in masks.items()}

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


def _unpacked(parameters: Mapping[str, nn.Parameter], masks: Masks) -> dict[str, Tensor]:
    return {name: unpack(bits, parameters[name].shape).to(parameters[name].device) for name, bits in masks.items()}
