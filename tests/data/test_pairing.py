"""Which rows meet: permutations and partners that depend on seed, epoch and row, and on nothing else."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geffect.data.encode import EncodedExample
from geffect.training.batches import PairedDataset, PairedSampler, ShuffledSampler, draw_partner, permutation

SEEDS = st.integers(0, 2**32 - 1)
EPOCHS = st.integers(0, 1000)
SIZES = st.integers(1, 200)


@settings(deadline=None)
@given(st.integers(0, 200), SEEDS, EPOCHS)
def test_an_order_is_a_permutation(rows: int, seed: int, epoch: int) -> None:
    assert sorted(permutation(rows, seed, epoch)) == list(range(rows))


@settings(deadline=None)
@given(SIZES, SEEDS, EPOCHS, st.integers(0, 10**6))
def test_a_partner_is_a_retain_row(rows: int, seed: int, epoch: int, row: int) -> None:
    assert 0 <= draw_partner(rows, seed, epoch, row) < rows


@settings(deadline=None)
@given(SIZES, SEEDS, EPOCHS)
def test_global_random_states_are_neither_read_nor_moved(rows: int, seed: int, epoch: int) -> None:
    first = permutation(rows, seed, epoch), draw_partner(rows, seed, epoch, 3)
    np.random.seed(seed % 1000)
    torch.manual_seed(epoch)
    before = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].tolist()
    assert (permutation(rows, seed, epoch), draw_partner(rows, seed, epoch, 3)) == first
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state(legacy=False)["state"]["key"].tolist() == before[1]


def test_orders_and_partners_do_not_drift() -> None:
    assert permutation(10, 0, 0) == [4, 6, 2, 7, 3, 5, 9, 0, 8, 1]
    assert [draw_partner(10, 0, 0, row) for row in range(10)] == [3, 9, 8, 0, 0, 0, 6, 3, 8, 5]


def test_seed_and_epoch_each_change_the_order() -> None:
    orders = [tuple(permutation(50, seed, epoch)) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25


def test_partners_differ_between_epochs_and_seeds() -> None:
    drawn = [tuple(draw_partner(50, seed, epoch, row) for row in range(20)) for seed in range(5) for epoch in range(5)]
    assert len(set(drawn)) == 25


def test_partners_are_drawn_evenly() -> None:
    counts = Counter(draw_partner(5, 0, epoch, row) for epoch in range(50) for row in range(40))
    assert sorted(counts) == list(range(5))
    assert all(abs(count - 400) < 80 for count in counts.values())  # four standard deviations are 72


@settings(deadline=None)
@given(SIZES, SIZES, SEEDS, EPOCHS)
def test_an_epoch_of_pairs_has_each_forget_row_once_with_its_partner(
    forget: int, retain: int, seed: int, epoch: int
) -> None:
    sampler = PairedSampler({"forget": forget, "retain": retain}, seed)
    sampler.set_epoch(epoch)
    pairs = list(sampler)
    assert [row for row, _ in pairs] == permutation(forget, seed, epoch)
    assert [other for _, other in pairs] == [draw_partner(retain, seed, epoch, row) for row, _ in pairs]
    assert len(pairs) == len(sampler)


@settings(deadline=None)
@given(SIZES, SIZES, SEEDS, EPOCHS)
def test_further_sets_do_not_move_the_pairs(forget: int, other: int, seed: int, epoch: int) -> None:
    two = PairedSampler({"forget": forget, "retain": other}, seed)
    four = PairedSampler({"forget": forget, "retain": other, "general": other, "alternative": 3 * forget}, seed)
    for sampler in (two, four):
        sampler.set_epoch(epoch)
    met = list(four)
    assert [each[:2] for each in met] == list(two)
    assert [each[3] for each in met] == [(epoch * forget + each[0]) % (3 * forget) for each in met]
    assert all(0 <= each[2] < other for each in met)


def test_general_rows_are_drawn_apart_from_retain_rows() -> None:
    met = list(PairedSampler({"forget": 200, "retain": 50, "general": 50}, 0))
    assert sum(retain == general for _, retain, general in met) < 20


@pytest.mark.parametrize("sampler", [PairedSampler({"forget": 30, "retain": 20}, 0), ShuffledSampler(30, 0)])
def test_the_same_epoch_repeats_and_another_does_not(sampler: PairedSampler | ShuffledSampler) -> None:
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first


@settings(deadline=None)
@given(SIZES, SEEDS, EPOCHS)
def test_an_epoch_of_rows_is_the_order(rows: int, seed: int, epoch: int) -> None:
    sampler = ShuffledSampler(rows, seed)
    sampler.set_epoch(epoch)
    assert list(sampler) == permutation(rows, seed, epoch)
    assert len(sampler) == rows


def test_a_pair_is_the_two_rows_asked_for() -> None:
    forget, retain = ([EncodedExample(i, [i, base], [-100, base]) for i in range(4)] for base in (7, 8))
    pairs = PairedDataset({"forget": forget, "retain": retain})
    assert pairs[2, 3] == {"forget": forget[2], "retain": retain[3]}
    assert len(pairs) == 4
