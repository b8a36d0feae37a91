"""Parameters in parts over processes (FSDP2): what lies here, as a plain tensor, and what all of them make together.

Rows, averages, masks and copies of weights are plain tensors everywhere else; a shard's are its own part of them.
"""

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, distributed, nn

from geffect.core.layers import block_list, unwrap
from geffect.errors import GeffectError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

MESH = "shard with fully_shard over one mesh dimension, along each tensor's first dimension (its default)"


def shard(model: nn.Module, device: str) -> None:
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
    for module in (*block_list(base)[1], base):
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
        raise GeffectError("shards over one dimension of a mesh", f"{mesh.ndim} dimensions", MESH)
    for found in (p.placements[0] for p in shards if not p.placements[0].is_shard(0)):
        raise GeffectError("shards along each tensor's first dimension", str(found), MESH)
    return bool(shards)


def is_shard(tensor: object) -> TypeGuard["DTensor"]:
    """Whether a tensor is this process's part of one that lies in parts."""
    loaded = sys.modules.get("torch.distributed.tensor")  # a second to import: where nobody has, there is no shard
    return loaded is not None and isinstance(tensor, loaded.DTensor)


def local(tensor: Tensor) -> Tensor:
    """A tensor's part on this process, over the same memory: itself where it is whole."""
    return tensor.to_local() if is_shard(tensor) else tensor


def whole(tensor: Any) -> Any:
    """All parts of a shard put together, for every process to call at once; anything else as it is."""
    return tensor.full_tensor() if is_shard(tensor) else tensor


def part(tensor: Tensor, like: Tensor) -> Tensor:
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


def as_part_of(tensor: Tensor | None, like: Tensor) -> Tensor | None:
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


def mapped(state: Any, function: Callable[[Any], Any]) -> Any:
    """A state dictionary with a function applied to every leaf, in an order that is everybody's."""
    if isinstance(state, dict):
        return {key: mapped(each, function) for key, each in state.items()}
    if isinstance(state, list):
        return [mapped(each, function) for each in state]
    return function(state)


@torch.no_grad()
def load(parameters: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into parameters, of which each process may hold a part.

    Args:
        parameters: name → where to.
        saved: name → what; names that are not among the parameters are passed over.
    """
    for name in (each for each in saved if each in parameters):
        local(parameters[name]).copy_(part(saved[name], parameters[name]))
