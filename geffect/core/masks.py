"""Masks over the entries of parameters: the largest of a gradient, their overlaps, and what freezing makes of them.

A top-k mask has the entries of largest magnitude of one tensor of one gradient, a bit an entry. The counts ``[M, M]``
of the intersections are all that is recorded of M masks; unions and Jaccard indices follow from them, and counts add up
over parameters. Masks are made on their tensor's device and do not depend on threads.
"""

import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from geffect.core.devices import Pairwise, matrices
from geffect.core.distributed import part_of
from geffect.core.gram import Gram, cosine, upper_triangle
from geffect.core.histograms import mask_by_histogram, mask_size
from geffect.core.splits import TARGETS, of_role, role_of
from geffect.errors import GeffectError

if TYPE_CHECKING:
    import pandas as pd

PackedMasks = dict[str, Tensor]  # parameter → packed mask; missing: empty
SPARSE, MARGIN = 64, 1.1  # every 64th entry says where the largest are, give or take a tenth


def top_mask(tensor: Tensor, share: float) -> Tensor:
    """The entries of largest magnitude: ⌈share · N⌉ of N, ties going to the lowest flat index.

    Zeros are in no mask, so a tensor with fewer other entries than that has a smaller one. Infinities are the largest
    of all. ``share`` in (0, 1] is read as the decimal it prints as: 0.07 of 100 are 7. The tensor may have any shape
    and floating-point dtype; the mask is bool, of its shape, on its device. NaN is refused.

    >>> top_mask(torch.tensor([[0.5, -3.0], [0.0, 0.5]]), 0.5).tolist()
    [[True, True], [False, False]]
    """
    return top_masks(tensor, [share])[0]


def top_masks(tensor: Tensor, shares: Sequence[float]) -> list[Tensor]:
    """`top_mask` for several shares, at little more than the time of one.

    >>> [int(mask.sum()) for mask in top_masks(torch.arange(10.0), [0.1, 0.5, 1])]
    [1, 5, 9]
    """
    if tensor.device.type != "cpu":
        refuse_nan(int(tensor.isnan().sum()), tensor.numel())
        return [mask_by_histogram(tensor, share) for share in shares]
    counts = [mask_size(tensor.numel(), share) for share in shares]
    sizes = magnitudes(tensor)
    large = _candidates(sizes, max(counts, default=0))
    smallest = _thresholds(large, counts)
    masks = [_largest_mask(sizes, smallest.get(count), count) for count in counts]
    return [torch.from_numpy(mask).view(tensor.shape) for mask in masks]


def _candidates(sizes: "np.ndarray[Any, Any]", count: int) -> "np.ndarray[Any, Any]":
    # the entries to rank: so many of the largest at least, and none that is zero, unless there are fewer. A sample says
    # where to cut; were it wrong, or were zeros in it, all others are ranked: many equal ones would slow that tenfold
    sample = np.sort(sizes[::SPARSE])
    place = len(sample) - math.ceil(len(sample) * MARGIN * count / max(len(sizes), 1))
    bound = sample[place] if 0 <= place < len(sample) else 0
    large = sizes.compress(sizes >= bound) if bound > 0 else sizes[:0]  # a third of the time of sizes[…]
    return large if len(large) >= count else sizes.compress(sizes > 0)


def _thresholds(large: "np.ndarray[Any, Any]", counts: Sequence[int]) -> dict[int, Any]:
    # count → the smallest of so many of the largest. One place at a time, each among what the one before left above it:
    # asked for several at once, NumPy takes four times as long; torch's kthvalue and topk ten times
    thresholds = {}
    for count in sorted(set(counts), reverse=True) if len(large) else ():
        place = max(len(large) - count, 0)
        large.partition(place)
        large = large[place:]
        thresholds[count] = large[0]
    return thresholds


def _largest_mask(sizes: "np.ndarray[Any, Any]", threshold: Any, count: int) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    # the mask of so many entries, the smallest of which is known; None where all are zero
    if threshold is None:
        return np.zeros(len(sizes), dtype=bool)
    mask = np.asarray(sizes >= threshold)
    excess = np.count_nonzero(mask) - count
    if excess > 0:
        ties = np.flatnonzero(sizes == threshold)
        mask[ties[len(ties) - excess :]] = False
    return mask


def magnitudes(tensor: Tensor) -> "np.ndarray[tuple[int], np.dtype[np.floating]]":
    """|tensor| as a flat CPU array ``[N]``, float32 or float64: NumPy has no bfloat16, and float32 holds it exactly."""
    exact = tensor.dtype if tensor.dtype == torch.float64 else torch.float32
    sizes = tensor.detach().reshape(-1).cpu().to(exact).abs().numpy()
    if np.isnan(sizes.max(initial=0)):
        refuse_nan(int(np.isnan(sizes).sum()), sizes.size)
    return sizes


