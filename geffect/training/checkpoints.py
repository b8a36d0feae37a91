"""Checkpoints that are whole or refused, and a Trainer that writes those of a sharded model as one process would.

A checkpoint is written aside and renamed, and checked before a run resumes from it.
"""

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed import DistError
from transformers import Trainer

from geffect.core.distributed import (
    as_shard,
    full_tensor,
    gather_tensors,
    is_sharded,
    load_parameters,
    local_part,
    map_leaves,
    num_processes,
    part_of,
    rank,
)
from geffect.core.gradients import NamedTensors
from geffect.core.layers import trainable_parameters
from geffect.errors import GeffectError
from geffect.models.checkpoints import REMEDY, check_checksums, checkpoint_shapes
from geffect.record.writer import replacing

PARTIAL = ".partial"  # where a checkpoint is written before it gets its name
OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"
FILES = ("trainer_state.json", OPTIMIZER, SCHEDULER)
RECTIFIER = "rectifier.safetensors"  # what a rectifier carries from step to step


def save_rectifier(checkpoint: Path, state: Mapping[str, NamedTensors], parameters: Mapping[str, nn.Parameter]) -> None:
    """Write a rectifier's state, of which each process may hold a part, into a checkpoint; nothing where it is empty.

    Every process must call it.
    """
    whole = {
        f"{memory}/{name}": tensor
        for memory, tensors in state.items()
        for name, tensor in gather_tensors(tensors, parameters).items()
    }
    if whole:
        with replacing(checkpoint / RECTIFIER) as file:
            save_file(whole, file)


def load_rectifier(checkpoint: Path, parameters: Mapping[str, nn.Parameter]) -> dict[str, NamedTensors]:
    """What `save_rectifier` wrote, of shards this process's part; empty where it wrote nothing."""
    state: dict[str, NamedTensors] = {}
    saved = load_file(checkpoint / RECTIFIER) if (checkpoint / RECTIFIER).exists() else {}
    for key, tensor in saved.items():
        memory, _, name = key.partition("/") if "/" in key else ("retain_average", "", key)  # GRU alone, once
        part = part_of(tensor, parameters[name]).to(parameters[name].device)
        state.setdefault(memory, NamedTensors())[name] = part
    return state


def check_whole(checkpoint: Path, model: nn.Module, others: Sequence[str] = ()) -> None:
    """Raise unless a checkpoint has all its files, as they were written, and the weights of this very model.

    Hugging Face's Trainer passes over a missing optimizer state, and over weights that are missing or too many.
    ``others`` are further files that it must have.
    """
    check_checksums(checkpoint)
    random_state = f"rng_state_{rank()}.pth" if num_processes() > 1 else "rng_state.pth"  # as Hugging Face names it
    missing = [name for name in (*FILES, random_state, *others) if not (checkpoint / name).is_file()]
    if missing:
        raise GeffectError(f"There is no {missing[0]} in {checkpoint}", remedy=REMEDY)
    saved = checkpoint_shapes(checkpoint, REMEDY)
    state = saved_state(model)
    places = {name: local_part(tensor).data_ptr() for name, tensor in state.items()}
    stored = {places[name] for name in saved if places.get(name)}  # a tied tensor is saved once; a part may be empty
    for name in sorted({*saved, *(name for name, place in places.items() if place not in stored)}):
        expected = tuple(state[name].shape) if name in state else None
        if saved.get(name) != expected:
            message = f"{name} in {checkpoint} has the shape {saved.get(name)}, and {expected} in this model"
            raise GeffectError(message, remedy=REMEDY)


def saved_state(model: nn.Module) -> dict[str, Tensor]:
    """A model's tensors by the names its checkpoints have, over the same memory: of an adapted model the adapter's."""
    from peft import PeftModel, get_peft_model_state_dict

    return dict(get_peft_model_state_dict(model) if isinstance(model, PeftModel) else model.state_dict())


@contextlib.contextmanager
def write_errors(directory: Path) -> Iterator[None]:
    """Turn what a full or read-only disk makes a writer raise into `OSError`: torch's and safetensors' have others."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if isinstance(error, DistError) or "gloo" in str(error):  # another process is gone: no fault of the disk's
            raise
        raise OSError(f"{str(error).strip().partition(chr(10))[0]} ({directory})") from error


class ShardedTrainer(Trainer):  # type: ignore[misc]
    """As Hugging Face's, which would replicate what is sharded already; accelerate's own sharding works on no CPU.

    A subclass that sums its gradients itself has ``wraps`` False: DDP's wrapper, which it would never run, holds
    buckets as large as a gradient.
    """

    wraps = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.sharded or not self.wraps:
            prepare = type(self.accelerator).prepare_model
            self.accelerator.prepare_model = functools.partial(prepare, self.accelerator, evaluation_mode=True)

    @property
    def sharded(self) -> bool:
        """Whether the model lies in parts over the processes."""
        return is_sharded(trainable_parameters(self.model))

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        return full_tensor(super()._clip_grad_norm(model))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model, put together on the first process, for every process to call."""
        if not self.sharded:
            super().save_model(output_dir, _internal_call)
            return
        state = _whole_state(self.model)
        if rank() == 0:
            self.model.save_pretrained(output_dir, state_dict=state)
            self.processing_class.save_pretrained(output_dir)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = map_leaves(self.optimizer.state_dict(), _gather)
        if rank() == 0:
            torch.save(state, Path(output_dir) / OPTIMIZER)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.sharded:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        saved = torch.load(Path(checkpoint) / OPTIMIZER, map_location="cpu", weights_only=True)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        state = {
            place: {key: _as_of(value, parameters[place]) for key, value in each.items()}
            for place, each in saved["state"].items()
        }
        self.optimizer.load_state_dict(saved | {"state": state})
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER, weights_only=True))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self.sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        for file in sorted(Path(resume_from_checkpoint).glob("*model*.safetensors")):
            load_parameters(saved_state(self.model), load_file(file))


def _gather(value: Any) -> Any:
    """A leaf of a state, put together by all processes; None on all but the first."""
    together = full_tensor(value)
    if not isinstance(together, Tensor):
        return together
    return together.cpu() if rank() == 0 else None


def _as_of(value: Any, parameter: Tensor) -> Any:
    """A leaf of an optimizer's state: a part where it is as large as its parameter."""
    of_entries = isinstance(value, Tensor) and value.shape == parameter.shape
    return as_shard(part_of(value, parameter), parameter) if of_entries else value


def _whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The state that is saved; tied tensors are one, as they are in the model."""
    from peft import PeftModel

    identities = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    trained = set(map(id, trainable_parameters(model).values())) if isinstance(model, PeftModel) else None
    by_key: dict[int | str, Any] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        key = identities.get(name, name)
        if trained is not None and key not in trained:
            continue
        if key not in by_key:
            by_key[key] = _gather(tensor)
        state[name] = by_key[key]
    return state
