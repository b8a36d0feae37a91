"""Masks by histograms against masks by sorting, of whole tensors and of tensors in parts."""

import itertools
import math
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from geffect.core import histograms
from geffect.core.histograms import mask_by_histogram
from geffect.core.masks import top_mask

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SHARES = (0.01, 0.1, 0.5, 1.0, 0.07)


def drawn(count: int) -> Iterator[tuple[Tensor, float, int]]:
    """Tensors with ties, zeros and infinities, a share, and how many entries are looked at together."""
    generator = torch.Generator().manual_seed(0)
    cases = zip(itertools.cycle(DTYPES), itertools.cycle(SHARES), itertools.cycle([2**24, 7, 64]), strict=False)
    for i, (dtype, share, chunk) in enumerate(itertools.islice(cases, count)):
        entries = torch.randn(int(torch.randint(0, 400, (1,), generator=generator)), generator=generator)
        if i % 3 == 0:
            entries = (entries * 2).round()
        if i % 7 == 0:
            entries = entries * 1e-40 if i % 2 else entries * 1e38
        if i % 5 == 0:
            entries[torch.rand(len(entries), generator=generator) < 0.5] = 0
        if i % 11 == 0:
            entries[::3] = -math.inf
        yield (torch.zeros_like(entries) if i % 13 == 0 else entries).to(dtype), share, chunk


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=[pytest.mark.exhaustive, pytest.mark.timeout(600)])])
def test_a_histogram_finds_what_sorting_finds(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for tensor, share, chunk in drawn(count):
        monkeypatch.setattr(histograms, "CHUNK", chunk)
        assert torch.equal(mask_by_histogram(tensor, share), top_mask(tensor, share)), (tensor, share)


def test_a_mask_has_its_tensors_shape() -> None:
    tensor = torch.randn(6, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(mask_by_histogram(tensor, 0.3), top_mask(tensor, 0.3))
    assert torch.equal(mask_by_histogram(tensor.T, 0.3), top_mask(tensor.T.contiguous(), 0.3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_in_a_mask_where_there_is_a_nan(dtype: torch.dtype) -> None:
    tensor = torch.tensor([1.0, math.nan, math.inf], dtype=dtype)
    assert not mask_by_histogram(tensor, 1.0).any()


class Processes(threading.local):
    """Threads that sum numbers as processes do."""

    rank = 0


def in_parts(tensor: Tensor, share: float, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The mask of a tensor that lies in parts over as many processes."""
    here, barrier, sums = Processes(), threading.Barrier(len(sizes)), dict[int, Tensor]()
    masks: list[Tensor | None] = [None] * len(sizes)

    def sum_up(values: Tensor) -> Tensor:
        sums[here.rank] = values.clone()
        barrier.wait()
        total = torch.stack([sums[i] for i in range(len(sizes))]).sum(0)
        barrier.wait()
        return values.copy_(total)

    def one(rank: int, part: Tensor) -> Callable[[], None]:
        def run() -> None:
            here.rank = rank
            masks[rank] = mask_by_histogram(part, share, sum_up)

        return run

    monkeypatch.setattr(histograms, "rank", lambda: here.rank)
    monkeypatch.setattr(histograms, "num_processes", lambda: len(sizes))
    threads = [threading.Thread(target=one(rank, part)) for rank, part in enumerate(tensor.split(sizes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return torch.cat([mask for mask in masks if mask is not None])


def test_parts_of_a_tensor_get_the_parts_of_its_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    for tensor, share, _ in drawn(60):
        length = len(tensor)
        sizes = [length // 2, 0, length - length // 2]
        assert torch.equal(in_parts(tensor, share, sizes, monkeypatch), top_mask(tensor, share))


def test_a_nan_in_one_part_empties_the_masks_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not in_parts(torch.tensor([1.0, 2.0, math.nan]), 1.0, [2, 1], monkeypatch).any()
