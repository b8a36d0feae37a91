"""Copies to the host: small numbers stay where they were computed until one copy a device takes all of them.

A copy makes the host wait until the device has done all that was asked of it. One a tensor would leave the device idle
after every tensor.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors on the CPU, by one copy a device and dtype; one that is there already is returned as it is.

    >>> [each.tolist() for each in to_host([torch.ones(2), torch.tensor(3)])]
    [[1.0, 1.0], 3]
    """
    members: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, tensor in enumerate(tensors):
        if tensor.device.type != "cpu":
            members.setdefault((tensor.device, tensor.dtype), []).append(i)
    copies = list(tensors)
    for places in members.values():
        flat = torch.cat([tensors[i].detach().reshape(-1) for i in places]).cpu()
        for i, part in zip(places, flat.split([tensors[i].numel() for i in places]), strict=True):
            copies[i] = part.view(tensors[i].shape)
    return copies


@dataclass(frozen=True)
class Pairwise:
    """A number for each pair of M tensors, on their device; a pair with a tensor that is missing has 0.

    Attributes:
        size: M.
        present: the places of the K tensors that are not missing.
        values: their numbers ``[K, K]``.
    """

    size: int
    present: tuple[int, ...]
    values: Tensor


def matrices(pairs: Sequence[Pairwise]) -> list[Tensor]:
    """The numbers of each as a matrix ``[M, M]`` on the CPU, by one copy a device.

    >>> matrices([Pairwise(2, (1,), torch.tensor([[5]]))])[0].tolist()
    [[0, 0], [0, 5]]
    """
    values = to_host([each.values for each in pairs])
    return [_spread(each.size, each.present, numbers) for each, numbers in zip(pairs, values, strict=True)]


def _spread(size: int, present: Sequence[int], values: Tensor) -> Tensor:
    if len(present) == size:
        return values
    matrix, places = torch.zeros(size, size, dtype=values.dtype), torch.tensor(present, dtype=torch.int64)
    matrix[places[:, None], places] = values
    return matrix
