"""Each objective against a hand-written float64 twin that goes through single examples and tokens."""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from geffect.core.forward import Outputs, forward
from geffect.core.layers import trainable_parameters
from geffect.errors import GeffectError
from geffect.objectives.base import Counts, mean_nll
from geffect.objectives.dual import Dual
from geffect.objectives.registry import OBJECTIVES, make_objective
from geffect.objectives.retain import KL
from tests.support import oracles
from tests.support.cases import llama
from tests.support.properties import assert_gradients_close
from tests.support.worlds import LABELLINGS, SKIPPED, World, at_the_start, make_world, one_token_world, padded, parts

Twin = Callable[[World], Tensor]
Weight = Callable[[Tensor, Tensor], Tensor]


def _tokens(world: World, name: str, labels: str = "labels") -> Tensor:
    return torch.cat([world.nll(name, i, labels) for i in world.places(name)])


def _mean(world: World, name: str, labels: str = "labels") -> Tensor:
    tokens = _tokens(world, name, labels)
    return tokens.sum() / len(tokens)


def _weighted(weight: Weight) -> Twin:
    """(1/N) Σ w(p, p₀) log p with w a number."""

    def twin(world: World) -> Tensor:
        found = []
        for i in world.places("forget"):
            for nll, ref in zip(world.nll("forget", i), world.ref("forget", i), strict=True):
                found.append(weight(torch.exp(-nll.detach()), torch.exp(-ref)) * -nll)
        return torch.stack(found).sum() / len(found)

    return twin


def _npo(beta: float) -> Twin:
    def twin(world: World) -> Tensor:
        ratios = [
            torch.exp(-world.nll("forget", i).sum()) / torch.exp(-world.ref("forget", i).sum())
            for i in world.places("forget")
        ]
        return torch.stack([2 / beta * torch.log(1 + ratio**beta) for ratio in ratios]).mean()

    return twin


def _simnpo(beta: float, gamma: float) -> Twin:
    def twin(world: World) -> Tensor:
        means = [world.nll("forget", i).mean() for i in world.places("forget")]
        sigmas = [1 / (1 + torch.exp(-beta * (mean - gamma))) for mean in means]
        return torch.stack([-2 / beta * torch.log(sigma) for sigma in sigmas]).mean()

    return twin


def _tnpo(beta: float, epsilon: float = 0.0) -> Twin:
    def twin(world: World) -> Tensor:
        p = torch.exp(-_tokens(world, "forget"))
        p0 = torch.exp(-torch.cat([world.ref("forget", i) for i in world.places("forget")]))
        return (2 / beta * torch.log((p**beta + p0**beta + epsilon) / p0**beta)).mean()

    return twin


def _dpo(beta: float, scale: float) -> Twin:
    def twin(world: World) -> Tensor:
        found = []
        for i in world.places("forget"):
            won = world.ref("alternative", i).sum() - world.nll("alternative", i).sum()
            lost = world.ref("forget", i).sum() - world.nll("forget", i).sum()
            found.append(-scale * torch.log(1 / (1 + torch.exp(-beta * (won - lost)))))
        return torch.stack(found).mean()

    return twin


def _undial(beta: float) -> Twin:
    def twin(world: World) -> Tensor:
        found = []
        for i in world.places("forget"):
            log_p, log_ref = world.log_p("forget", i), world.log_p("forget", i, start=True).detach()
            for t in world.labeled("forget", i):
                lowered = log_ref[t - 1].clone()
                lowered[world.batches["forget"]["labels"][i, t]] -= beta
                total = lowered.exp().sum()
                found.append(
                    torch.stack([-z.exp() / total * p for z, p in zip(lowered, log_p[t - 1], strict=True)]).sum()
                )
        return torch.stack(found).mean()

    return twin


