"""Standard errors of a window, and norms without the gradient's own variance, against stored micro-batch gradients."""

import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from geffect.core.layers import find_tied_weights, layout, split_layout, trainable_parameters
from geffect.measurement.basis import Shares, standard_errors
from geffect.objectives.base import Counts
from geffect.objectives.registry import make_objective
from tests.support import oracles
from tests.support.cases import CASES, gpt2
from tests.support.properties import assert_gradients_close
from tests.support.steps import Batches, gradients, make_batches, make_measurement, split, take_step

NAMES = ("objective", "forget", "retain")


def _shares(model: Any, text: str, windows: list[Batches]) -> list[list[Tensor]]:
    """B times each micro-batch's share of each gradient, flattened, in float64."""
    objective, names = make_objective(text), list(trainable_parameters(model))
    counts = {name: Counts.of([each[name] for each in windows]) for name in windows[0]}
    measurement = make_measurement(model, text)
    found = []
    for batches in windows:

        def loss(batches: Batches = batches) -> Tensor:
            sets = [name for name in batches if objective.on(name)]
            parts = [objective.loss(name, measurement.outputs(name, batches, dropout=False), counts) for name in sets]
            return torch.stack(parts).sum()

        def share(name: str, batches: Batches = batches) -> Tensor:
            tokens = Counts.of([batches[name]]).token
            return oracles.mean_nll(model, batches[name]) * tokens / counts[name].token

        vectors = [oracles.gradient(model, loss), *(oracles.gradient(model, partial(share, n)) for n in NAMES[1:])]
        found.append([len(windows) * oracles.flat(vector, names) for vector in vectors])
    return found


@pytest.mark.parametrize("text", ["ga", "npo + 0.5*gd", "ga + gd", "po"])
def test_linearized_effects_and_halves_equal_stored_gradients(text: str) -> None:
    model = CASES["llama"]()
    windows = split(make_batches(model), 1)
    shares = _shares(model, text, windows)
    count = len(shares)
    means = [torch.stack([share[i] for share in shares]).mean(0) for i in range(3)]
    measurement = make_measurement(model, text, "gru", standard_errors=True)
    found = take_step(measurement, windows).parts["standard_errors"]
    assert found is not None and found.gradients == NAMES
    linearized = sum(found.linearized.values(), torch.zeros(count, 3, 3).double())
    halves = sum(found.halves.values(), torch.zeros(3, 3).double())
    for i in range(3):
        for j in range(3):
            scale = float(means[i].norm() * means[j].norm()) + 1e-12
            for b, share in enumerate(shares):
                expected = float(share[i] @ means[j] + means[i] @ share[j] - means[i] @ means[j])
                assert abs(float(linearized[b, i, j]) - expected) <= 3e-5 * max(scale, abs(expected))
            pairs = [float(a[i] @ b[j]) for m, a in enumerate(shares) for n, b in enumerate(shares) if m != n]
            assert abs(float(halves[i, j]) - sum(pairs) / len(pairs)) <= 3e-5 * max(scale, max(map(abs, pairs)))


def test_their_mean_is_the_windows_own_product_also_by_use_of_a_tied_tensor() -> None:
    model = gpt2()
    tie = find_tied_weights(model)
    labels = split_layout(layout(model), tie).layers
    measurement = make_measurement(model, "npo", tie=tie, standard_errors=True, labels=labels)
    measured = take_step(measurement, split(make_batches(model), 1))
    assert "standard_errors" in measured.parts and measured.gram is not None
    by_layer = measured.gram.by(labels)
    assert set(measured.parts["standard_errors"].linearized) == set(by_layer) >= {"embed", "lm_head", "tied", "block_0"}
    for layer, values in measured.parts["standard_errors"].linearized.items():
        scale = by_layer[layer].abs().max() + 1e-12
        assert (values.mean(0) - by_layer[layer]).abs().max() <= 1e-5 * scale


def test_the_second_pass_leaves_update_and_memory_alone() -> None:
    found = []
    for errors in (True, False):
        model = CASES["llama"]()
        measurement = make_measurement(model, "ga + gd", "gru", standard_errors=errors)
        take_step(measurement, split(make_batches(model), 2))
        found.append((gradients(model), measurement.state["retain_average"]))
    for a, b in zip(found[0], found[1], strict=True):
        assert a.keys() == b.keys()
        assert_gradients_close(a, b, 1e-12)


def test_one_part_of_a_window_is_held_at_a_time() -> None:
    def parts() -> Iterator[Shares]:
        for _ in range(3):
            tensor = torch.ones(4)
            held = weakref.ref(tensor)
            yield {"objective": {"w": tensor}}, None
            del tensor
            assert held() is None

    parameters = {"w": torch.nn.Parameter(torch.ones(4))}
    found = standard_errors(
        ({"objective": {"w": 3 * torch.ones(4)}}, None),
        parts(),
        {"objective": {"objective": 1.0}},
        parameters,
        {},
        None,
    )
    assert found.halves["w"].tolist() == [[36.0]]
