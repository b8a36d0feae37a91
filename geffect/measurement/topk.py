"""Supports of a step's rows, bit-packed until all of them are known."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from geffect.core.distributed import sum_over_processes
from geffect.core.layers import BOTH, EMBED, HEAD, TiedWeights
from geffect.core.topk import Overlap, intersections, pack, top_mask
from geffect.measurement.basis import Combinations
from geffect.measurement.thresholds import top_mask_of_parts


class Masks:
    """The top-share masks of named rows, one bit an entry.

    Args:
        share: of a tensor's entries in its mask.
        sharded: rows are this process's parts of tensors, a mask the part of the whole tensor's.
    """

    def __init__(self, share: float, *, sharded: bool = False) -> None:
        self.share, self.sharded = share, sharded
        self.packed: dict[str, dict[str, Tensor]] = {}

    def add(self, name: str, tensors: Mapping[str, Tensor | None]) -> None:
        """Mask one tensor of some rows; None is a row of zeros, whose mask is empty."""
        for row, tensor in tensors.items():
            mask = None if tensor is None else self._mask(tensor)
            if mask is not None:
                self.packed.setdefault(row, {})[name] = pack(mask)

    def _mask(self, tensor: Tensor) -> Tensor | None:
        """None where there is a NaN: a broken loss is reported by the step itself."""
        if self.sharded:
            return top_mask_of_parts(tensor, self.share)
        return None if bool(tensor.isnan().any()) else top_mask(tensor, self.share)

    def overlap(self, named: Combinations, order: Sequence[str], tie: TiedWeights | None) -> Overlap:
        """Overlaps of all named gradients; one that is a multiple of another shares its mask.

        Args:
            named: combinations of the basis.
            order: the parameters' own order.
            tie: the tied tensor, which is not split by use here.

        Returns:
            The counts.
        """
        first = next(iter(named.by_part.values()))
        packed = [self.packed.get(row if row in self.packed else next(iter(parts)), {}) for row, parts in first.items()]
        found = torch.stack([intersections([each.get(name) for each in packed]) for name in order])
        values: dict[str, Tensor] = {}
        for name, counts in zip(order, sum_over_processes(found) if self.sharded else found, strict=True):
            nothing = torch.zeros_like(counts)
            if tie is not None and name == tie.name:
                values |= {name + EMBED: nothing, name + HEAD: nothing, name + BOTH: counts}
            else:
                values[name] = counts
        return Overlap(named.names, self.share, values)
