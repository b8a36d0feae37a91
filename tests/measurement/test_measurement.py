"""A step's gradients against flattened oracles, whatever the accumulation."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from geffect.core.forward import Outputs, forward
from geffect.core.gram import cosine, inner, norm
from geffect.core.layers import trainable_parameters
from geffect.objectives.base import Counts
from geffect.objectives.registry import make_objective
from tests.conftest import sweep
from tests.support import oracles
from tests.support.cases import CASES, make_batch
from tests.support.properties import assert_gradients_close, assert_gram_close
from tests.support.steps import (
    FORGET,
    RETAIN,
    Batch,
    gradients,
    make_batches,
    make_measurement,
    model_forward,
    split,
    take_step,
    with_reference,
)

TWO = {"forget": FORGET, "retain": RETAIN}


def _oracle(model: Any, text: str, forget: Batch) -> list[dict[str, Tensor]]:
    """objective, forget, retain by `torch.autograd.grad`."""
    objective, counts = make_objective(text), {"forget": Counts.of([forget])}
    vectors = [
        oracles.gradient(model, lambda: objective.loss("forget", forward(model, forget), counts)),
        oracles.gradient(model, lambda: oracles.mean_nll(model, forget)),
        oracles.gradient(model, lambda: oracles.mean_nll(model, RETAIN)),
    ]
    vectors[0] = {name: g + objective.retain_multiple * vectors[2][name] for name, g in vectors[0].items()}
    return vectors


@sweep(
    3,
    case=["llama", "gpt2", "lora", "frozen", "unused"],
    text=["ga", "ga + 0.5*gd", "wga", "npo(beta=0.5)", "npo + 2.0*gd"],
    size=[4, 2, 1],
)
def test_rows_and_gradient_equal_the_oracles(case: str, text: str, size: int) -> None:
    model = CASES[case]()
    forget = with_reference(model, FORGET)
    names = list(trainable_parameters(model))
    expected = _oracle(model, text, forget)
    measured = take_step(make_measurement(model, text, "none"), split({"forget": forget, "retain": RETAIN}, size))
    assert measured.gram is not None
    assert measured.gram.names == ("objective", "forget", "retain")
    assert list(measured.gram.values) == names
    assert_gram_close(measured.gram.total(), oracles.gram(expected, names), 1e-5)
    for name in names:
        assert_gram_close(measured.gram.values[name], oracles.gram(expected, [name]), 1e-4)
    assert_gradients_close(gradients(model), expected[0], 1e-5)


@pytest.mark.parametrize("text", ["ga", "ga + 0.5*gd", "0.5*ga + 2.0*gd", "ga + 100*gd", "0.001*ga + gd"])
def test_a_free_row_equals_the_one_propagated_apart(text: str) -> None:
    grams = []
    for free in (True, False):
        model = CASES["llama"]()
        measured = take_step(make_measurement(model, text, "none", free=free), [TWO])
        assert measured.gram is not None
        grams.append(measured.gram)
    assert_gram_close(grams[0].total(), grams[1].total(), 1e-5)


def test_ga_propagated_apart_is_minus_the_objective_and_only_on_its_own_batch() -> None:
    model = CASES["llama"]()
    measurement = make_measurement(model, "ga", "none", free=False)
    gram = take_step(measurement, [TWO]).gram
    assert gram is not None
    total, order = gram.total(), gram.names
    assert cosine(total, order, "objective", "forget") == pytest.approx(-1, abs=1e-5)
    assert inner(total, order, "objective", "forget") == pytest.approx(
        -inner(total, order, "forget", "forget"), rel=1e-5
    )

    other = oracles.gradient(model, lambda: oracles.mean_nll(model, make_batch([9, 5, 7, 12], seed=9)))
    mine = oracles.gradient(model, lambda: oracles.mean_nll(model, FORGET))
    swapped = oracles.gram([{n: -g for n, g in mine.items()}, other], list(mine))
    assert abs(float(swapped[0, 1] / swapped[1, 1]) + 1) > 0.05


@pytest.mark.parametrize("measure", [True, False])
@pytest.mark.parametrize("text", ["ga", "npo + 0.5*gd"])
def test_gru_leaves_the_oracles_projection_in_grad(text: str, measure: bool) -> None:
    model = CASES["llama"]()
    forget, names = with_reference(model, FORGET), list(trainable_parameters(model))
    measurement = make_measurement(model, text, "gru(decay=0.4)")
    memory = {name: torch.zeros_like(p) for name, p in trainable_parameters(model).items()}
    for retain in (RETAIN, make_batch([5, 7, 9, 6], seed=7), make_batch([8, 8, 8, 8], seed=8)):
        g, r = (
            {n: x.double() for n, x in oracles.gradient(model, loss).items()}
            for loss in (
                lambda: make_objective(text).loss("forget", forward(model, forget), {"forget": Counts.of([forget])}),
                partial(oracles.mean_nll, model, retain),
            )
        )
        w = make_objective(text).retain_multiple
        g = {n: x + w * r[n] for n, x in g.items()}
        memory = {n: 0.4 * m + 0.6 * r[n] for n, m in memory.items()}
        gram = oracles.gram([g, memory], names)
        scale = max(0.0, -float(gram[0, 1])) / float(gram[1, 1])
        measured = take_step(measurement, split({"forget": forget, "retain": retain}, 2), measure=measure)
        assert_gradients_close(gradients(model), {n: x + scale * memory[n] for n, x in g.items()}, 1e-5)
        assert (measured.gram is not None) == measure


def test_rectified_entries_by_algebra_equal_those_of_the_gradient_left_behind() -> None:
    model = CASES["llama"]()
    measurement = make_measurement(model, "ga", "gru(cos_clip=-0.1, add_retain=0.3)")
    for _ in range(2):
        measured = take_step(measurement, split(TWO, 2))
    assert measured.gram is not None
    retain = oracles.gradient(model, lambda: oracles.mean_nll(model, RETAIN))
    forget = oracles.gradient(model, lambda: oracles.mean_nll(model, FORGET))
    vectors = [
        {n: -g for n, g in forget.items()},
        forget,
        retain,
        measurement.state["retain_average"],
        gradients(model),
    ]
    assert measured.gram.names == ("objective", "forget", "retain", "retain_average", "rectified")
    assert_gram_close(measured.gram.total(), oracles.gram(vectors, list(forget)), 1e-5)


def test_groups_sum_to_the_total() -> None:
    from geffect.core.layers import layout

    model = CASES["llama"]()
    gram = take_step(
        make_measurement(model, "npo", "gru"), [{"forget": with_reference(model, FORGET), "retain": RETAIN}]
    ).gram
    assert gram is not None
    parts = gram.by(layout(model).groups())
    assert set(parts) == {"embed", "shallow", "middle", "deep", "lm_head"}
    assert torch.allclose(torch.stack(list(parts.values())).sum(0), gram.total(), rtol=1e-12)


def test_one_by_eight_equals_eight_by_one() -> None:
    found = []
    for size in (8, 1):
        model = CASES["llama"]()
        forget = make_batch([4, 16, 7, 3, 11, 5, 9, 13], seed=3)
        retain = make_batch([12, 3, 8, 8, 4, 15, 6, 5], seed=4)
        measured = take_step(
            make_measurement(model, "ga + gd", "gru"), split({"forget": forget, "retain": retain}, size)
        )
        found.append((measured, gradients(model)))
    (one, one_grad), (eight, eight_grad) = found
    assert one.gram is not None and eight.gram is not None
    assert_gram_close(one.gram.total(), eight.gram.total(), 1e-5)
    assert_gradients_close(eight_grad, one_grad, 1e-5)
    assert one.scalars == pytest.approx(eight.scalars, rel=1e-5, abs=1e-6)  # one loss is a small difference


def test_weight_means_run_over_labeled_tokens_only() -> None:
    model = CASES["llama"]()
    measured = take_step(make_measurement(model, "wga(alpha=2)", "none"), split(TWO, 2))
    tokens = torch.cat([oracles.example_nll(model, FORGET, i) for i in range(4)])
    assert measured.scalars["weight_mean"] == pytest.approx(float(torch.exp(-2 * tokens.detach()).mean()), rel=1e-5)


def test_scalars_are_the_losses_and_the_objective() -> None:
    model = CASES["llama"]()
    scalars = take_step(make_measurement(model, "ga + 0.5*gd", "gru"), split(TWO, 1)).scalars
    forget, retain = (oracles.mean_nll(model, batch).item() for batch in (FORGET, RETAIN))
    assert scalars["loss_forget"] == pytest.approx(forget, rel=1e-5)
    assert scalars["loss_retain"] == pytest.approx(retain, rel=1e-5)
    assert scalars["loss_objective"] == pytest.approx(-forget + 0.5 * retain, rel=1e-4)


def test_only_what_the_update_needs_is_computed_when_not_measuring() -> None:
    model, passes = CASES["llama"](), []

    def counted(batch: Batch, needs: frozenset[str], *, dropout: bool) -> Outputs:
        passes.append(batch)
        return model_forward(model)(batch, needs, dropout=dropout)

    measurement = make_measurement(model, "ga", "none")
    measurement.forward = counted
    take_step(measurement, [TWO], measure=False)
    assert len(passes) == 1
    take_step(measurement, [TWO], measure=True)
    assert len(passes) == 3


def test_a_tensor_no_loss_reached_keeps_no_gradient() -> None:
    model = CASES["unused"]()
    measured = take_step(make_measurement(model, "ga", "gru"), [TWO])
    assert measured.gram is not None
    for name, parameter in trainable_parameters(model).items():
        if "spare" in name:
            assert parameter.grad is None
            assert not measured.gram.values[name].any()


def test_a_loss_that_is_not_finite_stops_before_the_gradient_is_handed_back() -> None:
    model = CASES["llama"]()
    with torch.no_grad():
        model.lm_head.weight[3] = float("nan")
    with pytest.raises(FloatingPointError, match="loss_forget = nan"):
        take_step(make_measurement(model, "ga", "gru"), [TWO])
    assert not gradients(model)


@pytest.mark.parametrize("measure", [True, False])
@pytest.mark.parametrize("rectifier", ["none", "gru"])
@pytest.mark.parametrize("size", [4, 2])
def test_a_row_that_is_not_finite_stops_though_its_loss_is(rectifier: str, measure: bool, size: int) -> None:
    model = CASES["llama"]()

    def spoil(_: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        output.register_hook(lambda gradient: gradient * float("nan"))
        return output

    model.model.layers[1].mlp.up_proj.register_forward_hook(spoil)
    with pytest.raises(FloatingPointError, match=r"norm_(objective|forget|retain) = nan"):
        take_step(make_measurement(model, "npo", rectifier), split(make_batches(model), size), measure=measure)
    assert not gradients(model)


@pytest.mark.parametrize("measure", [True, False])
@pytest.mark.parametrize("rectifier", ["none", "gru"])
def test_an_objective_gradient_that_is_not_finite_stops_though_the_retain_gradient_is(
    rectifier: str, measure: bool
) -> None:
    model = CASES["llama"]()
    batches = make_batches(model)
    forget = batches["forget"]["input_ids"]
    inside: list[bool] = []

    def enter(_: Any, args: Any, inputs: dict[str, Any]) -> None:
        ids = inputs["input_ids"]
        inside[:] = [ids.shape == forget.shape and torch.equal(ids, forget)]

    def spoil(_: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if inside == [True]:
            output.register_hook(lambda gradient: gradient * float("inf"))
        return output

    model.register_forward_pre_hook(enter, with_kwargs=True)
    model.model.layers[1].mlp.up_proj.register_forward_hook(spoil)
    with pytest.raises(FloatingPointError, match=r"norm_objective = (inf|nan)"):
        take_step(make_measurement(model, "ga", rectifier), [batches], measure=measure)
    assert not gradients(model)


def test_norms_are_those_of_the_gradients() -> None:
    model = CASES["llama"]()
    measured = take_step(make_measurement(model, "ga", "gru"), [TWO])
    assert measured.gram is not None
    total = measured.gram.total()
    assert measured.scalars["norm_rectified"] == norm(total, measured.gram.names, "rectified")
    left = torch.cat([g.flatten().double() for g in gradients(model).values()]).norm()
    assert measured.scalars["norm_rectified"] == pytest.approx(float(left), rel=1e-5)
