"""Supports of a step's rows, bit-packed until all of them are known."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from geffect.support import Support, overlaps, pack, top_mask
from geffect.ties import BOTH, EMBED, HEAD, Tie


class Masks:
    """The top-share masks of named rows, one bit an entry.

    Args:
        share: of a tensor's entries in its mask.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.packed: dict[str, dict[str, Tensor]] = {}

    def add(self, name: str, tensors: Mapping[str, Tensor | None]) -> None:
        """Mask one tensor of some rows; None is a row of zeros, whose mask is empty."""
        for row, tensor in tensors.items():
            if tensor is not None and not bool(tensor.isnan().any()):  # a broken loss is reported by the step itself
                self.packed.setdefault(row, {})[name] = pack(top_mask(tensor, self.share))

    def support(self, named: Mapping[str, Mapping[str, float]], order: Sequence[str], tie: Tie | None) -> Support:
        """Overlaps of all named rows; a row that is a multiple of another shares its mask.

        Args:
            named: row → {row: coefficient}.
            order: the parameters' own order.
            tie: the tied tensor, which is not told apart by use here.

        Returns:
            The counts.
        """
        source = {row: row if row in self.packed else next(iter(parts)) for row, parts in named.items()}
        values: dict[str, Tensor] = {}
        for name in order:
            counts = overlaps([self.packed.get(source[row], {}).get(name) for row in named])
            nothing = torch.zeros_like(counts)
            if tie is not None and name == tie.name:
                values |= {name + EMBED: nothing, name + HEAD: nothing, name + BOTH: counts}
            else:
                values[name] = counts
        return Support(tuple(named), self.share, values)
