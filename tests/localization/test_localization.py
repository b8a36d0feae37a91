"""Importance, masks and regions against loops over examples and a plain sort."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from geffect.core.gram import Gram
from geffect.core.layers import trainable_parameters
from geffect.core.masks import Localization, jaccard, mask_count, pack, top_mask, unpack
from geffect.core.statistics import chance_jaccard
from geffect.data.encode import EncodedExample
from geffect.data.relabel import corrupt_answer, random_labels
from geffect.errors import GeffectError
from geffect.localization.localize import IMPORTANCES, Importance, example_losses, localize, scores
from geffect.localization.storage import read_localization, sort_metadata
from geffect.models.builtin import make_tiny
from geffect.rectifiers.grail import op_rr, op_ur
from geffect.rectifiers.memflex import region
from tests.conftest import SHAPE
from tests.support import oracles
from tests.support.cases import CASES, gpt2, make_batch
from tests.support.properties import assert_unchanged, snapshot

SPLITS = {"forget/a": 1, "retain/a": 2, "forget/b": 3, "retain/b": 4}


def _losses(model: Any, seed: int) -> list[Callable[[], Tensor]]:
    batch = make_batch([5, 8, 6], seed=seed)
    return [lambda i=i: oracles.example_nll(model, batch, i).mean() for i in range(3)]  # type: ignore[misc]


def _examples(model: Any, seed: int) -> list[dict[str, Tensor]]:
    return [oracles.gradient(model, loss) for loss in _losses(model, seed)]


def _brute(scores: Tensor, share: float) -> Tensor:
    """Sort by size, ties by place; zeros are out."""
    flat = scores.flatten().abs()
    order = sorted(range(flat.numel()), key=lambda i: (-float(flat[i]), i))
    mask = torch.zeros(flat.numel(), dtype=torch.bool)
    mask[order[: math.ceil(round(share * flat.numel(), 9))]] = True
    return (mask & (flat > 0)).view(scores.shape)


@pytest.mark.parametrize("mode", IMPORTANCES)
@pytest.mark.parametrize("case", ["llama-tied", "lora", "frozen", "unused"])
def test_importance_equals_a_loop_over_examples(case: str, mode: str) -> None:
    model = CASES[case]().double()
    gradients = _examples(model, seed=1)
    found = Importance(trainable_parameters(model), mode)
    for loss in _losses(model, seed=1):
        found.add(loss())
    means = found.means()
    for name in trainable_parameters(model):
        stacked = torch.stack([each[name] for each in gradients])
        if name not in means:
            assert not stacked.any()
            continue
        expected = {"mean_abs": stacked.abs().mean(0), "mean_square": stacked.square().mean(0)}
        mean = stacked.mean(0)
        expected["zscore"] = ((mean - mean.mean()) / mean.std(correction=0)).abs() * mean.std(correction=0)
        assert torch.allclose(means[name], mean, atol=1e-12)
        score = found.pop(name) / (1 if mode == "zscore" else len(gradients))
        assert torch.allclose(score, expected[mode], atol=1e-12), name


@pytest.mark.parametrize("mode", IMPORTANCES)
def test_masks_alone_are_the_same_masks(mode: str) -> None:
    model = CASES["unused"]()
    whole, alone = (
        localize(
            trainable_parameters(model),
            {name: _losses(model, seed=i) for name, i in SPLITS.items()},
            [0.1, 0.3],
            mode,
            masks_only=only,
        )
        for only in (False, True)
    )
    assert alone.masks.keys() == whole.masks.keys()
    for share, splits in whole.masks.items():
        for split, masks in splits.items():
            assert masks.keys() == alone.masks[share][split].keys()
            assert all(torch.equal(mask, alone.masks[share][split][name]) for name, mask in masks.items())
        assert torch.equal(whole.overlaps[share].total(), alone.overlaps[share].total())
    assert (whole.gram.names, alone.gram.names, alone.magnitudes) == (tuple(SPLITS), (), {})
    with pytest.raises(GeffectError, match="Localize without --masks-only"):
        alone.cosines()


def test_cancelling_gradients_matter_to_magnitudes_and_not_to_the_signed_mean() -> None:
    weight = nn.Parameter(torch.zeros(3))
    found = {}
    for mode in IMPORTANCES:
        importance = Importance({"w": weight}, mode)
        for sign in (1.0, -1.0):
            importance.add((weight * torch.tensor([5.0 * sign, 1.0, 2.0])).sum())
        found[mode] = int(importance.pop("w").argmax())
    assert found["mean_abs"] == found["mean_square"] == 0
    mean = torch.tensor([0.0, 1.0, 2.0])
    assert torch.equal(scores(mean), torch.tensor([1.0, 0.0, 1.0]))


def test_a_flat_tensor_ranks_nothing() -> None:
    assert not scores(torch.full((4,), 3.0)).any()
    assert not scores(torch.tensor([1.0, 1.0 + 1e-13], dtype=torch.float64)).any()


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_localizing_equals_means_masks_and_products_by_hand(importance: str) -> None:
    model = CASES["llama-tied"]()
    before = snapshot(model)
    found = localize(
        trainable_parameters(model), {s: _losses(model, seed) for s, seed in SPLITS.items()}, [0.1, 0.3], importance
    )
    assert_unchanged(before, model)
    names = list(trainable_parameters(model))
    gradients = {s: _examples(model, seed) for s, seed in SPLITS.items()}
    means = {s: {n: torch.stack([g[n] for g in each]).mean(0) for n in names} for s, each in gradients.items()}
    assert found.examples == dict.fromkeys(SPLITS, 3)
    total, expected = found.gram.total(), oracles.gram(list(means.values()), names)
    scale = expected.diagonal().sqrt()
    assert ((total - expected).abs() <= 1e-5 * scale[:, None] * scale).all()
    for split, each in gradients.items():
        for name in names:
            stacked = torch.stack([g[name] for g in each])
            score = {"mean_abs": stacked.abs().mean(0), "mean_square": stacked.square().mean(0)}
            score["zscore"] = (means[split][name] - means[split][name].mean()).abs()
            for share in (0.1, 0.3):
                mask = unpack(found.masks[share][split][name], score[importance].shape)
                disagree = mask != _brute(score[importance], share)
                assert disagree.float().mean() < 0.02, (split, name)  # float32 sums of another order swap near ties
        assert found.magnitudes[split]["model.norm.weight"] == pytest.approx(
            float(means[split]["model.norm.weight"].abs().mean()), rel=1e-4
        )


def test_pooled_cosines_and_magnitudes_are_those_of_the_merged_examples() -> None:
    model = CASES["llama"]()
    losses = {s: _losses(model, seed) for s, seed in SPLITS.items()}
    losses["forget/b"] = losses["forget/b"][:1]  # domains of different sizes: the merged mean weighs examples
    found = localize(trainable_parameters(model), losses, [0.1])
    forget = [*_examples(model, 1), _examples(model, 3)[0]]
    retain = [*_examples(model, 2), *_examples(model, 4)]
    for name, cosine in found.cosines().items():
        u, r = (torch.stack([g[name].flatten() for g in side]).mean(0).double() for side in (forget, retain))
        assert cosine == pytest.approx(float(torch.cosine_similarity(u, r, 0)), abs=1e-5)
        assert found.magnitudes["forget"][name] == pytest.approx(float(u.abs().mean()), rel=1e-4)


BOOLS = st.lists(st.booleans(), min_size=9, max_size=9)


@given(forget=st.lists(BOOLS, min_size=1, max_size=3), retain=st.lists(BOOLS, min_size=1, max_size=3))
@settings(deadline=None)
def test_op_ur_and_op_rr_are_what_sets_say(forget: list[list[bool]], retain: list[list[bool]]) -> None:
    def packed(bits: list[list[bool]]) -> list[dict[str, Tensor]]:
        return [{"w": pack(torch.tensor(each))} if any(each) else {} for each in bits]

    def sets(bits: list[list[bool]]) -> list[set[int]]:
        return [{i for i, bit in enumerate(each) if bit} for each in bits]

    u, r = sets(forget), sets(retain)
    for masks, expected in (
        (op_ur(packed(forget), packed(retain)), set().union(*u) & set().union(*r)),
        (op_rr(packed(retain)), set.intersection(*r)),
    ):
        found = set(unpack(masks["w"], [9]).nonzero().flatten().tolist()) if "w" in masks else set()
        assert found == expected
        assert "w" not in masks or mask_count(masks["w"]) == len(expected)


@given(
    st.lists(st.sampled_from([0.0, -2.0, 1.0, 2.0, 3.5]), min_size=1, max_size=40),
    st.sampled_from([0.05, 0.1, 0.2, 0.5, 1.0]),
)
@settings(deadline=None)
def test_masks_equal_a_plain_sort(values: list[float], share: float) -> None:
    tensor = torch.tensor(values)
    assert torch.equal(top_mask(tensor, share), _brute(tensor, share))


def test_jaccard_is_symmetric_one_on_itself_and_nan_of_nothing() -> None:
    losses = {s: _losses(CASES["llama"](), seed) for s, seed in SPLITS.items()}
    found = localize(
        trainable_parameters(CASES["llama"]()), losses, [0.1]
    )  # another model's losses: no tensor is reached
    assert torch.isnan(jaccard(found.overlaps[0.1].total())).all()
    model = CASES["llama"]()
    index = jaccard(
        localize(trainable_parameters(model), {s: _losses(model, n) for s, n in SPLITS.items()}, [0.1])
        .overlaps[0.1]
        .total()
    )
    assert torch.equal(index, index.T)
    assert torch.equal(index.diagonal(), torch.ones(4, dtype=torch.float64))
    assert chance_jaccard(0.1) == pytest.approx(1 / 19)


def test_a_region_is_strict_and_its_quantiles_are_over_tensors() -> None:
    cosines, sizes = {"a": 0.1, "b": 0.5, "c": 0.9}, {"a": 1.0, "b": 2.0, "c": 3.0}
    assert region(cosines, sizes, mu=0.5, sigma=0.5) == ["a"]
    assert region(cosines, sizes, mu=2.0, sigma=-1.0) == ["a", "b", "c"]
    assert region(cosines, sizes, mu=1.0, sigma=0.0, quantiles=True) == ["b"]
    with pytest.raises(GeffectError, match=r"cosine < 0\.1 .* cosines start at 0\.1 and magnitudes end at 3\."):
        region(cosines, sizes, mu=0.1, sigma=0.0)


def test_a_zero_gradient_has_cosine_zero() -> None:
    found = Localization(
        {},
        gram=Gram(("forget", "retain"), {"w": torch.zeros(2, 2, dtype=torch.float64)}),
        examples={"forget": 1, "retain": 1},
    )
    assert found.cosines() == {"w": 0.0}


def test_a_share_that_was_not_localized_is_named() -> None:
    with pytest.raises(GeffectError, match=r"largest 0\.3 of each tensor, only of 0\.1, 0\.2\. Localize"):
        Localization({0.1: {}, 0.2: {}}).at(0.3)


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    model, tokenizer = make_tiny(**SHAPE)
    return model.double().eval(), tokenizer


def _example(index: int = 5) -> EncodedExample:
    ids = [20, 30, 40, 50, 60, 70, 80, 1]
    return EncodedExample(index, ids, [-100, -100, -100, *ids[3:]])


def test_random_labels_are_averaged_over_their_draws(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    example, special = _example(), tokenizer.all_special_ids
    vocabulary = model.config.vocab_size
    (loss,) = example_losses(model, tokenizer, [example], "random", draws=3, seed=7)
    draws = [random_labels([example], vocabulary, special, 7, draw=draw)[0] for draw in range(3)]
    log_p = model(input_ids=torch.tensor([example.input_ids])).logits[0].log_softmax(-1)
    expected = [-log_p[t - 1, labels[t]] for labels in draws for t in range(3, 8)]
    assert float(loss().detach()) == pytest.approx(float(torch.stack(expected).mean().detach()), rel=1e-6)
    assert len({tuple(labels.tolist()) for labels in draws}) == 3
    assert all(labels[7] == example.labels[7] for labels in draws), "the answer's end keeps its label"
    assert torch.equal(draws[0], random_labels([example], vocabulary, special, 7)[0])


def test_a_corrupted_answer_is_corrupted_in_inputs_and_labels_alike() -> None:
    example = _example()
    found = [corrupt_answer(example, 1000, [0, 1], seed=3, draw=draw) for draw in range(20)]
    for each in found:
        changed = [i for i, (a, b) in enumerate(zip(example.input_ids, each.input_ids, strict=True)) if a != b]
        assert set(changed) <= {3, 4, 5, 6}
        assert len(changed) <= 2
        assert each.labels == [-100, -100, -100, *each.input_ids[3:]]
    assert len({tuple(each.input_ids) for each in found}) > 10
    assert corrupt_answer(example, 1000, [0, 1], seed=3, draw=4) == found[4]


@pytest.mark.parametrize("labels", ["true", "corrupted"])
def test_losses_are_token_means_of_whole_examples(labels: Any, tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    example, special = _example(), tokenizer.all_special_ids
    (loss,) = example_losses(model, tokenizer, [example], labels, draws=2, seed=0)
    draw = partial(corrupt_answer, example, model.config.vocab_size, special, 0)
    examples = [example] if labels == "true" else [draw(0), draw(1)]
    nlls = []
    for each in examples:
        log_p = model(input_ids=torch.tensor([each.input_ids])).logits[0].log_softmax(-1)
        nlls.append(torch.stack([-log_p[t - 1, each.labels[t]] for t in range(3, 8)]).mean())
    assert float(loss().detach()) == pytest.approx(float(torch.stack(nlls).mean().detach()), rel=1e-6)


def test_a_loss_that_is_not_finite_names_its_example(tiny: tuple[Any, Any]) -> None:
    tokenizer = tiny[1]
    model, _ = make_tiny(**SHAPE)
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    (loss,) = example_losses(model, tokenizer, [_example()], "true")
    with pytest.raises(GeffectError, match=r"loss of example 5 is nan"):
        loss()


def test_a_mask_file_has_its_metadata_in_one_order(tmp_path: Path) -> None:
    """safetensors' own order is another one in every map; what is read back is the same."""
    bits, files = {"forget|w": torch.tensor([7], dtype=torch.uint8)}, [tmp_path / f"{i}.safetensors" for i in range(8)]
    metadata = {name: 'é"\n\x7f' for name in ("share", "recipe", "geffect_format", "a", "b")}
    for file in files:
        save_file(bits, file, metadata=metadata)
        sort_metadata(file)
    assert len({file.read_bytes() for file in files}) == 1
    with safe_open(files[0], "pt") as stored:
        assert stored.metadata() == metadata
        assert stored.get_tensor("forget|w").tolist() == [7]


