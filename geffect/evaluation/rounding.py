"""The rounding probe: does what was unlearned come back when weights are rounded?"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def rounded(model: nn.Module, bits: int = 8) -> Iterator[None]:
    """Weights rounded to so many bits while this lasts, symmetrically, a scale an output row; vectors are left.

    w → s · round(w / s) with s = max |row| / (2^(bits − 1) − 1). After it the weights are bit for bit what they were.

    Args:
        model: the model.
        bits: 2 or more.
    """
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.dim() >= 2}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in before:
                parameter.copy_(_rounded(parameter, bits))
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in before:
                    parameter.copy_(before[name])


def _rounded(weight: Tensor, bits: int) -> Tensor:
    scale = weight.abs().amax(tuple(range(1, weight.dim())), keepdim=True) / (2 ** (bits - 1) - 1)
    return torch.where(scale > 0, (weight / scale).round() * scale, weight)
