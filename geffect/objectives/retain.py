"""Retain parts: what is descended on the retain set, or a general one, beside an unlearning objective."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from geffect.core.forward import ALL_LOGITS, Outputs
from geffect.core.losses import kl_at
from geffect.objectives.base import Term
from geffect.objectives.rmu import hidden_layer, reduce_dims

PreservedSet = Literal["retain", "general"]  # in distribution, or out of it (``--general``)


@dataclass(frozen=True)
class GD(Term):
    """Gradient descent on a set's loss: L = −(1/N) Σ_i log p_i over the batch's labeled tokens.

    Attributes:
        on: ``retain`` (in distribution) or ``general`` (the set of ``--general``, out of distribution).
        variant: ``mean``, or ``pooled`` with the refusals' tokens (see `PO`).
    """

    on: PreservedSet = "retain"
    variant: Literal["mean", "pooled"] = "mean"

    @property
    def unit(self) -> str:
        """Labeled tokens, of this set or of all that is pooled."""
        return "token" if self.variant == "mean" else "pooled"

    @property
    def multiple_of_loss(self) -> float | None:
        """1: it is the loss; None where it is divided by a pooled count."""
        return 1.0 if self.variant == "mean" else None

    def weights(self, outputs: Outputs) -> Tensor:
        """``[B, T]`` minus ones on labeled tokens (it descends), zeros elsewhere."""
        return -outputs.mask.to(outputs.nll.dtype)

    def loss(self, outputs: Outputs) -> Tensor:
        """−Σ_i log p_i over the batch's labeled tokens; the caller divides by their count N."""
        return outputs.nll.sum()


@dataclass(frozen=True)
class KL(Term):
    """L = (1/N) Σ_i KL(p_ref(·|i) ‖ p(·|i)) over labeled positions; variant=tofu over all, with the logits of all.

    It is 0 at the start.

    Attributes:
        on: ``retain`` or ``general``.
        variant: ``labeled``: the positions that predict a labeled token; or ``tofu``: the mean over all positions,
            prompts and padding included, as the code of TOFU, NPO, G-effect and GRU takes it. So it depends on how a
            batch is padded, and takes the memory and time of every position's logits, here and in the reference.
    """

    on: PreservedSet = "retain"
    variant: Literal["labeled", "tofu"] = "labeled"

    @property
    def needs(self) -> frozenset[str]:
        """The reference's logits, at labeled positions or at all."""
        return frozenset({"ref_logits"} | ({ALL_LOGITS} if self.variant == "tofu" else set()))

    @property
    def unit(self) -> str:
        """Labeled tokens, or every position."""
        return "token" if self.variant == "labeled" else "position"

    def loss(self, outputs: Outputs) -> Tensor:
        """Σ_i Σ_v p_ref(v) (log p_ref(v) − log p(v)); the caller divides by the count of positions summed."""
        divergence = outputs.spread(kl_at(outputs.logits, outputs.need("ref_logits")))  # [B, T]
        return (divergence if self.variant == "tofu" else divergence * outputs.mask).sum()


@dataclass(frozen=True)
class RR(Term):
    """Representation retention: L = (1/N) Σ_i ‖φ_i − φ_i^ref‖² / d at a layer, where a labeled token is predicted.

    arXiv 2502.19301 names this regularizer; its exact formula could not be confirmed. This is RMU's retain part as
    open-unlearning has it (``EMBED_DIFF``), over labeled tokens.

    Attributes:
        on: ``retain`` or ``general``.
        layer: as `RMU`'s; −1 the middle block's output.
        dims: ``mean`` over the d dimensions or their ``sum``.
    """

    on: PreservedSet = "retain"
    layer: int = -1
    dims: Literal["mean", "sum"] = "mean"
    needs: ClassVar[frozenset[str]] = frozenset({"hidden", "ref_hidden"})

    def loss(self, outputs: Outputs) -> Tensor:
        """Σ_i ‖φ_i − φ_i^ref‖² / d over the labeled tokens; the caller divides by their count N."""
        phi = hidden_layer(outputs.need("hidden"), self.layer)
        ref = hidden_layer(outputs.need("ref_hidden"), self.layer)
        return (reduce_dims((phi - ref).square(), self.dims) * outputs.mask).sum()
