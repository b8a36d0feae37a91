"""Top-share masks of tensors that lie in parts: one threshold for all processes, found from counts alone."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from geffect.core.distributed import num_processes, rank, sum_over_processes
from geffect.core.topk import magnitudes, mask_size

Bits = npt.NDArray[np.signedinteger[Any]]
DIGIT = 16  # bits of a magnitude resolved in one round: two rounds for float32, four for float64


def top_mask_of_parts(tensor: Tensor, share: float) -> Tensor | None:
    """`geffect.core.topk.top_mask` of a whole tensor, of which every process holds a part and gets that part's mask.

    Magnitudes of floats are ordered as their bits are, so the threshold is read off histograms of 16 bits at a time,
    added up over the processes. Entries equal to it are taken in the order of the parts, as the whole's would be.

    Args:
        tensor: this process's part along the first dimension, the parts in the processes' order.
        share: in (0, 1].

    Returns:
        The part's mask, bool, on the CPU; None in every process where any part has a NaN.
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
        mask[equal[: _own_ties(len(equal), ties)]] = True
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


def _own_ties(here: int, wanted: int) -> int:
    """How many of this process's entries at the threshold are wanted: those of earlier processes come first."""
    counts = torch.zeros(num_processes(), dtype=torch.int64)
    counts[rank()] = here
    before = int(sum_over_processes(counts)[: rank()].sum())
    return max(0, min(wanted - before, here))
