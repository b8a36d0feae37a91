"""A tied embedding's loss gradients, split by use: both parts add up to the whole, and each is what it says."""

from collections.abc import Callable
from functools import partial
from typing import Any

import peft
import pytest
import torch

from geffect.core.layers import BOTH, EMBED, HEAD, find_tied_weights, layout, split_layout, trainable_parameters
from geffect.measurement.step import Step
from geffect.objectives.base import window_counts
from tests.support import oracles
from tests.support.cases import CASES, gpt2, llama
from tests.support.properties import assert_gradients_close, assert_gram_close
from tests.support.steps import FORGET, RETAIN, gradients, make_batches, make_measurement, split, take_step

TIED: dict[str, tuple[str, Callable[[], Any]]] = {
    "llama": ("model.embed_tokens.weight", lambda: llama(tied=True)),
    "gpt2": ("transformer.wte.weight", gpt2),
}


def _untied(model: Any, name: str) -> Any:
    """The same model with a head of its own, of the same values."""
    import copy

    twin = copy.deepcopy(model)
    head = twin.get_output_embeddings()
    head.weight = torch.nn.Parameter(twin.get_parameter(name).detach().clone())
    return twin


@pytest.mark.parametrize("text", ["ga", "npo + gd", "ga + 0.5*gd", "ga + gd(on=general)", "po"])
@pytest.mark.parametrize("case", TIED)
@pytest.mark.parametrize("size", [4, 2])
def test_parts_are_those_of_a_model_with_a_head_of_its_own(case: str, text: str, size: int) -> None:
    name, make = TIED[case]
    model = make()
    twin = _untied(model, name)
    head = next(n for n, p in twin.named_parameters() if p is twin.get_output_embeddings().weight)
    batches = make_batches(model)
    measured = take_step(make_measurement(model, text, "gru", tie=find_tied_weights(model)), split(batches, size))
    whole = take_step(make_measurement(model, text, "gru"), split(batches, size))
    assert measured.gram is not None and whole.gram is not None
    assert_gram_close(measured.gram.total(), whole.gram.total(), 1e-5)
    order = measured.gram.names
    for part, at in ((EMBED, name), (HEAD, head)):
        for loss, batch in (("forget", FORGET), ("retain", RETAIN)):
            mine = oracles.gradient(twin, partial(oracles.mean_nll, twin, batch))[at].double()
            for gradient, tensor in {
                "objective": None,
                "rectified": gradients_of(model, text, split(batches, size)),
            }.items():
                if tensor is None:
                    continue
                expected = float((mine * tensor[name].double()).sum())
                found = float(measured.gram.values[name + part][order.index(loss), order.index(gradient)])
                scale = float(mine.norm() * tensor[name].double().norm())
                assert abs(found - expected) <= 1e-5 * scale


def gradients_of(model: Any, text: str, batches: Any) -> dict[str, torch.Tensor]:
    """What an untold step leaves behind."""
    take_step(make_measurement(model, text, "gru"), batches)
    return gradients(model)


@pytest.mark.parametrize("case", TIED)
def test_the_parts_sum_exactly_and_the_update_is_the_same(case: str) -> None:
    name, make = TIED[case]
    found = []
    for tie in (True, False):
        model = make()
        measurement = make_measurement(model, "npo + gd", "gru", tie=find_tied_weights(model) if tie else None)
        found.append((take_step(measurement, split(make_batches(model), 4)).gram, gradients(model)))
    (told, with_tie), (whole, without) = found
    assert told is not None and whole is not None
    parts = sum((told.values[name + part] for part in (EMBED, HEAD, BOTH)), torch.zeros(5, 5).double())
    assert_gram_close(parts, whole.values[name], 1e-6)
    loss = [told.names.index(gradient) for gradient in ("forget", "retain")]
    unsplit = told.values[name + BOTH]
    assert not unsplit[loss].any() and not unsplit[:, loss].any()
    assert_gradients_close(with_tie, without, 1e-6)


@pytest.mark.parametrize(
    ("text", "apart"), [("ga", {"objective", "retain"}), ("npo", {"forget", "retain"}), ("po", {"forget", "retain"})]
)
def test_both_uses_are_held_apart_only_in_rows_that_losses_are_read_from(text: str, apart: set[str]) -> None:
    model, windows = gpt2(), []
    for measure in (True, False):
        step = Step(
            make_measurement(model, text, tie=find_tied_weights(model)),
            window_counts([make_batches(model)]),
            measure=measure,
        )
        step.micro_batch(make_batches(model), last=False)
        windows.append({
            gradient
            for gradient, held in step.passes.window.gradients.items()
            if "transformer.wte.weight@lm_head" in held
        })
    assert windows[0] == apart
    assert windows[1] == apart & {"objective"}


def test_the_model_is_tied_again_after_every_pass() -> None:
    model = gpt2()
    head, weight = model.get_output_embeddings(), model.transformer.wte.weight
    take_step(make_measurement(model, "ga", tie=find_tied_weights(model)), split(make_batches(model), 2))
    assert head.weight is weight is model.transformer.wte.weight
    assert [name for name, _ in model.named_parameters() if "lm_head" in name] == []
    with torch.no_grad():
        weight.mul_(2)
    tie = find_tied_weights(model)
    assert tie is not None
    with tie.untied():
        assert torch.equal(head.weight, weight)


def test_what_is_not_tied_or_frozen_has_no_tie() -> None:
    assert find_tied_weights(CASES["llama"]()) is None
    assert find_tied_weights(CASES["lora"]()) is None
    frozen = gpt2()
    frozen.transformer.wte.weight.requires_grad_(False)
    assert find_tied_weights(frozen) is None


def test_a_layout_holds_the_three_parts_and_counts_elements_once() -> None:
    model = gpt2()
    whole = layout(model)
    told = split_layout(whole, find_tied_weights(model))
    name = "transformer.wte.weight"
    assert [told.layers[name + part] for part in (EMBED, HEAD, BOTH)] == ["embed", "lm_head", "tied"]
    assert (
        sum(told.numel.values())
        == sum(whole.numel.values())
        == sum(p.numel() for p in trainable_parameters(model).values())
    )
    measured = take_step(make_measurement(model, "ga", tie=find_tied_weights(model)), split(make_batches(model), 4))
    assert measured.gram is not None
    assert list(measured.gram.values) == list(told.layers)
    assert split_layout(whole, None) is whole


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("saved", ["embed_tokens", "lm_head"])
def test_a_tie_inside_an_adapter_s_wrapper_is_split_as_in_the_bare_model(saved: str) -> None:
    """PEFT's ``modules_to_save`` with ``ensure_weight_tying``: embedding and head are wrappers over one tensor."""
    bare = llama(tied=True)
    settings = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "modules_to_save": [saved]}
    model = peft.get_peft_model(llama(tied=True), peft.LoraConfig(ensure_weight_tying=True, **settings))
    keys, found = list(model.state_dict()), []
    for each in (bare, model):
        tie = find_tied_weights(each)
        assert tie is not None
        measured = take_step(make_measurement(each, "npo + gd", tie=tie), split(make_batches(each), 4))
        assert measured.gram is not None
        found.append([measured.gram.values[tie.name + part] for part in (EMBED, HEAD, BOTH)])
    for expected, own in zip(*found, strict=True):
        assert torch.allclose(own, expected, rtol=1e-5, atol=1e-9)
    assert list(model.state_dict()) == keys


def test_an_embedding_that_is_its_own_head_has_no_two_uses_to_tell_apart() -> None:
    model = gpt2()
    model.lm_head = model.transformer.wte
    assert find_tied_weights(model) is None
