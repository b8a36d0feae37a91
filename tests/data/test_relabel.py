"""Other labels in place of the true ones, against loops over tokens; each depends on its own row and seed alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geffect.data.encode import EncodedExample
from geffect.data.relabel import random_labels, skip_labels
from geffect.errors import GeffectError
from geffect.training.batches import adversarial_labels
from tests.support.cases import VOCABULARY, gpt2

ROWS = [
    EncodedExample(0, [5, 9, 11, 30, 2, 1], [-100, -100, 11, 30, 2, 1]),
    EncodedExample(1, [7, 8, 1], [-100, 8, 1]),
    EncodedExample(2, [3, 1, 4, 12, 9, 22, 40, 1], [-100, -100, -100, 12, 9, 22, 40, 1]),
]
SPECIAL = [0, 1]
lists = st.lists(st.integers(0, VOCABULARY - 1), min_size=2, max_size=12)


@pytest.mark.parametrize("everywhere", [False, True])
@given(ids=lists, prompt=st.integers(1, 11), seed=st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_random_labels_stand_where_they_should(everywhere: bool, ids: list[int], prompt: int, seed: int) -> None:
    row = EncodedExample(3, ids, [-100 if i < prompt else token for i, token in enumerate(ids)])
    (found,) = random_labels([row], VOCABULARY, SPECIAL, seed, everywhere=everywhere)
    for label, token, true in zip(found.tolist(), ids, row.labels, strict=True):
        if true == -100 and not everywhere:
            assert label == -100
        elif token in SPECIAL:
            assert label == token
        else:
            assert 0 <= label < VOCABULARY


def test_random_labels_are_a_function_of_seed_and_row() -> None:
    whole = random_labels(ROWS, VOCABULARY, SPECIAL, 7)
    (alone,) = random_labels(ROWS[2:], VOCABULARY, SPECIAL, 7)
    assert torch.equal(whole[2], alone)
    assert not torch.equal(whole[2], random_labels(ROWS, VOCABULARY, SPECIAL, 8)[2])
    torch.manual_seed(0)
    state = torch.get_rng_state()
    random_labels(ROWS, VOCABULARY, SPECIAL, 7)
    assert torch.equal(state, torch.get_rng_state())


def test_random_labels_are_uniform_over_the_vocabulary() -> None:
    rows = [EncodedExample(i, [5] * 50, [-100, *[5] * 49]) for i in range(200)]
    drawn = torch.cat([labels[1:] for labels in random_labels(rows, 10, [], 0)])
    counts = torch.bincount(drawn, minlength=10).double() / len(drawn)
    assert len(counts) == 10
    assert (counts - 0.1).abs().max() < 0.02  # 9800 draws: six standard errors


@pytest.mark.parametrize("batch_size", [1, 3])
def test_adversarial_labels_are_the_best_other_token_where_it_is_predicted(batch_size: int) -> None:
    model = gpt2()
    found = adversarial_labels(model, ROWS, 0, batch_size=batch_size)
    for row, labels in zip(ROWS, found, strict=True):
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0].detach()
        for t, true in enumerate(row.labels):
            others = [v for v in range(VOCABULARY) if v != row.input_ids[t]]
            best = max(others, key=logits[t - 1].tolist().__getitem__)
            assert labels[t] == (-100 if true == -100 else best)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_published_adversarial_labels_are_misaligned_by_one(batch_size: int) -> None:
    model = gpt2()
    found = adversarial_labels(model, ROWS, 0, misaligned=True, batch_size=batch_size)
    for row, labels in zip(ROWS, found, strict=True):
        logits = model(input_ids=torch.tensor([row.input_ids])).logits[0].detach()
        for j, token in enumerate(row.input_ids):
            others = [v for v in range(VOCABULARY - 1) if v != token]
            assert labels[j] == max(others, key=logits[j].tolist().__getitem__)


def test_skipping_every_labeled_token_of_an_example_is_refused() -> None:
    examples = [EncodedExample(0, [5, 6, 7], [-100, 6, 7]), EncodedExample(1, [5, 6], [-100, 6])]
    with pytest.raises(GeffectError, match=r"skip=1 leaves no labeled token of example 1, which has 1. Lower skip"):
        skip_labels(examples, 1)
