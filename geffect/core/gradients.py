"""Gradients over the trainable parameters, moved out of the model by hooks.

A gradient maps canonical parameter names to tensors of the parameters' shapes. A name that is missing counts as zero:
the loss did not reach it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

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
        row, places = self.gradients.setdefault(name, {}), merged or {}

        def keep(key: str, gradient: Tensor) -> None:
            place = places.get(key, key)
            row[place] = row[place].add_(gradient) if place in row else gradient

        _backward(self.parameters, loss, keep, retain_graph=retain_graph)

    def stream(self, name: str, loss: Tensor, visit: Visit) -> None:
        """Complete the gradient ``name`` with ∇loss, call ``visit`` once for every parameter, and free the gradient.

        ``visit`` gets the parameter's name and tensor, None where no loss of the window reached it.
        """
        row = self.gradients.pop(name, {})
        waiting = dict.fromkeys(self.parameters)

        def hand_over(key: str, gradient: Tensor) -> None:
            waiting.pop(key)
            earlier = row.pop(key, None)
            visit(key, gradient if earlier is None else earlier.add_(gradient))

        _backward(self.parameters, loss, hand_over)
        for key in waiting:
            visit(key, row.pop(key, None))


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
        name: {key: row[key] for key in window.parameters if key in row}  # a backward pass fills them from the end
        for name, row in window.gradients.items()
    }


def add_scaled(row: NamedTensors, key: str, tensor: Tensor | None, scale: float) -> None:
    """row[key] += scale · tensor in place, where a missing entry on either side is zero."""
    if tensor is None or scale == 0.0:
        return
    row[key] = row[key].add_(tensor, alpha=scale) if key in row else tensor * scale


def _backward(
    parameters: Mapping[str, nn.Parameter],
    loss: Tensor,
    take: Callable[[str, Tensor], None],
    *,
    retain_graph: bool = False,
) -> None:
    with _set_aside(parameters), _hooked(parameters, take), torch.enable_grad():
        loss.backward(retain_graph=retain_graph)


@contextmanager
def _set_aside(parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Remove ``.grad`` and the hooks on the parameters meanwhile, so that only this module's own hooks run."""
    names = ("grad", "_backward_hooks", "_post_accumulate_grad_hooks")
    values = [(p, name, getattr(p, name)) for p in parameters.values() for name in names]
    for parameter, name, _ in values:
        setattr(parameter, name, None)
    try:
        yield
    finally:
        for parameter, name, value in values:
            setattr(parameter, name, value)


@contextmanager
def _hooked(parameters: Mapping[str, nn.Parameter], take: Callable[[str, Tensor], None]) -> Iterator[None]:
    def moving(name: str) -> Callable[[Tensor], None]:
        def move(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            if gradient is not None:
                take(name, gradient)

        return move

    handles = [p.register_post_accumulate_grad_hook(moving(name)) for name, p in parameters.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
