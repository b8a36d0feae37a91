"""The largest entries of a tensor by histograms: on any device without a wait, and over tensors in several processes.

Magnitudes of floats are ordered as their bits are. So the smallest magnitude in a mask is read off histograms of 16
bits at a time: one for 16-bit floats, two for float32, four for float64.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from geffect.core.distributed import num_processes, rank
from geffect.errors import GeffectError

DIGIT, LAST = 16, 0xFFFF  # bits of a magnitude resolved in one round, and the largest number they make
CHUNK = 2**24  # entries looked at together: each takes some 24 bytes meanwhile
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
Sum = Callable[[Tensor], Tensor]


def mask_size(numel: int, share: float) -> int:
    """⌈share · N⌉, the number of entries in a mask; the share in (0, 1] is read as the decimal it prints as."""
    if not 0 < share <= 1:
        message = f"The share of a tensor's entries is {share!r}, not in (0, 1]"
        raise GeffectError(message, remedy="Correct it; 0.1 keeps the largest tenth")
    return math.ceil(Fraction(str(float(share))) * numel)


def mask_by_histogram(tensor: Tensor, share: float, sum_up: Sum | None = None) -> Tensor:
    """`geffect.core.masks.top_mask` on the tensor's device, without a wait for it; nothing where there is a NaN.

    With ``sum_up``, which adds numbers up over the processes in place, the tensor is this process's part of one, and
    the mask is that part of its mask. Parts lie along the first dimension in the processes' order, in which entries
    that are equal are taken. Every process must call this.

    >>> mask_by_histogram(torch.tensor([0.5, -3.0, 0.0, 0.5]), 0.5).tolist()
    [True, True, False, False]
    """
    chunks = tensor.detach().reshape(-1).split(CHUNK)
    threshold, ties, seen = _threshold(chunks, _wanted(chunks, share, sum_up), sum_up)
    masks = []
    for bits in map(_bits, chunks):
        equal = bits == threshold
        order = equal.cumsum(0) + seen
        masks.append((bits > threshold) | (equal & (order <= ties)))
        seen = order[-1:]
    return torch.cat(masks).view(tensor.shape)


def _wanted(chunks: Sequence[Tensor], share: float, sum_up: Sum | None) -> Tensor:
    """The number of entries in the mask ``[1]``: zeros are in none, and with a NaN nothing is."""
    numel = sum(map(len, chunks))
    others = torch.stack([chunk.count_nonzero() for chunk in chunks]).sum()
    broken = torch.stack([chunk.isnan().any() for chunk in chunks]).sum()
    counts = torch.stack([others, broken])
    if sum_up is not None:
        numel, counts = int(sum_up(torch.tensor(numel))), sum_up(counts)
    return counts[:1].clamp(max=mask_size(numel, share)).masked_fill(counts[1:] > 0, 0)


def _threshold(chunks: Sequence[Tensor], wanted: Tensor, sum_up: Sum | None) -> tuple[Tensor, Tensor, Tensor]:
    """The magnitude, as bits, that the last entry in the mask has, each ``[1]``.

    And how many that equal it are in the mask, and how many that do belong to earlier processes.
    """
    first, kind = chunks[0], INTEGERS[chunks[0].itemsize]
    threshold, left, here = torch.zeros(1, dtype=kind, device=first.device), wanted, wanted
    for shift in range(8 * first.itemsize - DIGIT, -1, -DIGIT):
        counts = _histogram(chunks, shift, threshold)
        own = counts if sum_up is None else counts.clone()
        counts = counts if sum_up is None else sum_up(counts)
        from_top = counts.flip(0).cumsum(0)
        place = torch.searchsorted(from_top, left.clamp(min=1)).clamp(max=LAST)
        digit = LAST - place
        left = left - from_top.index_select(0, place) + counts.index_select(0, digit)
        here = own.index_select(0, digit)
        threshold = digit.to(kind) if first.itemsize == 2 else (threshold << DIGIT) | digit.to(kind)
    return threshold, left, torch.zeros_like(here) if sum_up is None else _earlier(here, sum_up)


def _histogram(chunks: Sequence[Tensor], shift: int, prefix: Tensor) -> Tensor:
    """How often each digit occurs at ``shift`` among the magnitudes that begin as ``prefix`` says, ``[65536]``."""
    counts = torch.zeros(LAST + 1, dtype=torch.int64, device=prefix.device)
    begins = shift + DIGIT == 8 * chunks[0].itemsize
    for bits in map(_bits, chunks):
        digits = bits >> shift
        inside = torch.ones_like(prefix, dtype=torch.int64).expand(len(bits))
        if not begins:  # adding zeros, not leaving entries out, spreads what is added over all places
            inside = (digits >> DIGIT == prefix).long()
        counts.scatter_add_(0, digits.long() & LAST, inside)  # torch.bincount would make the host wait
    return counts


def _bits(chunk: Tensor) -> Tensor:
    """The bits of the magnitudes as integers, none negative."""
    kind = INTEGERS[chunk.itemsize]
    return chunk.view(kind) & torch.iinfo(kind).max


def _earlier(count: Tensor, sum_up: Sum) -> Tensor:
    """The sum ``[1]`` of a count over the processes before this one."""
    counts = count.new_zeros(num_processes())
    counts[rank() : rank() + 1] = count
    return sum_up(counts)[: rank()].sum(0, keepdim=True)
