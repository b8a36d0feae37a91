"""What rules and terms read beside gradients of losses, each beside a slow twin in float64.

The optimizer's metric, single examples, the sides of several domains, layer groups, and weights a little further up.
"""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from geffect.core.forward import add_positions
from geffect.core.layers import by_scope, find_tied_weights, trainable_parameters
from geffect.errors import GeffectError
from geffect.measurement.metric import adam_metric
from geffect.measurement.step import Step
from geffect.objectives.base import window_counts
from geffect.rectifiers.base import InnerProducts
from geffect.rectifiers.gem import GU
from tests.support import oracles
from tests.support.cases import CASES, make_batch
from tests.support.properties import assert_gradients_close
from tests.support.steps import (
    FORGET,
    RETAIN,
    gradients,
    make_batches,
    make_measurement,
    open_step,
    split,
    take_step,
    with_reference,
)

EPS, BETA = 1e-8, 0.9
EXACT = 1e-9
VECTORS = st.lists(st.integers(-9, 9), min_size=4, max_size=4).map(lambda v: torch.tensor(v, dtype=torch.float64))


def _double(case: str) -> Any:
    return CASES[case]().double()


def _flat(gradient: dict[str, Tensor]) -> Tensor:
    return oracles.flat(gradient, list(gradient))


def _loss_gradient(model: Any, batch: dict[str, Tensor]) -> Tensor:
    return _flat(oracles.gradient(model, lambda: oracles.mean_nll(model, batch)))


@pytest.mark.parametrize("case", ["llama", "lora"])
@pytest.mark.parametrize("space", ["gradient", "update", "both"])
def test_gru_in_adam_s_metric_is_the_formula(space: str, case: str) -> None:
    """Beside second moments that are averaged here, step after step, and used before and after each."""
    model = _double(case)
    parameters = trainable_parameters(model)
    stepper = torch.optim.AdamW(parameters.values(), lr=1e-2, betas=(0.8, BETA), eps=EPS, weight_decay=0.1)
    preconditioner = adam_metric(parameters, lambda: stepper)
    rule = f"gru(decay=0.5, metric=adam, space={space})"
    run = make_measurement(model, "ga", rule, keep=True, preconditioner=preconditioner)
    average, moment, projected = torch.zeros(1).double(), torch.zeros(1).double(), 0
    for t in range(1, 6):
        forget, retain = (make_batch([6, 4, 7], seed=each + t) for each in (10, 50))
        g, r = -_loss_gradient(model, forget), _loss_gradient(model, retain)
        average = 0.5 * average + 0.5 * r
        inverse = 1 / ((moment / (1 - BETA ** (t - 1))).sqrt() + EPS) if t > 1 else torch.ones_like(g)
        conflict = min(0.0, float(g @ (inverse * average))) if space != "update" else 0.0
        expected = g - conflict / float(average @ (inverse * average)) * average
        step = open_step(run, split({"forget": forget, "retain": retain}, 2))
        step.finish()
        got = _flat({name: parameters[name].grad for name in parameters})  # type: ignore[misc]
        torch.testing.assert_close(got, expected, rtol=EXACT, atol=1e-12)
        before = _flat(dict(parameters))
        stepper.step()
        update = before - _flat(dict(parameters))
        step.after(dict.fromkeys(parameters, 1e-2))
        moment = BETA * moment + (1 - BETA) * expected**2
        inverse = 1 / ((moment / (1 - BETA**t)).sqrt() + EPS)
        harm = min(0.0, float(update @ average)) if space != "gradient" else 0.0
        wanted = update - harm / float(average @ (inverse * average)) * inverse * average
        torch.testing.assert_close(before - _flat(dict(parameters)), wanted, rtol=1e-7, atol=1e-12)
        projected += (conflict < 0) + (harm < 0)
    assert projected


