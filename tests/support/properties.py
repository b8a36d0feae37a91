"""Asserts with names."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def assert_gram_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Entries agree relative to ‖a‖·‖b‖."""
    norms = expected.diagonal().clamp(min=0).sqrt()
    error = (found - expected).abs() / (norms[:, None] * norms[None, :]).clamp(min=1e-300)
    assert error.max() <= tolerance, f"relative error {error.max():.2e} > {tolerance:.0e}"


def assert_gradients_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], tolerance: float) -> None:
    """Tensors agree relative to the whole gradient's norm; a missing tensor is zero."""
    norm = torch.sqrt(torch.stack([t.double().square().sum() for t in expected.values()]).sum())
    for name, tensor in expected.items():
        difference = found[name] - tensor if name in found else tensor
        assert difference.double().norm() <= tolerance * norm, name


def snapshot(model: Any) -> dict[str, Any]:
    """Everything that measuring must leave alone."""
    return {
        "weights": {n: p.detach().clone() for n, p in model.named_parameters()},
        "grads": {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()},
        "modes": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "hooks": [len(getattr(p, "_post_accumulate_grad_hooks", None) or ()) for p in model.parameters()],
        "rng": torch.get_rng_state(),
    }


def assert_unchanged(before: dict[str, Any], model: Any) -> None:
    after = snapshot(model)
    for key in ("modes", "requires_grad", "hooks"):
        assert after[key] == before[key], key
    assert torch.equal(after["rng"], before["rng"])
    for key in ("weights", "grads"):
        for name, tensor in before[key].items():
            other = after[key][name]
            assert (tensor is None) == (other is None), (key, name)
            assert tensor is None or torch.equal(tensor, other), (key, name)
