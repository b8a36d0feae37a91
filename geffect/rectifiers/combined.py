"""PCGrad, BLUR, NGDiff, HAMU, OrthoGrad: combinations of this step's gradients, chosen by their inner products.

Letters: g_o, g_f and g_r are the gradients of the objective, the forget loss and the retain loss, d is what is
descended instead of g_o (θ ← θ − lr·d), and products are those over one part of the model (``scope``). To first order a
step of plain gradient descent changes a loss by −lr·⟨its gradient, d⟩; of an optimizer that rescales entries, as AdamW
does, none of the guarantees speaks.
"""

import math
import sys
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from geffect.core.registry import Metric, Positive, Share
from geffect.core.splits import EXAMPLES, MOST_REMEMBERED
from geffect.rectifiers.base import InnerProducts, Rectifier, Scope
from geffect.rectifiers.gru import projection

PAIRS = (("objective", "objective"), ("objective", "retain"), ("retain", "retain"))
SHORT = sys.float_info.min  # a squared norm below it cannot be divided by: the gradient counts as zero
PARALLEL = 1e-12  # sin² of an angle, or an eigenvalue of unit vectors' Gram, below it is rounding


@dataclass(frozen=True)
class PCGrad(Rectifier):
    """d = g_o − min(0, ⟨g_o, g_r⟩)/‖g_r‖² · g_r + alpha · g_r (arXiv 2001.06782, of one gradient).

    Guarantee: ⟨g_r, d⟩ = max(0, ⟨g_o, g_r⟩) + alpha‖g_r‖² ≥ 0, so the retain loss does not rise; and with alpha = 0,
    ⟨g_o, d⟩ ≥ 0, so the objective does not rise either. Unlike GRU it compares to this step's retain gradient alone.

    Attributes:
        alpha: weight of the retain gradient that is added after the projection.
        scope: the part of the model over which the guarantee holds.
    """

    alpha: Annotated[float, Field(ge=0)] = 0.0
    scope: Scope = "model"
    gradients: ClassVar[tuple[str, ...]] = ("objective", "retain")

    def coefficients(self, gram: InnerProducts) -> dict[str, float]:
        """1 of the objective's gradient, and of the retain gradient what takes the conflict out.

        >>> import torch
        >>> gram = InnerProducts(PCGrad.gradients, torch.tensor([[1.0, -0.5], [-0.5, 0.25]]))
        >>> PCGrad(alpha=1.0).coefficients(gram)
        {'objective': 1.0, 'retain': 3.0}
        """
        removed = projection(*(gram[pair] for pair in PAIRS))
        return {"objective": 1.0, "retain": removed + self.alpha}


@dataclass(frozen=True)
class BLUR(Rectifier):
    """d = g_r + (gamma − ⟨g_r, g_o⟩/‖g_o‖²) · g_o: retain among the steps that forget as fast (arXiv 2506.08164).

    Guarantee: ⟨g_o, d⟩ = gamma‖g_o‖², so the objective falls as fast as gamma times its own gradient makes it, and of
    all d of that rate this one is closest to g_r. The retain loss may rise: ⟨g_r, d⟩ = ‖g_r‖² sin² + gamma⟨g_o, g_r⟩.

    Attributes:
        gamma: the objective's rate, as a share of that of its own gradient.
        scope: the part of the model over which the guarantee holds.
    """

    gamma: Annotated[float, Field(ge=0)] = 1.0
    scope: Scope = "model"
    gradients: ClassVar[tuple[str, ...]] = ("objective", "retain")

    def coefficients(self, gram: InnerProducts) -> dict[str, float]:
        """1 of the retain gradient, and gamma less its shadow of the objective's; of a zero one, gamma."""
        square = gram["objective", "objective"]
        shadow = gram["objective", "retain"] / square if square >= SHORT else 0.0
        return {"objective": self.gamma - shadow, "retain": 1.0}


@dataclass(frozen=True)
class NGDiff(Rectifier):
    """d = g_r/‖g_r‖ − g_f/‖g_f‖, whatever the objective: the difference of normalized gradients (arXiv 2410.22086).

    Guarantee: ⟨g_r, d⟩ = ‖g_r‖(1 − cos) ≥ 0 and ⟨g_f, d⟩ = −‖g_f‖(1 − cos) ≤ 0, cos that between g_f and g_r: the
    retain loss does not rise and the forget loss does not fall. d has a length of 0 to 2, so the learning rate of plain
    gradient descent is one of distance. A zero gradient is left out.

    Attributes:
        scope: the part of the model over which gradients are normalized and the guarantee holds.
    """

    scope: Scope = "model"
    gradients: ClassVar[tuple[str, ...]] = ("objective", "forget", "retain")

    def coefficients(self, gram: InnerProducts) -> dict[str, float]:
        """The lengths' inverses; 0 of the objective's gradient.

        >>> import torch
        >>> gram = InnerProducts(("objective", "forget", "retain"), torch.diag(torch.tensor([1.0, 4.0, 16.0])))
        >>> NGDiff().coefficients(gram)
        {'objective': 0.0, 'forget': -0.5, 'retain': 0.25}
        """
        return {"objective": 0.0, "forget": -inverse_length(gram, "forget"), "retain": inverse_length(gram, "retain")}


