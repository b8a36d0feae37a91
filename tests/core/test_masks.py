"""Masks against a sorted list, overlaps against Python's sets."""

import math
import os
import subprocess
import sys
from decimal import Decimal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from geffect.core.masks import (
    Overlap,
    _common_bits_on_device,
    _pack_on_device,
    intersections,
    jaccard,
    pack,
    top_mask,
    unpack,
)
from geffect.core.statistics import chance_jaccard
from geffect.errors import GeffectError

FEW = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 1e-40, math.inf])  # many ties, and a subnormal
ENTRIES = st.lists(st.one_of(FEW, st.floats(width=16, allow_nan=False)), max_size=60)
SHARES = st.sampled_from(["1", "0.5", "0.1", "0.07", "0.29", "1e-05", "0.999"])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float64])
BITS = st.lists(st.lists(st.booleans(), min_size=19, max_size=19), min_size=1, max_size=5)


def by_sorting(entries: list[float], share: str) -> set[int]:
    """The definition: by magnitude, then by place, as many as exact arithmetic says, zeros left out."""
    count = math.ceil(Decimal(share) * len(entries))
    order = sorted(range(len(entries)), key=lambda i: (-abs(entries[i]), i))
    return {i for i in order[:count] if entries[i] != 0}


def members(mask: Tensor) -> set[int]:
    return set(torch.nonzero(mask.reshape(-1)).reshape(-1).tolist())


@given(entries=ENTRIES, share=SHARES, dtype=DTYPES)
@settings(max_examples=300, deadline=None)
def test_a_mask_holds_the_largest_entries_and_of_equal_ones_the_first(
    entries: list[float], share: str, dtype: torch.dtype
) -> None:
    tensor = torch.tensor(entries, dtype=dtype)
    assert members(top_mask(tensor, float(share))) == by_sorting(tensor.tolist(), share)