def _pdu(world: World) -> Tensor:
    """Of log-probabilities: the constant that they differ by from logits falls out."""
    found = [
        (max(world.log_p("forget", i)[t - 1]) - world.log_p("forget", i)[t - 1].mean()) ** 2
        for i in world.places("forget")
        for t in world.labeled("forget", i)
    ]
    return torch.stack(found).mean()


def _flat(world: World) -> Tensor:
    found = []
    for i in world.places("forget"):
        bad, good = (torch.exp(-world.nll(name, i)).mean() for name in ("forget", "alternative"))
        found.append(-0.5 * torch.tanh(good) + 0.5 * torch.tanh(bad))
    return torch.stack(found).mean()


def _ceu(skip: int) -> Twin:
    """CE-U as its paper writes it: the cross-entropy with the model's own distribution, the label at −∞, detached."""

    def twin(world: World) -> Tensor:
        found = []
        for i in world.places("forget"):
            log_p = world.log_p("forget", i)
            for t in world.labeled("forget", i)[skip:]:
                others = log_p[t - 1].detach().clone()
                others[world.batches["forget"]["labels"][i, t]] = -torch.inf
                found.append(-(others.softmax(-1) * log_p[t - 1]).sum())
        return torch.stack(found).mean()

    return twin


def _rmu(layer: int, c: float, *, normalized: bool, mean: bool) -> Twin:
    def twin(world: World) -> Tensor:
        u = torch.rand(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        target = c * (u / u.norm() if normalized else u)
        found = [
            (world.hidden("forget", i, layer)[t - 1] - target).square()
            for i in world.places("forget")
            for t in world.labeled("forget", i)
        ]
        return torch.stack([each.mean() if mean else each.sum() for each in found]).mean()

    return twin


def _kl(name: str) -> Twin:
    def twin(world: World) -> Tensor:
        found = []
        for i in world.places(name):
            log_p, log_ref = world.log_p(name, i), world.log_p(name, i, start=True).detach()
            for t in world.labeled(name, i):
                terms = [r.exp() * (r - p) for r, p in zip(log_ref[t - 1], log_p[t - 1], strict=True)]
                found.append(torch.stack(terms).sum())
        return torch.stack(found).mean()

    return twin


def _kl_everywhere(world: World) -> Tensor:
    """Prompt and padding included: the batch as it is padded."""
    batch = {key: world.batches["retain"][key] for key in ("input_ids", "attention_mask")}
    log_p, log_ref = (model(**batch).logits.log_softmax(-1) for model in (world.model, world.reference))
    found: Tensor = (log_ref.exp() * (log_ref - log_p)).sum(-1).mean()
    return found


def _rr(layer: int, *, mean: bool) -> Twin:
    def twin(world: World) -> Tensor:
        found = []
        for i in world.places("retain"):
            now, then = (world.hidden("retain", i, layer, start=start) for start in (False, True))
            found += [(now[t - 1] - then[t - 1].detach()).square() for t in world.labeled("retain", i)]
        return torch.stack([each.mean() if mean else each.sum() for each in found]).mean()

    return twin


def _pooled(world: World) -> Tensor:
    both = torch.cat([_tokens(world, "alternative"), _tokens(world, "retain")])
    return both.sum() / len(both)


def _ga(world: World) -> Tensor:
    return -_mean(world, "forget")


WEIGHTS: dict[str, Weight] = {
    "ga": lambda p, _: p**0,
    "wga(alpha=0)": lambda p, _: p**0,
    "wga": lambda p, _: p,
    "wga(alpha=5)": lambda p, _: p**5,
    "satimp": lambda p, _: p**5 * (1 - p),
    "satimp(beta1=2, beta2=0.5)": lambda p, _: p**2 * (1 - p) ** 0.5,
    "satimp(beta1=1, beta2=0)": lambda p, _: p,
    "ceu": lambda p, _: p / (1 - p),
    "tnpo": lambda p, q: 2 * p**4 / (p**4 + q**4),
    "tnpo(beta=0.5)": lambda p, q: 2 * p**0.5 / (p**0.5 + q**0.5),
    "tnpo(beta=2, epsilon=1e-5)": lambda p, q: 2 * p**2 / (p**2 + q**2 + 1e-5),
    "wtnpo": lambda p, q: 2 * p**5.5 / (p**4 + q**4),
    "wtnpo(beta=2, alpha=0)": lambda p, q: 2 * p**2 / (p**2 + q**2),
    "wtnpo(beta=1, alpha=0.5, epsilon=1e-5)": lambda p, q: 2 * p**1.5 / (p + q + 1e-5),
}
# whose weights are detached: the loss is no potential of the gradient
DETACHED = [text for text in WEIGHTS if text not in ("ga", "wga(alpha=0)") and not text.startswith("tnpo")]
SMOOTH: dict[str, Twin] = {
    "ga": _ga,
    "wga(alpha=0)": _ga,
    "npo(beta=0.1)": _npo(0.1),
    "npo(beta=2)": _npo(2.0),
    "simnpo": _simnpo(2.5, 0.0),
    "simnpo(beta=4.5, gamma=0.3)": _simnpo(4.5, 0.3),
    "tnpo": _tnpo(4.0),
    "tnpo(beta=0.5)": _tnpo(0.5),
    "tnpo(beta=2, epsilon=1e-5)": _tnpo(2.0, 1e-5),
    "po": lambda world: _mean(world, "alternative"),
    "po(variant=pooled) + gd(variant=pooled)": _pooled,
    "dpo": _dpo(0.1, 2 / 0.1),
    "dpo(beta=0.5, variant=tofu)": _dpo(0.5, 1.0),
    "undial": _undial(10.0),
    "undial(beta=0.7)": _undial(0.7),
    "pdu": _pdu,
    "flat": _flat,
    "rmu": _rmu(1, 20.0, normalized=True, mean=True),
    "rmu(layer=2, c=2, vector=raw)": _rmu(2, 2.0, normalized=False, mean=True),
    "rmu(layer=0, c=2, vector=raw, dims=sum)": _rmu(0, 2.0, normalized=False, mean=False),
    "random": lambda world: _mean(world, "forget", "random_aligned_labels"),
    "random(variant=knowundo)": lambda world: _mean(world, "forget", "random_knowundo_labels"),
    "adversarial": lambda world: _mean(world, "forget", "adversarial_aligned_labels"),
    "adversarial(variant=knowundo)": lambda world: _mean(world, "forget", "adversarial_knowundo_labels"),
    "sam(npo)": _npo(0.1),  # at θ itself; the two rounds are in tests/measurement/test_further_reads.py
    "ga + gd": lambda world: _ga(world) + _mean(world, "retain"),
    "ga + 0.5*gd(on=general)": lambda world: _ga(world) + 0.5 * _mean(world, "general"),
    "ga + kl": lambda world: _ga(world) + _kl("retain")(world),
    "ga + 3*kl(on=general)": lambda world: _ga(world) + 3 * _kl("general")(world),
    "ga + kl(variant=tofu)": lambda world: _ga(world) + _kl_everywhere(world),
    "ga + rr": lambda world: _ga(world) + _rr(1, mean=True)(world),
    "ga + rr(layer=2, dims=sum)": lambda world: _ga(world) + _rr(2, mean=False)(world),
    "ga + dual(gd, start=3)": lambda world: _ga(world) + _mean(world, "retain"),  # λ enters with a step's state
    "ga + 0.5*dual(kl(on=general))": lambda world: _ga(world) + 0.5 * _kl("general")(world),
    "0.3*npo(beta=2) + 0.5*simnpo": lambda world: 0.3 * _npo(2.0)(world) + 0.5 * _simnpo(2.5, 0.0)(world),
}
ALL = sorted({*SMOOTH, *DETACHED})
PADDED = ["ceu(skip=1)"] + [text for text in ALL if "variant=tofu" not in text or text.startswith("dpo")]
LEVELS = {
    "npo(beta=0.1)": "example",
    "npo(beta=2)": "example",
    "simnpo": "example",
    "simnpo(beta=4.5, gamma=0.3)": "example",
}


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


def test_every_objective_has_a_twin() -> None:
    assert {name for text in ALL for name in re.findall(r"[a-z]+(?![a-z0-9]*=)", text)} >= set(OBJECTIVES)


@pytest.mark.parametrize("text", ALL)
def test_loss_and_gradient_equal_the_twin(text: str, world: World) -> None:
    twin, objective = SMOOTH.get(text) or _weighted(WEIGHTS[text]), make_objective(text)
    assert torch.allclose(world.loss(objective), twin(world), rtol=1e-10)
    found = oracles.gradient(world.model, lambda: world.loss(objective))
    assert_gradients_close(found, oracles.gradient(world.model, lambda: twin(world)), 1e-10)


@pytest.mark.parametrize("text", WEIGHTS)
def test_token_weights_are_the_formulas(text: str, world: World) -> None:
    objective = make_objective(text)
    outputs = world.outputs(objective, "forget")
    weights = objective.forget_weights(outputs)
    assert weights is not None and not weights.requires_grad
    assert not weights[~outputs.mask].any()
    for i in world.places("forget"):
        p, q = torch.exp(-world.nll("forget", i).detach()), torch.exp(-world.ref("forget", i))
        expected = torch.stack([WEIGHTS[text](a, b) for a, b in zip(p, q, strict=True)])
        assert torch.allclose(weights[i][outputs.mask[i]], expected, rtol=1e-10), i


@pytest.mark.parametrize("text", [*WEIGHTS, *LEVELS])
def test_the_gradient_is_the_weighted_sum_of_token_gradients(text: str, world: World) -> None:
    objective = make_objective(text)
    outputs = world.outputs(objective, "forget")
    weights = objective.forget_weights(outputs)
    assert weights is not None
    count = outputs.mask.sum() if LEVELS.get(text) is None else len(weights)

    def weighted() -> Tensor:
        return -(weights * forward(world.model, world.batches["forget"]).nll).sum() / count

    found = oracles.gradient(world.model, lambda: world.loss(objective))
    assert_gradients_close(oracles.gradient(world.model, weighted), found, 1e-10)


@pytest.mark.parametrize("text", ["dpo", "dpo(beta=0.5, variant=tofu)"])
def test_dpo_pulls_both_answers_by_one_weight(text: str, world: World) -> None:
    objective = make_objective(text)
    outputs = world.outputs(objective, "forget")
    weights = objective.forget_weights(outputs)
    assert weights is not None
    pull = weights.max(1).values  # [B]: one number an example

    def weighted() -> Tensor:
        lost, won = (forward(world.model, world.batches[name]).nll.sum(1) for name in ("forget", "alternative"))
        return (pull * (won - lost)).mean()

    found = oracles.gradient(world.model, lambda: world.loss(objective))
    assert_gradients_close(oracles.gradient(world.model, weighted), found, 1e-10)


@pytest.mark.parametrize("skip", [0, 1])
def test_ceu_has_the_gradient_of_its_papers_cross_entropy(skip: int, world: World) -> None:
    found = oracles.gradient(world.model, lambda: world.loss(make_objective(f"ceu(skip={skip})")))
    assert_gradients_close(found, oracles.gradient(world.model, lambda: _ceu(skip)(world)), 1e-10)


@pytest.mark.parametrize("gap", [1e-4, 1e-9, 1e-30, 0.0])
def test_ceu_is_right_where_a_token_is_certain_in_float32(gap: float) -> None:
    """1 − p = 1e-9 vanishes in float32 beside 1; the oracle is autograd of the published loss in float64."""
    logits = torch.cat([torch.zeros(1), torch.tensor([0.2, 0.5, 0.3]).log() + math.log(gap or 1e-300)])[None]
    logits.requires_grad_()  # the label is entry 0
    wide = logits.detach().double().requires_grad_()
    outputs = Outputs(logits, torch.tensor([[-100, 0]]), torch.tensor([0]))
    make_objective("ceu").loss("forget", outputs, {"forget": Counts(1, 1)}).backward()
    others = wide.detach().clone()
    others[0, 0] = -torch.inf
    (-(others.softmax(-1)[:, 1:] * wide.log_softmax(-1)[:, 1:]).sum()).backward()
    assert wide.grad is not None and logits.grad is not None
    if gap:
        assert torch.allclose(logits.grad.double(), wide.grad, rtol=1e-6, atol=0)
    else:
        assert torch.isfinite(logits.grad).all() and logits.grad.abs().max() <= 1


@pytest.mark.parametrize("beta", [0.5, 10.0])
def test_undials_first_step_is_weighted_ascent(beta: float, world: World) -> None:
    start, k = at_the_start(world), 1 - math.exp(-beta)
    found = oracles.gradient(start.model, lambda: start.loss(make_objective(f"undial(beta={beta})")))
    twin = _weighted(lambda p, _: k * p / (1 - k * p))
    assert_gradients_close(found, oracles.gradient(start.model, lambda: twin(start)), 1e-10)


@pytest.mark.parametrize("rest", [0.5, 1e-4, 1e-9])
def test_undials_gradient_is_right_in_float32(rest: float) -> None:
    logits = torch.cat([torch.zeros(1), torch.tensor([0.2, 0.5, 0.3]).log() + math.log(rest)])[None]
    reference = (logits * 1.1).double()
    logits.requires_grad_()
    wide = logits.detach().double().requires_grad_()
    outputs = Outputs(logits, torch.tensor([[-100, 0]]), torch.tensor([0]), ref_logits=reference.float())
    make_objective("undial").loss("forget", outputs, {"forget": Counts(1, 1)}).backward()
    lowered = reference.clone()
    lowered[0, 0] -= 10
    loss = -(lowered.softmax(-1) * wide.log_softmax(-1)).sum()
    loss.backward()
    assert wide.grad is not None and logits.grad is not None
    assert torch.allclose(logits.grad.double(), wide.grad, rtol=3e-3, atol=0), logits.grad.double() / wide.grad - 1


def test_flat_weighs_the_true_answers_tokens(world: World) -> None:
    objective = make_objective("flat")
    outputs = world.outputs(objective, "forget")
    weights = objective.forget_weights(outputs)
    assert weights is not None and not weights.requires_grad and not weights[~outputs.mask].any()

    def forget_side() -> Tensor:
        means = [torch.exp(-world.nll("forget", i)).mean() for i in world.places("forget")]
        return torch.stack([0.5 * torch.tanh(mean) for mean in means]).mean()

    def weighted() -> Tensor:
        return -(weights * forward(world.model, world.batches["forget"]).nll).sum() / len(weights)

    expected = oracles.gradient(world.model, forget_side)
    assert_gradients_close(oracles.gradient(world.model, weighted), expected, 1e-10)


@pytest.mark.parametrize("text", SMOOTH)
def test_a_directional_derivative_equals_finite_differences(text: str) -> None:
    world, objective = make_world(), make_objective(text)
    gradient = oracles.gradient(world.model, lambda: world.loss(objective))
    slope = sum(float(g.square().sum()) for g in gradient.values())
    step = 1e-5 / math.sqrt(slope)
    values = []
    for sign in (1, -2):
        with torch.no_grad():
            for name, parameter in trainable_parameters(world.model).items():
                parameter.add_(gradient[name], alpha=sign * step)
            values.append(float(world.loss(objective)))
    assert (values[0] - values[1]) / (2 * step) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("text", [*PADDED, "loss"])
def test_padding_changes_nothing(text: str) -> None:
    world = make_world(llama)

    def loss(batches: Any) -> Tensor:
        if text == "loss":
            return mean_nll(forward(world.model, batches["forget"]), Counts.of([batches["forget"]]))
        return world.loss(make_objective(text), batches)

    wide = padded(world.batches, 6)
    found = oracles.gradient(world.model, lambda: loss(wide))
    assert_gradients_close(found, oracles.gradient(world.model, lambda: loss(world.batches)), 1e-5)


def test_the_published_mean_over_positions_does_depend_on_padding(world: World) -> None:
    objective = make_objective("ga + kl(variant=tofu)")
    narrow, wide = (world.loss(objective, batches) for batches in (world.batches, padded(world.batches, 6)))
    assert not torch.allclose(narrow, wide, rtol=1e-6)


@pytest.mark.parametrize("text", PADDED)
def test_splitting_a_batch_changes_nothing_when_counts_are_the_windows(text: str, world: World) -> None:
    objective = make_objective(text)
    counts = {name: Counts.of([batch]) for name, batch in world.batches.items()}
    for sizes in ((1, 1, 1), (2, 1)):
        shares = [world.loss(objective, each, counts) for each in parts(world.batches, sizes)]
        assert torch.allclose(torch.stack(shares).sum(), world.loss(objective), rtol=1e-12), sizes


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("wga(alpha=0)", "ga"),
        ("satimp(beta1=3, beta2=0)", "wga(alpha=3)"),
        ("satimp(beta1=0, beta2=0)", "ga"),
        ("wtnpo(beta=2, alpha=0)", "tnpo(beta=2)"),
        ("wtnpo(beta=2, alpha=0, epsilon=1e-5)", "tnpo(beta=2, epsilon=1e-5)"),
        ("0.25*ga + 0.75*ga", "ga"),
    ],
)
def test_special_cases_have_the_same_gradient(text: str, other: str, world: World) -> None:
    found, expected = (oracles.gradient(world.model, partial(world.loss, make_objective(t))) for t in (text, other))
    assert_gradients_close(found, expected, 1e-12)