@given(
    update=VECTORS,
    memories=st.lists(VECTORS, min_size=1, max_size=4),
    metric=st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
    tolerance=st.sampled_from([0.0, 0.5, 20.0]),
)
@settings(deadline=None, max_examples=150)
def test_gu_is_the_nearest_update_within_the_tolerance(
    update: Tensor, memories: list[Tensor], metric: list[float], tolerance: float
) -> None:
    """Beside the best of all active sets in the metric, one after another; degenerate sets among them."""
    m, diagonal = torch.stack(memories), torch.tensor(metric, dtype=torch.float64)
    rule = GU(memory=len(memories), tolerance=tolerance)
    vectors = torch.stack([update * diagonal.sqrt(), *(m / diagonal.sqrt())])
    gram = InnerProducts(("update", *rule.memories), vectors @ vectors.T)
    chosen = rule.correction(gram)
    assert rule.numbers(gram, chosen)["kkt_residual"] <= 1e-10
    x = update - sum(-c * m[i] / diagonal for i, c in enumerate(chosen.values()))
    size = m.norm(dim=1) * update.norm() + 1e-300
    assert float(((m @ x + tolerance) / size).min()) >= -1e-9
    best = min(
        _feasible(update, m, diagonal, tolerance),
        key=lambda each: float((each - update) @ (diagonal * (each - update))),
    )
    torch.testing.assert_close(x, best, rtol=1e-6, atol=1e-6 * float(update.norm()) + 1e-9)


def _feasible(update: Tensor, m: Tensor, diagonal: Tensor, tolerance: float) -> list[Tensor]:
    found = []
    for count in range(len(m) + 1):
        for rows in itertools.combinations(range(len(m)), count):
            border = m[list(rows)]
            kernel = torch.linalg.pinv(border / diagonal @ border.T, hermitian=True, rtol=1e-12)
            x = update - (kernel @ (border @ update + tolerance)) @ border / diagonal
            if float((m @ x + tolerance).min()) >= -1e-9 * float(update.norm() * m.norm() + 1):
                found.append(x)
    return found