def refuse_nan(count: int, numel: int) -> None:
    """Refuse a tensor that has any NaN."""
    if count:
        raise GeffectError(
            f"A gradient has {count} NaN in a tensor of {numel} entries, so that its overlap is not defined",
            remedy="Lower the learning rate, or run without --overlap",
        )


def pack(mask: Tensor) -> Tensor:
    """A mask's bits in row-major order, the first the highest of its byte: ⌈N / 8⌉ bytes, uint8, on its device."""
    flat = mask.reshape(-1)
    return torch.from_numpy(np.packbits(flat.numpy())) if flat.device.type == "cpu" else _pack_on_device(flat)


def _pack_on_device(flat: Tensor) -> Tensor:
    entries = functional.pad(flat.view(torch.uint8), (0, -len(flat) % 8)).view(-1, 8)
    places = torch.arange(7, -1, -1, dtype=torch.uint8, device=flat.device)
    return (entries << places).sum(1, dtype=torch.uint8)


def empty_masks(sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """Name → ⌈N / 8⌉ zero bytes for each name → N: packed empty masks.

    All are in one buffer: many small ones would scatter over the memory that later passes need in one piece.
    """
    lengths = [math.ceil(numel / 8) for numel in sizes.values()]
    return dict(zip(sizes, torch.zeros(sum(lengths), dtype=torch.uint8).split(lengths), strict=True))


def unpack(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """The mask of a shape from its bits (`pack`), where they lie."""
    size = math.prod(shape)
    if bits.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(bits.numpy(), count=size)).view(torch.bool).view(tuple(shape))
    return _entries(bits)[:size].view(tuple(shape))


def _entries(bits: Tensor) -> Tensor:
    """The mask ``[8 · bytes]`` of packed bits, by torch alone: `numpy.unpackbits` on any device."""
    places = torch.arange(7, -1, -1, dtype=torch.uint8, device=bits.device)
    return bits[:, None].bitwise_right_shift(places).bitwise_and_(1).view(-1).view(torch.bool)


def intersections(masks: Sequence[Tensor | None]) -> Tensor:
    """|A_i ∩ A_j| of M packed masks of one shape, ``[M, M]`` int64, their sizes on the diagonal; None is an empty mask.

    >>> intersections([pack(torch.tensor([True, True])), None, pack(torch.tensor([False, True]))]).tolist()
    [[2, 0, 1], [0, 0, 0], [1, 0, 1]]
    """
    return matrices([pairwise_intersections(masks)])[0]


def pairwise_intersections(masks: Sequence[Tensor | None]) -> Pairwise:
    """`intersections`, left on the masks' device."""
    present = tuple(i for i, mask in enumerate(masks) if mask is not None)
    if not present:
        return Pairwise(len(masks), (), torch.zeros(0, 0, dtype=torch.int64))
    bits = torch.stack([mask for mask in masks if mask is not None])  # [K, bytes]
    counts = _common_bits(bits.numpy()) if bits.device.type == "cpu" else _common_bits_on_device(bits)
    return Pairwise(len(masks), present, counts)


def _common_bits(bits: "np.ndarray[Any, Any]") -> Tensor:
    counts = torch.zeros(len(bits), len(bits), dtype=torch.int64)
    for i in range(len(bits)):
        common = np.bitwise_count(bits[i:] & bits[i]).sum(1, dtype=np.int64)
        counts[i, i:] = counts[i:, i] = torch.from_numpy(common)
    return counts


def _common_bits_on_device(bits: Tensor) -> Tensor:
    return torch.stack([_count_bits(bits & each) for each in bits])


def _count_bits(masks: Tensor) -> Tensor:
    """The entries ``[K]`` of packed masks ``[K, bytes]``: torch counts no bits, so pairs, nibbles and bytes add up."""
    pairs = masks - ((masks >> 1) & 0x55)
    nibbles = (pairs & 0x33) + ((pairs >> 2) & 0x33)
    return ((nibbles + (nibbles >> 4)) & 0x0F).sum(1, dtype=torch.int64)


def mask_count(bits: Tensor) -> int:
    """The number of entries in a packed mask."""
    return int(np.bitwise_count(bits.numpy()).sum(dtype=np.int64))


def jaccard(intersections: Tensor) -> Tensor:
    """J[i, j] = |A_i ∩ A_j| / |A_i ∪ A_j| from (sums of) `intersections`, ``[M, M]`` float64; NaN where both are empty.

    >>> jaccard(torch.tensor([[2, 1, 0], [1, 2, 0], [0, 0, 0]])).tolist()
    [[1.0, 0.3333333333333333, 0.0], [0.3333333333333333, 1.0, 0.0], [0.0, 0.0, nan]]
    """
    sizes = intersections.diagonal()
    return intersections.double() / (sizes[:, None] + sizes - intersections).double()


@dataclass
class Overlap:
    """The overlaps of named gradients' masks, per parameter tensor.

    Attributes:
        names: of the M masks, the order of every matrix here.
        share: of each tensor's entries that a mask keeps.
        values: canonical parameter name → intersections ``[M, M]``, int64, symmetric.
    """

    names: tuple[str, ...]
    share: float
    values: dict[str, Tensor] = field(default_factory=dict)

    def to_record(self) -> dict[str, object]:
        """The share, the names, and each tensor's upper triangle, line by line."""
        triangles = [upper_triangle(counts) for counts in self.values.values()]
        return {"share": self.share, "gradients": list(self.names), "values": triangles}

    def total(self, names: Iterable[str] | None = None) -> Tensor:
        """The sum over the named parameters (all by default), ``[M, M]``."""
        counts = self.values.values() if names is None else [self.values[name] for name in names]
        return sum(counts, torch.zeros(len(self.names), len(self.names), dtype=torch.int64))


def make_generator(lot: str) -> torch.Generator:
    """A generator of random numbers on the CPU whose seed is the hash of a text: the same on every machine."""
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(lot.encode()).digest()[:8], "big") >> 1)


