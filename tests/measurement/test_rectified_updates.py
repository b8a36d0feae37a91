"""The combinations of gradients on models: beside flattened vectors, and what SGD and AdamW apply of a guarantee."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from geffect.core.layers import find_tied_weights, layout, trainable_parameters
from geffect.measurement.measurement import Measured, Measurement
from geffect.rectifiers.base import InnerProducts
from geffect.rectifiers.registry import make_rectifier
from tests.conftest import sweep
from tests.support import oracles
from tests.support.cases import CASES, make_batch
from tests.support.properties import assert_gradients_close, assert_gram_close
from tests.support.steps import FORGET, RETAIN, Batches, gradients, make_measurement, open_step, split, take_step

Gradients = dict[str, Tensor]
OBJECTIVE = "ga + 0.5*gd"
RULES = ("pcgrad", "pcgrad(alpha=0.5)", "blur", "ngdiff", "hamu", "hamu(gain=0.3, radius=0.1)")
ENTRIES = ("sago(alpha=0.5, gamma=2)", "disruption")
EXACT = 1e-6  # of float32 products, relative to the lengths


def _losses(model: Any, batches: Batches) -> list[Gradients]:
    """Objective, forget, retain: one gradient at a time."""
    forget, retain = (
        oracles.gradient(model, lambda batch=batches[name]: oracles.mean_nll(model, batch))  # type: ignore[misc]
        for name in ("forget", "retain")
    )
    return [{name: 0.5 * retain[name] - forget[name] for name in forget}, forget, retain]


def _formula(text: str, o: Tensor, f: Tensor, r: Tensor) -> Tensor:
    """Each rule of flat float64 vectors, as its source writes it."""
    d: Tensor
    if text.startswith("pcgrad"):
        d = o - min(0.0, float(o @ r)) / float(r @ r) * r + (0.5 if "alpha" in text else 0.0) * r
        return d
    if text.startswith("blur"):
        d = r + (1 - float(r @ o) / float(o @ o)) * o
        return d
    if text.startswith("ngdiff"):
        d = r / r.norm() - f / f.norm()
        return d
    gain, radius = (0.3, 0.1) if "radius" in text else (0.5, float(o.norm()))
    wanted = gain * radius * float(f.norm())
    if float(f @ r) <= -wanted * float(r.norm()) / radius:
        d = radius * r / r.norm()
        return d
    across = r - float(f @ r) / float(f @ f) * f
    rest = math.sqrt(radius**2 - wanted**2 / float(f @ f))
    d = rest * across / across.norm() - wanted / float(f @ f) * f
    return d


@sweep(4, case=["llama", "lora"], text=list(RULES), scope=["model", "layer", "parameter"], size=[4, 1])
def test_a_rule_equals_its_formula_in_flattened_vectors(case: str, text: str, scope: str, size: int) -> None:
    model = CASES[case]()
    layers = layout(model).layers
    label = {"model": dict.fromkeys(layers, ""), "layer": layers, "parameter": {name: name for name in layers}}[scope]
    objective, forget, retain = _losses(model, {"forget": FORGET, "retain": RETAIN})
    expected: Gradients = {}
    for part in dict.fromkeys(label.values()):
        names = [name for name in layers if label[name] == part]
        vectors = [oracles.flat(each, names) for each in (objective, forget, retain)]
        known = all(each.any() for each in vectors)  # all are zero at an adapter's first factor: the other one is
        rectified = _formula(text, *vectors) if known else torch.zeros_like(vectors[0])
        sizes = [objective[name].numel() for name in names]
        expected |= {
            name: flat.view_as(objective[name]) for name, flat in zip(names, rectified.split(sizes), strict=True)
        }
    with_scope = f"{text[:-1]}, scope={scope})" if "(" in text else f"{text}(scope={scope})"
    measurement = make_measurement(model, OBJECTIVE, with_scope, layers=layers)
    measured = take_step(measurement, split({"forget": FORGET, "retain": RETAIN}, size))
    assert_gradients_close(gradients(model), expected, 2e-5)
    seen = {name: gradient.clone() for name, gradient in gradients(model).items()}
    take_step(measurement, split({"forget": FORGET, "retain": RETAIN}, size), measure=False)
    assert all(torch.equal(gradient, seen[name]) for name, gradient in gradients(model).items())
    _read_back(text, scope, measured)


def _read_back(text: str, scope: str, measured: Measured) -> None:
    """The rule needs no model: the record's inner products give the coefficients it had."""
    assert measured.gram is not None
    total, names = measured.gram.total(), measured.gram.names
    if scope == "model":
        d = torch.tensor([float(n == "rectified") for n in names]).double()
        for name, coefficient in make_rectifier(text).coefficients(InnerProducts(names, total)).items():
            d[names.index(name)] -= coefficient
        assert float(d @ total @ d) <= 1e-9 * float(total.diagonal().max())


def _batches(seed: int) -> list[Batches]:
    forget, retain = make_batch([9, 5, 7, 12], seed=seed), make_batch([6, 8, 4, 11], seed=50 + seed)
    return split({"forget": forget, "retain": retain}, 2)