@pytest.mark.parametrize("beta", [0.5, 4.0])
def test_on_rows_of_one_token_tnpo_is_npo(beta: float) -> None:
    world = one_token_world()
    token, example = (make_objective(f"{name}(beta={beta})") for name in ("tnpo", "npo"))
    assert torch.allclose(world.loss(token), world.loss(example), rtol=1e-12)
    found, expected = (oracles.gradient(world.model, partial(world.loss, each)) for each in (token, example))
    assert_gradients_close(found, expected, 1e-12)


def test_npo_with_a_vanishing_beta_is_ascent_on_sequence_sums(world: World) -> None:
    def ascent() -> Tensor:
        return -torch.stack([world.nll("forget", i).sum() for i in world.places("forget")]).mean()

    found = oracles.gradient(world.model, lambda: world.loss(make_objective("npo(beta=1e-7)")))
    assert_gradients_close(found, oracles.gradient(world.model, ascent), 1e-5)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_npo_starts_at_weight_one_and_two_over_beta_log_two(beta: float, world: World) -> None:
    start = at_the_start(world)
    for name in ("npo", "tnpo"):
        objective = make_objective(f"{name}(beta={beta})")
        outputs = start.outputs(objective, "forget")
        weights = objective.forget_weights(outputs)
        assert weights is not None
        assert torch.allclose(weights[outputs.mask], torch.ones(()).double(), rtol=1e-12)
        assert float(start.loss(objective).detach()) == pytest.approx(2 / beta * math.log(2), rel=1e-12)


