"""Top-k masks of a step's gradients, one bit an entry until all of them are known."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from geffect.core.distributed import num_processes, rank, sum_over_processes
from geffect.core.layers import TiedWeights
from geffect.core.masks import Overlap, intersections, magnitudes, mask_size, pack, top_mask
from geffect.measurement.basis import Combinations

Bits = npt.NDArray[np.signedinteger[Any]]
DIGIT = 16  # bits of a magnitude resolved in one round: two rounds for float32, four for float64


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
        """None where there is a NaN: a broken loss is reported by the step itself."""
        if self.sharded:
            return top_mask_of_parts(tensor, self.share)
        return None if bool(tensor.isnan().any()) else top_mask(tensor, self.share)

    def overlap(self, named: Combinations, order: Sequence[str], tie: TiedWeights | None) -> Overlap:
        """Overlaps of all named gradients; one that is a multiple of another shares its mask.

        ``order`` is the parameters' own. The tied tensor is not split by use.
        """
        first = next(iter(named.by_part.values()))
        sources = (each if each in self.packed else next(iter(parts)) for each, parts in first.items())
        packed = [self.packed.get(source, {}) for source in sources]
        sizes = torch.stack([intersections([each.get(name) for each in packed]) for name in order])
        values: dict[str, Tensor] = {}
        for name, counts in zip(order, sum_over_processes(sizes) if self.sharded else sizes, strict=True):
            nothing = torch.zeros_like(counts)
            if tie is not None and name == tie.name:
                values |= zip(tie.uses, (nothing, nothing, counts), strict=True)
            else:
                values[name] = counts
        return Overlap(named.names, self.share, values)


def top_mask_of_parts(tensor: Tensor, share: float) -> Tensor | None:
    """`geffect.core.masks.top_mask` of a whole tensor, of which every process holds a part and gets that part's mask.

    Magnitudes of floats are ordered as their bits are, so the threshold is read off histograms of 16 bits at a time,
    added up over the processes. Entries equal to it are taken in the order of the parts, which lie along the first
    dimension in the processes' order. The mask is bool, on the CPU; None in every process where any part has a NaN.
    """
    broken = bool(tensor.isnan().any())
    sizes = magnitudes(torch.zeros_like(tensor) if broken else tensor)
    bits: Bits = sizes.view(np.int64 if sizes.itemsize == 8 else np.int32)
    numel, others, anywhere = sum_over_processes(torch.tensor([len(bits), np.count_nonzero(bits), broken])).tolist()
    if anywhere:
        return None
    wanted = min(mask_size(numel, share), others)  # zeros are in no mask
    mask = np.zeros(len(bits), dtype=bool)
    if wanted:
        threshold, ties = _threshold(bits, wanted)
        mask = bits > threshold
        equal = np.flatnonzero(bits == threshold)
        counts = torch.zeros(num_processes(), dtype=torch.int64)
        counts[rank()] = len(equal)
        before = int(sum_over_processes(counts)[: rank()].sum())  # entries of earlier processes come first
        mask[equal[: max(0, ties - before)]] = True
    return torch.from_numpy(mask).view(tensor.shape)


def _threshold(bits: Bits, wanted: int) -> tuple[int, int]:
    """The magnitude that the wanted-th largest of all has, as bits, and how many that equal it are wanted."""
    threshold, candidates = 0, bits
    for shift in range(8 * bits.itemsize - DIGIT, -1, -DIGIT):
        digits = (candidates >> shift) & ((1 << DIGIT) - 1)
        histogram = sum_over_processes(torch.from_numpy(np.bincount(digits, minlength=1 << DIGIT))).numpy()
        from_top = np.cumsum(histogram[::-1])
        digit = len(histogram) - 1 - int(np.searchsorted(from_top, wanted))
        wanted -= int(from_top[-1 - digit]) - int(histogram[digit])
        threshold, candidates = threshold << DIGIT | digit, candidates[digits == digit]
    return threshold, wanted