@pytest.mark.parametrize("size", [4, 2])
@pytest.mark.parametrize("examples", [8, 4, 3])
def test_orthograd_leaves_the_span_of_single_examples(examples: int, size: int) -> None:
    model = _double("gpt2")
    batches = {"forget": FORGET, "retain": RETAIN}
    rows = [{key: t[i : i + 1] for key, t in RETAIN.items()} for i in range(4)]
    singles = [_loss_gradient(model, row) * int((row["labels"][:, 1:] != -100).sum()) for row in rows]
    sums = [torch.stack(singles[i::examples]).sum(0) for i in range(min(examples, 4))]
    basis, _ = torch.linalg.qr(torch.stack(sums).T)
    g = -_loss_gradient(model, FORGET)
    run = make_measurement(model, "ga", f"orthograd(examples={examples})", tie=find_tied_weights(model))
    placed = [{name: add_positions(batch) for name, batch in each.items()} for each in split(batches, size)]
    take_step(run, placed)
    names = list(trainable_parameters(model))
    got = oracles.flat(
        {n: gradients(model).get(n, torch.zeros_like(p)) for n, p in trainable_parameters(model).items()}, names
    )
    torch.testing.assert_close(got, g - basis @ (basis.T @ g), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("objective", ["ga + 0.5*gd", "npo"])
def test_consistent_keeps_entries_on_which_domains_agree(objective: str) -> None:
    model = _double("llama")
    sets = {
        name: make_batch([9, 5, 7, 12][:count], seed=i)
        for i, (name, count) in enumerate({"forget/a": 4, "forget/b": 2, "retain/a": 4, "retain/b": 2}.items())
    }
    sets = {name: with_reference(model, batch) for name, batch in sets.items()}
    micro_batches = [sets]
    take_step(make_measurement(model, objective), micro_batches)
    whole = {name: each.clone() for name, each in gradients(model).items()}
    counts, sides = window_counts(micro_batches), []
    for domain in "ab":  # each domain's side of the objective alone, as a mean over its own tokens
        alone = {f"{role}/{domain}": sets[f"{role}/{domain}"] for role in ("forget", "retain")}
        other = objective.partition(" +")[0]
        step = Step(make_measurement(model, other), counts, measure=False)
        step.micro_batch(
            {"forget/a": sets["forget/a"], "retain/a": sets["retain/a"]} | alone if domain == "a" else alone, last=True
        )
        step.finish()
        share = counts[f"forget/{domain}"].token / counts["forget"].token
        sides.append({name: each / share for name, each in gradients(model).items()})
    expected: dict[str, Tensor] = {}
    for name, tensor in whole.items():
        stacked = torch.stack([side.get(name, torch.zeros_like(tensor)) for side in sides])
        ratio = stacked.mean(0).abs() / (stacked.std(0, correction=0) + 1e-8)
        expected[name] = torch.where(ratio > 1.5, tensor, 0.0)
    take_step(make_measurement(model, objective, "consistent(threshold=1.5)"), micro_batches)
    kept = sum(int((each != 0).sum()) for each in expected.values())
    assert 0 < kept < sum(each.numel() for each in expected.values()) / 2
    assert_gradients_close(gradients(model), expected, 1e-12)


def test_a_group_has_one_gram() -> None:
    """PCGrad over layer groups, beside flattened vectors of each."""
    model = _double("llama")
    groups = by_scope(model, "group")
    assert (
        set(groups.values()) == {"embed", "shallow", "middle", "deep", "lm_head"} & set(groups.values())
        and len(set(groups.values())) > 2
    )
    o, r = (oracles.gradient(model, lambda b=b: oracles.mean_nll(model, b)) for b in (FORGET, RETAIN))  # type: ignore[misc]
    o = {name: -each for name, each in o.items()}
    expected: dict[str, Tensor] = {}
    for group in set(groups.values()):
        names = [name for name in o if groups[name] == group]
        ours, theirs = oracles.flat(o, names), oracles.flat(r, names)
        scale = -min(0.0, float(ours @ theirs)) / float(theirs @ theirs)
        expected |= {name: o[name] + scale * r[name] for name in names}
    take_step(
        make_measurement(model, "ga", "pcgrad(scope=group)", layers=groups),
        split({"forget": FORGET, "retain": RETAIN}, 2),
    )
    assert_gradients_close(gradients(model), expected, EXACT)


@pytest.mark.parametrize("size", [4, 2])
@pytest.mark.parametrize("case", ["gpt2", "lora"])
def test_sam_differentiates_further_up(case: str, size: int) -> None:
    """Beside weights that are moved here: the whole window's gradient decides where to, whatever its micro-batches."""
    model = _double(case)
    parameters, batches = trainable_parameters(model), make_batches(model)
    before = {name: p.detach().clone() for name, p in parameters.items()}

    def descended(objective: str) -> dict[str, Tensor]:
        take_step(make_measurement(model, objective, tie=find_tied_weights(model)), [batches], measure=False)
        found = gradients(model)
        return {name: found[name].clone() if name in found else torch.zeros_like(p) for name, p in parameters.items()}

    g = descended("npo")
    length = torch.stack([each.square().sum() for each in g.values()]).sum().sqrt()
    for name, p in parameters.items():
        p.data.add_(0.05 * g[name] / length)
    up = descended("npo")
    for name, p in parameters.items():
        p.data.copy_(before[name])
    retain = oracles.gradient(model, lambda: oracles.mean_nll(model, batches["retain"]))
    expected = {name: up[name] + 0.5 * retain[name] for name in up}
    run = make_measurement(model, "sam(npo, rho=0.05) + 0.5*gd", tie=find_tied_weights(model))
    take_step(run, split(batches, size))
    assert all(torch.equal(p, before[name]) for name, p in parameters.items())
    assert_gradients_close(gradients(model), expected, 1e-10)
    assert float((_flat(up) - _flat(g)).norm()) > 1e-4 * float(length)
    gru = make_measurement(model, "sam(npo, rho=0.05)", "gru", tie=find_tied_weights(model))
    take_step(gru, split(batches, size))
    o, m = _flat(up), 0.8 * _flat(retain)
    rectified = o - min(0.0, float(o @ m)) / float(m @ m) * m
    found = {name: gradients(model).get(name, torch.zeros_like(p)) for name, p in parameters.items()}
    torch.testing.assert_close(_flat(found), rectified, rtol=1e-7, atol=1e-11)


def test_weights_are_back_where_sam_is_interrupted() -> None:
    model = _double("gpt2")
    parameters, batches = trainable_parameters(model), make_batches(model)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    run = make_measurement(model, "sam(npo)")
    step, forward = Step(run, window_counts([batches]), measure=False), run.forward
    step.ascend([batches])

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        assert not all(torch.equal(p, before[name]) for name, p in parameters.items())
        forward(*args, **kwargs)
        raise KeyboardInterrupt

    run.forward = interrupted
    with pytest.raises(KeyboardInterrupt):
        step.micro_batch(batches, last=True)
    assert all(torch.equal(p, before[name]) for name, p in parameters.items())


def test_a_metric_without_an_optimizer_is_refused() -> None:
    with pytest.raises(GeffectError, match="reads the optimizer's second moments, and no optimizer is given"):
        make_measurement(_double("llama"), "ga", "gru(metric=adam)")
