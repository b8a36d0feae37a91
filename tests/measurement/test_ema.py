"""The published script's running averages, against the same recurrence written out."""

from functools import partial

import pytest
import torch

from geffect.core.layers import trainable_parameters
from geffect.measurement.ema import published_estimates
from tests.support import oracles
from tests.support.cases import CASES, make_batch
from tests.support.properties import assert_gram_close
from tests.support.steps import make_measurement


def _stream(count: int) -> list[dict[str, dict[str, torch.Tensor]]]:
    return [
        {"forget": make_batch([9, 5], seed=seed), "retain": make_batch([6, 8], seed=100 + seed)}
        for seed in range(count)
    ]


@pytest.mark.parametrize("text", ["ga", "wga(alpha=2)"])
def test_averages_and_cadence(text: str) -> None:
    model = CASES["llama"]()
    names = list(trainable_parameters(model))
    found = list(published_estimates(make_measurement(model, text), _stream(9)))
    assert [call for call, _ in found] == [3, 7]
    average: list[dict[str, torch.Tensor]] = []
    alpha = 2.0 if text != "ga" else 0.0
    grams = {}
    for call, batches in enumerate(_stream(9), start=1):

        def objective(batch: dict[str, torch.Tensor] = batches["forget"]) -> torch.Tensor:
            nll = torch.cat([oracles.example_nll(model, batch, i) for i in range(2)])
            return -(torch.exp(-alpha * nll.detach()) * nll).mean()

        vectors = [oracles.gradient(model, objective)]
        vectors += [
            oracles.gradient(model, partial(oracles.mean_nll, model, batches[side])) for side in ("forget", "retain")
        ]
        average = (
            vectors
            if call == 1
            else [
                {name: 0.6 * old[name] + 0.4 * new[name] for name in names}
                for old, new in zip(average, vectors, strict=True)
            ]
        )
        grams[call] = oracles.gram(average, names)
    for call, measured in found:
        assert measured.gram is not None
        assert_gram_close(measured.gram.total(), grams[call], 1e-5)


def test_a_pass_moves_nothing() -> None:
    model = CASES["llama"]()
    measurement = make_measurement(model, "ga", "gru")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    marker = torch.ones_like(model.lm_head.weight)
    model.lm_head.weight.grad = marker
    torch.manual_seed(3)
    state = torch.get_rng_state()
    list(published_estimates(measurement, _stream(4)))
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert model.lm_head.weight.grad is marker
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["lm_head.weight"]
    assert torch.equal(state, torch.get_rng_state())
    assert not any(measurement.state.values())


def test_the_first_reading_weighs_three_micro_batches() -> None:
    model = CASES["llama"]()
    [(call, measured)] = published_estimates(make_measurement(model, "ga"), _stream(6))
    names, weights = list(trainable_parameters(model)), torch.tensor([0.36, 0.24, 0.40]).double()
    averages, value = [], 0.0
    for side in ("forget", "retain"):
        losses = [partial(oracles.mean_nll, model, batches[side]) for batches in _stream(3)]
        gradients = [oracles.flat(oracles.gradient(model, loss), names) for loss in losses]
        averages.append(weights @ torch.stack(gradients))
        if side == "forget":
            value = -float(weights @ torch.tensor([loss().item() for loss in losses]).double())
    vectors = torch.stack([-averages[0], *averages])
    assert call == 3
    assert measured.scalars["loss"] == pytest.approx(value, rel=1e-5)
    assert measured.gram is not None
    assert_gram_close(measured.gram.total(), vectors @ vectors.T, 1e-5)


@pytest.mark.parametrize(("count", "calls"), [(2, []), (3, [3]), (6, [3]), (7, [3, 7]), (12, [3, 7, 11])])
def test_readings_come_after_micro_batches_3_7_11(count: int, calls: list[int]) -> None:
    found = published_estimates(make_measurement(CASES["llama"](), "ga"), _stream(count))
    assert [call for call, _ in found] == calls
