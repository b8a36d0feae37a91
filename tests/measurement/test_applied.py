"""What an optimizer makes of a gradient: update and applied, GRU in either space, the prediction."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from geffect.core.effects import r_squared
from geffect.core.layers import find_tied_weights, trainable_parameters
from geffect.measurement.update import PredictionCheck
from tests.support import oracles
from tests.support.cases import CASES, gpt2, make_batch
from tests.support.properties import assert_gram_close
from tests.support.steps import FORGET, RETAIN, Batches, make_batches, make_measurement, model_forward, open_step, split


def _flat(vectors: dict[str, Tensor]) -> Tensor:
    return torch.cat([vectors[name].double().flatten() for name in sorted(vectors)])


def _weights(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainable_parameters(model).items()}


def _available() -> list[str]:
    """Hugging Face's optimizers that need no further package."""
    found = []
    for each in OptimizerNames:
        try:
            cls, settings = Trainer.get_optimizer_cls_and_kwargs(TrainingArguments(optim=each.value, report_to="none"))
            parameter = torch.nn.Parameter(torch.ones(3, 3))
            parameter.grad = torch.ones(3, 3)
            cls([parameter], **settings).step()
        except Exception:
            continue
        found.append(each.value)
    return found


OPTIMIZERS = _available()


def _optimizer(name: str, model: Any, lr: float = 1e-2) -> Any:
    arguments = TrainingArguments(optim=name, learning_rate=lr, weight_decay=0.1, report_to="none")
    cls, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
    extra = {"momentum": 0.9} if name == "sgd" else {}
    return cls(list(trainable_parameters(model).values()), **settings, weight_decay=0.1, **extra)


def test_common_optimizers_are_among_those_tried() -> None:
    assert {"adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop", "adafactor"} <= set(OPTIMIZERS)


@pytest.mark.parametrize("space", ["gradient", "update", "both"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_applied_never_runs_against_the_memory(optimizer: str, space: str) -> None:
    model = CASES["llama"]()
    batches = split(make_batches(model), 2)
    measurement = make_measurement(model, "ga", f"gru(space={space})", keep=True)
    stepper = _optimizer(optimizer, model)
    conflicts = []
    for _ in range(4):
        step = open_step(measurement, batches)
        step.finish()
        before = _flat(_weights(model))
        stepper.step()
        between = _flat(_weights(model))
        measured = step.after(dict.fromkeys(measurement.parameters, 1e-2))
        assert measured is not None and measured.gram is not None
        after = _flat(_weights(model))
        memory = _flat({
            n: measurement.state["retain_average"].get(n, torch.zeros_like(p))
            for n, p in trainable_parameters(model).items()
        })
        update, applied = before - between, before - after
        expected = update
        if space != "gradient":
            expected = update + max(0.0, -float(update @ memory)) / float(memory @ memory) * memory
            scale = float(update.norm() * memory.norm())
            assert float(applied @ memory) >= -1e-5 * scale
        assert float((applied - expected).norm()) <= 1e-5 * float(update.norm()) + 1e-7
        total, order = measured.gram.total(), measured.gram.names
        assert float(total[order.index("update"), order.index("update")]) == pytest.approx(
            float(update @ update), rel=1e-4
        )
        conflicts.append(float(update @ memory))
        stepper.zero_grad()
    assert len(conflicts) == 4


def test_under_adam_a_rectified_gradient_still_moves_against_the_memory() -> None:
    """Why the update's own space exists: otherwise the test above could not fail."""
    model = CASES["llama"]()
    measurement = make_measurement(model, "ga", "gru", keep=True)
    stepper = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-2)
    found = []
    for seed in range(10):
        batches = {"forget": make_batch([9, 5, 7, 12], seed=seed), "retain": make_batch([6, 8, 4, 11], seed=50 + seed)}
        step = open_step(measurement, [batches])
        step.finish()
        stepper.step()
        measured = step.after(dict.fromkeys(measurement.parameters, 1e-2))
        assert measured is not None and measured.gram is not None
        order = measured.gram.names
        found.append(float(measured.gram.total()[order.index("retain_average"), order.index("applied")]))
    assert min(found) < 0


@pytest.mark.parametrize("tied", [False, True])
def test_rows_of_the_update_equal_flattened_differences(tied: bool) -> None:
    model = gpt2(tied=tied)
    names = list(trainable_parameters(model))
    measurement = make_measurement(model, "npo + 0.5*gd", "gru(space=both)", keep=True, tie=find_tied_weights(model))
    step = open_step(measurement, split(make_batches(model), 2))
    finished = step.finish()
    forget, retain = (oracles.gradient(model, partial(oracles.mean_nll, model, b)) for b in (FORGET, RETAIN))
    before = _weights(model)
    torch.nn.utils.clip_grad_norm_(trainable_parameters(model).values(), 0.01)
    torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-2, weight_decay=0.1).step()
    between = _weights(model)
    measured = step.after(dict.fromkeys(names, 1e-2))
    assert measured is not None and measured.gram is not None and finished.gram is not None
    update = {n: before[n] - between[n] for n in names}
    applied = {n: before[n] - p.detach() for n, p in trainable_parameters(model).items()}
    order = list(measured.gram.names)
    assert order == [*finished.gram.names, "update", "applied"]
    chosen = [order.index(name) for name in ("forget", "retain", "update", "applied")]
    total = measured.gram.total()
    assert_gram_close(total[chosen][:, chosen], oracles.gram([forget, retain, update, applied], names), 1e-5)
    size = len(finished.gram.names)
    assert_gram_close(total[:size, :size], finished.gram.total(), 1e-6)


