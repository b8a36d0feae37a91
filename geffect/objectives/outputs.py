"""What one forward pass gives an objective, and the negative log-likelihood all of them share.

Letters: B rows, T tokens, V vocabulary, L blocks, d hidden size. Labels are shifted here and nowhere else: position t
predicts token t+1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from geffect.errors import GeffectError

IGNORE_INDEX = -100
SUPPLY = {
    "ref_nll": "pass reference=reference_nll(model, rows, pad_id)",
    "ref_logits": "give the forward pass a frozen reference model",
    "ref_hidden": "give the forward pass a frozen reference model",
    "hidden": "run the model with output_hidden_states=True",
    "alternative": "give every forget row an alternative answer, as geffect unlearn does",
}


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
    wide = widened(logits).flatten(0, 1)  # [B*T, V]
    nll = functional.cross_entropy(wide, shift(labels).flatten(), ignore_index=IGNORE_INDEX, reduction="none")
    return nll.view(labels.shape)


def widened(tensor: Tensor) -> Tensor:
    """The tensor in float32 or better."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(frozen=True)
class Outputs:
    """One forward pass over a batch, with what else an objective may need.

    Attributes:
        logits: ``[B, T, V]``, with a graph.
        labels: ``[B, T]``, ``IGNORE_INDEX`` where no loss is carried.
        ref_nll: ``[B, T]`` token NLLs under the frozen reference, laid out as `nll`; None unless needed, as all below.
        hidden: L + 1 hidden states ``[B, T, d]``: the embedding's output, then each block's (the last one normed).
        ref_logits: ``[B, T, V]`` of the frozen reference.
        ref_hidden: its hidden states.
        alternative: the same questions with other answers.
        relabelled: labelling → other labels ``[B, T]`` for the same inputs.
    """

    logits: Tensor
    labels: Tensor
    ref_nll: Tensor | None = None
    hidden: tuple[Tensor, ...] | None = None
    ref_logits: Tensor | None = None
    ref_hidden: tuple[Tensor, ...] | None = None
    alternative: "Outputs | None" = None
    relabelled: Mapping[str, Tensor] = field(default_factory=dict)

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
        """``[B, T]`` reference NLLs."""
        nll: Tensor = self.need("ref_nll")
        return nll

    def need(self, name: str) -> Any:
        """What an objective cannot do without.

        Args:
            name: one of the optional attributes.

        Returns:
            Its value.

        Raises:
            GeffectError: it was not supplied.
        """
        found = getattr(self, name)
        if found is None:
            raise GeffectError(f"{name}, which this objective needs", "none", SUPPLY[name])
        return found

    def labelling(self, name: str) -> Tensor:
        """``[B, T]`` other labels for the same inputs.

        Args:
            name: of the labelling.

        Returns:
            The labels, ``IGNORE_INDEX`` where no loss is carried.

        Raises:
            GeffectError: they were not supplied.
        """
        if name not in self.relabelled:
            raise GeffectError(f"the labels {name!r}", "none", "add that column to the batch, as geffect unlearn does")
        return self.relabelled[name]


def forward(model: nn.Module, batch: Mapping[str, Tensor], *, hidden: bool = False) -> Outputs:
    """Run the model over a collated batch.

    Args:
        model: a causal language model.
        batch: ``input_ids``, ``attention_mask``, ``labels``, perhaps ``ref_nll`` and other labellings (``*_labels``).
        hidden: keep the hidden states.

    Returns:
        Its outputs.
    """
    found = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        use_cache=False,
        output_hidden_states=hidden,
    )
    relabelled = {name: labels for name, labels in batch.items() if name.endswith("_labels")}
    return Outputs(
        found.logits, batch["labels"], batch.get("ref_nll"), found.hidden_states if hidden else None,
        relabelled=relabelled,
    )  # fmt: skip
