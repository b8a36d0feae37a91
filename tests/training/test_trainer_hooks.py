"""The private methods of Hugging Face's Trainer that geffect relies on: they exist as they are used, and are called."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from torch.optim.lr_scheduler import LRScheduler
from transformers import Trainer

import geffect
from geffect import api
from geffect.record.writer import RunDirectory
from geffect.training.checkpoints import ShardedTrainer
from geffect.training.finetune import FinetuneTrainer
from geffect.training.trainer import RecordingTrainer
from geffect.training.unlearn import UnlearnTrainer
from tests.conftest import config

PRIVATE = {
    "_clip_grad_norm": ["model"],
    "_save_checkpoint": ["model", "trial"],
    "_save_optimizer_and_scheduler": ["output_dir"],
    "_load_from_checkpoint": ["resume_from_checkpoint", "model"],
    "_load_optimizer_and_scheduler": ["checkpoint"],
    "_load_rng_state": ["checkpoint"],
    "_load_scaler": ["checkpoint"],
}
PUBLIC = {
    "evaluate": ["eval_dataset", "ignore_keys", "metric_key_prefix"],
    "floating_point_ops": ["inputs"],
    "get_batch_samples": ["epoch_iterator", "num_batches", "device"],
    "get_train_dataloader": [],
    "save_model": ["output_dir", "_internal_call"],
    "training_step": ["model", "inputs", "num_items_in_batch"],
}


def parameters(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


@pytest.mark.parametrize(("name", "expected"), (PRIVATE | PUBLIC).items())
def test_a_hook_exists_with_the_parameters_relied_on(name: str, expected: list[str]) -> None:
    assert parameters(getattr(Trainer, name)) == expected


def test_accelerate_prepares_a_model_without_replicating_it() -> None:
    assert "evaluation_mode" in parameters(Accelerator.prepare_model)


def test_no_other_private_method_is_overridden_or_called() -> None:
    trainers = (ShardedTrainer, RecordingTrainer, UnlearnTrainer, FinetuneTrainer)
    defined = {name for each in trainers for name in vars(each) if re.match(r"_[a-z]", name)}
    files = (Path(geffect.__file__).parent / "training").glob("*.py")
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    called = set(re.findall(r"(?:self|super\(\)|trainer)\.(_[a-z]\w*)", text))
    assert {name for name in defined | called if hasattr(Trainer, name)} == set(PRIVATE)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the hooks in the order in which a training calls them."""
    made: list[str] = []

    def spied(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            made.append(name)
            return real(*args, **kwargs)

        return call

    for name in (*PRIVATE, *PUBLIC, "after_update", "finish_line"):
        monkeypatch.setattr(UnlearnTrainer, name, spied(name, getattr(UnlearnTrainer, name)))
    monkeypatch.setattr(LRScheduler, "step", spied("schedule", LRScheduler.step))
    return made


def test_a_training_calls_every_hook_in_the_order_relied_on(
    start: Path, tmp_path: Path, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = config(start, tmp_path / "run", max_grad_norm=1.0, save_every=1, steps=2, grad_accum_steps=2)
    append, lines = RunDirectory.append, []

    def stopping(self: RunDirectory, *given: Any) -> None:
        append(self, *given)
        lines.append(given)
        if len(lines) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunDirectory, "append", stopping)
        api.unlearn(chosen)
    first = calls.index("get_batch_samples")
    step = ["get_batch_samples", "training_step", "training_step", "_clip_grad_norm", "after_update", "schedule"]
    ignored = {"floating_point_ops"}
    assert [name for name in calls[first:] if name not in ignored][:7] == [*step, "finish_line"]
    api.unlearn(chosen, resume=True)
    assert set(calls) >= {*PRIVATE, *PUBLIC}
