"""What one forward pass gives an objective, and the negative log-likelihood all of them share.

Letters: B rows, T tokens, V vocabulary. Labels are shifted here and nowhere else: position t predicts token t+1.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional

from geffect.errors import GeffectError

IGNORE_INDEX = -100


def shift(labels: Tensor) -> Tensor:
    """labels ``[B, T]`` → the label each position predicts ``[B, T]``; the last position predicts nothing."""
    return functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """−log p(label) of every labelled token, 0 elsewhere; computed in float32 or better.

    Args:
        logits: ``[B, T, V]``.
        labels: ``[B, T]``, unshifted, ``IGNORE_INDEX`` where no loss is carried.

    Returns:
        ``[B, T]`` in nats, at the position that predicts the token.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)  # [B*T, V]
    nll = functional.cross_entropy(wide, shift(labels).flatten(), ignore_index=IGNORE_INDEX, reduction="none")
    return nll.view(labels.shape)


@dataclass(frozen=True)
class Outputs:
    """One forward pass over a batch, with what else an objective may need.

    Attributes:
        logits: ``[B, T, V]``, with a graph.
        labels: ``[B, T]``, ``IGNORE_INDEX`` where no loss is carried.
        ref_nll: ``[B, T]`` token NLLs under the frozen reference, laid out as `nll`; None unless needed.
    """

    logits: Tensor
    labels: Tensor
    ref_nll: Tensor | None = None

    @cached_property
    def mask(self) -> Tensor:
        """``[B, T]`` bool: the positions that predict a labelled token."""
        return shift(self.labels) != IGNORE_INDEX

    @cached_property
    def nll(self) -> Tensor:
        """``[B, T]`` token NLLs in nats, 0 where not labelled."""
        return token_nll(self.logits, self.labels)

    @cached_property
    def sequence_nll(self) -> Tensor:
        """``[B]`` sum of each row's token NLLs."""
        return self.nll.sum(1)

    @property
    def ref(self) -> Tensor:
        """``[B, T]`` reference NLLs.

        Raises:
            GeffectError: they were not supplied.
        """
        if self.ref_nll is None:
            raise GeffectError("reference NLLs (ref_nll)", "none", "pass reference=reference_nll(model, rows, pad_id)")
        return self.ref_nll


def forward(model: nn.Module, batch: dict[str, Tensor]) -> Outputs:
    """Run the model over a collated batch (``input_ids``, ``attention_mask``, ``labels``, perhaps ``ref_nll``)."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    return Outputs(logits, batch["labels"], batch.get("ref_nll"))
