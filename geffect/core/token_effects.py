"""Forward-mode effects: what a direction does to the loss of every answer token, to first order.

A direction v over the parameters (a retain gradient, an objective's, an update) changes a token's NLL ℓ by ⟨∇ℓ, v⟩ per
unit. One Jacobian-vector product gives it for all tokens of all examples, where reverse mode needs a backward pass a
token.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from geffect.core.forward import IGNORE_INDEX, Outputs, labeled_positions, logits_at
from geffect.core.groups import depth_key
from geffect.core.layers import trainable_parameters
from geffect.core.model_state import enter_evaluation_mode
from geffect.errors import GeffectError

if TYPE_CHECKING:
    import pandas as pd

EXPERTS = "_experts_implementation"  # where transformers keeps how it multiplies a mixture's experts


@dataclass(frozen=True)
class TokenEffects:
    """⟨∇ℓ, v⟩ of every token of B examples of T positions, laid out as `Outputs.nll`.

    Attributes:
        total: over all parameters ``[B, T]`` (nats per unit of v), 0 where no loss is carried.
        groups: parameter group → its part ``[B, T]``; they add up to ``total``.
        labeled: the positions that predict a labeled token, bool ``[B, T]``.
    """

    total: Tensor
    groups: dict[str, Tensor]
    labeled: Tensor

    def by_example(self) -> Tensor:
        """Each example's sum over its tokens ``[B]``."""
        return self.total.sum(1)

    def to_frame(self) -> "pd.DataFrame":
        """A line a token, under its own position: what is at position t here is the effect on the token after it.

        The columns are ``example``, ``position`` (from 1: nothing predicts the first token), ``labeled``,
        ``effect``, and one for each group.
        """
        import pandas as pd

        B, T = self.total.shape
        example, position = torch.meshgrid(torch.arange(B), torch.arange(1, T), indexing="ij")
        parts = {"labeled": self.labeled, "effect": self.total} | self.groups  # [B, T] each
        columns = {"example": example, "position": position} | {name: each[:, :-1] for name, each in parts.items()}
        return pd.DataFrame({name: each.reshape(-1).numpy(force=True) for name, each in columns.items()})

    def __repr__(self) -> str:
        return f"TokenEffects({len(self.total)} examples, {int(self.labeled.sum())} labeled tokens)"

    def _repr_html_(self) -> str:
        frame = self.to_frame()
        rows = frame[frame["labeled"]].groupby("example")["effect"].agg(["size", "sum", "min", "max"])
        rows.columns = ["labeled tokens", "effect", "lowest token", "highest token"]
        return f"<p>effect of a direction, by example</p>{rows.to_html(float_format='{:.4g}'.format)}"


def token_effects(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    direction: Mapping[str, Tensor],
    groups: Mapping[str, str] | None = None,
) -> TokenEffects:
    """The effect of a direction on the NLL of every labeled token of a batch.

    G groups take G passes: one with the whole direction, and one for each group but the last, whose part is the rest.
    The model is left unchanged.

    Args:
        model: a causal language model, in float32 or float64.
        batch: ``input_ids``, ``attention_mask`` and ``labels``, each ``[B, T]``.
        direction: parameter name → v; one that is missing counts as zero.
        groups: parameter name → group, as of `geffect.core.layers.Layout.groups`; none by default.

    Returns:
        The effects. A negative one is a token that a step along v makes likelier.

    Raises:
        GeffectError: the weights are in a half-precision type, the direction is another model's, or the architecture
            has no forward mode.
    """
    parameters = trainable_parameters(model)
    _check(parameters, direction)
    with _differentiable(model):
        total, labeled = _push(model, batch, direction)
        names = sorted(dict.fromkeys(groups[name] for name in parameters), key=depth_key) if groups else []
        parts = {}
        for group in names[:-1]:
            within = {name: v for name, v in direction.items() if (groups or {})[name] == group}
            parts[group] = _push(model, batch, within)[0]
        if names:
            parts[names[-1]] = total - sum(parts.values(), torch.zeros_like(total))
    return TokenEffects(total, parts, labeled)


def _check(parameters: Mapping[str, nn.Parameter], direction: Mapping[str, Tensor]) -> None:
    for name, v in direction.items():
        shape = tuple(parameters[name].shape) if name in parameters else None
        if shape != tuple(v.shape):
            here = f"which has shape {shape} in this model" if shape else "which this model does not train"
            message = f"The direction has shape {tuple(v.shape)} for {name}, {here}"
            raise GeffectError(message, remedy="Take its gradients from the same model")
    for name, parameter in parameters.items():
        if parameter.dtype in (torch.bfloat16, torch.float16):
            message = f"{name} is in {str(parameter.dtype).removeprefix('torch.')}, and forward mode needs float32"
            raise GeffectError(message, remedy="Load the model with dtype float32")


def _push(model: nn.Module, batch: Mapping[str, Tensor], direction: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The tangent ``[B, T]`` of every token's NLL along a direction, and which positions are labeled."""
    parameters = trainable_parameters(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}  # in full, wrappers included
    with torch.no_grad(), forward_ad.dual_level():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*torch.jit.script.*", DeprecationWarning)  # torch's own, at first use
            duals = {
                names[id(parameters[name])]: forward_ad.make_dual(parameters[name].detach(), v.to(parameters[name]))
                for name, v in direction.items()
            }
        nll = _nll(model, duals, batch)
        tangent = forward_ad.unpack_dual(nll).tangent
        labeled = batch["labels"][:, 1:] != IGNORE_INDEX
        effects = torch.zeros_like(nll) if tangent is None else tangent.clone()
    return effects, nn.functional.pad(labeled, (0, 1))


def _nll(model: nn.Module, duals: dict[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
    index = labeled_positions(batch["labels"])
    try:
        logits, _ = logits_at(model, batch, index, call=lambda **inputs: functional_call(model, duals, (), inputs))
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        if not any(word in reason for word in ("jvp", "forward AD", "forward mode")):
            raise  # no memory, say: not the architecture's doing
        raise GeffectError(
            f"{type(model).__name__} has no forward mode ({reason})", remedy="Measure its gradients by the Gram instead"
        ) from error
    return Outputs(logits, batch["labels"], index).nll


@contextmanager
def _differentiable(model: nn.Module) -> Iterator[None]:
    """Use evaluation mode, and the attention kernel and experts' loop that forward mode supports; restore all after."""
    configs = {id(each.config): each.config for each in model.modules() if hasattr(each, "config")}.values()
    experts = [(config, getattr(config, EXPERTS)) for config in configs if getattr(config, EXPERTS, None) is not None]
    modes = {module: module.training for module in model.modules()}
    try:
        enter_evaluation_mode(model)  # gradient checkpointing rests in it, too
        for config, _ in experts:
            setattr(config, EXPERTS, "eager")
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for config, before in experts:
            setattr(config, EXPERTS, before)
        for module, training in modes.items():
            module.training = training
