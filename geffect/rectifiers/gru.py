"""GRU: project the conflict with the retained knowledge out of an update (arXiv 2503.09117)."""

import math
from dataclasses import dataclass

from torch import Tensor

from geffect.core.gradients import NamedTensors
from geffect.errors import GeffectError

EPS = 1e-30
SPACES = ("gradient", "update", "both")


@dataclass(frozen=True)
class GRU:
    """x* = argmin ‖x − g‖² subject to ⟨x, m⟩ ≥ 0, that is g + max(0, −⟨g, m⟩)/‖m‖² · m.

    g is the objective's row and m the *retain average*: m ← decay·m + (1 − decay)·∇R_retain once an optimizer step,
    from m = 0 and without bias correction (the projection does not depend on m's length). Where cos(g, m) lies below
    ``cos_clip`` only the part down to it is removed, as the published code does with −0.5; −1 removes all of it.

    Attributes:
        decay: weight on the past, in [0, 1); the published ``moving_avg`` is 1 − decay (0.8).
        cos_clip: c in [−1, 0]; what is left of the conflict is ‖g‖‖m‖(cos θ − c) < 0 where cos θ < c.
        add_retain: weight of this step's raw retain row, added after the projection and unconstrained (``+ce``).
        space: what is projected: the ``gradient`` (the paper's), the ``update`` −Δθ that the optimizer makes of it, or
            ``both``. The latter two are this toolkit's: under AdamW a gradient without conflict still moves θ against
            m, so θ ← θ − max(0, ⟨m, Δθ⟩)/‖m‖² · m after the optimizer's step, the same form for any optimizer.
    """

    decay: float = 0.2
    cos_clip: float = -1.0
    add_retain: float = 0.0
    space: str = "gradient"

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise GeffectError("decay in [0, 1) for gru", str(self.decay), "it weighs the past; 0.2 is the default")
        if not -1 <= self.cos_clip <= 0:
            raise GeffectError("cos_clip in [-1, 0] for gru", str(self.cos_clip), "-1 removes the whole conflict")
        if self.space not in SPACES:
            raise GeffectError(f"space of gru among {', '.join(SPACES)}", repr(self.space), "choose one of these")

    @property
    def memory(self) -> str | None:
        """The row this rectifier keeps between steps."""
        return "retain_average"

    def init(self) -> NamedTensors:
        """The average before the first step: zero everywhere."""
        return {}

    def update(self, state: NamedTensors, name: str, retain: Tensor | None) -> Tensor | None:
        """Fold one tensor of this step's retain row into the average, in place.

        Args:
            state: the average so far, as `init` or this function left it.
            name: the parameter.
            retain: its retain gradient, None for zeros.

        Returns:
            The new average's tensor, None for zeros.
        """
        if name in state:
            state[name].mul_(self.decay)
            if retain is not None:
                state[name].add_(retain, alpha=1 - self.decay)
        elif retain is not None:
            state[name] = retain * (1 - self.decay)
        return state.get(name)

    def coefficients(self, objective: float, conflict: float, memory: float) -> dict[str, float]:
        """The rectified row as a combination of rows.

        Args:
            objective: ‖g‖².
            conflict: ⟨g, m⟩.
            memory: ‖m‖².

        Returns:
            Row name → coefficient.

        >>> GRU().coefficients(objective=1.0, conflict=-0.5, memory=0.25)
        {'objective': 1.0, 'retain_average': 2.0}
        """
        here = self.space in ("gradient", "both")
        scale = projection(objective, conflict, memory, self.cos_clip) if here else 0.0
        return {"objective": 1.0, "retain_average": scale}

    @property
    def corrects(self) -> bool:
        """Whether θ is corrected once the optimizer has stepped."""
        return self.space in ("update", "both")

    def correction(self, update: float, conflict: float, memory: float) -> float:
        """The coefficient of m in what is taken off θ: `projection` of the update −Δθ.

        Args:
            update: ‖Δθ‖².
            conflict: ⟨−Δθ, m⟩.
            memory: ‖m‖².

        Returns:
            A number ≥ 0, 0 in gradient space.

        >>> GRU(space="update").correction(update=1.0, conflict=-0.5, memory=0.25)
        2.0
        """
        return projection(update, conflict, memory, self.cos_clip) if self.corrects else 0.0


def projection(objective: float, conflict: float, memory: float, cos_clip: float = -1.0) -> float:
    """The coefficient of m in x* (the closed form of arXiv 2503.09117).

    Args:
        objective: ‖g‖².
        conflict: ⟨g, m⟩.
        memory: ‖m‖².
        cos_clip: c; the coefficient is −‖g‖·max(cos θ, c)/‖m‖ where ⟨g, m⟩ < 0, else 0.

    Returns:
        A number ≥ 0.
    """
    if not conflict < 0 or memory <= EPS:
        return 0.0
    floor = cos_clip * math.sqrt(objective * memory)
    return -max(conflict, floor) / memory


def rectify(objective: Tensor, memory: Tensor, cos_clip: float = -1.0) -> Tensor:
    """x* for two flat vectors, in float64: what a notebook plays with.

    Args:
        objective: g ``[N]``.
        memory: m ``[N]``.
        cos_clip: see `GRU`.

    Returns:
        x* ``[N]``, in g's dtype.

    >>> import torch
    >>> rectify(torch.tensor([1.0, -1.0]), torch.tensor([0.0, 2.0])).tolist()
    [1.0, 0.0]
    """
    g, m = objective.double(), memory.double()
    scale = projection(float(g @ g), float(g @ m), float(m @ m), cos_clip)
    return (g + scale * m).to(objective.dtype)