@dataclass(frozen=True)
class HAMU(Rectifier):
    """Of all d no longer than R whose step raises the forget loss by B, the one that is best for the retain loss.

    max ⟨g_r, d⟩ subject to −⟨g_f, d⟩ ≥ B and ‖d‖ ≤ R (arXiv 2606.02119, which names the update Δ = −d). The wanted
    gain is a share of the largest that the radius permits, B = gain·R‖g_f‖. With unit vectors u = g/‖g‖ and the angle φ
    between g_f and g_r:

    - cos φ ≤ −gain: d = R u_r, the retain loss's own descent gains B already;
    - else d = R(√(1 − gain²) · u_⊥ − gain · u_f), u_⊥ along g_r − ⟨g_f, g_r⟩/‖g_f‖² · g_f.

    B > R‖g_f‖ is infeasible, and a gain of at most 1 never asks for it. Where g_r has no part across g_f (parallel, or
    zero) nothing says where the rest of the length should go, and d = −R·gain · u_f; where g_f is zero, B is too, and
    d = R u_r.

    Guarantee: −⟨g_f, d⟩ ≥ B, and the retain loss does not rise where it need not: ⟨g_r, d⟩ = R‖g_r‖ sin(φ − arcsin
    gain) in the second case, which is negative only where gain > sin φ. No other d of this gain and
    length has a lower price.

    Attributes:
        gain: share of the largest gain of forget loss, in (0, 1]; 1 is normalized gradient ascent.
        radius: R; None takes ‖g_o‖, so that the step keeps the length of the objective's.
        scope: the part of the model over which the guarantee holds.
        metric: ``adam``, this toolkit's, chooses in Adam's metric (`Rectifier.metric`): ⟨g, h⟩ above is ⟨g, M⁻¹h⟩, and
            the step is along M⁻¹d, as that of Adam without momentum is. Leave ``radius`` out there: before the first
            step M is the identity, so that the same R would be of another scale in all others.
    """

    gain: Share = 0.5
    radius: Positive | None = None
    scope: Scope = "model"
    metric: Metric = "euclidean"
    gradients: ClassVar[tuple[str, ...]] = ("objective", "forget", "retain")

    def coefficients(self, gram: InnerProducts) -> dict[str, float]:
        """Those of the forget and the retain gradient; 0 of the objective's.

        >>> import torch
        >>> gram = InnerProducts(("objective", "forget", "retain"), torch.diag(torch.tensor([25.0, 4.0, 4.0])))
        >>> HAMU(gain=0.6).coefficients(gram)
        {'objective': 0.0, 'forget': -1.5, 'retain': 2.0}
        """
        forget, retain = inverse_length(gram, "forget"), inverse_length(gram, "retain")
        radius = math.sqrt(max(0.0, gram["objective", "objective"])) if self.radius is None else self.radius
        cos = max(-1.0, min(1.0, gram["forget", "retain"] * forget * retain))
        square = (1 - cos) * (1 + cos)  # sin²
        if retain and (not forget or cos <= -self.gain):
            along, across = 0.0, radius
        elif retain and square > PARALLEL:
            across = radius * math.sqrt((1 - self.gain) * (1 + self.gain) / square)
            along = -radius * self.gain - across * cos
        else:
            along, across = -radius * self.gain, 0.0
        return {"objective": 0.0, "forget": along * forget, "retain": across * retain}


@dataclass(frozen=True)
class OrthoGrad(Rectifier):
    """d = g_o − its projection on the span of single retain examples' gradients (arXiv 2503.02312).

    Each retain example of the step has a pass of its own, whose gradient is that of its share of the retain loss. Where
    there are more than ``examples``, every so many-th is added to the same gradient, and the span is that of the sums.

    Guarantee: ⟨e_i, d⟩ = 0 of every gradient e_i of the span, so the step leaves each one's loss as it is, and the
    retain loss, which is their sum; and ⟨g_o, d⟩ = ‖d‖² ≥ 0, so the objective does not rise.

    Attributes:
        examples: dimensions of the span at most; each takes the memory of the trained parameters.
        scope: the part of the model over which the guarantee holds.
    """

    examples: Annotated[int, Field(ge=1, le=MOST_REMEMBERED)] = 8
    scope: Scope = "model"

    @property
    def gradients(self) -> tuple[str, ...]:
        """The objective's and the examples'."""
        return ("objective", *EXAMPLES[: self.examples])

    def coefficients(self, gram: InnerProducts) -> dict[str, float]:
        """1 of the objective's gradient, and of each example's what takes the shadow on the span out.

        >>> import torch
        >>> gram = InnerProducts(("objective", "example_0"), torch.tensor([[1.0, 0.5], [0.5, 0.25]]))
        >>> OrthoGrad(examples=1).coefficients(gram)
        {'objective': 1.0, 'example_0': -2.0}
        """
        names = [name for name in gram.names if name in EXAMPLES[: self.examples]]
        lengths = torch.tensor([inverse_length(gram, name) for name in names], dtype=torch.float64)
        chosen = [gram.names.index(name) for name in names]
        matrix = gram.matrix.double()
        unit = matrix[chosen][:, chosen] * torch.outer(lengths, lengths)
        shadow = matrix[chosen, gram.names.index("objective")] * lengths
        weights = torch.linalg.pinv(unit, rtol=PARALLEL, hermitian=True) @ shadow * -lengths
        return {"objective": 1.0, **dict(zip(names, weights.tolist(), strict=True))}


def inverse_length(gram: InnerProducts, name: str) -> float:
    """1/‖gradient‖; 0 of a zero one."""
    square = gram[name, name]
    return 1 / math.sqrt(square) if square >= SHORT else 0.0
