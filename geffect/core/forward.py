"""The outputs of one forward pass that objectives use, and the negative log-likelihood that all of them share.

Letters: B examples, T tokens, N of the B·T positions, V vocabulary, L blocks, d hidden size. Labels are shifted here
and nowhere else: position t predicts token t+1.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from geffect.core.head import Head, keep_mask, keeps_positions, run_decoder
from geffect.core.losses import nll_at
from geffect.errors import GeffectError

IGNORE_INDEX = -100
ALL_LOGITS = "all_logits"  # a need: the logits of every position, prompts and padding included
FROM_REFERENCE = frozenset({"ref_logits", "ref_hidden"})  # needs that take a pass of the frozen reference
FROM_START = FROM_REFERENCE | {"ref_nll"}  # needs that take the model a run starts from
SUPPLY = {
    "ref_nll": "Pass reference=compute_reference_nll(model, examples, pad_id)",
    "ref_logits": "Give the forward pass a frozen reference model",
    "ref_hidden": "Give the forward pass a frozen reference model",
    "hidden": "Run the model with output_hidden_states=True",
    "alternative": "Give every forget example an alternative answer, as geffect unlearn does",
}


def shift_labels(labels: Tensor) -> Tensor:
    """Labels ``[B, T]`` → the label that each position predicts ``[B, T]``; the last position predicts nothing."""
    return functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)


def labeled_positions(*labelings: Tensor) -> Tensor:
    """``[N]`` flat positions b·T + t that predict a token that any of these labels ``[B, T]`` has."""
    carries = torch.stack([shift_labels(labels) != IGNORE_INDEX for labels in labelings]).any(0)
    return carries.flatten().nonzero()[:, 0]


def add_positions(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A collated batch with its labeled ``positions``: their number is known on the host without a wait."""
    labelings = [labels for name, labels in batch.items() if name == "labels" or name.endswith("_labels")]
    return {**batch, "positions": labeled_positions(*labelings)}