@pytest.mark.parametrize(("text", "weight"), [("dpo(beta=0.3)", 1.0), ("dpo(beta=0.3, variant=tofu)", 0.15)])
def test_dpo_starts_at_c_beta_over_two(text: str, weight: float, world: World) -> None:
    start, objective = at_the_start(world), make_objective(text)
    outputs = start.outputs(objective, "forget")
    weights = objective.forget_weights(outputs)
    assert weights is not None
    assert torch.allclose(weights[outputs.mask], torch.tensor(weight).double(), rtol=1e-12)


@pytest.mark.parametrize("text", ["kl", "kl(variant=tofu)", "kl(on=general)", "rr", "rr(on=general, dims=sum)"])
def test_at_the_start_a_reference_part_is_zero_with_zero_gradient(text: str, world: World) -> None:
    start, ga, both = at_the_start(world), make_objective("ga"), make_objective(f"ga + 7*{text}")
    assert float(start.loss(both).detach()) == pytest.approx(float(start.loss(ga).detach()), abs=1e-12)
    alone = oracles.gradient(start.model, lambda: start.loss(ga))
    assert_gradients_close(oracles.gradient(start.model, lambda: start.loss(both)), alone, 1e-12)


def test_simnpo_weighs_a_certain_row_by_one_over_its_length() -> None:
    outputs = Outputs(torch.zeros(3, 3), torch.tensor([[-100, 1, 1, 1]]), torch.arange(3))
    object.__setattr__(outputs, "nll", torch.zeros(1, 4))
    weights = make_objective("simnpo").forget_weights(outputs)
    assert weights is not None
    assert weights[0, :3].tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("text", ["npo", "dpo", "tnpo", "wtnpo", "satimp", "simnpo"])