def _update(measurement: Measurement, stepper: torch.optim.Optimizer, seed: int) -> tuple[Measured, InnerProducts]:
    """A step, and its inner products with ``rectified``, ``update`` and ``applied`` among them."""
    step = open_step(measurement, _batches(seed))
    finished = step.finish()
    stepper.step()
    measured = step.after(dict.fromkeys(measurement.parameters, 1e-2))
    stepper.zero_grad()
    assert measured is not None and measured.gram is not None
    return finished, InnerProducts(measured.gram.names, measured.gram.total())


def _cosine(gram: InnerProducts, a: str, b: str) -> float:
    return gram[a, b] / math.sqrt(gram[a, a] * gram[b, b] or 1.0)


def _margins(text: str, gram: InnerProducts, direction: str, scale: float) -> list[float]:
    """The stated guarantees as numbers that are not negative, in cosines; the direction is ``scale`` times d."""
    retain, forget = _cosine(gram, "retain", direction), _cosine(gram, "forget", direction)
    length = math.sqrt(gram[direction, direction])
    if text.startswith("pcgrad") or text in ("sago", "disruption"):
        return [retain]
    if text.startswith("blur"):
        share = gram["objective", direction] / scale / gram["objective", "objective"]
        return [-abs(share - 1) * math.sqrt(gram["objective", "objective"]) / (length / scale)]
    if text.startswith("ngdiff"):
        return [retain, -forget]
    if text.startswith("hamu"):
        share = length / scale / math.sqrt(gram["objective", "objective"])
        return [-forget * share - 0.5, 1 - share]
    return [_cosine(gram, name, direction) for name in gram.names if name.startswith("retain_")]


@pytest.mark.parametrize("size", [4, 1])
@pytest.mark.parametrize("text", ENTRIES)
@pytest.mark.parametrize("case", ["llama", "llama-tied", "lora"])
def test_an_elementwise_rule_equals_its_formula(case: str, text: str, size: int) -> None:
    model = CASES[case]().double()
    objective, forget, retain = _losses(model, {"forget": FORGET, "retain": RETAIN})
    expected: Gradients = {}
    for name, o in objective.items():
        r = retain[name]
        sago = torch.where(o * r < 0, 0.5 * r, 2 * o)
        expected[name] = sago if text.startswith("sago") else torch.where(o.sign() == r.sign(), o, torch.zeros_like(o))
    layers = layout(model).layers
    settings: dict[str, Any] = {"tie": find_tied_weights(model), "layers": layers, "overlap": 0.1}
    measured = take_step(
        make_measurement(model, OBJECTIVE, text, **settings), split({"forget": FORGET, "retain": RETAIN}, size)
    )
    assert_gradients_close(gradients(model), expected, 1e-10)
    assert measured.gram is not None
    assert measured.gram.names == ("objective", "forget", "retain", "rectified")
    vectors = [objective, forget, retain, expected]
    assert_gram_close(measured.gram.total(), oracles.gram(vectors, list(objective)), 1e-9)
    assert measured.parts["overlap"].names == measured.gram.names
    seen = {name: gradient.clone() for name, gradient in gradients(model).items()}
    plain = make_measurement(model, OBJECTIVE, text, **settings)
    take_step(plain, split({"forget": FORGET, "retain": RETAIN}, size), measure=False)
    assert all(torch.equal(gradient, seen[name]) for name, gradient in gradients(model).items())


def test_the_rectified_gradient_is_the_one_before_clipping() -> None:
    model = CASES["llama"]()
    measurement = make_measurement(model, "ga", "sago", keep=True)
    step = open_step(measurement, _batches(0))
    finished = step.finish()
    torch.nn.utils.clip_grad_norm_(list(trainable_parameters(model).values()), 1e-3)
    torch.optim.SGD(trainable_parameters(model).values(), lr=1e-2).step()
    measured = step.after(dict.fromkeys(measurement.parameters, 1e-2))
    assert finished.gram is not None and measured is not None and measured.gram is not None
    size = len(finished.gram.names)
    assert finished.gram.names[-1] == "rectified"
    assert_gram_close(measured.gram.total()[:size, :size], finished.gram.total(), 1e-6)


