"""Rectifiers that read any gradients, by any part of the model, and objectives whose terms carry a state."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor

from geffect.core.forward import Outputs, forward
from geffect.core.layers import layout, trainable_parameters
from geffect.errors import GeffectError
from geffect.measurement.measurement import Measurement
from geffect.objectives.base import Counts, Objective, State, Term
from geffect.objectives.registry import make_objective
from geffect.objectives.weighted import GA
from geffect.rectifiers.base import InnerProducts, Rectifier
from tests.conftest import sweep
from tests.support import oracles
from tests.support.cases import CASES
from tests.support.properties import assert_gradients_close, assert_gram_close
from tests.support.steps import (
    FORGET,
    RETAIN,
    gradients,
    make_measurement,
    model_forward,
    split,
    take_step,
    with_reference,
)

Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class PCGrad(Rectifier):
    other: Literal["forget", "retain"] = "retain"
    scope: Literal["model", "layer", "parameter"] = "layer"

    @property
    def gradients(self) -> tuple[str, ...]:
        return ("objective", self.other)

    def coefficients(self, gram: InnerProducts) -> dict[str, float]:
        conflict = min(0.0, gram["objective", self.other])
        return {name: 1.0 - conflict / (gram[name, name] or 1.0) for name in self.gradients}


@dataclass(frozen=True)
class Faulty(Rectifier):
    gradients: ClassVar[tuple[str, ...]] = ("objective",)
    combines: str = "retain"

    def coefficients(self, gram: InnerProducts) -> dict[str, float]:
        return {self.combines: 1.0}


@dataclass(frozen=True)
class Dual(Term):
    """λ · (retain loss); λ starts at .5 and grows by the retain loss."""

    on: ClassVar[str] = "retain"
    multiple_of_loss: ClassVar[float | None] = 1.0

    def loss(self, outputs: Outputs) -> Tensor:
        return outputs.nll.sum()

    def init_state(self) -> State:
        return {"multiplier": 0.5}

    def multiplier(self, state: State) -> float:
        return state["multiplier"]

    def update_state(self, state: State, losses: Mapping[str, float]) -> State:
        return {"multiplier": state["multiplier"] + losses["loss_retain"]}


def _expected(model: Any, text: str, other: str, parts: list[list[str]]) -> tuple[list[Gradients], Gradients]:
    """Objective, forget, retain; and PCGrad of flattened float64 vectors, a part of the model at a time."""
    objective, forget = make_objective(text), with_reference(model, FORGET)
    counts = {"forget": Counts.of([forget])}
    losses = {
        "forget": oracles.gradient(model, lambda: oracles.mean_nll(model, forget)),
        "retain": oracles.gradient(model, lambda: oracles.mean_nll(model, RETAIN)),
    }
    side = oracles.gradient(model, lambda: objective.loss("forget", forward(model, forget), counts))
    whole = {n: g + objective.retain_multiple * losses["retain"][n] for n, g in side.items()}
    rectified: Gradients = {}
    for names in parts:
        a, b = oracles.flat(whole, names), oracles.flat(losses[other], names)
        conflict = min(0.0, float(a @ b))
        ours, theirs = 1 - conflict / (float(a @ a) or 1), 1 - conflict / (float(b @ b) or 1)
        rectified |= {n: ours * whole[n] + theirs * losses[other][n] for n in names}
    return [whole, losses["forget"], losses["retain"]], rectified


def _parts(model: Any, scope: str) -> tuple[dict[str, str], list[list[str]]]:
    layers = layout(model).layers
    label = {"model": dict.fromkeys(layers, ""), "layer": layers, "parameter": {name: name for name in layers}}[scope]
    return layers, [[name for name in layers if label[name] == each] for each in dict.fromkeys(label.values())]


def _measurement(model: Any, objective: Objective, rectifier: Rectifier, layers: dict[str, str]) -> Measurement:
    parameters = trainable_parameters(model)
    return Measurement(parameters, model_forward(model), objective, rectifier, layers=layers)


@sweep(
    3,
    case=["llama", "lora"],
    text=["wga", "ga + 0.5*gd", "npo(beta=0.5)"],
    scope=["model", "layer", "parameter"],
    other=["forget", "retain"],
    size=[4, 1],
)
def test_a_rule_by_part_of_the_model_equals_its_oracle(
    case: str, text: str, scope: Literal["model", "layer", "parameter"], other: Literal["forget", "retain"], size: int
) -> None:
    model = CASES[case]()
    layers, parts = _parts(model, scope)
    vectors, rectified = _expected(model, text, other, parts)
    batches = split({"forget": with_reference(model, FORGET), "retain": RETAIN}, size)
    rule, objective = PCGrad(other, scope), make_objective(text)
    measured = take_step(_measurement(model, objective, rule, layers), batches)
    assert_gradients_close(gradients(model), rectified, 1e-5)
    assert measured.gram is not None
    assert measured.gram.names == ("objective", "forget", "retain", "rectified")
    assert_gram_close(measured.gram.total(), oracles.gram([*vectors, rectified], list(layers)), 2e-5)
    seen = {name: gradient.clone() for name, gradient in gradients(model).items()}
    take_step(_measurement(model, objective, rule, layers), batches, measure=False)
    assert all(torch.equal(gradient, seen[name]) for name, gradient in gradients(model).items())


@pytest.mark.parametrize(("combines", "says"), [("retain", "combines 'retain', which it does not read"), ("x", "'x'")])
def test_a_rule_combines_what_it_reads(combines: str, says: str) -> None:
    model = CASES["llama"]()
    with pytest.raises(GeffectError, match=says):
        take_step(
            _measurement(model, make_objective("ga"), Faulty(combines), {}), [{"forget": FORGET, "retain": RETAIN}]
        )


def test_a_rule_that_reads_what_no_run_has_is_refused() -> None:
    model = CASES["llama"]()

    @dataclass(frozen=True)
    class Reads(Faulty):
        gradients: ClassVar[tuple[str, ...]] = ("objective", "heldout")

    with pytest.raises(GeffectError, match="reads a gradient 'heldout', which this run has not"):
        take_step(_measurement(model, make_objective("ga"), Reads(), {}), [{"forget": FORGET, "retain": RETAIN}])


def test_a_term_with_a_state_is_weighed_by_it_step_by_step() -> None:
    model = CASES["llama"]()
    objective = Objective("ga + dual", ((1.0, GA()), (2.0, Dual())))
    measurement = _measurement(model, objective, Rectifier(), {})
    multiplier = 0.5
    forget = oracles.gradient(model, lambda: oracles.mean_nll(model, FORGET))
    retain = oracles.gradient(model, lambda: oracles.mean_nll(model, RETAIN))
    for _ in range(3):
        measured = take_step(measurement, [{"forget": FORGET, "retain": RETAIN}])
        expected = {name: 2 * multiplier * retain[name] - forget[name] for name in forget}
        assert_gradients_close(gradients(model), expected, 1e-5)
        multiplier += measured.scalars["loss_retain"]
        assert measurement.term_states == [{}, {"multiplier": multiplier}]


def _dual_oracle(model: Any, inner: str, weight: float) -> tuple[Gradients, Gradients, float]:
    """∇ of the forget loss, ∇ of ``weight`` · a retain term, and that term's loss; gd's an example at a time."""
    objective = make_objective(f"ga + {inner}")
    other, reference = CASES["llama"](), _shifted(CASES["llama"]())
    other.load_state_dict(model.state_dict())
    counts = {"retain": Counts.of([RETAIN])}
    term = objective.terms[1][1]
    run = model_forward(other, reference)

    def loss() -> Tensor:
        if inner == "gd":
            return oracles.mean_nll(other, RETAIN)
        return term.loss(run(RETAIN, term.needs)) / counts["retain"].token

    forget = oracles.gradient(other, lambda: oracles.mean_nll(other, FORGET))
    return forget, oracles.gradient(other, lambda: weight * loss()), float(loss().detach())


def _shifted(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    return model


@pytest.mark.parametrize("measure", [True, False])
@pytest.mark.parametrize("size", [4, 2, 1])
@pytest.mark.parametrize("inner", ["gd", "kl", "rr"])
def test_a_dual_multiplier_follows_its_term_step_by_step(inner: str, size: int, measure: bool) -> None:
    """λ falls to zero, where nothing is descended on the retain set, and rises again; measured or not."""
    model = CASES["llama"]()
    start = _dual_oracle(model, inner, 1.0)[2]
    multiplier, ceiling = 1.0, start * (1.02 if inner == "gd" else 2.0)
    eta = 1.5 / (ceiling - start)
    measurement = make_measurement(
        model, f"ga + 2*dual({inner}, eps={ceiling}, eta={eta}, start=1)", reference=_shifted(CASES["llama"]())
    )
    seen = []
    for step in range(5):
        forget, retain, loss = _dual_oracle(model, inner, 2 * multiplier)
        parts = split({"forget": FORGET, "retain": RETAIN}, size)
        measured = take_step(measurement, parts, measure=measure)
        assert_gradients_close(gradients(model), {name: retain[name] - forget[name] for name in forget}, 2e-5)
        assert measured.scalars["term_2"] == pytest.approx(loss, rel=1e-5)
        assert measured.scalars["multiplier_2"] == pytest.approx(multiplier, rel=1e-5)
        seen.append(multiplier)
        multiplier = max(0.0, multiplier + eta * (loss - ceiling))
        assert measurement.term_states[1] == {"multiplier": pytest.approx(multiplier, rel=1e-4, abs=1e-6)}
        with torch.no_grad():  # the term's loss rises
            for parameter in trainable_parameters(model).values():
                parameter.mul_(2.0 if inner == "gd" else 0.5 if step == 0 else 1.6)
    assert 0.0 in seen and seen[-1] > 0


def test_standard_errors_go_over_micro_batches_with_the_step_s_own_weights() -> None:
    """Their mean is the window's inner product, in a step whose multiplier is no longer the first one."""
    model = CASES["llama"]()
    objective = Objective("ga + dual", ((1.0, GA()), (2.0, Dual())))
    parameters = trainable_parameters(model)
    measurement = Measurement(parameters, model_forward(model), objective, Rectifier(), standard_errors=True)
    batches = split({"forget": FORGET, "retain": RETAIN}, 2)
    take_step(measurement, batches)
    measured = take_step(measurement, batches)
    assert measured.gram is not None and "standard_errors" in measured.parts
    mean = torch.stack([each.mean(0) for each in measured.parts["standard_errors"].linearized.values()]).sum(0)
    assert_gram_close(mean, measured.gram.total(), 1e-5)


def test_a_rule_by_layer_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="by layer, and no layers are given"):
        _measurement(CASES["llama"](), make_objective("ga"), PCGrad(), {})