@dataclass(frozen=True)
class Outputs:
    """One forward pass over a batch, with what else an objective may need.

    Attributes:
        head: the logits ``[N, V]`` at the positions of ``index``, with a graph; or, where they would be too many, the
            head that computes them some positions at a time.
        labels: ``[B, T]``, ``IGNORE_INDEX`` where no loss is carried.
        index: ``[N]`` flat positions b·T + t, ascending; those that predict a labeled token are among them.
        ref_nll: ``[B, T]`` token NLLs under the frozen reference, laid out as `nll`; None unless needed, as all below.
        hidden: L + 1 hidden states ``[B, T, d]``: the embedding's output, then each block's (the last one normed).
        ref_logits: ``[N, V]`` of the frozen reference.
        ref_hidden: its hidden states.
        alternative: the same questions with other answers.
        relabeled: labeling → other labels ``[B, T]`` for the same inputs.
    """

    head: Tensor | Head
    labels: Tensor
    index: Tensor
    ref_nll: Tensor | None = None
    hidden: tuple[Tensor, ...] | None = None
    ref_logits: Tensor | None = None
    ref_hidden: tuple[Tensor, ...] | None = None
    alternative: "Outputs | None" = None
    relabeled: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def logits(self) -> Tensor:
        """``[N, V]`` at the positions of ``index``, all at once."""
        return self.head.logits() if isinstance(self.head, Head) else self.head

    def map_logits(self, function: Callable[..., Tensor], *others: Tensor) -> Tensor:
        """A function of logits ``[n, V]`` and other tensors ``[n, …]`` at all N positions.

        It is called once, or several times with some of the positions where all logits would take too much memory.
        """
        return self.head.map(function, *others) if isinstance(self.head, Head) else function(self.head, *others)

    @cached_property
    def mask(self) -> Tensor:
        """``[B, T]`` bool: the positions that predict a labeled token."""
        return shift_labels(self.labels) != IGNORE_INDEX

    @cached_property
    def nll(self) -> Tensor:
        """``[B, T]`` token NLLs in nats, 0 where not labeled."""
        if self._scores_at_once:
            return torch.where(self.mask, self.spread(self._scored[:, 0]), 0.0)
        return self.nll_of(self.labels)

    def nll_of(self, labels: Tensor) -> Tensor:
        """``[B, T]`` token NLLs of other labels ``[B, T]`` for the same inputs, 0 where not labeled."""
        shifted = shift_labels(labels).flatten()[self.index]  # [N]
        nll = self.map_logits(nll_at, shifted.clamp(min=0))
        return self.spread(torch.where(shifted == IGNORE_INDEX, 0.0, nll))

    def spread(self, values: Tensor) -> Tensor:
        """Values ``[N]`` at the positions of ``index`` → ``[B, T]``, 0 elsewhere."""
        return values.new_zeros(self.labels.numel()).index_copy(0, self.index, values).view(self.labels.shape)

    @cached_property
    def likeliest(self) -> Tensor:
        """``[N]`` the most likely token at each position of ``index``."""
        if self._scores_at_once:
            return self._scored[:, 1].long()
        return self.map_logits(lambda logits: logits.argmax(-1))

    @property
    def _scores_at_once(self) -> bool:
        """Whether the head runs in chunks and without a graph: for two numbers it would compute its logits twice."""
        return isinstance(self.head, Head) and not torch.is_grad_enabled()

    @cached_property
    def _scored(self) -> Tensor:
        """``[N, 2]`` the NLL and the most likely token, of one pass over the head.

        A token's number, below 2²⁴, is exact in float32.
        """

        def both(logits: Tensor, labels: Tensor) -> Tensor:
            nll = nll_at(logits, labels)
            return torch.stack([nll, logits.argmax(-1).to(nll.dtype)], 1)

        return self.map_logits(both, shift_labels(self.labels).flatten()[self.index].clamp(min=0))

    @cached_property
    def right(self) -> Tensor:
        """``[B, T]`` bool: the positions whose most likely token is the labeled one."""
        return self.spread(self.likeliest == shift_labels(self.labels).flatten()[self.index]) & self.mask

    def by_example(self, values: Tensor) -> list[Tensor]:
        """Values ``[N, …]`` at the positions of ``index`` → those of each example, in order."""
        sizes: list[int] = torch.bincount(self.index // self.labels.shape[1], minlength=len(self.labels)).tolist()
        return list(values.split(sizes))

    @cached_property
    def sequence_nll(self) -> Tensor:
        """``[B]`` sum of each example's token NLLs."""
        return self.nll.sum(1)

    @property
    def ref(self) -> Tensor:
        """``[B, T]`` reference NLLs."""
        nll: Tensor = self.need("ref_nll")
        return nll

    def need(self, name: str) -> Any:
        """The value of an optional attribute, by name; refuse where the forward pass did not supply it."""
        value = getattr(self, name)
        if value is None:
            raise GeffectError(f"This objective needs {name}, which the outputs do not have", remedy=SUPPLY[name])
        return value

    def labeling(self, name: str) -> Tensor:
        """``[B, T]`` other labels for the same inputs, by name; refuse where the batch did not have them."""
        if name not in self.relabeled:
            raise GeffectError(
                f"The batch has no labels {name!r}", remedy="Add that column to the batch, as geffect unlearn does"
            )
        return self.relabeled[name]


def forward(model: nn.Module, batch: Mapping[str, Tensor], needs: Collection[str] = ()) -> Outputs:
    """Run a causal language model over a batch: its ids, mask and labels, perhaps ``ref_nll`` and other ``*_labels``.

    And perhaps its ``positions`` (`add_positions`).

    Of an objective's needs, ``hidden`` keeps the hidden states and `ALL_LOGITS` the logits of every position.
    """
    relabeled = {name: labels for name, labels in batch.items() if name.endswith("_labels")}
    labels = batch["labels"]
    if ALL_LOGITS in needs:
        index = torch.arange(labels.numel(), device=labels.device)
    else:
        index = batch["positions"] if "positions" in batch else labeled_positions(labels, *relabeled.values())
    hidden = "hidden" in needs
    apart = run_decoder(model, _inputs(batch), index, hidden=hidden)
    head, states = apart or logits_at(model, batch, index, hidden=hidden)
    if isinstance(head, Tensor) and head.device != labels.device:  # the head lies on another device than the embedding
        batch, index = {name: tensor.to(head.device) for name, tensor in batch.items()}, index.to(head.device)
        relabeled = {name: batch[name] for name in relabeled}
    return Outputs(head, batch["labels"], index, batch.get("ref_nll"), states, relabeled=relabeled)


def _inputs(batch: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}


def logits_at(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    index: Tensor,
    *,
    hidden: bool = False,
    call: Callable[..., Any] | None = None,
) -> tuple[Tensor, tuple[Tensor, ...] | None]:
    """Logits ``[N, V]`` at flat positions ``index``, and the L + 1 hidden states ``[B, T, d]`` where ``hidden`` is set.

    Where the model takes ``logits_to_keep``, no others are computed. ``call`` runs in place of the model, as
    `torch.func.functional_call` does. Logits of other positions than the inputs', as with virtual tokens, are refused.
    """
    shape, inputs = batch["input_ids"].shape, _inputs(batch)
    if keeps_positions(model):
        inputs["logits_to_keep"] = keep_mask(index, shape)
    output = (call or model)(**inputs, output_hidden_states=hidden)
    logits, states = output.logits, output.hidden_states if hidden else None
    if logits.shape[:-1] == (len(index),):
        return logits, states
    if logits.shape[:-1] != shape:
        raise GeffectError(
            f"The model gives logits of {' × '.join(map(str, logits.shape[:-1]))} positions "
            f"for inputs of {shape[0]} × {shape[1]}",
            remedy="Merge or drop virtual tokens (prompt tuning) first",
        )
    return logits.flatten(0, 1)[index.to(logits.device)], states
