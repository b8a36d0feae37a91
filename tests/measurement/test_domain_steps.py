"""Several domains: a gradient a split against autograd, and their sum against one merged set."""

from functools import partial
from typing import Any

import pytest
import torch

from geffect.core.layers import BOTH, EMBED, HEAD, find_tied_weights, trainable_parameters
from geffect.core.masks import intersections, pack, top_mask
from geffect.objectives.base import window_counts
from geffect.objectives.registry import make_objective
from geffect.training.batches import PairedSampler
from tests.support import oracles
from tests.support.cases import CASES, make_batch
from tests.support.properties import assert_gradients_close, assert_gram_close
from tests.support.steps import GENERAL, Batches, gradients, make_measurement, split, take_step, with_reference

SPLITS = ("forget/a", "forget/b", "retain/a", "retain/b")
OBJECTIVES = [
    "ga",
    "0.4*ga + 2*gd",
    "npo + kl",
    "po + gd",
    "wga + kl(on=general)",
    "dpo + gd",
    "pdu + dual(gd, start=1)",
    "undial + dual(kl, start=1)",
]
LENGTHS = {
    "forget/a": [9, 5, 7, 12],
    "forget/b": [4, 11, 6, 6],
    "retain/a": [6, 8, 4, 11],
    "retain/b": [5, 5, 9, 3],
    "alternative/a": [7, 9, 5, 8],
    "alternative/b": [5, 4, 8, 6],
}


def _batches(model: Any) -> Batches:
    made = {n: with_reference(model, make_batch(each, seed=i)) for i, (n, each) in enumerate(LENGTHS.items())}
    return made | {"general": GENERAL}


def _merged(batches: Batches, role: str) -> dict[str, torch.Tensor]:
    """Both domains' examples in one padded batch."""
    both = [batches[f"{role}/{domain}"] for domain in "ab"]
    width = max(each["labels"].shape[1] for each in both)
    fill = {"labels": -100}
    return {
        key: torch.cat([
            torch.nn.functional.pad(each[key], (0, width - each[key].shape[1]), value=fill.get(key, 0)) for each in both
        ])
        for key in both[0]
    }


def _reference() -> Any:
    reference = CASES["llama"]()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(1.1)
    return reference


@pytest.mark.parametrize("size", [4, 2])
@pytest.mark.parametrize("text", OBJECTIVES)
def test_a_row_a_scope_and_the_sum_of_all_equal_autograd(text: str, size: int) -> None:
    model, reference = CASES["llama"](), _reference()
    batches = _batches(model)
    whole = {role: _merged(batches, role) for role in ("forget", "retain", "alternative")} | {"general": GENERAL}
    objective, measurement = make_objective(text), make_measurement(model, text, "gru", reference=reference)

    def loss() -> torch.Tensor:
        names = [name for name in whole if objective.on(name)]
        counts = window_counts([whole])
        parts = [objective.loss(n, measurement.outputs(n, whole, dropout=False), counts) for n in names]
        return torch.stack(parts).sum()

    losses = [whole["forget"], whole["retain"], *(batches[name] for name in SPLITS)]
    vectors = [oracles.gradient(model, partial(oracles.mean_nll, model, batch)) for batch in losses]
    expected = [oracles.gradient(model, loss), *vectors]
    measured = take_step(measurement, split(batches, size))
    assert measured.gram is not None
    assert measured.gram.names == ("objective", "forget", "retain", *SPLITS, "retain_average", "rectified")
    assert_gram_close(measured.gram.total()[:7, :7], oracles.gram(expected, list(trainable_parameters(model))), 3e-5)
    plain = make_measurement(model, text, reference=reference)
    take_step(plain, split(batches, size), measure=False)
    assert_gradients_close(gradients(model), expected[0], 3e-5)
    for name, batch in zip(("forget", "retain", *SPLITS), losses, strict=True):
        assert measured.scalars[f"loss_{name}"] == pytest.approx(
            float(oracles.mean_nll(model, batch).detach()), rel=1e-5
        )


def test_a_tied_tensor_is_told_apart_for_every_scope() -> None:
    model = CASES["llama-tied"]()
    batches = _batches(model)
    measured = take_step(make_measurement(model, "ga + gd", tie=find_tied_weights(model)), split(batches, 2))
    assert measured.gram is not None
    names = list(trainable_parameters(model))
    splits = [oracles.gradient(model, partial(oracles.mean_nll, model, batches[name])) for name in SPLITS]
    places = [measured.gram.names.index(name) for name in SPLITS]
    assert_gram_close(measured.gram.total()[places][:, places], oracles.gram(splits, names), 3e-5)
    tied = sum(measured.gram.values["model.embed_tokens.weight" + part] for part in (EMBED, HEAD, BOTH))
    expected = oracles.gram(splits, ["model.embed_tokens.weight"])
    assert_gram_close(tied[places][:, places], expected, 3e-5)  # type: ignore[index]


def test_the_mask_of_a_roles_row_is_its_own_and_no_domains() -> None:
    model = CASES["llama"]()
    batches = _batches(model)
    measured = take_step(make_measurement(model, "ga", overlap=0.1), split(batches, 2))
    assert "overlap" in measured.parts and measured.gram is not None
    pooled = oracles.gradient(model, partial(oracles.mean_nll, model, _merged(batches, "forget")))
    own = oracles.gradient(model, partial(oracles.mean_nll, model, batches["forget/a"]))
    places = [measured.parts["overlap"].names.index(name) for name in ("forget", "forget/a")]
    name = "model.layers.0.mlp.up_proj.weight"
    expected = intersections([pack(top_mask(vector[name], 0.1)) for vector in (pooled, own)])
    assert (measured.parts["overlap"].values[name][places][:, places] - expected).abs().max() <= 1
    assert expected[0, 1] < expected[0, 0]


def test_kept_rows_standard_errors_and_updates_know_domains() -> None:
    model = CASES["llama"]()
    measurement = make_measurement(model, "ga + gd", keep=True, standard_errors=True)
    measured = take_step(measurement, split(_batches(model), 2))
    assert "standard_errors" in measured.parts
    assert set(measured.parts["standard_errors"].gradients) == {"objective", "forget", "retain", *SPLITS}


def test_domains_meet_example_by_example_and_the_smaller_comes_round_again() -> None:
    sizes = {"forget/a": 6, "forget/b": 4, "retain/a": 6, "retain/b": 4, "general": 3}
    order = PairedSampler(sizes, seed=0)
    met = list(order)
    assert len(met) == len(order) == 6
    assert sorted(places[0] for places in met) == list(range(6))
    assert sorted(places[1] for places in met[:4]) == list(range(4))
    assert all(position < size for places in met for position, size in zip(places, sizes.values(), strict=True))
    assert list(order) == met
    order.set_epoch(1)
    assert list(order) != met
    both = list(PairedSampler({"forget/a": 50, "forget/b": 50, "retain/a": 50, "retain/b": 50}, seed=0))
    assert [places[0] for places in both] != [places[1] for places in both], "domains of one size are shuffled apart"
    assert [places[2] for places in both] != [places[3] for places in both]
