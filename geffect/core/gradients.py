"""Gradients over the trainable parameters, moved out of the model by hooks.

A gradient maps canonical parameter names to tensors of the parameters' shapes. A name that is missing counts as zero:
the loss did not reach it.
"""

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from geffect.core.layers import trainable_parameters
from geffect.core.model_state import ModelState
from geffect.errors import GeffectError

NamedTensors = dict[str, Tensor]
Visit = Callable[[str, Tensor | None], None]


def check_no_hooks(parameters: Mapping[str, nn.Parameter]) -> None:
    """Refuse hooks on the parameters: they do not run on what is back-propagated here."""
    for name, parameter in parameters.items():
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise GeffectError(
                f"The parameter {name} has a hook, which does not run on the passes that measure", remedy="Remove it"
            )


class GradientBuffer:
    """The gradients of one accumulation window, by name (``gradients``); ``.grad`` is left as it was.

    ``add`` back-propagates a loss and moves its gradient into a buffer, to which later micro-batches of the window
    add. ``stream`` does so for the last loss of the window: each tensor of its gradient is passed on as soon as it
    is complete, while the other gradients' tensors are at hand, and is freed after.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self.gradients: dict[str, NamedTensors] = {}

    def add(
        self, name: str, loss: Tensor, *, retain_graph: bool = False, merged: Mapping[str, str] | None = None
    ) -> None:
        """Add ∇loss to the gradient ``name``.

        ``retain_graph`` keeps the graph for another loss over the same forward pass; ``merged`` maps a tensor
        to another one in whose place its gradient is summed.
        """
        sums, places = self.gradients.setdefault(name, {}), merged or {}

        def keep(key: str, gradient: Tensor) -> None:
            place = places.get(key, key)
            sums[place] = sums[place].add_(gradient) if place in sums else gradient

        _backward(self.parameters, loss, keep, retain_graph)

    def stream(self, name: str, loss: Tensor, visit: Visit) -> None:
        """Complete the gradient ``name`` with ∇loss, call ``visit`` once for every parameter, and free the gradient.

        ``visit`` gets the parameter's name and tensor, None where no loss of the window reached it.
        """
        sums = self.gradients.pop(name, {})
        waiting = dict.fromkeys(self.parameters)

        def hand_over(key: str, gradient: Tensor) -> None:
            waiting.pop(key)
            earlier = sums.pop(key, None)
            visit(key, gradient if earlier is None else earlier.add_(gradient))

        _backward(self.parameters, loss, hand_over)
        for key in waiting:
            visit(key, sums.pop(key, None))


def capture_gradients(model: nn.Module, losses: Mapping[str, Callable[[], Tensor]]) -> dict[str, NamedTensors]:
    """Compute the gradient of each of several losses; each takes the memory of the trainable parameters.

    Args:
        model: the model the losses are computed with, in its present mode; it and the random states are left unchanged.
        losses: name → a function that runs the forward pass and returns a scalar.

    Returns:
        Name → parameter name → gradient, in the parameters' order and dtype.

    Raises:
        GeffectError: a loss changed a trainable weight (see `geffect.core.model_state.ModelState`).

    >>> model = nn.Linear(2, 1, bias=False)
    >>> gradients = capture_gradients(model, {"sum": lambda: model(torch.ones(1, 2)).sum()})
    >>> gradients["sum"]["weight"].tolist(), model.weight.grad
    ([[1.0, 1.0]], None)
    """
    window = GradientBuffer(trainable_parameters(model))
    with ModelState(model).preserve(evaluate=False):
        for name, loss in losses.items():
            window.add(name, loss())
    return {
        name: {key: each[key] for key in window.parameters if key in each}  # a backward pass fills them from the end
        for name, each in window.gradients.items()
    }


def add_scaled(gradient: NamedTensors, key: str, tensor: Tensor | None, scale: float) -> None:
    """gradient[key] += scale · tensor in place, where a missing entry on either side is zero."""
    if tensor is None or scale == 0.0:
        return
    gradient[key] = gradient[key].add_(tensor, alpha=scale) if key in gradient else tensor * scale


def _backward(
    parameters: Mapping[str, nn.Parameter], loss: Tensor, take: Callable[[str, Tensor], None], retain: bool = False
) -> None:
    """Back-propagate a loss, and call a function with the name and gradient of each tensor once that is complete.

    ``.grad`` and the hooks on the parameters are put back afterwards; meanwhile only the hooks made here run.
    """

    def move(name: str, parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        if gradient is not None:
            take(name, gradient)

    attributes = ("grad", "_backward_hooks", "_post_accumulate_grad_hooks")
    before = [(p, attribute, getattr(p, attribute)) for p in parameters.values() for attribute in attributes]
    handles = []
    try:
        for parameter, attribute, _ in before:
            setattr(parameter, attribute, None)
        for name, parameter in parameters.items():
            handles.append(parameter.register_post_accumulate_grad_hook(functools.partial(move, name)))
        with torch.enable_grad():
            loss.backward(retain_graph=retain)
    finally:
        for handle in handles:
            handle.remove()
        for parameter, attribute, value in before:
            setattr(parameter, attribute, value)