def _every_64th(value: float) -> Tensor:
    entries = torch.randn(5000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    entries[::64] = value
    return entries


@pytest.mark.parametrize(
    "tensor",
    [
        _every_64th(0.0),
        _every_64th(1e9),
        _every_64th(math.inf),
        _every_64th(1e-9),
        torch.arange(5000.0),
        torch.ones(5000),
        torch.arange(5000.0).floor_divide(700),
        torch.eye(70),
    ],
    ids=["zeros", "large", "infinite", "small", "ascending", "equal", "few values", "sparse"],
)
@pytest.mark.parametrize("share", ["0.001", "0.02", "0.1", "0.5", "0.95", "1.0"])
def test_a_mask_does_not_depend_on_what_a_sample_says(tensor: Tensor, share: str) -> None:
    assert members(top_mask(tensor, float(share))) == by_sorting(tensor.flatten().tolist(), share)


@pytest.mark.parametrize(
    ("share", "numel", "count"),
    [(0.1, 30, 3), (0.1, 31, 4), (0.07, 100, 7), (0.29, 100, 29), (1.0, 5, 5), (1, 5, 5), (1e-9, 5, 1)],
)
def test_the_count_is_the_decimals_ceiling(share: float, numel: int, count: int) -> None:
    assert int(top_mask(torch.arange(1.0, numel + 1), share).sum()) == count


@pytest.mark.parametrize("shape", [(), (0,), (7,), (4, 6), (2, 3, 5)])
def test_a_mask_has_its_tensors_shape_and_leaves_it_alone(shape: tuple[int, ...]) -> None:
    tensor = torch.full(shape, -2.0, requires_grad=True)
    mask = top_mask(tensor, 0.5)
    assert (mask.shape, mask.dtype) == (tensor.shape, torch.bool)
    assert members(mask) == set(range(math.ceil(tensor.numel() / 2)))
    assert (tensor == -2).all()


def test_strides_do_not_matter() -> None:
    tensor = torch.randn(6, 7, generator=torch.Generator().manual_seed(0)).round().T
    assert not tensor.is_contiguous()
    assert torch.equal(top_mask(tensor, 0.3), top_mask(tensor.contiguous(), 0.3))
    mask = top_mask(tensor.T.contiguous(), 0.3).T
    assert torch.equal(pack(mask), pack(mask.contiguous()))


def test_zeros_are_in_no_mask() -> None:
    assert not top_mask(torch.zeros(3, 4), 1.0).any()
    assert members(top_mask(torch.tensor([0.0, 5.0, -0.0, 0.0]), 0.75)) == {1}


@given(scale=st.sampled_from([1e-20, -1.0, 2.0**20]), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_masks_and_jaccard_ignore_scale(scale: float, seed: int) -> None:
    a, b = torch.randn(2, 500, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    scaled = intersections([pack(top_mask(vector, 0.1)) for vector in (scale * a, b)])
    assert torch.equal(jaccard(scaled), jaccard(intersections([pack(top_mask(vector, 0.1)) for vector in (a, b)])))


@pytest.mark.parametrize("share", [0.0, -0.1, 1.0001, math.nan, math.inf])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(GeffectError, match=r"^The share of a tensor's entries is [^\n]*, not in \(0, 1\]\. "):
        top_mask(torch.ones(3), share)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_tensor_with_nan_is_refused(dtype: torch.dtype) -> None:
    tensor = torch.ones(50, dtype=dtype)
    tensor[[3, 40]] = math.nan
    with pytest.raises(GeffectError, match=r"has 2 NaN in a tensor of 50 entries[^\n]*--overlap\.$"):
        top_mask(tensor, 0.1)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_change_no_bit(threads: int) -> None:
    code = (
        "import sys, torch; from geffect.core.masks import pack, top_mask\n"
        f"torch.set_num_threads({threads})\n"
        "vector = torch.randn(300_001, generator=torch.Generator().manual_seed(0)).bfloat16()\n"
        "sys.stdout.buffer.write(pack(top_mask(vector, 0.1)).numpy().tobytes())"
    )
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment).stdout
    vector = torch.randn(300_001, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = by_sorting(vector.tolist(), "0.1")
    assert members(unpack(torch.frombuffer(bytearray(found), dtype=torch.uint8), vector.shape)) == expected


@given(bits=st.lists(st.booleans(), max_size=40), columns=st.integers(1, 4))
@settings(deadline=None)
def test_packing_loses_nothing(bits: list[bool], columns: int) -> None:
    mask = torch.tensor(bits[: len(bits) // columns * columns], dtype=torch.bool).view(-1, columns)
    packed = pack(mask)
    assert (packed.dtype, packed.numel()) == (torch.uint8, math.ceil(mask.numel() / 8))
    assert torch.equal(unpack(packed, mask.shape), mask)


@given(vectors=BITS, missing=st.sets(st.integers(0, 4)))
@settings(deadline=None)
def test_overlaps_count_what_sets_share(vectors: list[list[bool]], missing: set[int]) -> None:
    masks = [None if i in missing else pack(torch.tensor(vector)) for i, vector in enumerate(vectors)]
    sets: list[set[int]] = [
        set() if i in missing else members(torch.tensor(vector)) for i, vector in enumerate(vectors)
    ]
    counts = intersections(masks)
    assert counts.dtype == torch.int64
    assert counts.tolist() == [[len(a & b) for b in sets] for a in sets]
    assert torch.equal(counts, counts.T)
    expected = [[len(a & b) / len(a | b) if a | b else math.nan for b in sets] for a in sets]
    assert torch.equal(jaccard(counts).nan_to_num(-1), torch.tensor(expected, dtype=torch.float64).nan_to_num(-1))


@given(vectors=BITS)
@settings(deadline=None)
def test_bits_are_packed_and_counted_elsewhere_as_on_the_cpu(vectors: list[list[bool]]) -> None:
    masks = [torch.tensor(vector) for vector in vectors]
    packed = [_pack_on_device(mask) for mask in masks]
    assert all(torch.equal(bits, pack(mask)) for bits, mask in zip(packed, masks, strict=True))
    assert torch.equal(_common_bits_on_device(torch.stack(packed)), intersections(packed))


def test_all_bytes_are_counted() -> None:
    every = torch.arange(256, dtype=torch.uint8)[:, None]
    assert _common_bits_on_device(every).diagonal().tolist() == [i.bit_count() for i in range(256)]


def test_bits_fill_bytes_from_the_highest() -> None:
    assert pack(torch.tensor([True, *[False] * 6, True, True])).tolist() == [129, 128]


def test_masks_of_two_lengths_are_no_family() -> None:
    with pytest.raises(RuntimeError, match="equal size"):
        intersections([pack(torch.ones(8).bool()), pack(torch.ones(16).bool())])


def test_every_mask_is_itself_and_an_empty_one_is_nothing() -> None:
    values = jaccard(intersections([pack(torch.tensor([True, False])), None, pack(torch.tensor([False, True]))]))
    assert values[[0, 2], [0, 2]].tolist() == [1, 1]
    assert values[1, 1].isnan()
    assert values[0].tolist() == [1, 0, 0]


def test_counts_past_two_to_the_53_stay_exact_until_divided() -> None:
    huge = torch.tensor([[2**60 + 1, 2**60], [2**60, 2**60 + 1]])
    assert Overlap(("a", "b"), 0.1, {"w": huge, "v": huge}).total()[0, 0].item() == 2**61 + 2


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5])
def test_random_masks_meet_at_chance(share: float) -> None:
    vectors = torch.randn(2, 400_000, generator=torch.Generator().manual_seed(0))
    found = jaccard(intersections([pack(top_mask(vector, share)) for vector in vectors]))[0, 1].item()
    assert found == pytest.approx(chance_jaccard(share), abs=0.003)
    assert chance_jaccard(1.0) == 1.0


def make_overlap() -> Overlap:
    """Three gradients over parameters of eleven entries each; one is zero in every second."""
    values = dict[str, Tensor]()
    for i, name in enumerate("abcd"):
        vectors = torch.randn(3, 11, generator=torch.Generator().manual_seed(i))
        masks = [pack(top_mask(vector, 0.4)) for vector in vectors]
        values[name] = intersections([None if i % 2 else masks[0], *masks[1:]])
    return Overlap(("x", "y", "z"), 0.4, values)


def test_parts_sum_to_the_whole() -> None:
    overlap = make_overlap()
    parts = [overlap.total(names) for names in ("ac", "b", "d")]
    assert torch.equal(parts[0], overlap.values["a"] + overlap.values["c"])
    assert torch.equal(torch.stack(parts).sum(0), overlap.total())
    assert overlap.total().dtype == torch.int64
    assert overlap.total().diagonal().tolist() == [10, 20, 20]  # ⌈0.4 · 11⌉ a parameter, none where there are zeros


def test_a_support_of_nothing_is_zeros() -> None:
    assert Overlap(("x", "y", "z"), 0.4).total().tolist() == [[0] * 3] * 3
    assert make_overlap().total([]).tolist() == [[0] * 3] * 3
