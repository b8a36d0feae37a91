"""How much each entry of a model's weights matters to a set, from one gradient an example."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from geffect.core.gradients import GradientBuffer, NamedTensors
from geffect.errors import GeffectError

IMPORTANCES = ("mean_abs", "mean_square", "zscore")
FLAT = 1e-12  # a standard deviation below it ranks nothing


class Importance:
    """Gradients g_i of a set's N examples, folded into two sums; never more than one tensor of one of them is held.

    - ``mean_abs``: (1/N) Σ |g_i|, the average gradient magnitude of arXiv 2504.12681, Eq. 3. Its square, which Eq. 4
      ranks by, has the same order.
    - ``mean_square``: (1/N) Σ g_i².
    - ``zscore``: |z| of the signed mean, z = (ḡ − mean ḡ)/std ḡ over a tensor (the paper's official code). Where the
      examples' gradients cancel it is small, and the other two are not.

    Args:
        parameters: the tensors, by canonical name.
        mode: one of `IMPORTANCES`.
        signed: sum g_i too where the mode does not need it.

    Raises:
        GeffectError: the mode is unknown.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], mode: str = "mean_abs", *, signed: bool = True) -> None:
        if mode not in IMPORTANCES:
            raise GeffectError(f"There is no importance {mode!r}", remedy=f"Choose one of {', '.join(IMPORTANCES)}")
        self.parameters, self.mode, self.examples = dict(parameters), mode, 0
        self.sums = _zeros(self.parameters) if signed or mode == "zscore" else {}
        self.sizes = _zeros(self.parameters) if mode != "zscore" else {}
        self._reached: set[str] = set()

    def add(self, loss: Tensor) -> None:
        """Back-propagate one example's loss.

        Args:
            loss: a scalar with a graph.
        """
        GradientBuffer(self.parameters).stream("example", loss, self._fold)
        self.examples += 1

    def _fold(self, name: str, gradient: Tensor | None) -> None:
        if gradient is None:
            return
        gradient = gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32))
        self._reached.add(name)
        if self.sums:
            self.sums[name].add_(gradient)
        if self.mode == "mean_abs":
            self.sizes[name].add_(gradient.abs_())  # the gradient itself is freed with this call
        elif self.mode == "mean_square":
            self.sizes[name].addcmul_(gradient, gradient)

    def means(self) -> NamedTensors:
        """The signed mean ḡ, taken out of the sums in place; a tensor that no loss reached is missing."""
        return {name: self.sums[name].div_(self.examples) for name in self.reached if self.sums}

    @property
    def reached(self) -> dict[str, int]:
        """Tensor that a loss reached → entries."""
        return {name: parameter.numel() for name, parameter in self.parameters.items() if name in self._reached}

    def take(self, name: str) -> Tensor:
        """The importance of one tensor's entries, up to a factor: what ranks them. Its magnitudes are let go.

        Args:
            name: the parameter.

        Returns:
            Non-negative, of the tensor's shape.
        """
        return scores(self.sums[name]) if self.mode == "zscore" else self.sizes.pop(name)


def _zeros(parameters: Mapping[str, nn.Parameter]) -> NamedTensors:
    return {n: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for n, p in parameters.items()}


def scores(mean: Tensor) -> Tensor:
    """|z| · std = |ḡ − mean ḡ| of one tensor: the order of |z|.

    Args:
        mean: ḡ.

    Returns:
        Of its shape; zeros where std ḡ < 1e-12.

    >>> scores(torch.tensor([1.0, 2.0, 6.0])).tolist()
    [2.0, 1.0, 3.0]
    """
    centered = mean - mean.mean()
    return centered.abs() if float(centered.square().mean().sqrt()) >= FLAT else torch.zeros_like(mean)
