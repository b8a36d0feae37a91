"""Several processes: replicas hold whole gradients each (DDP), shards a part of every gradient (FSDP2).

Every process back-propagates its own share of a sum. The gradients of replicas are summed before any inner product is
taken: the inner product of two means is not the mean of inner products. The gradients of shards are summed by FSDP2;
their inner products are parts of a sum, so those are summed. No process gathers a whole gradient.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from geffect.core.architectures import is_shard
from geffect.core.gradients import NamedTensors
from geffect.core.gram import Gram
from geffect.core.layers import decoder_blocks, unwrap
from geffect.errors import GeffectError
from geffect.io.system import rank_and_size

Item = TypeVar("Item")
BUCKET = 25_000_000  # bytes of small tensors that travel together: each exchange costs a round trip


def num_processes() -> int:
    """The number of processes that work together; 1 without a launcher."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """This process's number, known from the launcher before the processes have met; process 0 writes the record."""
    return distributed.get_rank() if num_processes() > 1 else rank_and_size()[0]


def assign_items(items: Sequence[Item]) -> list[tuple[Item, float]]:
    """This process's items as (item, weight), as many as every other process's; the items are the same everywhere.

    All processes gather the shards of a layer at once, so each must run as many passes. A process with fewer items
    of its own, which have weight 1, runs some of others' again, with weight 0.
    """
    here, world = rank(), num_processes()
    turns = -(-len(items) // world)
    places = range(here, turns * world, world)
    return [(items[place % len(items)], float(place < len(items))) for place in places]


def sum_gradients(
    gradients: Mapping[str, NamedTensors], parameters: Mapping[str, nn.Parameter]
) -> dict[str, NamedTensors]:
    """Gradients (name → parameter → tensor, changed in place) summed over the processes; of shards, this process's.

    Each process has back-propagated its share of a sum. ``parameters`` has the same order in every process.
    """
    size = num_processes()
    if size == 1:
        return dict(gradients)
    if is_sharded(parameters):  # the reduction divided by the number of processes
        return {name: {key: local_part(t).mul_(size) for key, t in each.items()} for name, each in gradients.items()}
    places = [(name, key) for name in gradients for key in parameters]
    reached = sum_over_processes(torch.tensor([float(key in gradients[name]) for name, key in places]))
    for bucket in _buckets(
        gradients[name].setdefault(key, torch.zeros_like(parameters[key]))
        for (name, key), count in zip(places, reached.tolist(), strict=True)
        if count
    ):
        _sum_together(bucket)
    return dict(gradients)


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in their order, as many neighbors of one dtype and device at a time as `BUCKET` holds, at least one.

    >>> [len(each) for each in _buckets([torch.zeros(2), torch.zeros(3), torch.zeros(3, dtype=torch.float64)])]
    [2, 1]
    """
    bucket, size = list[Tensor](), 0
    for tensor in tensors:
        fits = size + tensor.nbytes <= BUCKET
        if bucket and not (fits and (tensor.dtype, tensor.device) == (bucket[0].dtype, bucket[0].device)):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket


def _sum_together(tensors: Sequence[Tensor]) -> None:
    """Sum tensors over the processes, in place, by one exchange."""
    if len(tensors) == 1 and tensors[0].is_contiguous():  # a large one, without a copy of it
        sum_over_processes(tensors[0])
        return
    flat = sum_over_processes(torch.cat([each.reshape(-1) for each in tensors]))
    for each, part in zip(tensors, flat.split([each.numel() for each in tensors]), strict=True):
        each.copy_(part.view(each.shape))


def sum_gram(gram: Gram, *, sharded: bool) -> Gram:
    """A Gram of shards summed over the processes; that of replicas is returned as it is."""
    if not (sharded and gram.values) or num_processes() == 1:
        return gram
    summed = sum_over_processes(torch.stack(list(gram.values.values())))  # [P, M, M]
    return Gram(gram.names, dict(zip(gram.values, summed, strict=True)))


def wait_for_all() -> None:
    """Return once every process has called this."""
    if num_processes() > 1:
        distributed.barrier()


def sum_over_processes(values: Tensor) -> Tensor:
    """Numbers summed over the processes, in place."""
    if num_processes() == 1:
        return values
    there = values.cuda() if distributed.get_backend() == "nccl" else values  # which takes no tensor on the CPU
    distributed.all_reduce(there)
    return values if there is values else values.copy_(there)


MESH = "Shard with fully_shard over one mesh dimension, along each tensor's first dimension (its default)"


def shard_model(model: nn.Module, device: str) -> None:
    """Shard every parameter, the same in every process, on a type of device: block by block, then what is outside.

    Weights are gathered for a block's passes and freed after each, those outside the blocks too: otherwise a pass
    without a backward pass would leave gathered weights, which the optimizer's step does not reach.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh, base = init_device_mesh(device, (distributed.get_world_size(),)), unwrap(model)
    for module in (*decoder_blocks(base)[1], base):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def is_sharded(parameters: Mapping[str, nn.Parameter]) -> bool:
    """Whether any parameter is a shard of FSDP2's; one of a tensor-parallel plan, or of another mesh, is refused."""
    shards = [p for p in parameters.values() if is_shard(p)]
    if any("tp" in (p.device_mesh.mesh_dim_names or ()) for p in shards):  # each process then sees every example
        message = "The model is tensor-parallel (tp_plan): its processes share each pass, not the examples"
        raise GeffectError(message, remedy="Load it without tp_plan, and shard it with FSDP2 (fully_shard)")
    for mesh in (p.device_mesh for p in shards if p.device_mesh.ndim > 1):
        raise GeffectError(f"The parameters are sharded over {mesh.ndim} dimensions of a mesh", remedy=MESH)
    for placement in (p.placements[0] for p in shards if not p.placements[0].is_shard(0)):
        raise GeffectError(f"A parameter is placed as {placement}, not sharded along its first dimension", remedy=MESH)
    return bool(shards)


def local_part(tensor: Tensor) -> Tensor:
    """A tensor's part on this process, over the same memory; a tensor that is no shard is returned as it is."""
    return tensor.to_local() if is_shard(tensor) else tensor


def full_tensor(tensor: Any) -> Any:
    """All parts of a shard together, which every process must call at once; anything else is returned as it is."""
    return tensor.full_tensor() if is_shard(tensor) else tensor


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """A copy of this process's part of a whole tensor, sharded as ``like`` is; the tensor itself where it is not."""
    if not is_shard(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    there = tensor.to(like.device_mesh.device_type)
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None).to_local().clone()


def as_shard(tensor: Tensor | None, like: Tensor) -> Tensor | None:
    """This process's part of a gradient (None: zeros) as a shard like a parameter, over the same memory.

    Where the parameter ``like`` is no shard, the tensor itself.
    """
    if tensor is None or not is_shard(like):
        return tensor
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        tensor, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def map_leaves(state: Any, function: Callable[[Any], Any]) -> Any:
    """A state dictionary with a function applied to every leaf, in an order that is the same in every process."""
    if isinstance(state, dict):
        return {key: map_leaves(each, function) for key, each in state.items()}
    if isinstance(state, list):
        return [map_leaves(each, function) for each in state]
    return function(state)


@torch.no_grad()
def load_parameters(parameters: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy whole saved tensors into parameters, of which each process may hold a part; other names are ignored."""
    for name in (each for each in saved if each in parameters):
        local_part(parameters[name]).copy_(part_of(saved[name], parameters[name]))


def gather_tensors(tensors: NamedTensors, parameters: Mapping[str, nn.Parameter]) -> NamedTensors:
    """Tensors of parameters as one process would have them, put together on the first; empty on the others."""
    together = NamedTensors()
    for name in (name for name in parameters if name in tensors):
        tensor = full_tensor(as_shard(tensors[name].to(parameters[name].device), parameters[name]))
        if rank() == 0:
            together[name] = tensor.contiguous()
    return together