def shuffled(mask: Tensor, lot: str) -> Tensor:
    """The entries of one tensor's mask in an order drawn by lot: a random mask of the same size, on the CPU."""
    order = torch.randperm(mask.numel(), generator=make_generator(lot))
    return mask.reshape(-1).cpu()[order].view(mask.shape)


def random_masks(shapes: Mapping[str, Sequence[int]], share: float, seed: int) -> PackedMasks:
    """Parameter → the packed mask of ⌈share · N⌉ entries of each tensor, drawn by lot."""
    masks = {}
    for name, shape in shapes.items():
        numel = math.prod(shape)
        masks[name] = pack(shuffled(torch.arange(numel) < mask_size(numel, share), f"{seed} {name}"))
    return masks


def complement(masks: PackedMasks, parameters: Mapping[str, Tensor]) -> PackedMasks:
    """Parameter → the packed mask of the entries that are not in a mask; a missing mask is empty."""
    everything = {n: torch.ones(p.shape, dtype=torch.bool) for n, p in parameters.items() if n not in masks}
    others = {name: ~unpack(masks[name], parameters[name].shape) for name in parameters if name in masks}
    return {name: pack(each) for name, each in (everything | others).items()}


def union_of_masks(masks: Sequence[PackedMasks]) -> PackedMasks:
    """Parameter → the packed mask of every entry in any of several masks.

    >>> a, b = ({"w": pack(torch.tensor(bits))} for bits in ([True, False], [True, True]))
    >>> mask_count(union_of_masks([a, b])["w"]), mask_count(intersection_of_masks([a, b])["w"])
    (2, 1)
    """
    names = dict.fromkeys(name for each in masks for name in each)
    return {name: functools.reduce(torch.bitwise_or, [m[name] for m in masks if name in m]) for name in names}


def intersection_of_masks(masks: Sequence[PackedMasks]) -> PackedMasks:
    """Parameter → the packed mask of every entry in all of several masks; empty ones are missing."""
    names = [name for name in masks[0] if all(name in each for each in masks)]
    common = {name: functools.reduce(torch.bitwise_and, [each[name] for each in masks]) for name in names}
    return {name: mask for name, mask in common.items() if mask_count(mask)}


