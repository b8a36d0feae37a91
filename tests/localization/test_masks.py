"""GradientMask entries: masked gradients against autograd, and weights that do not move by a bit."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from geffect.core.layers import find_tied_weights, trainable_parameters
from geffect.core.masks import GradientMask, Localization, _entries, pack, unpack
from geffect.errors import GeffectError
from geffect.localization.localize import localize
from geffect.objectives.base import window_counts
from geffect.objectives.registry import make_objective
from geffect.rectifiers.grail import GRAIL
from geffect.rectifiers.memflex import MemFlex
from geffect.rectifiers.registry import make_freezing, make_rectifier
from tests.conftest import sweep
from tests.support import oracles
from tests.support.cases import CASES, make_batch
from tests.support.properties import assert_gradients_close, assert_gram_close
from tests.support.steps import Batches, gradients, make_batches, make_measurement, open_step, split, take_step

OBJECTIVES = ["ga", "0.4*ga + 2*gd", "npo + kl", "po + gd", "ga + kl(on=general) + 0.5*gd", "dpo + po"]
SIDES = (("forget", "alternative"), ("general", "retain"))
RECTIFIERS = ["none", "gru", "gru(space=update)", "gru(space=both)", "gru(add_retain=0.5)"]
FREEZINGS = ["grail", "grail(reading=micro_batch)", "memflex(mu=0.9, sigma=0.1, thresholds=quantile)"]


def _localized(model: Any) -> Localization:
    batches = {
        "forget/a": make_batch([5, 8, 6], seed=11),
        "retain/a": make_batch([7, 4, 9], seed=12),
        "forget/b": make_batch([6, 6, 6], seed=13),
        "retain/b": make_batch([9, 5, 4], seed=14),
    }
    losses = {
        name: [partial(lambda b, i: oracles.example_nll(model, b, i).mean(), batch, i) for i in range(3)]
        for name, batch in batches.items()
    }
    return localize(trainable_parameters(model), losses, [0.1, 0.2, 0.5])


def _frozen(model: Any, text: str) -> GradientMask:
    freezing = make_freezing(text)
    assert freezing is not None
    return freezing.gradient_mask(trainable_parameters(model), _localized(model))


def _reference(model: Any) -> Any:
    reference = CASES["llama"]()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(1.1)
    return reference


def _sides(model: Any, reference: Any, text: str, batches: Batches) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What the objective back-propagates on either side, one autograd call each."""
    objective, counts = make_objective(text), window_counts([batches])
    measurement = make_measurement(model, text, reference=reference)

    def loss(names: tuple[str, ...]) -> Tensor:
        parts = [
            objective.loss(name, measurement.outputs(name, batches, dropout=False), counts)
            for name in names
            if objective.on(name)
        ]
        return torch.stack(parts).sum() if parts else next(iter(trainable_parameters(model).values())).sum() * 0

    forget, retain = (oracles.gradient(model, partial(loss, names)) for names in SIDES)
    return forget, retain


def _kept(mask: Tensor | None, tensor: Tensor) -> Tensor:
    return tensor if mask is None else tensor * (~mask)


def _masked(frozen: GradientMask, forget: dict[str, Tensor], retain: dict[str, Tensor]) -> dict[str, Tensor]:
    """What freezing leaves of the two sides' gradients."""
    return {n: _kept(frozen.mask("forget", n), forget[n]) + _kept(frozen.mask("retain", n), retain[n]) for n in forget}


@sweep(2, text=OBJECTIVES, freezing=FREEZINGS, size=[4, 2])
def test_each_mask_meets_the_gradients_it_belongs_to(text: str, freezing: str, size: int) -> None:
    model, reference = CASES["llama"](), _reference(None)
    batches, frozen = make_batches(model), _frozen(model, freezing)
    forget, retain = _sides(model, reference, text, batches)
    expected = {
        n: _kept(frozen.mask("forget", n), forget[n]) + _kept(frozen.mask("retain", n), retain[n]) for n in forget
    }
    whole = {n: forget[n] + retain[n] for n in forget}
    measurement = make_measurement(model, text, reference=reference, frozen=frozen)
    measured = take_step(measurement, split(batches, size))
    assert_gradients_close(gradients(model), expected, 2e-5)
    assert measured.gram is not None
    assert measured.gram.names == ("objective", "forget", "retain", "masked", "rectified")
    losses = [oracles.gradient(model, partial(oracles.mean_nll, model, batches[name])) for name in ("forget", "retain")]
    assert_gram_close(measured.gram.total(), oracles.gram([whole, *losses, expected, expected], list(whole)), 3e-5)
    for mask, gradient in ((frozen.never(name), p.grad) for name, p in trainable_parameters(model).items()):
        assert mask is None or gradient is None or not gradient[mask].any()


