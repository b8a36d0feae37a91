"""TorchJD's weightings of the objective's and the retain gradient, by their inner products (arXiv 2406.16232)."""

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from geffect.errors import GeffectError
from geffect.rectifiers.base import InnerProducts, Rectifier, Scope


@dataclass(frozen=True)
class TorchJD(Rectifier):
    """d = w_o g_o + w_r g_r with the weights that a weighting of TorchJD gives the Gram of both (an extra).

    UPGrad averages g_o and g_r, each projected on the d that conflict with neither; DualProj projects their mean; MGDA
    takes the shortest of their weighted means.

    Guarantee: ⟨g_o, d⟩ ≥ 0 and ⟨g_r, d⟩ ≥ 0, so neither the objective nor the retain loss rises to first order under
    plain gradient descent; of the two projections up to 10⁻⁴‖d‖ or so, as TorchJD adds that to the Gram's diagonal,
    which here is that of unit vectors.

    Attributes:
        weighting: UPGrad, DualProj or MGDA.
        scope: the part of the model over which the guarantee holds.
    """

    weighting: Literal["UPGrad", "DualProj", "MGDA"] = "UPGrad"
    scope: Scope = "model"
    gradients: ClassVar[tuple[str, ...]] = ("objective", "retain")

    def __post_init__(self) -> None:
        super().__post_init__()
        needs = ("torchjd",) if self.weighting == "MGDA" else ("torchjd", "qpsolvers", "quadprog")
        absent = [name for name in needs if importlib.util.find_spec(name) is None]
        if absent:
            message = f"torchjd(weighting={self.weighting}) needs the package {absent[0]}, which is not installed"
            raise GeffectError(message, remedy="Run: pip install 'geffect[torchjd]'")

    def coefficients(self, gram: InnerProducts) -> dict[str, float]:
        """The weights of both gradients."""
        chosen = [gram.names.index(name) for name in self.gradients]
        matrix = gram.matrix.double()[chosen][:, chosen]
        lengths = matrix.diagonal().clamp(min=0).sqrt()
        if not lengths.all():  # the other gradient conflicts with nothing
            return {name: 0.5 * float(length > 0) for name, length in zip(self.gradients, lengths, strict=True)}
        weights = self._weights(matrix, lengths)
        return dict(zip(self.gradients, weights.tolist(), strict=True))

    def _weights(self, matrix: Tensor, lengths: Tensor) -> Tensor:
        make: Any = getattr(importlib.import_module("torchjd.aggregation"), f"{self.weighting}Weighting")
        weights: Tensor
        if self.weighting == "MGDA":
            weights = make()(matrix / matrix.diagonal().mean())
            return weights
        weights = make(pref_vector=lengths / 2)(matrix / torch.outer(lengths, lengths)) / lengths
        return weights
