"""What a model thinks of every labeled token of a row, teacher-forced: the ground of all likelihood metrics."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from geffect.core.forward import shift
from geffect.core.losses import log_probabilities, nll_at
from geffect.data.encode import EncodedExample
from geffect.models.scoring import forward_batches


@dataclass(frozen=True)
class TokenScores:
    """One row's n labeled tokens, in order, on the CPU in float64.

    Attributes:
        log_p: ``[n]`` log p of each, in nats.
        right: ``[n]`` bool, whether it is the most likely one.
        mean: ``[n]`` μ = Σ_v p(v) log p(v) over the vocabulary at its position.
        std: ``[n]`` σ, with σ² = Σ_v p(v) (log p(v))² − μ².
    """

    log_p: Tensor
    right: Tensor
    mean: Tensor
    std: Tensor

    @property
    def nll(self) -> float:
        """Mean −log p over the n tokens; NaN where there are none."""
        return -self.log_p.mean().item()


def token_scores(
    model: nn.Module, rows: Sequence[EncodedExample], pad_id: int, batch_size: int = 16
) -> list[TokenScores]:
    """Score every labeled token of a set; the model is left in the mode it was in.

    Args:
        model: the model.
        rows: the encoded set.
        pad_id: fills the batches.
        batch_size: rows at a time; it does not change the result.

    Returns:
        One a row, in the rows' order.
    """
    found: dict[int, TokenScores] = {}
    for chosen, outputs in forward_batches(model, rows, pad_id, batch_size):
        labels = shift(outputs.labels)
        for i, logits, shifted, mask in zip(chosen, outputs.logits_by_row(), labels, outputs.mask, strict=True):
            found[i] = _scored(logits, shifted[mask])
    return [found[i] for i in range(len(rows))]


def _scored(logits: Tensor, labels: Tensor) -> TokenScores:
    log_ps = log_probabilities(logits)  # [n, V]
    p = log_ps.exp()
    mean = (p * log_ps).nan_to_num().sum(-1)  # 0 · log 0 is 0
    second = (p * log_ps.square()).nan_to_num().sum(-1)
    std = (second - mean.square()).clamp_min(0).sqrt()
    log_p = -nll_at(logits, labels)
    return TokenScores(
        log_p.cpu().double(), (logits.argmax(-1) == labels).cpu(), mean.cpu().double(), std.cpu().double()
    )
