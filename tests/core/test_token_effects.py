"""Effects by forward mode: against a backward pass a token, finite differences and the Gram, on many architectures."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from geffect.core.forward import forward
from geffect.core.gradients import capture_gradients
from geffect.core.gram import inner_products
from geffect.core.groups import GROUPS
from geffect.core.layers import layout, trainable_parameters
from geffect.core.token_effects import token_effects
from geffect.errors import GeffectError
from geffect.objectives.base import Counts, mean_nll
from tests.support.architectures import FAMILIES, make
from tests.support.cases import CASES, llama, make_batch

LENGTHS = [6, 4, 5]


def direction_of(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=generator).to(p) for name, p in trainable_parameters(model).items()}


def a_backward_a_token(
    model: nn.Module, batch: dict[str, Tensor], direction: dict[str, Tensor], groups: dict[str, str]
) -> dict[str, Tensor]:
    """Group → ⟨∇ℓ, v⟩ ``[B, T]``, and ``total``."""
    nll = forward(model, batch).nll
    found = {group: torch.zeros_like(nll) for group in ["total", *dict.fromkeys(groups.values())]}
    for i, t in (nll != 0).nonzero().tolist():
        model.zero_grad()
        nll[i, t].backward(retain_graph=True)
        for name, parameter in trainable_parameters(model).items():
            if parameter.grad is not None:
                part = (parameter.grad * direction[name]).sum()
                found["total"][i, t] += part.detach()
                found[groups[name]][i, t] += part.detach()
    model.zero_grad()
    return {group: each.detach() for group, each in found.items()}


@pytest.mark.parametrize("case", CASES)
def test_effects_are_those_of_a_backward_pass_a_token(case: str) -> None:
    model = CASES[case]().double()
    batch, direction, groups = make_batch(LENGTHS), direction_of(model), layout(model).groups()
    found, expected = (
        token_effects(model, batch, direction, groups),
        a_backward_a_token(model, batch, direction, groups),
    )
    scale = float(expected["total"].abs().max())
    exact = 1e-10 if case in ("gpt2", "neox") else 1e-5  # Llama-likes take their norms in float32
    assert (found.total - expected["total"]).abs().max() <= exact * scale
    assert list(found.groups) == [each for each in GROUPS if each in groups.values()]
    for group, part in found.groups.items():
        assert (part - expected[group]).abs().max() <= exact * scale
    assert torch.equal(found.labeled, expected["total"] != 0)


@pytest.mark.parametrize("family", [each for each in FAMILIES if each != "bloom"])
def test_tokens_add_up_to_the_inner_product_of_gradients(family: str) -> None:
    model = make(family, tied=False)
    forget, retain = make_batch(LENGTHS, seed=1), make_batch(LENGTHS, seed=2)

    def loss(batch: dict[str, Tensor]) -> Any:
        return lambda: mean_nll(forward(model, batch), Counts.of([batch]))

    gradients = capture_gradients(model, {"forget": loss(forget), "retain": loss(retain)})
    names, groups = list(trainable_parameters(model)), layout(model).groups()
    gram = sum(inner_products([gradients[r].get(name) for r in ("forget", "retain")]) for name in names)
    assert isinstance(gram, Tensor)
    found = token_effects(model, forget, gradients["retain"], groups)
    scale = float((gram[0, 0] * gram[1, 1]).sqrt())
    tokens = int(found.labeled.sum())
    assert abs(float(found.total.double().sum()) / tokens - float(gram[0, 1])) <= 1e-5 * scale
    for group, part in found.groups.items():
        within = [
            inner_products([gradients[r].get(n) for r in ("forget", "retain")])[0, 1]
            for n in names
            if groups[n] == group
        ]
        assert abs(float(part.double().sum()) / tokens - float(sum(within))) <= 1e-5 * scale
    assert torch.allclose(found.by_example().sum(), found.total.sum())


def test_a_step_along_the_direction_does_what_was_said() -> None:
    model = CASES["gpt2"]().double()
    batch, direction, size = make_batch(LENGTHS), direction_of(model), 1e-5
    found = token_effects(model, batch, direction).total
    measured = []
    for sign in (1, -1):
        with torch.no_grad():
            for name, parameter in trainable_parameters(model).items():
                parameter.add_(direction[name], alpha=sign * size)
            measured.append(forward(model, batch).nll)
            for name, parameter in trainable_parameters(model).items():
                parameter.sub_(direction[name], alpha=sign * size)
    assert ((measured[0] - measured[1]) / (2 * size) - found).abs().max() <= 1e-6 * found.abs().max()


@pytest.mark.parametrize("family", ["llama", "qwen3-moe"])
def test_the_model_is_left_as_it_was(family: str) -> None:
    model = make(family, tied=False).train()
    model.activation_checkpointing_enable()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    config, random = model.config.to_dict(), torch.get_rng_state()
    token_effects(model, make_batch(LENGTHS), direction_of(model))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert model.config.to_dict() == config
    assert model.config._experts_implementation == type(model)(model.config).config._experts_implementation
    assert all(module.training for module in model.modules())
    assert model.is_activation_checkpointing
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_what_has_no_forward_mode_is_refused() -> None:
    batch = make_batch(LENGTHS)
    with pytest.raises(GeffectError, match=r"is in bfloat16, and forward mode needs float32\. Load the model with"):
        token_effects(llama().bfloat16(), batch, {})
    with pytest.raises(GeffectError, match=r"direction has shape \(3,\) for lm_head\.weight, which has shape"):
        token_effects(llama(), batch, {"lm_head.weight": torch.zeros(3)})
    bloom = make("bloom", tied=False)
    with pytest.raises(GeffectError, match=r"^Bloom.* has no forward mode"):
        token_effects(bloom, batch, direction_of(bloom))
    assert float(token_effects(llama(), batch, {}).total.abs().max()) == 0