def test_sequences_whose_probability_underflows_stay_finite(text: str) -> None:
    nll = torch.full((1, 4), 1e4, requires_grad=True)
    other = Outputs(torch.zeros(3, 3), torch.tensor([[-100, 1, 1, 1]]), torch.arange(3), torch.zeros(1, 4))
    outputs = Outputs(torch.zeros(3, 3), other.labels, torch.arange(3), torch.zeros(1, 4), alternative=other)
    object.__setattr__(outputs, "nll", nll * outputs.mask)
    object.__setattr__(other, "nll", torch.full((1, 4), 5e3) * other.mask)
    loss = make_objective(text).loss("forget", outputs, {"forget": Counts(3, 1)})
    loss.backward()
    assert torch.isfinite(loss)
    assert nll.grad is not None and torch.isfinite(nll.grad).all()


@pytest.mark.parametrize(
    ("text", "need"),
    [
        ("npo", "ref_nll"),
        ("tnpo", "ref_nll"),
        ("wtnpo", "ref_nll"),
        ("dpo", "alternative"),
        ("flat", "alternative"),
        ("undial", "ref_logits"),
        ("ceu(skip=1)", SKIPPED),
        ("rmu", "hidden"),
        ("random", "random_aligned_labels"),
        ("adversarial(variant=knowundo)", "adversarial_knowundo_labels"),
    ],
)
def test_a_need_that_is_not_met_is_named(text: str, need: str) -> None:
    batch = {k: v for k, v in make_world(llama).batches["forget"].items() if not k.endswith("_labels")}
    batch.pop("ref_nll")
    counts = Counts(3, 1, labeled=dict.fromkeys([*LABELLINGS, SKIPPED], 1))
    with pytest.raises(GeffectError, match=f"needs {need}, which|no labels '{need}'"):
        make_objective(text).loss("forget", forward(llama(), batch), {"forget": counts})


