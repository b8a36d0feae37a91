"""What a rectifier is: a combination of gradients by their inner products, or a mask of entries that are frozen."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from geffect.core.gradients import NamedTensors
from geffect.core.masks import GradientMask, Localization
from geffect.core.registry import Configurable, Metric

Scope = Literal["model", "group", "layer", "parameter"]
Memories = dict[str, NamedTensors]  # memory → parameter → tensor


@dataclass(frozen=True)
class InnerProducts:
    """The inner products of a few named gradients over one part of the model.

    Attributes:
        names: of the gradients, the order of the matrix.
        matrix: ``[M, M]``, float64, symmetric.

    >>> import torch
    >>> gram = InnerProducts(("objective", "retain"), torch.tensor([[4.0, -1.0], [-1.0, 1.0]]))
    >>> gram["objective", "retain"]
    -1.0
    """

    names: tuple[str, ...]
    matrix: Tensor

    def __getitem__(self, pair: tuple[str, str]) -> float:
        a, b = pair
        return float(self.matrix[self.names.index(a), self.names.index(b)])


class Rectifier(Configurable):
    """A combination of gradients in place of the objective's, chosen by their inner products; by default none.

    A subclass is a frozen dataclass that overrides `gradients` and `coefficients`, and by a class variable, a field or
    a property whatever else differs. State is in the open: `init`, then `update` once a tensor and optimizer step,
    before anything is combined; checkpoints hold it.
    """

    @property
    def gradients(self) -> tuple[str, ...]:
        """What `coefficients` reads and combines, the objective first; empty: the objective's gradient stands.

        Names are ``objective``, ``forget`` and ``retain`` (of these sets' losses), a domain's ``forget/NAME``,
        `memories`, and ``example_0`` and so on (`examples`). What a step does not compute anyway costs its passes and a
        gradient's memory.
        """
        return ()

    @property
    def rectifies(self) -> bool:
        """Whether it changes the objective's gradient."""
        return bool(self.gradients)

    @property
    def scope(self) -> Scope:
        """The part of the model over which inner products are summed: each has coefficients of its own."""
        return "model"

    @property
    def metric(self) -> Metric:
        """In what metric it projects updates; ``adam``: M = diag(√v̂ + ε), v̂ the optimizer's second moment.

        A step of Adam with the gradient g is along M⁻¹g. So `coefficients` are chosen from the inner products
        ⟨g, M⁻¹h⟩, by which ⟨h, M⁻¹d⟩ is what the step does to the loss whose gradient is h; and what `correction` takes
        off θ are combinations of M⁻¹h.
        """
        return "euclidean"

    @property
    def examples(self) -> int:
        """Of how many retain examples it reads the gradients, ``example_0`` and so on; each has a pass of its own."""
        return 0

    @property
    def by_domain(self) -> bool:
        """Whether it compares the objectives of several domains."""
        return False

    @property
    def memories(self) -> tuple[str, ...]:
        """The names of the gradients that are stored from one step to the next."""
        return ()

    @property
    def add_retain(self) -> float:
        """The weight of this step's raw retain gradient, added after `coefficients` (the objective's must be 1)."""
        return 0.0

    @property
    def corrects(self) -> bool:
        """Whether θ is corrected once the optimizer has stepped."""
        return False

    def init(self) -> Memories:
        """The memories before the first step: zeros, which are left out."""
        return {name: NamedTensors() for name in self.memories}

    def update(self, state: Memories, name: str, retain: Tensor | None) -> None:
        """Fold one tensor of this step's retain gradient (None is zeros) into the memories, in place."""

    def coefficients(self, gram: InnerProducts) -> Mapping[str, float]:
        """Gradient → its coefficient in the rectified one, from the inner products of `gradients` over a part."""
        return {"objective": 1.0}

    def correction(self, gram: InnerProducts) -> Mapping[str, float]:
        """Memory → how much of it is taken off θ, from the inner products of ``update`` (−Δθ) and the memories."""
        return {}

    def numbers(self, gram: InnerProducts, coefficients: Mapping[str, float]) -> Mapping[str, float]:
        """What a step records of a choice of `coefficients` or of a `correction`; of several parts, the largest."""
        return {}


class Freezing(Configurable, ABC):
    """A rule that freezes entries of the parameters for a whole run; gradients are masked before they are rectified."""

    @abstractmethod
    def gradient_mask(self, parameters: Mapping[str, nn.Parameter], localized: Localization) -> GradientMask:
        """What a localization freezes of these parameters."""