@pytest.mark.parametrize("freezing", FREEZINGS)
@pytest.mark.parametrize("rectifier", RECTIFIERS[1:])
def test_masked_rows_are_projected(rectifier: str, freezing: str) -> None:
    model = CASES["llama"]()
    text, batches, frozen = "ga + 0.5*gd", make_batches(model), _frozen(model, freezing)
    forget, retain = _sides(model, None, text, batches)
    names, masked = list(forget), _masked(frozen, forget, retain)
    loss = oracles.gradient(model, partial(oracles.mean_nll, model, batches["retain"]))
    memory = {n: 0.8 * _kept(frozen.mask("retain", n), loss[n]) for n in names}
    g, m = oracles.flat(masked, names), oracles.flat(memory, names)
    scale = max(0.0, -float(g @ m)) / float(m @ m) if "update" not in rectifier else 0.0
    extra = 0.5 if "add_retain" in rectifier else 0.0
    expected = {n: masked[n] + scale * memory[n] + extra / 0.8 * memory[n] for n in names}
    measured = take_step(make_measurement(model, text, rectifier, frozen=frozen), split(batches, 2))
    assert_gradients_close(gradients(model), expected, 3e-5)
    assert measured.gram is not None
    order = list(measured.gram.names)
    assert order == ["objective", "forget", "retain", "masked", "retain_average", "rectified"]
    chosen = [order.index(name) for name in ("masked", "retain_average", "rectified")]
    assert_gram_close(measured.gram.total()[chosen][:, chosen], oracles.gram([masked, memory, expected], names), 5e-5)


@pytest.mark.parametrize("text", ["ga + 0.5*gd", "npo + kl"])
@pytest.mark.parametrize("freezing", FREEZINGS)
def test_measuring_changes_no_bit_of_a_masked_update(freezing: str, text: str) -> None:
    found = []
    for measure in (True, False):
        model = CASES["llama"]()
        settings = {
            "reference": _reference(None),
            "frozen": _frozen(model, freezing),
            "overlap": 0.1 * measure,
            "keep": measure,
        }
        take_step(make_measurement(model, text, "gru", **settings), split(make_batches(model), 2), measure=measure)
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def _optimizer(name: str, model: Any) -> Any:
    arguments = TrainingArguments(optim=name, learning_rate=1e-2, report_to="none")
    cls, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
    extra = {"momentum": 0.9} if name == "sgd" else {}
    return cls(list(trainable_parameters(model).values()), **(settings | {"weight_decay": 0.1} | extra))


@sweep(3, freezing=FREEZINGS, rectifier=RECTIFIERS, optimizer=["adamw_torch", "sgd", "adafactor"], size=[4, 1])
def test_frozen_entries_do_not_move_by_a_bit(freezing: str, rectifier: str, optimizer: str, size: int) -> None:
    model = CASES["llama-tied"]()
    before = {name: p.detach().clone() for name, p in trainable_parameters(model).items()}
    frozen, batches = _frozen(model, freezing), split(make_batches(model), size)
    measurement = make_measurement(model, "ga + gd", rectifier, frozen=frozen, tie=find_tied_weights(model))
    stepper = _optimizer(optimizer, model)
    for _ in range(3):
        step = open_step(measurement, batches, measure=False)
        step.finish()
        stepper.step()
        assert step.after(dict.fromkeys(measurement.parameters, 1e-2)) is None
        stepper.zero_grad()
    moved = 0
    for name, parameter in trainable_parameters(model).items():
        still = frozen.never(name)
        if still is not None:
            assert torch.equal(parameter[still], before[name][still]), name
            moved += int((parameter[~still] != before[name][~still]).sum())
    assert moved > 0 or "memflex" in freezing
    assert any(not torch.equal(p, before[name]) for name, p in trainable_parameters(model).items())


@pytest.mark.parametrize("freezing", FREEZINGS)
def test_masked_gradients_are_rectified_entry_by_entry(freezing: str) -> None:
    model = CASES["llama"]()
    text, batches, frozen = "ga + 0.5*gd", make_batches(model), _frozen(model, freezing)
    forget, retain = _sides(model, None, text, batches)
    masked = _masked(frozen, forget, retain)
    loss = oracles.gradient(model, partial(oracles.mean_nll, model, batches["retain"]))
    kept = {n: _kept(frozen.mask("retain", n), loss[n]) for n in masked}
    expected = {n: torch.where(masked[n] * kept[n] < 0, kept[n], masked[n]) for n in masked}
    measured = take_step(make_measurement(model, text, "sago", frozen=frozen), split(batches, 2))
    assert_gradients_close(gradients(model), expected, 3e-5)
    assert measured.gram is not None
    order = list(measured.gram.names)
    assert order == ["objective", "forget", "retain", "masked", "rectified"]
    assert_gram_close(measured.gram.total()[3:, 3:], oracles.gram([masked, expected], list(masked)), 5e-5)


