"""Checkpoints that are whole or refused: written aside and renamed, checked before a run resumes from one."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from torch.distributed import DistError

from geffect.core.distributed import local_part, num_processes, rank
from geffect.errors import GeffectError
from geffect.models.checkpoints import REMEDY, check_checksums, checkpoint_shapes

PARTIAL = ".partial"  # where a checkpoint is written before it gets its name
OPTIMIZER, SCHEDULER = "optimizer.pt", "scheduler.pt"
FILES = ("trainer_state.json", OPTIMIZER, SCHEDULER)


def step_of(checkpoint: Path) -> int:
    """N of ``checkpoint-N``."""
    return int(checkpoint.name.rpartition("-")[2])


def check_whole(checkpoint: Path, model: nn.Module, others: Sequence[str] = ()) -> None:
    """Raise unless a checkpoint has all its files, as they were written, and the weights of this very model.

    Hugging Face's Trainer passes over a missing optimizer state, and over weights that are missing or too many.

    Args:
        checkpoint: the directory.
        model: whose state it should be.
        others: further files it must have.

    Raises:
        GeffectError: a file is missing, or a tensor is missing, surplus or of another shape; it is named.
    """
    check_checksums(checkpoint)
    missing = [name for name in (*FILES, _random_state(), *others) if not (checkpoint / name).is_file()]
    if missing:
        raise GeffectError(f"{missing[0]} in {checkpoint}", "none", REMEDY)
    saved = checkpoint_shapes(checkpoint, REMEDY)
    own = saved_state(model)
    places = {name: local_part(tensor).data_ptr() for name, tensor in own.items()}
    kept = {places[name] for name in saved if places.get(name)}  # a tied tensor is saved once; a part may be empty
    for name in sorted({*saved, *(name for name, place in places.items() if place not in kept)}):
        expected = tuple(own[name].shape) if name in own else None
        if saved.get(name) != expected:
            raise GeffectError(
                f"this model's own weights in {checkpoint}, {name} of shape {expected}",
                f"shape {saved.get(name)}",
                REMEDY,
            )


def _random_state() -> str:
    """The file that Hugging Face keeps this process's random state in."""
    return f"rng_state_{rank()}.pth" if num_processes() > 1 else "rng_state.pth"


def saved_state(model: Any) -> dict[str, Any]:
    """A model's tensors by the names its checkpoints have, over the same memory: of an adapted model the adapter's."""
    from peft import PeftModel, get_peft_model_state_dict

    return dict(get_peft_model_state_dict(model) if isinstance(model, PeftModel) else model.state_dict())


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Turn what a full or read-only disk makes a writer raise into `OSError`: torch's and safetensors' have others."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if isinstance(error, DistError) or "gloo" in str(error):  # another process is gone: no fault of the disk's
            raise
        raise OSError(f"{str(error).strip().partition(chr(10))[0]} ({directory})") from error
