"""Other answers in place of the true one: refusals, random labels, adversarial labels."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from geffect.core.forward import Outputs
from geffect.core.registry import Positive
from geffect.objectives.base import Term


@dataclass(frozen=True)
class PO(Term):
    """Preference for a refusal: L = −(1/N) Σ_i log p_i over refusals given to the forget questions ("IDK", TOFU).

    Attributes:
        variant: ``mean`` divides by the refusals' own tokens; ``pooled``, beside ``gd(variant=pooled)``, by those of
            refusals and retain answers together, as TOFU's and GRU's code does with one concatenated batch.
        answers: a set to take them from, in place of the built-in refusals: refusals of your own, or another answer to
            every question, as LUNE and TOFU's list of refusals have them.
    """

    variant: Literal["mean", "pooled"] = "mean"
    answers: str = ""
    on: ClassVar[str] = "alternative"

    @property
    def unit(self) -> str:
        """Labeled tokens, of the refusals or of all that is pooled."""
        return "token" if self.variant == "mean" else "pooled"

    def loss(self, outputs: Outputs) -> Tensor:
        """−Σ_i log p_i over the refusals' labeled tokens; the caller divides by their count."""
        return outputs.nll.sum()


@dataclass(frozen=True)
class DPO(Term):
    """L = −c (1/B) Σ_s log σ(βΔ), Δ = log(p_w/p0_w) − log(p_l/p0_l): a refusal w over the true answer l.

    Its gradient is −cβ (1/B) Σ_s σ(−βΔ) (∇log p_w − ∇log p_l), on sequence sums.

    Attributes:
        beta: β > 0.
        variant: c = 2/β (``npo``, as in NPO's code and open-unlearning) or c = 1 (``tofu``).
        answers: a set to take w from, in place of the built-in refusals. With other answers to the same questions it is
            AltPO's −(2/β) mean log σ(βΔ) (arXiv 2409.13474).
    """

    beta: Positive = 0.1
    variant: Literal["npo", "tofu"] = "npo"
    answers: str = ""
    unit: ClassVar[str] = "example"
    needs: ClassVar[frozenset[str]] = frozenset({"ref_nll", "alternative"})

    @property
    def scale(self) -> float:
        """The factor c."""
        return 2 / self.beta if self.variant == "npo" else 1.0

    def margin(self, outputs: Outputs) -> Tensor:
        """``[B]`` βΔ."""
        other: Outputs = outputs.need("alternative")
        gained = other.ref.sum(1) - other.sequence_nll  # log p_w/p0_w
        lost = outputs.sequence_nll - outputs.ref.sum(1)  # −log p_l/p0_l
        return self.beta * (gained + lost)

    def weights(self, outputs: Outputs) -> Tensor:
        """``[B, T]`` cβσ(−βΔ) on the true answer's labeled tokens (the refusal's carry its negative); no graph."""
        pull = torch.sigmoid(-self.margin(outputs).detach())
        return self.scale * self.beta * pull[:, None] * outputs.mask

    def loss(self, outputs: Outputs) -> Tensor:
        """−c Σ_s log σ(βΔ) over the batch's examples; the caller divides by their count B."""
        return -self.scale * functional.logsigmoid(self.margin(outputs)).sum()


@dataclass(frozen=True)
class FLAT(Term):
    """L = (1/B) Σ_s ½(tanh p̄(s) − tanh p̄(a)), p̄ an answer's mean token probability, a the alternative to s.

    It is descended. FLAT with the total variation as its divergence (arXiv 2410.11143). That p̄ is a mean over the
    labeled tokens of one example, and L one over examples, is UNVERIFIED: the paper's own code was not at hand.

    Attributes:
        answers: a set to take a from, in place of the built-in refusals.
    """

    answers: str = ""
    unit: ClassVar[str] = "example"
    needs: ClassVar[frozenset[str]] = frozenset({"alternative"})

    def weights(self, outputs: Outputs) -> Tensor:
        """``[B, T]`` ½(1 − tanh² p̄) p_i/n on the true answer's n labeled tokens, zeros elsewhere; no graph."""
        p = outputs.nll.detach().neg().exp() * outputs.mask
        slope = 0.5 * (1 - _mean_probability(outputs).detach().tanh().square()) / outputs.mask.sum(1)
        return slope[:, None] * p

    def loss(self, outputs: Outputs) -> Tensor:
        """½ Σ_s (tanh p̄(s) − tanh p̄(a)) over the batch's examples; the caller divides by their count B."""
        other: Outputs = outputs.need("alternative")
        return 0.5 * (_mean_probability(outputs).tanh() - _mean_probability(other).tanh()).sum()


def _mean_probability(outputs: Outputs) -> Tensor:
    """``[B]`` the mean probability of each example's labeled tokens."""
    return (outputs.nll.neg().exp() * outputs.mask).sum(1) / outputs.mask.sum(1)


@dataclass(frozen=True)
class Relabeling(Term):
    """L = −(1/N) Σ_i log p(other label_i) over the N tokens that a labeling labels.

    Attributes:
        variant: which labeling.
    """

    variant: Literal["aligned", "knowundo"] = "aligned"
    name: ClassVar[str] = ""

    @property
    def unit(self) -> str:
        """The labeling's name: its labeled tokens are counted."""
        return f"{self.name}_{self.variant}_labels"

    @property
    def needs(self) -> frozenset[str]:
        """The labeling."""
        return frozenset({self.unit})

    def loss(self, outputs: Outputs) -> Tensor:
        """−Σ_i log p(other label_i); the caller divides by their count."""
        return outputs.nll_of(outputs.labeling(self.unit)).sum()


@dataclass(frozen=True)
class RandomLabels(Relabeling):
    """Fine-tuning on random labels: each labeled token's label is drawn from the vocabulary, inputs unchanged.

    Attributes:
        variant: ``aligned`` draws for the answer's tokens; ``knowundo`` for the prompt's too, special tokens keeping
            their own (arXiv 2407.01920's code).
    """

    name: ClassVar[str] = "random"


@dataclass(frozen=True)
class AdversarialLabels(Relabeling):
    """Fine-tuning on adversarial labels: the start's most likely token but the true one.

    Attributes:
        variant: ``aligned`` takes, for each token of the answer, the best other token at the position that predicts
            it; ``knowundo`` is misaligned by one as arXiv 2407.01920's code is: the label of position j is read off
            the prediction of j + 1, with token j banned, on every position.
    """

    name: ClassVar[str] = "adversarial"