@pytest.mark.parametrize("space", ["update", "both"])
def test_what_is_applied_does_not_run_against_the_masked_memory(space: str) -> None:
    model = CASES["llama"]()
    measurement = make_measurement(model, "ga", f"gru(space={space})", keep=True, frozen=_frozen(model, "grail"))
    stepper = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-2, weight_decay=0.1)
    for _ in range(4):
        step = open_step(measurement, split(make_batches(model), 2))
        step.finish()
        stepper.step()
        measured = step.after(dict.fromkeys(measurement.parameters, 1e-2))
        assert measured is not None and measured.gram is not None
        order, total = measured.gram.names, measured.gram.total()
        a, m = order.index("applied"), order.index("retain_average")
        assert float(total[a, m]) >= -1e-5 * float(total[a, a] * total[m, m]) ** 0.5
        stepper.zero_grad()


def test_grail_freezes_what_its_sets_say() -> None:
    model = CASES["llama"]()
    localized = _localized(model)
    narrow, wide = localized.at(0.1), localized.at(0.2)
    for name, parameter in trainable_parameters(model).items():
        masks = [
            [unpack(each[split][name], parameter.shape) for split in ("forget/a", "forget/b", "retain/a", "retain/b")]
            for each in (narrow, wide)
        ]
        op_ur = (masks[0][0] | masks[0][1]) & (masks[0][2] | masks[0][3])
        op_rr = masks[1][2] & masks[1][3]
        for text, expected in {
            "grail": op_ur | op_rr,
            "grail(sets=op_ur)": op_ur,
            "grail(sets=op_rr)": op_rr,
            "grail(reading=micro_batch)": op_ur & op_rr,
        }.items():
            freezing = make_freezing(text)
            assert freezing is not None
            still = freezing.gradient_mask({name: parameter}, _only(localized, name)).never(name)
            assert torch.equal(torch.zeros_like(expected) if still is None else still, expected), text


def _only(localized: Localization, name: str) -> Localization:
    masks = {
        share: {split: {name: each[name]} for split, each in splits.items()}
        for share, splits in localized.masks.items()
    }
    return Localization(masks)


def test_memflex_trains_its_region_alone() -> None:
    model = CASES["llama"]()
    localized = _localized(model)
    memflex = MemFlex(mu=0.7, sigma=0.3, thresholds="quantile")
    chosen, frozen = memflex.region(localized), memflex.gradient_mask(trainable_parameters(model), localized)
    assert 0 < len(chosen) < len(trainable_parameters(model))
    for name in trainable_parameters(model):
        still = frozen.never(name)
        assert (still is None) if name in chosen else (still is not None and bool(still.all()))


@pytest.mark.parametrize("size", [1, 7, 8, 9, 1003])
def test_bits_are_unpacked_on_any_device_as_on_the_cpu(size: int) -> None:
    mask = torch.rand(size, generator=torch.Generator().manual_seed(size)) < 0.3
    assert torch.equal(unpack(pack(mask), [size]), mask)
    assert torch.equal(_entries(pack(mask))[:size], mask)


def test_a_mask_takes_a_bit_an_entry() -> None:
    model = CASES["llama"]()
    frozen = _frozen(model, "grail(reading=micro_batch)")
    bits = [each for side in frozen._bits.values() for each in side.values()]
    entries = sum(p.numel() for p in trainable_parameters(model).values())
    assert 0 < sum(each.numel() * each.element_size() for each in bits) <= 2 * (entries / 8 + len(bits))


@pytest.mark.parametrize(
    "text",
    [
        "grail(k_unlearn=0)",
        "grail(k_retain=1.5)",
        "grail(k_unlearn=-0.1)",
        "grail(reading=paper)",
        "grail(sets=none)",
        "memflex(thresholds=relative)",
        "memflex(mu=2, thresholds=quantile)",
        "grail + memflex",
        "gru + gru",
        "2*grail",
    ],
)
def test_impossible_settings_are_refused(text: str) -> None:
    with pytest.raises(GeffectError):
        make_freezing(text)
    with pytest.raises(GeffectError):
        make_rectifier(text)


def test_a_text_names_what_freezes_and_what_projects_in_any_order() -> None:
    for text in ("grail(k_unlearn=0.05) + gru(decay=0.5)", "gru(decay=0.5) + grail(k_unlearn=0.05)"):
        assert make_freezing(text) == GRAIL(k_unlearn=0.05)
        assert make_rectifier(text).memories == ("retain_average",)
    assert make_freezing("gru") is None
    assert make_rectifier("grail").memories == ()
