"""Processes side by side: replicas hold whole gradients each (DDP), shards a part of every gradient (FSDP2).

Every process back-propagates its own share of a sum. What replicas found is added up before any inner product is taken:
the inner product of two means is not the mean of inner products. Shards come added up; their inner products are parts
of a sum, so those are added. A whole gradient is gathered nowhere.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from geffect.core.gradients import NamedTensors
from geffect.core.gram import Gram
from geffect.core.layers import decoder_blocks, unwrap
from geffect.core.types import is_shard
from geffect.errors import GeffectError
from geffect.io.system import rank_and_size

if TYPE_CHECKING:
    pass


Item = TypeVar("Item")


def num_processes() -> int:
    """How many work side by side; 1 where nothing was launched."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is, known from the launcher before they have met; 0 keeps the record."""
    return distributed.get_rank() if num_processes() > 1 else rank_and_size()[0]


def assign_items(items: Sequence[Item]) -> list[tuple[Item, float]]:
    """This process's share of what all together go through, as many as everybody's.

    Shards of one layer are gathered by all processes at once, so each must run as many passes; those that have fewer
    items of their own run some of others' again, with weight 0.

    Args:
        items: at least one, the same in every process.

    Returns:
        (item, weight): 1 for an item of its own, else 0.
    """
    here, world = rank(), num_processes()
    turns = -(-len(items) // world)
    places = [turn * world + here for turn in range(turns)]
    return [(items[place % len(items)], float(place < len(items))) for place in places]


def sum_gradients(rows: Mapping[str, NamedTensors], parameters: Mapping[str, nn.Parameter]) -> dict[str, NamedTensors]:
    """Rows added up over the processes, each back-propagated from this process's share of a sum.

    Args:
        rows: row → parameter name → gradient; they are changed in place.
        parameters: what rows cover, in an order that is everybody's.

    Returns:
        The same of replicas; of shards, this process's part of every row.
    """
    if num_processes() == 1:
        return dict(rows)
    if is_sharded(parameters):  # the reduction divided by the number of processes
        return {
            name: {key: local_part(t).mul_(num_processes()) for key, t in row.items()} for name, row in rows.items()
        }
    places = [(name, key) for name in rows for key in parameters]
    reached = sum_over_processes(torch.tensor([float(key in rows[name]) for name, key in places]))
    for (name, key), count in zip(places, reached.tolist(), strict=True):
        if count:
            tensor = rows[name].setdefault(key, torch.zeros_like(parameters[key]))
            sum_over_processes(tensor)
    return dict(rows)


def sum_gram(gram: Gram, *, sharded: bool) -> Gram:
    """A Gram of shards added up over the processes; of replicas, itself."""
    if not (sharded and gram.values) or num_processes() == 1:
        return gram
    whole = sum_over_processes(torch.stack(list(gram.values.values())))  # [P, M, M]
    return Gram(gram.rows, dict(zip(gram.values, whole, strict=True)))


def wait_for_all() -> None:
    """Go on once every process has come here."""
    if num_processes() > 1:
        distributed.barrier()


def sum_over_processes(values: Tensor) -> Tensor:
    """Numbers added up over the processes, in place."""
    if num_processes() == 1:
        return values
    there = values.cuda() if distributed.get_backend() == "nccl" else values  # which takes no tensor on the CPU
    distributed.all_reduce(there)
    return values if there is values else values.copy_(there)


MESH = "Shard with fully_shard over one mesh dimension, along each tensor's first dimension (its default)"


def shard_model(model: nn.Module, device: str) -> None:
    """Leave each process a part of every parameter: block by block, then what is around the blocks.

    Weights are gathered for a block's passes and let go after each, those around the blocks too: a pass without a
    backward one would else leave gathered weights behind, which the optimizer's step does not reach.

    Args:
        model: a causal language model, bare or with adapters; the same in every process.
        device: the type of device that the parts come to lie on.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh, base = init_device_mesh(device, (distributed.get_world_size(),)), unwrap(model)
    for module in (*decoder_blocks(base)[1], base):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def is_sharded(parameters: Mapping[str, nn.Parameter]) -> bool:
    """Whether the parameters lie in parts over the processes.

    Args:
        parameters: of a model.

    Returns:
        Whether any is a shard.

    Raises:
        GeffectError: they lie in parts over several dimensions of a mesh, or along another than their first.
    """
    shards = [p for p in parameters.values() if is_shard(p)]
    for mesh in (p.device_mesh for p in shards if p.device_mesh.ndim > 1):
        raise GeffectError(f"The parameters are sharded over {mesh.ndim} dimensions of a mesh", remedy=MESH)
    for placement in (p.placements[0] for p in shards if not p.placements[0].is_shard(0)):
        raise GeffectError(f"A parameter is placed as {placement}, not sharded along its first dimension", remedy=MESH)
    return bool(shards)


def local_part(tensor: Tensor) -> Tensor:
    """A tensor's part on this process, over the same memory: itself where it is whole."""
    return tensor.to_local() if is_shard(tensor) else tensor


def full_tensor(tensor: Any) -> Any:
    """All parts of a shard put together, for every process to call at once; anything else as it is."""
    return tensor.full_tensor() if is_shard(tensor) else tensor


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """What of a whole tensor belongs to this process.

    Args:
        tensor: whole, the same in every process.
        like: a parameter of that shape.

    Returns:
        A copy of the part; the tensor itself where the parameter is whole.
    """
    if not is_shard(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    there = tensor.to(like.device_mesh.device_type)
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None).to_local().clone()


def as_shard(tensor: Tensor | None, like: Tensor) -> Tensor | None:
    """This process's part of a gradient, as the parameter's optimizer wants it.

    Args:
        tensor: the part; None for zeros.
        like: the parameter.

    Returns:
        A shard over the same memory; the tensor itself where the parameter is whole.
    """
    if tensor is None or not is_shard(like):
        return tensor
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        tensor, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def map_leaves(state: Any, function: Callable[[Any], Any]) -> Any:
    """A state dictionary with a function applied to every leaf, in an order that is everybody's."""
    if isinstance(state, dict):
        return {key: map_leaves(each, function) for key, each in state.items()}
    if isinstance(state, list):
        return [map_leaves(each, function) for each in state]
    return function(state)


@torch.no_grad()
def load_parameters(parameters: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into parameters, of which each process may hold a part.

    Args:
        parameters: name → where to.
        saved: name → what; names that are not among the parameters are passed over.
    """
    for name in (each for each in saved if each in parameters):
        local_part(parameters[name]).copy_(part_of(saved[name], parameters[name]))
