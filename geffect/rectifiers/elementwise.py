"""SAGO, the disruption mask and CGLearn: entries of the gradient are replaced or left out, each by itself.

g_o and g_r are the gradients of the objective and of the retain loss, d is what is descended. The first two guarantee
d_i·g_r,i ≥ 0 of every entry i, so to first order the retain loss does not rise, in the whole model and in any part of
it, whatever positive step size each entry has. An optimizer with momentum, as AdamW, still moves entries by what
earlier steps left.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from geffect.rectifiers.base import Rectifier

Weight = Annotated[float, Field(ge=0)]
SMALL = 1e-8  # added to a standard deviation, as published


class Elementwise(Rectifier, ABC):
    """A rectifier that is no combination of gradients: a function of the entries of two, tensor by tensor.

    A subclass is a frozen dataclass that defines `entries`. Nothing is stored, and no inner product is read.
    """

    rectifies: ClassVar[bool] = True

    @abstractmethod
    def entries(self, objective: Tensor, other: Tensor) -> Tensor:
        """The rectified gradient's tensor, a new one, from those of this step's objective and retain loss.

        Of a rule `by_domain` the other tensor stacks the objective's sides on each domain's forget set, ``[E, …]``.
        """

    def rectify(self, objective: Tensor | None, other: Tensor | None) -> Tensor | None:
        """`entries`, where None is zeros."""
        known = objective if objective is not None else other
        if known is None:
            return None
        zeros = torch.zeros_like(known) if objective is None or other is None else known
        return self.entries(zeros if objective is None else objective, zeros if other is None else other)


@dataclass(frozen=True)
class SAGO(Elementwise):
    """d_i = alpha·g_r,i where g_o,i·g_r,i < 0, else gamma·g_o,i: a conflict follows the retain loss (arXiv 2604.14808).

    Guarantee: d_i·g_r,i ≥ 0 of every entry. The objective may rise where alpha > 0: an entry in conflict follows g_r.

    Attributes:
        alpha: weight of the retain gradient's entries.
        gamma: weight of the objective's.
    """

    alpha: Weight = 1.0
    gamma: Weight = 1.0

    def entries(self, objective: Tensor, other: Tensor) -> Tensor:
        """Either gradient's entry, by the sign of the product.

        >>> SAGO(alpha=2).entries(torch.tensor([1.0, 1.0, 3.0]), torch.tensor([-1.0, 2.0, 0.0])).tolist()
        [-2.0, 1.0, 3.0]
        """
        conflict = objective.sign() * other.sign() < 0  # the product itself may underflow
        return torch.where(conflict, self.alpha * other, self.gamma * objective)


@dataclass(frozen=True)
class Disruption(Elementwise):
    """d_i = g_o,i where the signs of g_o,i and g_r,i are equal, else 0: the disruption mask (arXiv 2506.12484).

    An entry at which the retain gradient is zero stands still, too. Guarantee: d_i·g_r,i ≥ 0 and d_i·g_o,i ≥ 0 of every
    entry, so neither the retain loss nor the objective rises.
    """

    def entries(self, objective: Tensor, other: Tensor) -> Tensor:
        """The objective's entries, those of another sign as zeros.

        >>> Disruption().entries(torch.tensor([1.0, 1.0, 3.0]), torch.tensor([-1.0, 2.0, 0.0])).tolist()
        [0.0, 1.0, 0.0]
        """
        return objective * (objective.sign() == other.sign())


@dataclass(frozen=True)
class Consistent(Elementwise):
    """d_i = g_o,i where |mean_e g_e,i| > threshold·(std_e g_e,i + 1e-8), else 0: CGLearn's mask (arXiv 2411.06040).

    g_e is the gradient of what the objective descends on domain e's forget set, divided by that set's share of all
    forget tokens; mean and standard deviation (divisor E) go over the E domains. What the objective adds on other sets
    is masked with it.

    Guarantee: d_i·g_o,i ≥ 0 of every entry, so the objective does not rise. Nothing is said of the retain loss.

    Attributes:
        threshold: τ, how many standard deviations the mean must lie from 0.
    """

    threshold: Weight = 1.0
    by_domain: ClassVar[bool] = True

    def entries(self, objective: Tensor, other: Tensor) -> Tensor:
        """The objective's entries, those on which the domains disagree as zeros.

        >>> sides = torch.tensor([[1.0, 1.0, 0.0], [2.0, -1.0, 0.0]])
        >>> Consistent().entries(torch.tensor([3.0, 3.0, 3.0]), sides).tolist()
        [3.0, 0.0, 0.0]
        """
        spread = other.std(0, correction=0) + SMALL
        return objective * (other.mean(0).abs() > self.threshold * spread)
