"""GRU: project the conflict with retained knowledge out of an update (arXiv 2503.09117)."""

import math
import sys
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from geffect.core.registry import Metric
from geffect.rectifiers.base import InnerProducts, Memories, Rectifier, Scope


@dataclass(frozen=True)
class GRU(Rectifier):
    """x* = argmin ‖x − g‖² subject to ⟨x, m⟩ ≥ 0, that is g + max(0, −⟨g, m⟩)/‖m‖² · m.

    g is the objective's gradient and m the *retain average*: m ← decay·m + (1 − decay)·∇R_retain once a step,
    from m = 0 and without bias correction (the projection does not depend on m's length). Where cos(g, m) lies below
    ``cos_clip`` only the part down to it is removed, as the published code does with −0.5; −1 removes all of it.

    Attributes:
        decay: weight on the past, in [0, 1); the published ``moving_avg`` is 1 − decay (0.8).
        cos_clip: c in [−1, 0]; what is left of the conflict is ‖g‖‖m‖(cos θ − c) < 0 where cos θ < c.
        add_retain: weight of this step's raw retain gradient, added after the projection and unconstrained (``+ce``).
        space: what is projected: the ``gradient`` (the paper's), the ``update`` −Δθ that the optimizer makes of it, or
            ``both``. The latter two are this toolkit's: under AdamW a gradient without conflict still moves θ against
            m, so θ ← θ − max(0, ⟨m, Δθ⟩)/‖m‖² · m after the optimizer's step, the same form for any optimizer.
        scope: the part of the model over which the guarantee holds.
        metric: ``adam``, this toolkit's, projects in Adam's metric M (`Rectifier.metric`): ⟨a, b⟩ above is ⟨a, M⁻¹b⟩
            of gradients, and θ ← θ − max(0, ⟨m, Δθ⟩)/⟨m, M⁻¹m⟩ · M⁻¹m of updates.
    """

    decay: Annotated[float, Field(ge=0, lt=1)] = 0.2
    cos_clip: Annotated[float, Field(ge=-1, le=0)] = -1.0
    add_retain: float = 0.0
    space: Literal["gradient", "update", "both"] = "gradient"
    scope: Scope = "model"
    metric: Metric = "euclidean"
    memories: ClassVar[tuple[str, ...]] = ("retain_average",)
    gradients: ClassVar[tuple[str, ...]] = ("objective", "retain_average")

    def update(self, state: Memories, name: str, retain: Tensor | None) -> None:
        """Fold one tensor of this step's retain gradient into the average, in place. None is zeros."""
        average = state["retain_average"]
        if name in average:
            average[name].mul_(self.decay)
            if retain is not None:
                average[name].add_(retain, alpha=1 - self.decay)
        elif retain is not None:
            average[name] = retain * (1 - self.decay)

    def coefficients(self, gram: InnerProducts) -> dict[str, float]:
        """The objective's gradient and, where its space is projected, `projection`'s coefficient of the memory.

        >>> import torch
        >>> gram = InnerProducts(GRU.gradients, torch.tensor([[1.0, -0.5], [-0.5, 0.25]]))
        >>> GRU().coefficients(gram)
        {'objective': 1.0, 'retain_average': 2.0}
        """
        here = self.space in ("gradient", "both")
        return {"objective": 1.0, "retain_average": self._projection(gram, "objective") if here else 0.0}

    @property
    def corrects(self) -> bool:
        """Whether θ is corrected once the optimizer has stepped."""
        return self.space in ("update", "both")

    def correction(self, gram: InnerProducts) -> dict[str, float]:
        """The coefficient of m in what is taken off θ: `projection` of the update −Δθ; nothing in gradient space.

        >>> import torch
        >>> gram = InnerProducts(("update", "retain_average"), torch.tensor([[1.0, -0.5], [-0.5, 0.25]]))
        >>> GRU(space="update").correction(gram)
        {'retain_average': 2.0}
        """
        return {"retain_average": self._projection(gram, "update")} if self.corrects else {}

    def _projection(self, gram: InnerProducts, name: str) -> float:
        memory = "retain_average"
        return projection(gram[name, name], gram[name, memory], gram[memory, memory], self.cos_clip)


def projection(objective: float, conflict: float, memory: float, cos_clip: float = -1.0) -> float:
    """The coefficient ≥ 0 of m in x* from ‖g‖², ⟨g, m⟩ and ‖m‖² (the closed form of arXiv 2503.09117).

    It is −‖g‖·max(cos θ, c)/‖m‖ where ⟨g, m⟩ < 0, with c = ``cos_clip``, else 0.
    """
    if not conflict < 0 or memory < sys.float_info.min:
        return 0.0
    floor = cos_clip * math.sqrt(objective * memory)
    return -max(conflict, floor) / memory


def rectify(objective: Tensor, memory: Tensor, cos_clip: float = -1.0) -> Tensor:
    """x* for two flat vectors g and m ``[N]``, computed in float64, in g's dtype: what a notebook plays with.

    >>> import torch
    >>> rectify(torch.tensor([1.0, -1.0]), torch.tensor([0.0, 2.0])).tolist()
    [1.0, 0.0]
    """
    g, m = objective.double(), memory.double()
    scale = projection(float(g @ g), float(g @ m), float(m @ m), cos_clip)
    return (g + scale * m).to(objective.dtype)
