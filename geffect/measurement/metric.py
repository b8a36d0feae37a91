"""Adam's metric M = diag(√v̂ + ε), by which its step divides, for rectifiers that project in it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from geffect.core.distributed import local_part
from geffect.errors import GeffectError

Preconditioner = Callable[[str], Tensor | None]  # parameter → its part of M's diagonal; None: ones


def adam_metric(parameters: Mapping[str, nn.Parameter], optimizer: Callable[[], Any]) -> Preconditioner:
    """Parameter → √v̂ + ε, with the bias-corrected second moment v̂ that the optimizer holds when it is asked.

    Before a step that is the moment of the steps so far: the one after it depends on the gradient that is being chosen.
    After a step it is what the update was divided by. Before the first step, and of a parameter that no gradient has
    reached, there is none, and M is the identity.

    Args:
        parameters: what a gradient covers.
        optimizer: returns the optimizer, which need not exist yet.

    Returns:
        A function of a parameter's name; of a shard, the tensor is this process's part.

    Raises:
        GeffectError: (the function) the optimizer keeps no ``exp_avg_sq``.
    """

    def diagonal(name: str) -> Tensor | None:
        stepper, parameter = optimizer(), parameters[name]
        group: dict[str, Any] = next((g for g in stepper.param_groups if any(p is parameter for p in g["params"])), {})
        state = stepper.state.get(parameter, {})
        if (group and "betas" not in group) or (state and "exp_avg_sq" not in state):
            kind = type(getattr(stepper, "optimizer", stepper)).__name__
            message = f"The optimizer {kind} keeps no second moments (exp_avg_sq), which metric=adam reads"
            raise GeffectError(message, remedy="Choose adamw_torch, or a rectifier without metric=adam")
        if not state:
            return None
        moment = local_part(state.get("max_exp_avg_sq", state["exp_avg_sq"]))
        wide = moment.to(torch.promote_types(moment.dtype, torch.float32))
        corrected: Tensor = wide / (1 - group["betas"][1] ** float(state["step"]))
        return corrected.sqrt_().add_(group["eps"])

    return diagonal


def divided(tensor: Tensor | None, by: Tensor | None) -> Tensor | None:
    """tensor / by, in the wider dtype; None stands for zeros divided, and for ones to divide by."""
    return tensor if tensor is None or by is None else tensor / by.to(tensor.device)
