"""The frozen start of a run, for what needs more of it than token NLLs."""

import contextlib
import copy
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from geffect.core.forward import Outputs, logits_at
from geffect.errors import GeffectError

Batch = dict[str, Tensor]


class Reference:
    """The model as it is now, for as long as it is kept.

    A fresh adapter (every B zero) is switched off for the pass, so that nothing is copied; any other model is copied.

    Args:
        model: the start of the run.
    """

    def __init__(self, model: nn.Module) -> None:
        self.fresh = is_fresh_adapter(model)
        self.model: Any = model if self.fresh else copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, batch: Batch, outputs: Outputs, needs: Collection[str]) -> Outputs:
        """The model's outputs with what an objective needs of the reference at the same positions.

        Args:
            batch: what the model ran on.
            outputs: the model's.
            needs: of the objective, ``ref_logits`` and ``ref_hidden`` among others.

        Returns:
            The outputs, with ``ref_logits`` and, where needed, ``ref_hidden``.
        """
        with self.model.disable_adapter() if self.fresh else contextlib.nullcontext():
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
    """Raise unless two models have the same parameters.

    Args:
        model: the one that unlearns.
        reference: the frozen one beside it.

    Raises:
        GeffectError: a parameter is missing or of another shape; it is named.
    """
    ours, theirs = ({n: tuple(p.shape) for n, p in m.named_parameters()} for m in (model, reference))
    for name, shape in ours.items():
        if theirs.get(name) != shape:
            found = f"{name} of shape {theirs[name]}" if name in theirs else f"none named {name}"
            raise GeffectError(
                f"a reference of the model's own architecture, with {name} of shape {shape}",
                found,
                "use the run's start as its reference",
            )


def check_trainable(model: nn.Module) -> None:
    """Raise where no gradient can reach the weights.

    Args:
        model: about to be trained.

    Raises:
        GeffectError: its weights are quantized, or all of them are frozen.
    """
    from peft import PeftModel

    quantized = bool(getattr(model, "is_quantized", False)) and not isinstance(model, PeftModel)
    if quantized or not any(p.requires_grad for p in model.parameters()):
        found = "quantized weights, which carry none" if quantized else "every weight frozen"
        raise GeffectError("weights that carry gradients", found, "train an adapter with --lora, or load full weights")
