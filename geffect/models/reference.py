"""The frozen start of a run, and checks that a model can be trained beside it."""

import contextlib
import copy
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from geffect.core.forward import Outputs, logits_at
from geffect.errors import GeffectError


class Reference:
    """The model as it is now, frozen.

    A fresh adapter (every B zero) is switched off for the pass, so that nothing is copied; any other model is copied.

    Args:
        model: the start of the run.
    """

    def __init__(self, model: nn.Module) -> None:
        self.is_fresh = is_fresh_adapter(model)
        self.model: Any = model if self.is_fresh else copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, batch: dict[str, Tensor], outputs: Outputs, needs: Collection[str]) -> Outputs:
        """The model's outputs on a batch, with ``ref_logits`` and, where needed, ``ref_hidden`` at their positions."""
        with self.model.disable_adapter() if self.is_fresh else contextlib.nullcontext():
            logits, hidden = logits_at(self.model, batch, outputs.index, hidden="ref_hidden" in needs)
        return replace(outputs, ref_logits=logits, ref_hidden=hidden)


def is_fresh_adapter(model: nn.Module) -> bool:
    """Whether the model is its base with an adapter that does nothing yet."""
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        return False
    deltas = [p for name, p in model.named_parameters() if "lora_B" in name or "lora_embedding_B" in name]
    others = [n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n]
    return bool(deltas) and not others and not any(bool(p.detach().any()) for p in deltas)


def check_same_shape(model: nn.Module, reference: nn.Module) -> None:
    """Raise unless a model and its reference have the same parameters; the first that differs is named."""
    ours, theirs = ({n: tuple(p.shape) for n, p in m.named_parameters()} for m in (model, reference))
    for name, shape in ours.items():
        if theirs.get(name) != shape:
            has = f"{name} of shape {theirs[name]}" if name in theirs else f"no {name}"
            message = f"The reference has {has}, the model {name} of shape {shape}"
            raise GeffectError(message, remedy="Use the run's start as its reference")


def check_trainable(model: nn.Module) -> None:
    """Raise where no gradient can reach the weights: they are quantized, or all of them are frozen."""
    from peft import PeftModel

    is_quantized = bool(getattr(model, "is_quantized", False)) and not isinstance(model, PeftModel)
    if is_quantized or not any(p.requires_grad for p in model.parameters()):
        state = "quantized and have no gradients" if is_quantized else "all frozen"
        raise GeffectError(f"The weights are {state}", remedy="Train an adapter with --lora, or load full weights")
