"""Losses of whole distributions over the vocabulary at forget tokens: the label made unlikely, or all logits level."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from geffect.core.forward import Outputs, shift_labels
from geffect.core.losses import suppressed_ce_at, widen
from geffect.core.registry import Positive
from geffect.objectives.base import Term


@dataclass(frozen=True)
class UNDIAL(Term):
    """L = (1/N) Σ_i −Σ_v q_i(v) log p_i(v), q_i = softmax(z_ref − β·1[label]): the start without the label, descended.

    Self-distillation with adjusted logits (arXiv 2402.10052), over labeled tokens alone; its gradient on the logits is
    p − q. Where the model is still the start, that is ascent with the weights w_i = k·p_i/(1 − k·p_i), k = 1 − e^(−β).

    Attributes:
        beta: β > 0, in nats, by which the label's logit is lowered.
    """

    beta: Positive = 10.0
    needs: ClassVar[frozenset[str]] = frozenset({"ref_logits"})

    def loss(self, outputs: Outputs) -> Tensor:
        """−Σ_i Σ_v q_i(v) log p_i(v) over the labeled tokens; the caller divides by their count N."""
        labels = shift_labels(outputs.labels).flatten()[outputs.index].clamp(min=0)  # [N]
        reference: Tensor = outputs.need("ref_logits")
        entropy = outputs.map_logits(partial(suppressed_ce_at, beta=self.beta), reference, labels)
        return (outputs.spread(entropy) * outputs.mask).sum()


@dataclass(frozen=True)
class PDU(Term):
    """L = (1/N) Σ_i (max_v z_i(v) − mean_v z_i(v))², z the logits: descended, it makes every token equally likely.

    The forget loss of primal-dual unlearning (arXiv 2506.05314), over the positions that predict a labeled token; the
    published code's mask is off by one position. The paper's retain part is `dual`: ``pdu + dual(gd)``.
    """

    def loss(self, outputs: Outputs) -> Tensor:
        """Σ_i (max − mean)² over the labeled tokens; the caller divides by their count N."""
        return (outputs.spread(outputs.map_logits(_peak_square)) * outputs.mask).sum()


def _peak_square(logits: Tensor) -> Tensor:
    """(max − mean)² ``[N]`` of logits ``[N, V]``, in float32 or better."""
    peak = widen(logits.amax(-1))  # no second array of [N, V], but for the gradient
    return (peak - logits.mean(-1, dtype=peak.dtype)).square()