@dataclass(repr=False)
class Localization:
    """The result of a localization.

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
        """The masks of a share: split → parameter → packed mask; refuse a share that was not localized."""
        if share not in self.masks:
            have = ", ".join(f"{each:g}" for each in self.masks)
            message = f"There are no masks of the largest {share:g} of each tensor, only of {have}"
            raise GeffectError(message, remedy=f"Localize with --share {share:g} too")
        return self.masks[share]

    def cosines(self) -> dict[str, float]:
        """Parameter → cosine of all domains' forget and retain mean gradients, weighted by examples; 0 for zeros."""
        if not self.gram.names:
            raise GeffectError(
                "The localization has masks and no mean gradients", remedy="Localize without --masks-only"
            )
        weights = {}
        for role in TARGETS:
            total = sum(of_role(self.examples, role))
            weights[role] = {split: n / total for split, n in self.examples.items() if role_of(split) == role}
        pooled = self.gram.combine(weights)
        values = {name: cosine(g, pooled.names, *TARGETS) for name, g in pooled.values.items()}
        return {name: 0.0 if math.isnan(value) else value for name, value in values.items()}

    def to_frame(self) -> "pd.DataFrame":
        """A line a split: ``examples``, and the number of entries in each share's masks (``top 10 %``, say)."""
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
    """Two masks a tensor: the entries frozen to the forget side's gradients, and those frozen to the retain side's.

    A side is everything that the objective back-propagates to that end. An entry frozen to both sides never moves.
    A mask takes a bit an entry, on the device of its parameter; one tensor's is unpacked at a time.

    Args:
        parameters: what is masked.
        forget: parameter → packed mask; missing: empty.
        retain: the same for the retain side.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], forget: PackedMasks, retain: PackedMasks) -> None:
        self._shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        bits = {name: mask.to(parameters[name].device) for name, mask in forget.items()}
        self._bits = {"forget": bits, "retain": bits}
        if retain is not forget:
            self._bits["retain"] = {name: mask.to(parameters[name].device) for name, mask in retain.items()}
        every = [(side, name) for side, bits in self._bits.items() for name in bits]
        self._closed = {(side, name) for side, name in every if bool(self._mask(side, name).all())}

    def mask(self, side: str, name: str, device: torch.device | None = None) -> Tensor | None:
        """The mask of one tensor on a ``forget`` or ``retain`` side, a bool of its shape; None where it is empty.

        It is made on the ``device``, that of the parameter by default.
        """
        return self._mask(side, name, device) if name in self._bits[side] else None

    def _mask(self, side: str, name: str, device: torch.device | None = None) -> Tensor:
        bits = self._bits[side]
        if device is not None and bits[name].device != device:
            bits[name] = bits[name].to(device)
        return unpack(bits[name], self._shapes[name])

    def apply(self, side: str, name: str, tensor: Tensor | None) -> Tensor | None:
        """One side's gradient with zeros where it is frozen; None where nothing of it is left, and for None.

        The tensor that is passed is not changed.
        """
        if tensor is None or (side, name) in self._closed:
            return None
        mask = self.mask(side, name, tensor.device)
        return tensor if mask is None else tensor.masked_fill(mask, 0)

    def shard(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Cut the masks to this process's part of the parameters, which are sharded by now.

        A tensor stays closed to a side only where the whole of it is.
        """
        parts = {side: {n: part_of(self._mask(side, n), parameters[n]) for n in bits} for side, bits in self._sides()}
        for side, bits in self._sides():
            bits |= {name: pack(part).to(part.device) for name, part in parts[side].items()}
            self._shapes |= {name: tuple(part.shape) for name, part in parts[side].items()}

    @property
    def symmetric(self) -> bool:
        """Whether one mask is that of both sides."""
        return self._bits["forget"] is self._bits["retain"]

    def _sides(self) -> list[tuple[str, PackedMasks]]:
        """Each side with its masks; once where both sides have the same."""
        return list(self._bits.items())[: 1 if self.symmetric else 2]

    def never(self, name: str, device: torch.device | None = None) -> Tensor | None:
        """The mask of one tensor's entries that never move; None where all may. ``device`` is that of `mask`."""
        if not all(name in bits for bits in self._bits.values()):
            return None
        masks = [self._mask(side, name, device) for side, _ in self._sides()]
        return functools.reduce(torch.logical_and, masks)

    def shares(self) -> dict[str, dict[str, float]]:
        """Side (``forget``, ``retain``, or ``never`` for both) → parameter → share of its entries that are frozen."""
        sides: dict[str, Callable[[str], Tensor | None]] = {
            "forget": lambda name: self.mask("forget", name),
            "retain": lambda name: self.mask("retain", name),
            "never": self.never,
        }
        return {side: {name: _share(mask(name)) for name in self._shapes} for side, mask in sides.items()}

    @torch.no_grad()
    def put_back(self, name: str, parameter: Tensor, before: Tensor) -> None:
        """Undo what an optimizer did to entries that never move: weight decay, momentum from before."""
        still = self.never(name, parameter.device)
        if still is not None:
            parameter.copy_(torch.where(still, before, parameter))


def _share(mask: Tensor | None) -> float:
    return 0.0 if mask is None else int(mask.sum()) / mask.numel()
