"""Devices: which one a name stands for, what it is called, and how to draw and compute on it repeatably."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from geffect.errors import GeffectError
from geffect.io.system import rank_and_size

AUTO = "auto"
VARIABLE = "ACCELERATE_TORCH_DEVICE"  # accelerate's own: the device that it, and so Hugging Face's Trainer, takes
ACCELERATORS = ("mps", "xpu", "cuda")  # in the Trainer's order
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS repeats itself with this setting alone


def find_device(name: str = AUTO) -> torch.device:
    """The device that a name stands for: ``cpu``, ``cuda``, ``cuda:1``, ``mps`` or another one that torch has.

    ``auto`` is what Hugging Face's Trainer would take: the device in ``ACCELERATE_TORCH_DEVICE``, else an accelerator
    that torch sees, else the CPU. Of several launched processes each takes an accelerator of its own. A device that
    is unknown or not available is refused; no accelerator is opened.
    """
    wanted = (os.environ.get(VARIABLE) or _accelerator()) if name == AUTO else name
    try:
        device = torch.device(wanted)
        count = device_count(device.type)
    except RuntimeError as error:
        raise GeffectError(f"There is no device {wanted!r}", remedy=_choice()) from error
    if (device.index or 0) >= count:
        number = f"{count} of its kind" if count else "none of its kind"
        raise GeffectError(f"The device {wanted} is not available: torch sees {number}", remedy=_choice())
    if device.type in ("cpu", "mps"):
        return torch.device(device.type)
    size = rank_and_size()[1]
    if size == 1:
        return torch.device(device.type, device.index or 0)
    if name != AUTO and device.index is not None:
        message = f"--device {name} is one device, and {size} processes were launched"
        raise GeffectError(message, remedy=f"Name --device {device.type}, of which each process takes its own")
    return torch.device(device.type, int(os.environ.get("LOCAL_RANK") or 0) % count)


def device_count(kind: str) -> int:
    """The number of devices of a kind that torch sees; raise a RuntimeError where it knows no such kind."""
    count: int = torch.get_device_module(kind).device_count()
    return count


def device_name(device: torch.device) -> str:
    """What a device calls itself, as ``NVIDIA H100 80GB HBM3``; its kind where it has no name."""
    if device.type != "cuda":
        return device.type
    name: str = torch.cuda.get_device_name(device)
    return name


def _accelerator() -> str:
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "y", "on", "t"):
        return "cpu"
    return next((kind for kind in ACCELERATORS if device_count(kind)), "cpu")


def _choice() -> str:
    names = [AUTO, "cpu"]
    for kind in ACCELERATORS:
        names += [f"{kind}:{i}" if kind != "mps" else kind for i in range(device_count(kind))]
    return f"Choose one of {', '.join(names)}"


def input_device(model: nn.Module) -> torch.device:
    """Where a model takes its inputs: the device of its embedding, or of its first parameter."""
    get = getattr(model, "get_input_embeddings", None)
    weight = getattr(get() if get is not None else None, "weight", None)
    first = next(model.parameters()) if weight is None else weight
    place: torch.device = first.device
    return place


def is_dispatched(model: nn.Module) -> bool:
    """Whether accelerate has placed parts of a model on several devices."""
    places: dict[str, object] = getattr(model, "hf_device_map", None) or {}
    return len(set(map(str, places.values()))) > 1


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw on the CPU from a seed; the CPU's random state returns after, and no accelerator is touched."""
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        yield


@contextlib.contextmanager
def deterministic_algorithms(enabled: bool = True) -> Iterator[None]:
    """Use torch's deterministic algorithms alone; the setting before returns after.

    An operation that has none is refused, by its name.
    """
    if not enabled:
        yield
        return
    before = torch.get_deterministic_debug_mode()
    os.environ.setdefault(CUBLAS, ":4096:8")  # read when CUDA's library is first used
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        operation, found, _ = str(error).partition(" does not have a deterministic implementation")
        if not found:
            raise
        message = f"{operation.strip()} has no deterministic algorithm on this device"
        raise GeffectError(message, remedy="Choose --device cpu, or leave --deterministic out") from error
    finally:
        torch.set_deterministic_debug_mode(before)


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