def test_what_is_no_localization_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GeffectError, match="no localization in"):
        read_localization(tmp_path)


def test_masks_drawn_by_lot_are_of_the_same_size_and_of_no_example() -> None:
    """As many entries a tensor as another importance marks; the same for other examples; others for another seed."""
    model = gpt2()
    parameters = trainable_parameters(model)

    def masks(importance: str, seed: int = 0, shift: int = 0) -> dict[str, Tensor]:
        losses = {split: _losses(model, number + shift) for split, number in SPLITS.items()}
        found = localize(parameters, losses, [0.1], importance, masks_only=True, seed=seed)
        return {
            f"{split} {name}": unpack(packed, parameters[name].shape)
            for split, by_name in found.masks[0.1].items()
            for name, packed in by_name.items()
        }

    drawn, others, measured = masks("random"), masks("random", shift=7), masks("mean_abs")
    assert all(torch.equal(drawn[key], others[key]) for key in drawn)
    assert {key: int(each.sum()) for key, each in drawn.items()} == {
        key: int(each.sum()) for key, each in measured.items()
    }
    again = masks("random", seed=1)
    both = sum(int((drawn[key] & again[key]).sum()) for key in drawn) / sum(int(each.sum()) for each in drawn.values())
    assert both == pytest.approx(0.1, abs=0.02)  # as chance has it
    first, second = (
        torch.cat([each.flatten() for k, each in drawn.items() if k.startswith(f"{s} ")]) for s in [*SPLITS][:2]
    )
    assert float((first & second).sum() / first.sum()) == pytest.approx(0.1, abs=0.02)
