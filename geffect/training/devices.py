"""Hugging Face's Trainer on one device: how it is made to take it, and what it does otherwise there."""

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from geffect.config import TrainConfig
from geffect.core.devices import VARIABLE
from geffect.io.system import rank_and_size

if TYPE_CHECKING:
    from transformers import TrainingArguments


def optimizer_name(config: TrainConfig, device: torch.device) -> str:
    """The optimizer that runs: of the default one, on CUDA, the kernel that needs no temporary copies of the weights.

    That kernel takes no shards.
    """
    fuses = config.optimizer == "adamw_torch" and device.type == "cuda" and not getattr(config, "shard", False)
    return "adamw_torch_fused" if fuses else config.optimizer


def loader_settings(device: torch.device) -> dict[str, object]:
    """Batches go to CUDA from pinned memory, beside the host's work; other devices gain nothing by it."""
    if device.type != "cuda":
        return {"dataloader_pin_memory": False}
    return {"dataloader_pin_memory": True, "accelerator_config": {"non_blocking": True}}


def take_device(arguments: "TrainingArguments", device: torch.device) -> None:
    """Make a Trainer of these arguments use one device; else it takes the first, and DataParallel where it sees more.

    Of several launched processes each keeps the one that accelerate gives it.
    """
    from accelerate.state import AcceleratorState, PartialState

    if rank_and_size()[1] > 1 or "LOCAL_RANK" in os.environ:
        return
    AcceleratorState._reset_state(reset_partial_state=True)  # as the arguments do when they choose a device
    with _variable(VARIABLE, str(device)):
        arguments.distributed_state = PartialState()
    vars(arguments).update(_setup_devices=device, _n_gpu=int(device.type != "cpu"))  # what they have chosen
    if device.type == "cuda":
        torch.cuda.set_device(device)


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable meanwhile."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before
