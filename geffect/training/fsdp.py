"""Hugging Face's Trainer for a model whose parameters lie in parts: not wrapped again, saved and loaded whole.

A checkpoint is what one process would have written, so that every tool here reads it.
"""

import functools
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import Trainer

from geffect.core.distributed import as_shard, full_tensor, is_sharded, load_parameters, map_leaves, part_of, rank
from geffect.core.layers import trainable_parameters
from geffect.training.checkpoints import OPTIMIZER, SCHEDULER, saved_state


class ShardedTrainer(Trainer):  # type: ignore[misc]
    """As Hugging Face's, which would replicate what is sharded already; accelerate's own sharding works on no CPU."""

    @property
    def sharded(self) -> bool:
        """Whether the model lies in parts over the processes."""
        return is_sharded(trainable_parameters(self.model))

    def _wrap_model(self, model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        if self.sharded:  # else accelerate replicates it
            prepare = type(self.accelerator).prepare_model
            self.accelerator.prepare_model = functools.partial(prepare, self.accelerator, evaluation_mode=True)
        wrapped: nn.Module = super()._wrap_model(model, *args, **kwargs)
        return wrapped

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        return full_tensor(super()._clip_grad_norm(model))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the model, put together on the first process, for every process to call."""
        if self.sharded:
            self._save(output_dir, state_dict=_whole_state(self.model))
        else:
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = map_leaves(self.optimizer.state_dict(), _kept)
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


def _kept(value: Any) -> Any:
    """A leaf of a state, put together by all processes and kept by the first."""
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
    found: dict[Any, Any] = {}
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        key = identities.get(name, name)
        if trained is not None and key not in trained:
            continue
        if key not in found:
            found[key] = _kept(tensor)
        state[name] = found[key]
    return state