def _prediction(model: Any) -> PredictionCheck:
    def run(batch: Any) -> Any:
        return model_forward(model)(batch, frozenset())

    probe = split({"forget": FORGET, "retain": RETAIN}, 2)
    return PredictionCheck(
        trainable_parameters(model), run, {name: [batches[name] for batches in probe] for name in ("forget", "retain")}
    )


def _run(model: Any, stepper: Any, batches: list[Batches], rates: dict[str, float], steps: int) -> list[dict[str, Any]]:
    measurement = make_measurement(model, "ga", prediction=_prediction(model))
    entries = []
    for _ in range(steps):
        step = open_step(measurement, batches)
        step.finish()
        stepper.step()
        measured = step.after(rates)
        assert measured is not None and "prediction" in measured.parts
        entries.append({name: dict(entry) for name, entry in measured.parts["prediction"].items()})
        stepper.zero_grad()
    return entries


def test_the_prediction_predicts_sgd_by_both_readings_and_adam_by_the_update_alone() -> None:
    found = {}
    for name, rate in {"sgd": 1e-2, "adamw": 1e-4}.items():
        model = gpt2().double()
        parameters = list(trainable_parameters(model).values())
        sgd = name == "sgd"
        stepper = torch.optim.SGD(parameters, lr=rate) if sgd else torch.optim.AdamW(parameters, lr=rate)
        entries = _run(
            model, stepper, split(make_batches(model), 2), dict.fromkeys(trainable_parameters(model), rate), 8
        )
        for reading in ("gradient", "update"):
            for loss in ("forget", "retain"):
                predicted = [entry[loss][reading] for entry in entries]
                measured = [entry[loss]["after"] - entry[loss]["before"] for entry in entries]
                found[name, reading, loss] = r_squared(predicted, measured)
    for loss in ("forget", "retain"):
        assert found["sgd", "gradient", loss] == pytest.approx(found["sgd", "update", loss], abs=1e-2)
        assert found["sgd", "update", loss] > 0.9
        assert found["adamw", "update", loss] > 0.9
        assert found["adamw", "gradient", loss] < 0


def test_a_learning_rate_of_zero_and_several_groups_are_right() -> None:
    model = CASES["llama"]()
    names = list(trainable_parameters(model))
    still, moving = names[: len(names) // 2], names[len(names) // 2 :]
    parameters = trainable_parameters(model)
    groups = [
        {"params": [parameters[n] for n in still], "lr": 0.0},
        {"params": [parameters[n] for n in moving], "lr": 1e-2},
    ]
    rates = dict.fromkeys(still, 0.0) | dict.fromkeys(moving, 1e-2)
    before = _weights(model)
    (entry,) = _run(model, torch.optim.SGD(groups), split(make_batches(model), 4), rates, 1)
    assert all(torch.equal(before[n], parameters[n]) for n in still)
    for loss in entry.values():
        assert loss["gradient"] == pytest.approx(loss["update"], rel=1e-4)
        assert loss["after"] - loss["before"] == pytest.approx(loss["update"], rel=0.05, abs=2e-6)
    (nothing,) = _run(
        model, torch.optim.SGD(parameters.values(), lr=0.0), split(make_batches(model), 4), dict.fromkeys(names, 0.0), 1
    )
    for loss in nothing.values():
        assert loss["gradient"] == loss["update"] == 0 == loss["after"] - loss["before"]


def test_r_squared_is_that_of_an_unfitted_prediction() -> None:
    measured = [0.1, 0.3, -0.2, 0.4]
    assert r_squared(measured, measured) == 1
    assert r_squared([2 * x for x in measured], measured) < 0.1  # perfectly correlated, and wrong by a factor of two
    assert r_squared([0.15] * 4, measured) == pytest.approx(0)
    assert r_squared([1.0], [1.0]) != r_squared([1.0], [1.0])
