"""Every mix of terms and sets: a step's gradients, free ones too, against autograd, whatever the accumulation."""

from typing import Any

import pytest
import torch
from torch import Tensor

from geffect.core.layers import trainable_parameters
from geffect.objectives.base import Counts
from geffect.objectives.registry import make_objective
from tests.support import oracles
from tests.support.cases import CASES
from tests.support.properties import assert_gradients_close, assert_gram_close
from tests.support.steps import Batches, gradients, make_batches, make_measurement, model_forward, split, take_step

OBJECTIVES = [
    "ga + kl",
    "ga + 0.5*gd + 2*kl",
    "npo + rr + gd",
    "0.001*ga + kl",
    "po",
    "po + gd",
    "dpo",
    "dpo + po + ga",
    "rmu(layer=1) + rr(layer=1)",
    "ga + gd(on=general)",
    "simnpo + kl(on=general) + 0.5*gd",
    "satimp + tnpo + wtnpo",
    "undial + gd",
    "0.5*ceu + pdu",
    "flat + ceu + kl",
    "npo + 0.5*dual(gd, start=1)",
    "ga + gd + dual(kl(on=general), start=1) + 2*dual(gd, start=1)",
    "po(variant=pooled) + gd(variant=pooled)",
    "ga + kl(variant=tofu)",
]


def _models() -> tuple[Any, Any]:
    model, reference = CASES["llama"](), CASES["llama"]()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(1.1)
    return model, reference


def _oracle(model: Any, reference: Any, text: str, batches: Batches) -> list[dict[str, Tensor]]:
    """objective, forget, retain: one autograd call each over the whole window."""
    objective = make_objective(text)
    counts = {name: Counts.of([batch]) for name, batch in batches.items()}
    measurement = make_measurement(model, text, reference=reference)

    def loss() -> Tensor:
        sets = [name for name in batches if objective.on(name)]
        parts = [objective.loss(name, measurement.outputs(name, batches, dropout=False), counts) for name in sets]
        return torch.stack(parts).sum()

    return [
        oracles.gradient(model, loss),
        oracles.gradient(model, lambda: oracles.mean_nll(model, batches["forget"])),
        oracles.gradient(model, lambda: oracles.mean_nll(model, batches["retain"])),
    ]


@pytest.mark.parametrize("size", [4, 2])
@pytest.mark.parametrize("text", OBJECTIVES)
def test_rows_equal_autograd(text: str, size: int) -> None:
    if "tofu" in text and size < 4:
        size = 4  # its divisor counts padding, which differs between batches
    model, reference = _models()
    batches = make_batches(model)
    expected = _oracle(model, reference, text, batches)
    names = list(trainable_parameters(model))
    measured = take_step(make_measurement(model, text, "gru", reference=reference), split(batches, size))
    assert measured.gram is not None
    assert measured.gram.names == ("objective", "forget", "retain", "retain_average", "rectified")
    total = measured.gram.total()[:3, :3]
    assert_gram_close(total, oracles.gram(expected, names), 2e-5)
    plain = make_measurement(model, text, reference=reference)
    assert take_step(plain, split(batches, size), measure=False).gram is None
    assert_gradients_close(gradients(model), expected[0], 2e-5)


@pytest.mark.parametrize("text", OBJECTIVES)
def test_measuring_changes_no_bit_of_the_update(text: str) -> None:
    found = []
    for measure in (True, False):
        model, reference = _models()
        batches = split(make_batches(model), 2)
        take_step(make_measurement(model, text, "gru", reference=reference), batches, measure=measure)
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_dropout_is_the_objectives_and_never_the_losses() -> None:
    torch.manual_seed(0)  # other draws than these may leave the norm as it was
    model = CASES["gpt2"]()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    batches = make_batches(model)
    expected = _oracle(model, None, "ga", batches)
    measurement = make_measurement(model, "ga + gd", "gru", keep_dropout=True)
    measured = take_step(measurement, split(batches, 2))
    assert measured.gram is not None
    total = measured.gram.total()
    names = list(trainable_parameters(model))
    losses = oracles.gram(expected[1:], names)
    assert_gram_close(total[1:3, 1:3], losses, 1e-5)
    thinned = float(total[0, 0])
    plain = take_step(make_measurement(model, "ga + gd", "gru"), split(batches, 2))
    assert plain.gram is not None
    assert abs(thinned / float(plain.gram.total()[0, 0]) - 1) > 0.01
    assert measured.scalars["loss_forget"] == pytest.approx(plain.scalars["loss_forget"], rel=1e-6)


def test_with_dropout_kept_a_multiplier_follows_the_loss_that_is_descended() -> None:
    model = CASES["gpt2"]()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    measurement = make_measurement(model, "ga + dual(gd, eps=1, eta=2, start=3)", keep_dropout=True)
    torch.manual_seed(3)
    scalars = take_step(measurement, split(make_batches(model), 2), measure=False).scalars
    assert scalars["loss_objective"] + scalars["term_2"] * -3 < 0  # what is left is ascent on the forget loss
    assert "loss_retain" not in scalars
    assert measurement.term_states[1] == {"multiplier": pytest.approx(3 + 2 * (scalars["term_2"] - 1))}


def test_with_dropout_kept_an_unmeasured_step_draws_the_same_numbers() -> None:
    found = []
    for measure in (True, False):
        model = CASES["gpt2"]()
        torch.manual_seed(5)
        batches = split(make_batches(model), 2)
        take_step(make_measurement(model, "npo + gd", "gru", keep_dropout=True), batches, measure=measure)
        found.append(gradients(model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_forward_without_terms_is_not_run_for_the_update_alone() -> None:
    model, runs = CASES["llama"](), []
    measurement = make_measurement(model, "po")
    plain = model_forward(model)

    def counted(batch: Any, needs: frozenset[str], *, dropout: bool) -> Any:
        runs.append(batch)
        return plain(batch, needs, dropout=dropout)

    measurement.forward = counted
    take_step(measurement, split(make_batches(model), 4), measure=False)
    assert len(runs) == 1
    take_step(measurement, split(make_batches(model), 4))
    assert len(runs) == 4
