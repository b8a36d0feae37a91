"""Top-k masks of a step's gradients, one bit an entry until all of them are known."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from geffect.core.devices import matrices
from geffect.core.distributed import sum_over_processes
from geffect.core.histograms import mask_by_histogram
from geffect.core.layers import TiedWeights
from geffect.core.masks import Overlap, pack, pairwise_intersections, top_mask
from geffect.measurement.basis import Combinations


class Masks:
    """The top-k masks of named gradients: the ``share`` of each tensor's entries that are largest.

    With ``sharded`` gradients are this process's parts of tensors, and a mask is the part of the whole tensor's.
    """

    def __init__(self, share: float, *, sharded: bool = False) -> None:
        self.share, self.sharded = share, sharded
        self.packed: dict[str, dict[str, Tensor]] = {}

    def add(self, name: str, tensors: Mapping[str, Tensor | None]) -> None:
        """Mask one tensor of some gradients; None is zeros, whose mask is empty."""
        for gradient, tensor in tensors.items():
            mask = None if tensor is None else self._mask(tensor)
            if mask is not None:
                self.packed.setdefault(gradient, {})[name] = pack(mask)

    def _mask(self, tensor: Tensor) -> Tensor | None:
        """None or nothing in it where there is a NaN: a broken loss is reported by the step itself."""
        if self.sharded or tensor.device.type != "cpu":
            return mask_by_histogram(tensor, self.share, sum_over_processes if self.sharded else None)
        return None if bool(tensor.isnan().any()) else top_mask(tensor, self.share)

    def overlap(self, named: Combinations, order: Sequence[str], tie: TiedWeights | None) -> Overlap:
        """Overlaps of all named gradients; one that is a multiple of another shares its mask.

        ``order`` is the parameters' own. The tied tensor is not split by use.
        """
        first = next(iter(named.by_part.values()))
        sources = (each if each in self.packed else next(iter(parts)) for each, parts in first.items())
        packed = [self.packed.get(source, {}) for source in sources]
        sizes = torch.stack(matrices([pairwise_intersections([each.get(name) for each in packed]) for name in order]))
        values: dict[str, Tensor] = {}
        for name, counts in zip(order, sum_over_processes(sizes) if self.sharded else sizes, strict=True):
            nothing = torch.zeros_like(counts)
            if tie is not None and name == tie.name:
                values |= zip(tie.uses, (nothing, nothing, counts), strict=True)
            else:
                values[name] = counts
        return Overlap(named.names, self.share, values)
