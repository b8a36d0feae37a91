"""Layers and groups on many decoder families, tied and untied, bare and wrapped."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import peft
import pytest
import torch
from torch import nn

from geffect.core.forward import forward
from geffect.core.gradients import capture_gradients
from geffect.core.gram import Gram, inner_products
from geffect.core.layers import find_tied_weights, layout, split_layout, trainable_parameters
from geffect.models.load import quiet_transformers
from geffect.objectives.base import Counts, mean_nll
from tests.conftest import sweep
from tests.support import oracles
from tests.support.architecture_tables import TABLES, UNUSUAL
from tests.support.architectures import FAMILIES, make, make_unusual
from tests.support.cases import make_batch
from tests.support.steps import make_batches, make_measurement, split, take_step

LENGTHS = [6, 4]


def _expected(family: str, *, tied: bool) -> dict[str, str]:
    (embedding, head), others, block = TABLES[family]
    prefix, *names = block.split()
    blocks = {prefix.replace("*", f"{i}.") + name: f"block_{i}" for i in range(2) for name in names}
    ends = {embedding: "tied"} if tied else {embedding: "embed", head: "lm_head"}
    return ends | others | blocks


def test_every_family_is_in_the_tables() -> None:
    assert set(TABLES) == set(FAMILIES)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_lies_where_the_table_says(family: str, tied: bool) -> None:
    model = make(family, tied=tied)
    found = layout(model)
    assert found.layers == _expected(family, tied=tied)
    assert list(found.layers) == list(trainable_parameters(model))
    assert found.num_blocks == 2
    groups = found.groups()
    assert all(groups[name] == "deep" for name, layer in found.layers.items() if layer == "final_norm")


@pytest.mark.parametrize("family", UNUSUAL)
def test_every_parameter_of_an_unusual_kind_lies_where_the_table_says(family: str) -> None:
    model = make_unusual(family)
    layers, used = layout(model).layers, set()
    for name, layer in layers.items():
        (pattern,) = [each for each in UNUSUAL[family] if re.fullmatch(each, name)]
        found = re.fullmatch(pattern, name)
        assert found is not None
        assert layer == UNUSUAL[family][pattern].format(*found.groups()), name
        used.add(pattern)
    assert used == set(UNUSUAL[family])
    assert list(layers) == list(trainable_parameters(model))


@pytest.mark.parametrize("family", ["xlm", "zamba2", "bert", "llava"])
def test_wrappers_change_nothing_of_an_unusual_kind(family: str) -> None:
    model = make_unusual(family)
    assert layout(_Wrapper("_orig_mod", _Wrapper("module", model))) == layout(model)


def test_a_step_on_blocks_that_share_a_tensor_is_that_of_flattened_gradients() -> None:
    model = make_unusual("zamba2")
    batches = {"forget": make_batch(LENGTHS, seed=1), "retain": make_batch(LENGTHS, seed=2)}
    gram = take_step(make_measurement(model, "ga"), [batches]).gram
    assert gram is not None
    gradients = [oracles.gradient(model, partial(oracles.mean_nll, model, batch)) for batch in batches.values()]
    layers = layout(model).layers
    by_layer = gram.by(layers)
    assert list(by_layer) == ["block_0", "block_1", "block_2", "final_norm", "shared", "tied"]
    whole = oracles.gram(gradients, list(layers))
    for layer, found in by_layer.items():
        expected = oracles.gram(gradients, [name for name in layers if layers[name] == layer])
        assert (found[1:, 1:] - expected).abs().max() <= 1e-5 * whole.diagonal().max(), layer


@sweep(2, family=FAMILIES, tied=[False, True])
def test_groups_sum_to_the_totals_and_ties_to_their_whole(family: str, tied: bool) -> None:
    model = make(family, tied=tied)
    forget, retain = make_batch(LENGTHS, seed=1), make_batch(LENGTHS, seed=2)

    def loss(batch: dict[str, torch.Tensor]) -> Callable[[], torch.Tensor]:
        return lambda: mean_nll(forward(model, batch), Counts.of([batch]))

    gradients = capture_gradients(model, {"forget": loss(forget), "retain": loss(retain)})
    names = list(trainable_parameters(model))
    gram = Gram(
        ("forget", "retain"), {n: inner_products([gradients[r].get(n) for r in ("forget", "retain")]) for n in names}
    )
    parts = gram.by(layout(model).groups())
    assert torch.allclose(torch.stack(list(parts.values())).sum(0), gram.total(), rtol=1e-12)

    tie = find_tied_weights(model)
    assert (tie is not None) == tied
    batches = {"forget": forget, "retain": retain}
    told = take_step(make_measurement(model, "ga", tie=tie), [batches]).gram
    assert told is not None
    scale = float(gram.total().diagonal().max())
    assert (told.total()[1:, 1:] - gram.total()).abs().max() <= 1e-6 * scale
    assert list(told.values) == list(split_layout(layout(model), tie).layers)
    if tie is not None:
        whole = sum((v for n, v in told.values.items() if n.startswith(tie.name + "@")), torch.zeros(3, 3).double())
        assert (whole[1:, 1:] - gram.values[tie.name]).abs().max() <= 1e-6 * scale


@pytest.mark.filterwarnings("ignore:The following .*_pattern keys")  # PEFT's own, for fused experts
@pytest.mark.parametrize(
    ("family", "dora"),
    [(family, dora) for family in ("llama", "gpt2", "falcon", "opt-projected") for dora in (False, True)]
    + [("qwen3-moe", False)],  # PEFT has no DoRA on fused experts
)
def test_adapters_lie_where_their_hosts_do(family: str, dora: bool) -> None:
    model = make(family, tied=True)
    config = peft.LoraConfig(r=2, target_modules="all-linear", use_dora=dora, task_type="CAUSAL_LM")
    if family == "gpt2":
        config.fan_in_fan_out = True
    with quiet_transformers():
        wrapped = peft.get_peft_model(model, config)
    found = layout(wrapped)
    assert found.layers
    assert all("lora_" in name for name in found.layers)
    expected = _expected(family, tied=True)
    hosts = {name.rpartition(".")[0]: layer for name, layer in expected.items()}
    for name, layer in found.layers.items():
        host = name.partition(".lora_")[0].replace(".base_layer", "")  # as PEFT nests two adapters on fused experts
        assert layer == hosts[host], name
    assert {"block_0", "block_1"} <= set(found.layers.values())
    if family == "opt-projected":
        assert {"embed", "final_norm"} <= set(found.layers.values())


def test_modules_to_save_lie_where_their_hosts_do() -> None:
    model = make("opt", tied=False)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["final_layer_norm", "lm_head"])
    with quiet_transformers():
        layers = layout(peft.get_peft_model(model, config)).layers
    saved = {
        name.partition(".modules_to_save")[0]: layer for name, layer in layers.items() if "modules_to_save" in name
    }
    assert saved["model.decoder.final_layer_norm"] == "final_norm"
    assert saved["model.decoder.layers.1.final_layer_norm"] == "block_1"
    assert saved["lm_head"] == "lm_head"


class _Wrapper(nn.Module):
    """As DistributedDataParallel (``module``) and torch.compile (``_orig_mod``) hold a model."""

    def __init__(self, name: str, model: nn.Module) -> None:
        super().__init__()
        setattr(self, name, model)


@pytest.mark.parametrize("family", ["opt", "llama", "bloom"])
def test_wrappers_change_nothing(family: str) -> None:
    model = make(family, tied=True)
    bare = layout(model)
    assert layout(_Wrapper("module", model)) == bare
    assert layout(_Wrapper("_orig_mod", _Wrapper("module", model))) == bare
    with torch.device("meta"):
        outline = type(model)(model.config)
    assert layout(outline).layers == bare.layers


@pytest.mark.parametrize("family", ["opt", "llama", "gpt2"])
def test_looking_leaves_the_model_as_it_was(family: str) -> None:
    model = make(family, tied=False).train()
    model.get_output_embeddings().eval()
    weight = next(model.parameters())
    weight.grad = torch.ones_like(weight)
    before = _state(model)
    layout(model)
    assert _state(model) == before
    assert torch.equal(weight.grad, torch.ones_like(weight))


def _state(model: Any) -> list[Any]:
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()]
    wants = [p.requires_grad for p in model.parameters()]
    sums = [float(p.detach().double().sum()) for p in model.parameters()]
    return [modes, hooks, wants, sums, torch.get_rng_state().tolist()]


def test_a_decoder_whose_forward_fails_is_placed_by_registration() -> None:
    model = make("llama", tied=False)
    expected = layout(model)

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("not here")

    model.forward = broken
    assert layout(model) == expected


def test_measuring_runs_on_every_kind_of_step() -> None:
    model = make("mixtral", tied=False)
    gram = take_step(make_measurement(model, "npo + gd", "gru"), split(make_batches(model), 2)).gram
    assert gram is not None
    assert gram.values["model.layers.0.mlp.experts.gate_up_proj"].any()