@pytest.mark.parametrize(("text", "need"), [("ga + kl", "ref_logits"), ("ga + rr", "hidden")])
def test_a_retain_parts_need_is_named(text: str, need: str) -> None:
    batch = make_world(llama).batches["retain"]
    with pytest.raises(GeffectError, match=f"This objective needs {need}, which the outputs do not have"):
        make_objective(text).loss("retain", forward(llama(), batch), {"retain": Counts.of([batch])})


def test_needs_and_multiples_follow_from_the_terms() -> None:
    both = make_objective("npo(beta=1) + 2.0*gd")
    assert both.needs == {"ref_nll"}
    assert both.forget_multiple is None
    assert both.retain_multiple == 2.0
    assert make_objective("0.5*ga + 0.25*ga").forget_multiple == -0.75
    assert make_objective("ga").needs == frozenset()
    assert make_objective("ga + kl + rr(on=general)").needs_on("general") == {"hidden", "ref_hidden"}


@pytest.mark.parametrize("text", ["gd", "0.5*gd + gd", "kl", "rr + kl"])
def test_an_objective_unlearns_something(text: str) -> None:
    with pytest.raises(GeffectError, match="forget set"):
        make_objective(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ga + dual", "dual needs a term. Write dual(TERM)"),
        ("ga + dual(eps=0.3)", "dual needs a term. Write dual(TERM)"),
        ("ga + dual(ga)", "dual takes a term on a retain or general set, not GA. Write dual(gd)"),
        ("ga + dual(2*gd)", "The term in dual(…) has the weight 2. Write the weight before dual"),
        ("ga + dual(dual(gd))", "dual takes a term without a state of its own. Write dual once"),
        ("ga + dual(gd, eta=0)", "eta of dual is 0. It should be greater than 0"),
        ("ga + dual(gd, start=-1)", "start of dual is -1. It should be greater than or equal to 0"),
        ("ga + dual(gd, term=gd)", "dual has no parameter 'term'. It has eps, eta, start"),
        ("ga + dual(gdd)", "'gdd' is not an objective. Did you mean gd?"),
        ("ga(gd)", "ga takes no term such as 'gd'. Write its parameters by name"),
        ("ceu(skip=-1)", "skip of ceu is -1. It should be greater than or equal to 0"),
        ("undial(beta=0)", "beta of undial is 0. It should be greater than 0"),
        ("flat(answers=3)", "answers of flat is 3. It should be a valid string"),
        ("pdu(eps=1)", "pdu has no parameter 'eps'. It has none"),
    ],
)
def test_what_does_not_fit_is_refused(text: str, says: str) -> None:
    with pytest.raises(GeffectError, match=re.escape(says)):
        make_objective(text)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("GradAscent", "ga"),
        ("0.5*GradDiff + kl", "0.5*ga + 0.5*gd + kl"),
        ("IdkNLL(answers='mine.txt')", "po(answers='mine.txt')"),
        ("2*IdkDPO(beta=0.5, variant=tofu)", "2*dpo(beta=0.5, variant=tofu)"),
    ],
)
def test_an_alias_stands_for_its_terms(text: str, other: str) -> None:
    objective = make_objective(text)
    assert objective.terms == make_objective(other).terms
    assert objective.text == text


