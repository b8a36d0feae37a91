"""Further targets of a step: their gradients stand beside the others, and what is descended stays the same bits."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from geffect.core.forward import forward
from geffect.core.gradients import capture_gradients
from geffect.core.gram import inner
from geffect.core.layers import find_tied_weights, trainable_parameters
from tests.support.cases import gpt2, llama, lora, make_batch
from tests.support.steps import gradients, make_batches, make_measurement, open_step, split

MATH, CHAT = [make_batch([8, 6], seed=6), make_batch([5], seed=7)], [make_batch([7, 9], seed=8)]
TARGETS = {"math": MATH, "chat": CHAT}


def mean_nll(model: Any, batches: list[dict[str, Tensor]]) -> Tensor:
    """Token-mean NLL of all batches, from the plain logits."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for batch in batches:
        outputs = forward(model, batch)
        total = total + outputs.nll[outputs.mask].sum()
        count += int(outputs.mask.sum())
    return total / count


@pytest.mark.parametrize("make", [gpt2, llama, lora], ids=["tied", "untied", "adapter"])
@pytest.mark.parametrize("parts", [1, 2], ids=["whole", "accumulated"])
@pytest.mark.parametrize(
    ("objective", "rule"), [("ga", "none"), ("npo + 2*gd", "gru"), ("ga + kl", "gru(add_retain=1)")]
)
def test_the_products_are_those_of_single_gradients(
    objective: str, rule: str, parts: int, make: Callable[[], Any]
) -> None:
    """In float64: ⟨∇R_target, anything⟩ in the record, and the gradient in ``.grad`` as without targets."""
    model = make().double().eval()
    other = copy.deepcopy(model)
    batches = make_batches(model)
    chosen = {name: batches[name] for name in ("forget", "retain")}
    slow = capture_gradients(model, {name: partial(mean_nll, model, each) for name, each in TARGETS.items()})
    settings = {"tie": find_tied_weights(model), "reference": copy.deepcopy(model)}
    step = open_step(make_measurement(model, objective, rule, targets=TARGETS, **settings), split(chosen, 4 // parts))
    measured = step.finish()
    plain = make_measurement(other, objective, rule, tie=find_tied_weights(other), reference=copy.deepcopy(model))
    without = open_step(plain, split(chosen, 4 // parts)).finish()
    assert all(torch.equal(each, gradients(other)[name]) for name, each in gradients(model).items())
    gram, smaller = measured.gram, without.gram
    assert gram is not None
    assert smaller is not None
    assert {*gram.names} == {*smaller.names, *TARGETS}
    total = gram.total()
    known = {**slow, "rectified" if rule != "none" else "objective": gradients(model)}
    for a in TARGETS:
        for b, gradient in known.items():
            expected = sum(float((slow[a][n].double() * gradient[n].double()).sum()) for n in slow[a] if n in gradient)
            assert inner(total, gram.names, a, b) == pytest.approx(expected, rel=1e-9, abs=1e-12), (a, b)
    for a in smaller.names:
        assert inner(total, gram.names, a, a) == pytest.approx(inner(smaller.total(), smaller.names, a, a), rel=1e-12)


def test_the_update_s_effect_on_a_target_is_its_change() -> None:
    """SGD in float64, with top-k masks: −⟨∇R, applied⟩ is R's change for a small step."""
    model = gpt2().double().eval()
    batches = make_batches(model)
    measurement = make_measurement(model, "ga", targets=TARGETS, tie=find_tied_weights(model), overlap=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-7)
    step = open_step(measurement, split({name: batches[name] for name in ("forget", "retain")}, 4))
    step.finish()
    before = {name: mean_nll(model, each).item() for name, each in TARGETS.items()}
    optimizer.step()
    measured = step.after(dict.fromkeys(trainable_parameters(model), 1e-7))
    assert measured is not None
    gram = measured.gram
    assert gram is not None
    for name, each in TARGETS.items():
        change = mean_nll(model, each).item() - before[name]
        assert -inner(gram.total(), gram.names, name, "applied") == pytest.approx(change, rel=1e-3)
    assert {*TARGETS} <= {*measured.parts["overlap"].names}


def test_standard_errors_do_not_run_targets_again() -> None:
    model = gpt2().double().eval()
    batches = make_batches(model)
    measurement = make_measurement(model, "ga", targets=TARGETS, standard_errors=True)
    seen, forward_of = list[int](), measurement.forward

    def counting(batch: dict[str, Tensor], needs: frozenset[str], *, dropout: bool) -> Any:
        seen.append(len(batch["labels"]))
        return forward_of(batch, needs, dropout=dropout)

    measurement.forward = counting
    open_step(measurement, split({name: batches[name] for name in ("forget", "retain")}, 2)).finish()
    assert seen.count(1) == 1  # the target's second batch has one example
