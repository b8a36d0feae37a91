"""Processes side by side: replicas hold whole gradients each (DDP), shards a part of every gradient (FSDP2).

Every process back-propagates its own share of a sum. What replicas found is added up before any inner product is taken:
the inner product of two means is not the mean of inner products. Shards come added up; their inner products are parts
of a sum, so those are added. A whole gradient is gathered nowhere.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from geffect.core.fsdp import is_sharded, local
from geffect.core.gradients import NamedTensors
from geffect.core.gram import Gram
from geffect.core.launch import launched

Item = TypeVar("Item")


def processes() -> int:
    """How many work side by side; 1 where nothing was launched."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is, known from the launcher before they have met; 0 keeps the record."""
    return distributed.get_rank() if processes() > 1 else launched()[0]


def dealt(items: Sequence[Item]) -> list[tuple[Item, float]]:
    """This process's share of what all together go through, as many as everybody's.

    Shards of one layer are gathered by all processes at once, so each must run as many passes; those that have fewer
    items of their own run some of others' again, with weight 0.

    Args:
        items: at least one, the same in every process.

    Returns:
        (item, weight): 1 for an item of its own, else 0.
    """
    here, world = rank(), processes()
    turns = -(-len(items) // world)
    places = [turn * world + here for turn in range(turns)]
    return [(items[place % len(items)], float(place < len(items))) for place in places]


def summed_rows(rows: Mapping[str, NamedTensors], parameters: Mapping[str, nn.Parameter]) -> dict[str, NamedTensors]:
    """Rows added up over the processes, each back-propagated from this process's share of a sum.

    Args:
        rows: row → parameter name → gradient; they are changed in place.
        parameters: what rows cover, in an order that is everybody's.

    Returns:
        The same of replicas; of shards, this process's part of every row.
    """
    if processes() == 1:
        return dict(rows)
    if is_sharded(parameters):  # the reduction divided by the number of processes
        return {name: {key: local(t).mul_(processes()) for key, t in row.items()} for name, row in rows.items()}
    places = [(name, key) for name in rows for key in parameters]
    reached = summed(torch.tensor([float(key in rows[name]) for name, key in places]))
    for (name, key), count in zip(places, reached.tolist(), strict=True):
        if count:
            tensor = rows[name].setdefault(key, torch.zeros_like(parameters[key]))
            summed(tensor)
    return dict(rows)


def summed_gram(gram: Gram, *, sharded: bool) -> Gram:
    """A Gram of shards added up over the processes; of replicas, itself."""
    if not (sharded and gram.values) or processes() == 1:
        return gram
    whole = summed(torch.stack(list(gram.values.values())))  # [P, M, M]
    return Gram(gram.rows, dict(zip(gram.values, whole, strict=True)))


def wait() -> None:
    """Go on once every process has come here."""
    if processes() > 1:
        distributed.barrier()


def summed(values: Tensor) -> Tensor:
    """Numbers added up over the processes, in place."""
    if processes() == 1:
        return values
    there = values.cuda() if distributed.get_backend() == "nccl" else values  # which takes no tensor on the CPU
    distributed.all_reduce(there)
    return values if there is values else values.copy_(there)