@pytest.mark.parametrize("case", ["llama", "lora"])
@pytest.mark.parametrize("text", ["pcgrad", "blur", "ngdiff", "hamu", "gem(memory=3)", "sago", "disruption"])
def test_the_guarantee_holds_of_what_sgd_applies_and_not_of_what_adamw_applies(text: str, case: str) -> None:
    """Of the rectified gradient it holds under both."""
    worst: dict[tuple[str, str], float] = {}
    for name in ("sgd", "adamw"):
        model = CASES[case]()
        measurement = make_measurement(model, "ga", text, keep=True)
        parameters = list(trainable_parameters(model).values())
        rate = 1e-2
        stepper = torch.optim.SGD(parameters, lr=rate) if name == "sgd" else torch.optim.AdamW(parameters, lr=rate)
        found: dict[str, list[float]] = {"rectified": [], "applied": []}
        for seed in range(8):
            finished, gram = _update(measurement, stepper, seed)
            found["rectified"] += _margins(text, gram, "rectified", 1.0)
            found["applied"] += _margins(text, gram, "applied", rate)
            assert finished.scalars.get("kkt_residual", 0.0) <= 1e-10
            assert ("kkt_residual" in finished.scalars) == text.startswith("gem")
        worst |= {(name, each): min(margins) for each, margins in found.items()}
    assert worst["sgd", "rectified"] >= -EXACT
    assert worst["adamw", "rectified"] >= -EXACT
    assert worst["sgd", "applied"] >= -1e-4  # θ moves by whole units of float32
    spares = text in ("ngdiff", "sago", "disruption")  # in these steps; they have no guarantee either
    assert (worst["adamw", "applied"] < -1e-3) == (not spares)


@pytest.mark.parametrize("text", ["sago", "disruption"])
@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adamw"])
def test_no_entry_moves_against_the_retain_gradient_unless_an_optimizer_has_momentum(name: str, text: str) -> None:
    model = CASES["llama"]()
    measurement = make_measurement(model, "ga", text, keep=True)
    parameters = list(trainable_parameters(model).values())
    makers: dict[str, Any] = {"sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop, "adamw": torch.optim.AdamW}
    stepper = makers[name](parameters, lr=1e-3)
    against = []
    for seed in range(4):
        step = open_step(measurement, _batches(seed))
        step.finish()
        before = {n: p.detach().clone() for n, p in measurement.parameters.items()}
        retain = {n: t.clone() for n, t in step.gradient("retain").items()}
        stepper.step()
        step.after(dict.fromkeys(measurement.parameters, 1e-3))
        moved = {n: before[n] - p.detach() for n, p in measurement.parameters.items()}
        against.append(sum(int((moved[n] * t < 0).sum()) for n, t in retain.items()))
        stepper.zero_grad()
    assert against[0] == 0 or name == "adamw"  # which decays weights from the first step on
    assert any(against) == (name == "adamw")


@pytest.mark.parametrize("case", ["llama", "lora"])
@pytest.mark.parametrize("scope", ["model", "layer"])
@pytest.mark.parametrize("space", ["update", "both"])
def test_gem_in_the_space_of_updates_holds_of_what_adamw_applies(space: str, scope: str, case: str) -> None:
    model = CASES[case]()
    layers = layout(model).layers
    rule = f"gem(memory=3, space={space}, scope={scope})"
    measurement = make_measurement(model, "ga", rule, keep=True, layers=layers)
    stepper = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-2, weight_decay=0.1)
    before = []
    for seed in range(6):
        step = open_step(measurement, _batches(seed))
        step.finish()
        stepper.step()
        measured = step.after(dict.fromkeys(measurement.parameters, 1e-2))
        assert measured is not None and measured.gram is not None
        assert measured.scalars["update_kkt_residual"] <= 1e-10
        totals = measured.gram.by(layers).values() if scope == "layer" else [measured.gram.total()]
        for gram in (InnerProducts(measured.gram.names, total) for total in totals):
            for name in measurement.rectifier.memories:
                before.append(_cosine(gram, name, "update"))
                assert _cosine(gram, name, "applied") >= -1e-4
    assert min(before) < -1e-3


@pytest.mark.parametrize("case", ["llama", "lora", "tied"])
def test_gem_remembers_the_retain_gradients_of_the_last_steps(case: str) -> None:
    """Beside the projection of flat vectors on those that another pass computed, step by step."""
    from geffect.rectifiers.gem import multipliers

    model = CASES[case]() if case in CASES else CASES["gpt2"]()
    measurement = make_measurement(model, OBJECTIVE, "gem(memory=3)", tie=find_tied_weights(model))
    stepper = torch.optim.SGD(trainable_parameters(model).values(), lr=0.05)
    memories: list[Tensor] = []
    for seed in range(5):
        names = list(trainable_parameters(model))
        batches = _batches(seed)
        whole = {"forget": make_batch([9, 5, 7, 12], seed=seed), "retain": make_batch([6, 8, 4, 11], seed=50 + seed)}
        objective, _, retain = _losses(model, whole)
        memories = [oracles.flat(retain, names), *memories][:3]
        stacked = torch.stack([oracles.flat(objective, names), *memories])
        weights = multipliers((stacked @ stacked.T).numpy())
        expected = stacked[0] + torch.from_numpy(weights) @ stacked[1:]
        measured = take_step(measurement, batches)
        found = oracles.flat(gradients(model), names)
        assert float((found - expected).norm()) <= 2e-5 * float(stacked[0].norm())
        assert measured.gram is not None
        order = measured.gram.names
        assert order == ("objective", "forget", "retain", "retain_0", "retain_1", "retain_2", "rectified")
        first = [order.index(name) for name in ("retain_0", "retain")]
        assert measured.gram.total()[first[0], first[0]] == pytest.approx(float(memories[0] @ memories[0]), rel=1e-5)
        stepper.step()
        stepper.zero_grad()
