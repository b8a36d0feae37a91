"""A training twice, without and with the callback; and a slow judge of what the record says of its steps."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

import geffect
from geffect.core.layers import trainable_parameters, unwrap
from tests.support.rows import Rows, nats, padded

Weights = dict[str, Tensor]
Make = Callable[[Sequence[TrainerCallback]], Any]  # a new Trainer with these callbacks


@dataclass
class Kept(TrainerCallback):  # type: ignore[misc]
    """The trained weights before and after every step."""

    steps: list[tuple[Weights, Weights]] = field(default_factory=list)
    before: Weights = field(default_factory=dict)

    def on_pre_optimizer_step(self, *_: Any, model: nn.Module, **__: Any) -> None:
        self.before = weights_of(model)

    def on_optimizer_step(self, *_: Any, model: nn.Module, **__: Any) -> None:
        self.steps.append((self.before, weights_of(model)))


def weights_of(model: nn.Module) -> Weights:
    return {name: p.detach().clone() for name, p in trainable_parameters(model).items()}


def train_twice(make: Make, callback: geffect.Callback) -> tuple[nn.Module, list[tuple[Weights, Weights]]]:
    """Assert that both trainings end in the same bits; the model of the plain one, and its weights at every step."""
    kept, ended = Kept(), []
    for callbacks in ([kept], [callback]):
        torch.manual_seed(0)
        host = make(callbacks)
        host.train()
        ended.append(unwrap(host.model))
    plain, monitored = (each.state_dict() for each in ended)
    assert list(plain) == list(monitored)
    for name, tensor in plain.items():
        assert not isinstance(tensor, Tensor) or torch.equal(plainly(tensor), plainly(monitored[name])), name
    return ended[0], kept.steps


def plainly(tensor: Tensor) -> Tensor:
    """A tensor's values: a quantized one of torchao's kind knows no comparison."""
    return tensor if type(tensor) in (Tensor, nn.Parameter) else tensor.dequantize()


def judge(
    run: geffect.Run,
    model: nn.Module,
    steps: Sequence[tuple[Weights, Weights]],
    targets: Mapping[str, Rows],
    *,
    within: float = 1e-3,
) -> None:
    """Every target's loss and effect at every step are those of a loop over single examples, at the weights then."""
    effects = run.effects().groupby(["step", "target"])["effect"].sum()
    losses = run.evaluations().set_index(["step", "set"])["loss"]
    assert run.targets == list(targets)
    assert sorted(set(effects.index.get_level_values("step"))) == list(range(len(steps)))
    parameters = trainable_parameters(model)
    model.eval()
    for step, (before, after) in enumerate(steps):
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(before[name])
        for name, rows in targets.items():
            loss, gradient = descend(model, parameters, rows)
            moved = {key: (after[key] - before[key]).double() for key in gradient}
            predicted = sum(float((gradient[key] * moved[key]).sum()) for key in gradient)
            scale = math.sqrt(sum(float((gradient[key] * moved[key]).norm()) ** 2 for key in gradient))
            assert abs(effects[step, name] - predicted) <= within * max(abs(predicted), scale), (step, name)
            assert abs(losses[step, name] - loss) <= within * loss, (step, name)


def descend(model: nn.Module, parameters: Mapping[str, nn.Parameter], rows: Rows) -> tuple[float, Weights]:
    """A target's loss and gradient, an example after another, by autograd alone."""
    total = torch.stack([nats(model, padded([row])).float().sum() for row in rows]).sum()
    loss = total / sum(sum(each != -100 for each in row["labels"][1:]) for row in rows)
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return loss.item(), {n: g.double() for n, g in zip(parameters, found, strict=True) if g is not None}
