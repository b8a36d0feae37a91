"""Streamed = stored = a loop over examples; the model is left as found."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import geffect.core.gradients
from geffect.core.forward import forward
from geffect.core.gradients import GradientBuffer, NamedTensors, add_scaled, capture_gradients
from geffect.core.gram import Gram, inner_products
from geffect.core.layers import trainable_parameters
from geffect.objectives.base import Counts
from geffect.objectives.base import mean_nll as fast_nll
from tests.support import oracles
from tests.support.cases import CASES, make_batch
from tests.support.properties import assert_gradients_close, assert_gram_close, assert_unchanged, snapshot

FORGET, RETAIN = make_batch([9, 5, 7], seed=1), make_batch([6, 8, 4], seed=2)


def _mean_nll(model: Any, batch: dict[str, Tensor]) -> Tensor:
    return fast_nll(forward(model, batch), Counts.of([batch]))


@pytest.mark.parametrize("case", CASES)
def test_captured_rows_equal_a_loop_over_examples(case: str) -> None:
    model = CASES[case]()
    gradients = capture_gradients(
        model, {"forget": lambda: _mean_nll(model, FORGET), "retain": lambda: _mean_nll(model, RETAIN)}
    )
    assert_gradients_close(gradients["forget"], oracles.gradient(model, lambda: oracles.mean_nll(model, FORGET)), 1e-5)
    assert_gradients_close(gradients["retain"], oracles.gradient(model, lambda: oracles.mean_nll(model, RETAIN)), 1e-5)


@pytest.mark.parametrize("case", CASES)
def test_streamed_equals_stored_equals_flattened(case: str) -> None:
    model = CASES[case]()
    gradients = capture_gradients(
        model, {"forget": lambda: _mean_nll(model, FORGET), "retain": lambda: _mean_nll(model, RETAIN)}
    )
    stored = Gram(
        ("forget", "retain"),
        {n: inner_products([r.get(n) for r in gradients.values()]) for n in trainable_parameters(model)},
    )
    streamed = Gram(("forget", "retain"))
    window = GradientBuffer(trainable_parameters(model))
    window.add("forget", _mean_nll(model, FORGET))

    def visit(name: str, retain: Tensor | None) -> None:
        streamed.values[name] = inner_products([window.gradients["forget"].get(name), retain])

    window.stream("retain", _mean_nll(model, RETAIN), visit)
    assert_gram_close(streamed.total(), stored.total(), 1e-12)
    names = list(trainable_parameters(model))
    losses = (lambda: oracles.mean_nll(model, FORGET), lambda: oracles.mean_nll(model, RETAIN))
    assert_gram_close(streamed.total(), oracles.gram([oracles.gradient(model, loss) for loss in losses], names), 1e-5)


def test_streaming_completes_what_earlier_micro_batches_added() -> None:
    model = CASES["llama"]()
    first, second = make_batch([9, 5], seed=3), make_batch([4, 8, 6], seed=4)
    counts = Counts.of([first, second])
    window, seen = GradientBuffer(trainable_parameters(model)), dict[str, Tensor]()

    def visit(name: str, gradient: Tensor | None) -> None:
        assert gradient is not None
        seen[name] = gradient.clone()

    window.add("retain", fast_nll(forward(model, first), counts))
    window.stream("retain", fast_nll(forward(model, second), counts), visit)
    alone = {name: t * 0 for name, t in seen.items()}
    for batch in (first, second):
        share = Counts.of([batch]).token / counts.token
        for name, gradient in oracles.gradient(model, partial(oracles.mean_nll, model, batch)).items():
            alone[name] += share * gradient
    assert_gradients_close(seen, alone, 1e-5)
    assert "retain" not in window.gradients


@pytest.mark.parametrize("case", CASES)
def test_measuring_leaves_the_model_as_found(case: str) -> None:
    model = CASES[case]()
    for parameter in list(model.parameters())[::2]:
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    model.train()
    before = snapshot(model)
    capture_gradients(model, {"loss": lambda: _mean_nll(model, FORGET)})
    assert_unchanged(before, model)


def test_a_failing_loss_leaves_no_hook_and_returns_the_gradients() -> None:
    model = CASES["llama"]()
    parameter = next(model.parameters())
    parameter.grad = torch.ones_like(parameter)
    before = snapshot(model)

    def explode(name: str, gradient: Tensor | None) -> None:
        raise RuntimeError(name)

    with pytest.raises(RuntimeError):
        GradientBuffer(trainable_parameters(model)).stream("retain", _mean_nll(model, FORGET), explode)
    assert_unchanged(before, model)


def test_a_tensor_no_loss_reaches_is_missing_and_visited_as_none() -> None:
    model = CASES["unused"]()
    spare = {name for name in trainable_parameters(model) if "spare" in name}
    assert not spare & set(capture_gradients(model, {"loss": lambda: _mean_nll(model, FORGET)})["loss"])
    visited: dict[str, bool] = {}

    def visit(name: str, gradient: Tensor | None) -> None:
        visited[name] = gradient is None

    GradientBuffer(trainable_parameters(model)).stream("r", _mean_nll(model, FORGET), visit)
    assert {name for name, missing in visited.items() if missing} == spare
    assert len(visited) == len(trainable_parameters(model))


def test_gradients_move_and_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    model, backward = CASES["llama"](), geffect.core.gradients._backward
    pointers: dict[str, int] = {}

    def noting(parameters: Any, loss: Tensor, take: Any, retain: bool) -> None:
        def note(name: str, gradient: Tensor) -> None:
            pointers[name] = gradient.data_ptr()
            take(name, gradient)

        backward(parameters, loss, note, retain)

    monkeypatch.setattr(geffect.core.gradients, "_backward", noting)
    gradient = capture_gradients(model, {"loss": lambda: _mean_nll(model, FORGET)})["loss"]
    assert {name: tensor.data_ptr() for name, tensor in gradient.items()} == pointers


def test_add_scaled_treats_missing_as_zero() -> None:
    gradient: NamedTensors = {"a": torch.ones(2)}
    add_scaled(gradient, "a", None, 2.0)
    add_scaled(gradient, "b", None, 2.0)
    add_scaled(gradient, "b", torch.ones(1), 2.0)
    add_scaled(gradient, "a", torch.ones(2), -3.0)
    assert {name: t.tolist() for name, t in gradient.items()} == {"a": [-2.0, -2.0], "b": [2.0]}
