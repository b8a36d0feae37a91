"""A weighted sum of terms, and which of its gradients come for free."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

from torch import Tensor

from geffect.objectives.outputs import IGNORE_INDEX, Outputs


class Term(Protocol):
    """One named loss over one set's batch: a pure function of `Outputs`.

    Attributes:
        unit: what the loss is a sum of, hence what it is divided by: labelled tokens or rows.
        needs: fields of `Outputs` beyond logits and labels.
        side: the set it runs on.
        multiple_of_risk: c where the loss is c times that set's risk, so that its gradient is too; else None.
    """

    unit: ClassVar[str]
    needs: ClassVar[frozenset[str]]
    side: ClassVar[str]
    multiple_of_risk: ClassVar[float | None]

    def weights(self, outputs: Outputs) -> Tensor:
        """``[B, T]`` weights w_i on ∇log p_i (ascent side), zero where not labelled."""

    def loss(self, outputs: Outputs) -> Tensor:
        """The loss summed over the batch's units."""


@dataclass(frozen=True)
class Counts:
    """What a whole accumulation window holds of one set; every loss of the window is divided by it.

    Attributes:
        token: labelled tokens.
        row: rows.
    """

    token: int
    row: int

    @classmethod
    def of(cls, batches: list[Mapping[str, Tensor]]) -> "Counts":
        """Count the collated batches of a window; index 0 is never labelled, so shifting loses none."""
        labels = [batch["labels"] for batch in batches]
        return cls(sum(int((each != IGNORE_INDEX).sum()) for each in labels), sum(len(each) for each in labels))

    def per(self, unit: str) -> int:
        """The count of ``unit``."""
        return int(getattr(self, unit))


@dataclass(frozen=True)
class Objective:
    """What a method descends: Σ weight · term.

    Attributes:
        text: as the user wrote it.
        terms: (weight, term) in the order written; at least one runs on the forget set.
    """

    text: str
    terms: tuple[tuple[float, Term], ...]

    @property
    def needs(self) -> frozenset[str]:
        """The union of what the terms need."""
        return frozenset[str]().union(*(term.needs for _, term in self.terms))

    def side(self, side: Literal["forget", "retain"]) -> list[tuple[float, Term]]:
        """The terms that run on one set."""
        return [(weight, term) for weight, term in self.terms if term.side == side]

    @property
    def forget_multiple(self) -> float | None:
        """c where the forget side is c times the forget risk, so that its row is free; else None."""
        multiples = [term.multiple_of_risk for _, term in self.side("forget")]
        if any(multiple is None for multiple in multiples):
            return None
        c = sum(w * (m or 0.0) for (w, _), m in zip(self.side("forget"), multiples, strict=True))
        return c or None

    @property
    def retain_multiple(self) -> float:
        """w where the retain side is w times the retain risk (0 where there is none)."""
        return sum(weight * (term.multiple_of_risk or 0.0) for weight, term in self.side("retain"))

    def forget_loss(self, outputs: Outputs, counts: Counts) -> Tensor:
        """The forget side's loss: each term's sum divided by the window's count of its unit."""
        losses = [w * term.loss(outputs) / counts.per(term.unit) for w, term in self.side("forget")]
        return sum(losses[1:], losses[0])

    def forget_weights(self, outputs: Outputs) -> Tensor:
        """``[B, T]`` the forget side's weights on ∇log p_i, before division by counts; no graph."""
        weights = [w * term.weights(outputs) for w, term in self.side("forget")]
        return sum(weights[1:], weights[0]).detach()


def risk(outputs: Outputs, counts: Counts) -> Tensor:
    """R = (1/N) Σ_i −log p_i: the token-mean NLL, this batch's share of the window's N labelled tokens."""
    return outputs.nll.sum() / counts.token
