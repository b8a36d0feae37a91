"""Unlearning with control (UWC, arXiv 2406.09179): compare methods at equal retention, by mixing the start back in."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from geffect.errors import GeffectError


@contextmanager
def mixed(model: nn.Module, start: Mapping[str, Tensor], alpha: float) -> Iterator[None]:
    """θ(α) = (1 − α) θ_start + α θ while this lasts; after it the weights are bit for bit what they were.

    Args:
        model: the unlearned model, an adapter merged into its base.
        start: its start's parameters, by name.
        alpha: in [0, 1]; 1 is the unlearned model (published code has the mixing factor 1 − α).

    Raises:
        GeffectError: the start is another model's.
    """
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if name not in start or start[name].shape != parameter.shape:
            found = f"{tuple(start[name].shape)}" if name in start else "none"
            raise GeffectError(
                f"{name} of shape {tuple(parameter.shape)} in the start", found, "name the run's own start"
            )
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.lerp(start[name].to(parameter), parameter, alpha))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(before[name])


def calibrate(retained: Callable[[float], float], tau: float = 0.95, tolerance: float = 0.01) -> float:
    """The largest α at which retention is τ of the start's or more, by bisection.

    Retention is taken to fall with α. The paper names no search, and its published script looks at α = 0 and 1 alone.

    Args:
        retained: α → a score of what is kept, such as the mean extraction strength on a retain set.
        tau: share of ``retained(0)`` that is kept.
        tolerance: of α.

    Returns:
        α: 1 where the unlearned model keeps enough, else one that does, ``tolerance`` at most below one that does
        not.

    >>> calibrate(lambda alpha: 1 - alpha, tau=0.75, tolerance=0.001)
    0.25
    """
    enough = tau * retained(0.0)
    if retained(1.0) >= enough:
        return 1.0
    low, high = 0.0, 1.0
    while high - low > tolerance:
        middle = (low + high) / 2
        low, high = (middle, high) if retained(middle) >= enough else (low, middle)
    return low
