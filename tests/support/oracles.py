"""Slow, obvious twins: loops over examples, flattened vectors, float64."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from geffect.core.layers import trainable_parameters

Batch = dict[str, Tensor]


def example_nll(model: Any, batch: Batch, example: int) -> Tensor:
    """Token NLLs of one example, unpadded, by picking one log-probability after another."""
    length = int(batch["attention_mask"][example].sum())
    ids, labels = batch["input_ids"][example, :length], batch["labels"][example, :length]
    log_p = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    picked = [-log_p[t - 1, labels[t]] for t in range(1, length) if labels[t] != -100]
    return torch.stack(picked)


def mean_nll(model: Any, batch: Batch) -> Tensor:
    """Σ NLL / count, an example at a time."""
    nlls = torch.cat([example_nll(model, batch, i) for i in range(len(batch["labels"]))])
    return nlls.sum() / len(nlls)


def gradient(model: Any, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    """∇loss by `torch.autograd.grad`, zeros where the loss did not reach."""
    parameters = trainable_parameters(model)
    found = torch.autograd.grad(loss(), list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(parameters.items(), found, strict=True)
    }


def flat(gradient: Mapping[str, Tensor], names: list[str]) -> Tensor:
    """One float64 vector over the named parameters, in their order."""
    return torch.cat([gradient[name].detach().double().reshape(-1) for name in names])


def gram(gradients: list[dict[str, Tensor]], names: list[str]) -> Tensor:
    """Inner products of flattened float64 gradients."""
    stacked = torch.stack([flat(each, names) for each in gradients])
    return stacked @ stacked.T