@pytest.mark.parametrize("text", ["GradDiff(beta=1)", "GradDiff(gd)", "ga + dual(GradDiff)"])
def test_an_alias_of_a_sum_is_no_term(text: str) -> None:
    with pytest.raises(GeffectError, match=r"graddiff stands for the sum 'ga \+ gd', not for one term. Write the sum"):
        make_objective(text)


def test_an_alias_is_taken() -> None:
    with pytest.raises(GeffectError, match="'GradDiff' is taken"):
        OBJECTIVES.register("GradDiff")


def test_a_wrapper_is_written_as_it_is_read() -> None:
    term = Dual(KL(on="general"), eps=0.1)
    assert OBJECTIVES.write(term) == "dual(kl(on='general'), eps=0.1)"
    assert make_objective(f"ga + {OBJECTIVES.write(term)}").terms[1] == (1.0, term)
    with pytest.raises(GeffectError, match=r"term of Dual is 3. It should be a Term"):
        Dual(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["npo", "simnpo", "tnpo", "wtnpo", "dpo"])
def test_a_beta_that_cannot_be_divided_by_is_refused(name: str) -> None:
    with pytest.raises(GeffectError, match=f"beta of {name} is 0. It should be greater than 0"):
        make_objective(f"{name}(beta=0)")
