"""The published protocols, written from their description: what the same numbers cost the usual way.

Kinder than the scripts themselves: a closing forward pass whose loss is multiplied by zero is left out, and so is the
read-out of the inner products, which they print at every fourth call.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from analysis.benchmarks.setting import Setting
from geffect.core.forward import forward
from geffect.core.layers import trainable_parameters

PAST = 0.6  # of the G-effect script's running averages
NEW = 0.8  # the GRU script's moving_avg, on the newest gradient
Flat = dict[str, Tensor]


class ThreeBackwards:
    """The G-effect script (arXiv 2502.19301): three forward and backward passes, three averages on the CPU.

    Args:
        setting: model and batches; the objective is GA.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.averages: dict[str, Flat] = {"objective": {}, "forget": {}, "retain": {}}

    def __call__(self) -> None:
        """One call of the script, on one micro-batch of each set."""
        losses = {"forget": ("forget", 1.0), "objective": ("forget", -1.0), "retain": ("retain", 1.0)}
        for name, (batch, sign) in losses.items():
            (sign * self.setting.mean_nll(batch)).backward()
            self._fold(self.averages[name])
            self.setting.model.zero_grad()

    def _fold(self, average: Flat) -> None:
        for name, gradient in _flat_gradients(self.setting.model).items():
            average[name] = PAST * average[name] + (1 - PAST) * gradient if name in average else gradient

    def g_effects(self) -> dict[str, float]:
        """⟨average of ∇R, average of ∇L⟩, a product a tensor."""
        objective = self.averages["objective"]
        return {
            target: sum(float((objective[key] * g).sum()) for key, g in self.averages[target].items())
            for target in ("forget", "retain")
        }


class FlatProjection:
    """The GRU script (arXiv 2503.09117): both gradients flattened to the CPU, an average, a projection in float64.

    Args:
        setting: model and batches; the objective is GA.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.average: Tensor | None = None

    def __call__(self) -> None:
        """One step; the rectified gradient is left in ``.grad``."""
        forget, retain = (self._flat(name, sign) for name, sign in (("forget", -1.0), ("retain", 1.0)))
        old = torch.zeros_like(retain) if self.average is None else self.average
        self.average = average = NEW * retain + (1 - NEW) * old
        if torch.dot(forget, average) < 0:
            g, m = forget.numpy().astype(np.float64), average.numpy().astype(np.float64)
            forget = torch.from_numpy(g - (g @ m) / (m @ m) * m).to(retain.dtype)
        start = 0
        for parameter in trainable_parameters(self.setting.model).values():
            part = forget[start : start + parameter.numel()].view_as(parameter)
            parameter.grad = part.clone().to(parameter.device)
            start += parameter.numel()

    def _flat(self, name: str, sign: float) -> Tensor:
        (sign * self.setting.mean_nll(name)).backward()
        flat = torch.cat(list(_flat_gradients(self.setting.model).values()))
        self.setting.model.zero_grad()
        return flat


def backward_per_sequence(setting: Setting, direction: Mapping[str, Tensor]) -> list[float]:
    """⟨∇ Σ −log p of each forget example, direction⟩, a forward and a backward pass each."""
    found = []
    for example in range(len(setting.batches["forget"]["labels"])):
        _nll(setting, example).sum().backward()
        found.append(_against(setting, direction))
    return found


def backward_per_token(setting: Setting, direction: Mapping[str, Tensor], most: int) -> list[float]:
    """⟨∇ −log p of each labeled token, direction⟩ of the first forget example, a backward pass each.

    Args:
        setting: model and batches.
        direction: parameter name → v.
        most: tokens, at most.

    Returns:
        One effect a token.
    """
    nll, found = _nll(setting, 0), []
    for position in nll.detach().nonzero()[:most, 0].tolist():
        nll[position].backward(retain_graph=True)
        found.append(_against(setting, direction))
    return found


def _nll(setting: Setting, example: int) -> Tensor:
    """One example's token NLLs, without the batch's padding."""
    batch = setting.batches["forget"]
    length = int(batch["attention_mask"][example].sum())
    return forward(setting.model, {name: batch[name][example : example + 1, :length] for name in _INPUTS}).nll[0]


_INPUTS = ("input_ids", "attention_mask", "labels")


def _against(setting: Setting, direction: Mapping[str, Tensor]) -> float:
    found = sum(
        float(torch.dot(p.grad.flatten(), direction[name].flatten()))
        for name, p in trainable_parameters(setting.model).items()
        if p.grad is not None
    )
    setting.model.zero_grad()
    return found


def _flat_gradients(model: Any) -> Flat:
    return {
        name: (torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1).cpu()
        for name, p in trainable_parameters(model).items()
    }
