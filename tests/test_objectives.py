"""Each objective against a hand-written float64 twin over single examples."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from geffect.errors import GeffectError
from geffect.objectives import Counts, Objective, Outputs, forward, make_objective, risk
from geffect.rows import trainable
from tests import oracles
from tests.cases import gpt2, llama, make_batch
from tests.properties import assert_rows_close

BATCH = make_batch([9, 5, 7], seed=1)
Twin = Callable[[list[Tensor], list[Tensor]], Tensor]


def _ga(nll: list[Tensor], _: list[Tensor]) -> Tensor:
    return -torch.cat(nll).sum() / len(torch.cat(nll))


def _wga(alpha: float) -> Twin:
    def twin(nll: list[Tensor], _: list[Tensor]) -> Tensor:
        tokens = torch.cat(nll)
        return sum((torch.exp(-t.detach()) ** alpha * -t for t in tokens), torch.tensor(0.0)) / len(tokens)

    return twin


def _npo(beta: float) -> Twin:
    def twin(nll: list[Tensor], ref: list[Tensor]) -> Tensor:
        ratios = [torch.exp(-n.sum()) / torch.exp(-r.sum()) for n, r in zip(nll, ref, strict=True)]
        return sum((2 / beta * torch.log(1 + ratio**beta) for ratio in ratios), torch.tensor(0.0)) / len(ratios)

    return twin


TWINS: dict[str, Twin] = {
    "ga": _ga,
    "wga(alpha=0)": _ga,
    "wga": _wga(1.0),
    "wga(alpha=5)": _wga(5.0),
    "npo(beta=0.1)": _npo(0.1),
    "npo(beta=2)": _npo(2.0),
    "0.3*wga(alpha=2) + 0.5*npo(beta=1)": lambda n, r: 0.3 * _wga(2.0)(n, r) + 0.5 * _npo(1.0)(n, r),
}


def _float64_gpt2() -> Any:
    return gpt2().double()


def _ref_nll(batch: dict[str, Tensor]) -> Tensor:
    """A reference that differs from the model on every labelled token."""
    mask = Outputs(torch.empty(0), batch["labels"]).mask
    return torch.rand(mask.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 4 * mask


def _loss(model: Any, objective: Objective, batch: dict[str, Tensor]) -> Tensor:
    outputs = forward(model, batch | {"ref_nll": _ref_nll(batch)})
    return objective.forget_loss(outputs, Counts.of([batch]))


@pytest.mark.parametrize("text", TWINS)
def test_loss_and_gradient_equal_the_twin(text: str) -> None:
    model, ref = _float64_gpt2(), _ref_nll(BATCH)
    refs = [row[row != 0] for row in ref]

    def twin() -> Tensor:
        return TWINS[text]([oracles.row_nll(model, BATCH, i) for i in range(3)], refs)

    objective = make_objective(text)
    assert torch.allclose(_loss(model, objective, BATCH), twin(), rtol=1e-10)
    found = oracles.gradient(model, lambda: _loss(model, objective, BATCH))
    assert_rows_close(found, oracles.gradient(model, twin), 1e-10)


@pytest.mark.parametrize("text", TWINS)
def test_the_gradient_is_the_weighted_sum_of_token_gradients(text: str) -> None:
    model, objective, counts = _float64_gpt2(), make_objective(text), Counts.of([BATCH])
    if len(objective.terms) > 1:
        units = {term.unit for _, term in objective.terms}
        assert units == {"token", "row"}  # two denominators: no single weight describes the sum
        return
    unit = objective.terms[0][1].unit
    outputs = forward(model, BATCH | {"ref_nll": _ref_nll(BATCH)})
    weights = objective.forget_weights(outputs)
    assert not weights.requires_grad
    assert (weights[~outputs.mask] == 0).all()

    def weighted() -> Tensor:
        return -(weights * forward(model, BATCH).nll).sum() / counts.per(unit)

    found = oracles.gradient(model, lambda: _loss(model, objective, BATCH))
    assert_rows_close(oracles.gradient(model, weighted), found, 1e-10)


@pytest.mark.parametrize("text", TWINS)
def test_a_directional_derivative_equals_finite_differences(text: str) -> None:
    model, objective = _float64_gpt2(), make_objective(text)
    if "wga" in text:
        return  # its weights are detached, so its gradient is no loss's derivative
    gradient = oracles.gradient(model, lambda: _loss(model, objective, BATCH))
    slope = sum(float(g.square().sum()) for g in gradient.values())
    step = 1e-5 / math.sqrt(slope)
    values = []
    for sign in (1, -2):
        with torch.no_grad():
            for name, parameter in trainable(model).items():
                parameter.add_(gradient[name], alpha=sign * step)
            values.append(float(_loss(model, objective, BATCH)))
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("text", [*TWINS, "risk"])
def test_padding_changes_nothing(text: str) -> None:
    model = llama()
    padded = {
        name: torch.nn.functional.pad(tensor, (0, 6), value=-100 if name == "labels" else 0)
        for name, tensor in BATCH.items()
    }

    def loss(batch: dict[str, Tensor]) -> Tensor:
        if text == "risk":
            return risk(forward(model, batch), Counts.of([batch]))
        wide = torch.nn.functional.pad(_ref_nll(BATCH), (0, batch["labels"].shape[1] - BATCH["labels"].shape[1]))
        outputs = forward(model, batch | {"ref_nll": wide.float()})
        return make_objective(text).forget_loss(outputs, Counts.of([batch]))

    assert_rows_close(oracles.gradient(model, lambda: loss(padded)), oracles.gradient(model, lambda: loss(BATCH)), 1e-5)


def test_splitting_a_batch_changes_nothing_when_counts_are_the_windows() -> None:
    model, ref, counts = _float64_gpt2(), _ref_nll(BATCH), Counts.of([BATCH])
    for text in TWINS:
        objective, parts = make_objective(text), []
        for i in range(3):
            part = {name: tensor[i : i + 1] for name, tensor in (BATCH | {"ref_nll": ref}).items()}
            parts.append(objective.forget_loss(forward(model, part), counts))
        assert torch.allclose(sum(parts, torch.zeros(())), _loss(model, objective, BATCH), rtol=1e-12), text


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_npo_starts_at_weight_one_and_two_over_beta_log_two(beta: float) -> None:
    model, objective = _float64_gpt2(), make_objective(f"npo(beta={beta})")
    start = forward(model, BATCH)
    outputs = Outputs(start.logits, BATCH["labels"], start.nll.detach())
    assert torch.allclose(objective.forget_weights(outputs)[outputs.mask], torch.ones(()).double())
    loss = float(objective.forget_loss(outputs, Counts.of([BATCH])).detach())
    assert loss == pytest.approx(2 / beta * math.log(2), rel=1e-12)


def test_npo_survives_sequences_whose_probability_underflows() -> None:
    nll = torch.full((1, 4), 1e4, requires_grad=True)
    outputs = Outputs(torch.zeros(1, 4, 3), torch.tensor([[-100, 1, 1, 1]]), torch.zeros(1, 4))
    object.__setattr__(outputs, "nll", nll)
    loss = make_objective("npo").forget_loss(outputs, Counts(3, 1))
    loss.backward()
    assert torch.isfinite(loss)
    assert nll.grad is not None and torch.isfinite(nll.grad).all()


def test_a_need_that_is_not_met_is_named() -> None:
    with pytest.raises(ValueError, match="ref_nll"):
        make_objective("npo").forget_loss(forward(llama(), BATCH), Counts.of([BATCH]))


def test_needs_and_multiples_follow_from_the_terms() -> None:
    both = make_objective("npo(beta=1) + 2.0*gd")
    assert both.needs == {"ref_nll"}
    assert both.forget_multiple is None
    assert both.retain_multiple == 2.0
    assert make_objective("0.5*ga + 0.25*ga").forget_multiple == -0.75
    assert make_objective("ga").needs == frozenset()


@pytest.mark.parametrize("text", ["gd", "0.5*gd + gd"])
def test_an_objective_unlearns_something(text: str) -> None:
    with pytest.raises(GeffectError, match="forget set"):
        make_objective(text)


def test_npo_refuses_a_beta_it_cannot_divide_by() -> None:
    with pytest.raises(GeffectError, match="beta > 0"):
        make_objective("npo(beta=0)")
