"""A callback that monitors any Hugging Face Trainer."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import TrainerCallback

from geffect.core.architectures import CausalLM, Tokenizer
from geffect.errors import GeffectError
from geffect.monitoring.monitor import Monitor
from geffect.monitoring.targets import TargetSet
from geffect.reports.run import Run

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

ARGS = ("learning_rate", "optim", "per_device_train_batch_size", "gradient_accumulation_steps", "max_grad_norm", "seed")


class Callback(TrainerCallback):  # type: ignore[misc]
    """Monitors any ``transformers.Trainer``, TRL's among them: measures its steps, and changes no bit of its training.

    The Trainer accumulates and clips gradients before callbacks run, so the gradient is named ``applied_gradient``. See
    `geffect.monitor` for the arguments, the recorded gradients, their signs and what a measured step costs. The
    tokenizer is the Trainer's own by default. Where the Trainer resumes, the record is continued. Where
    ``auto_find_batch_size`` begins the training again, the record begins again, too.

    Raises:
        GeffectError: when training begins: a set cannot be read, ``out`` exists, a model is monitored twice, or
            gradients are scaled (fp16), elsewhere than in ``.grad`` (DeepSpeed) or used in the backward pass.

    >>> from geffect import Callback
    >>> callback = Callback("builtin:authors/forget", "builtin:authors/retain[:40]", every=5)
    """

    def __init__(
        self,
        forget: TargetSet,
        retain: TargetSet,
        *,
        tokenizer: Tokenizer | None = None,
        every: int = 1,
        update: bool = False,
        batch_size: int = 8,
        out: Path | str | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self.monitor: Monitor | None = None
        self._make = partial(
            Monitor, forget=forget, retain=retain, every=every, update=update, batch_size=batch_size, out=out
        )

    @property
    def run(self) -> Run:
        """The record so far; a table in a notebook.

        Raises:
            GeffectError: training has not begun.
        """
        if self.monitor is None:
            raise GeffectError("Training has not begun", remedy="Call the Trainer's train() first")
        return self.monitor.run

    def on_train_begin(
        self,
        args: "TrainingArguments",
        state: "TrainerState",
        control: "TrainerControl",
        *,
        model: CausalLM,
        processing_class: object = None,
        **_: object,
    ) -> None:
        """Read the sets and open the record."""
        _refuse(args)
        settings = {"host": "transformers.Trainer", "model": getattr(model.config, "_name_or_path", "")}
        settings |= {"steps": state.max_steps} | {name: _plain(getattr(args, name, None)) for name in ARGS}
        if args.auto_find_batch_size:
            settings["per_device_train_batch_size"] = state.train_batch_size // max(1, args.n_gpu)
        tokenizer = self._tokenizer or getattr(processing_class, "tokenizer", processing_class)
        smaller = args.auto_find_batch_size and state.train_batch_size < args.train_batch_size
        if self.monitor and smaller and state.global_step == 0:  # memory ran out: the Trainer's loop begins again
            self.monitor.withdraw()
        self.monitor = self._make(model, tokenizer=tokenizer, settings=settings, training=state).open(state.global_step)

    def on_pre_optimizer_step(self, *_: object, **__: object) -> None:
        """Measure the gradients: they are accumulated, averaged and clipped, and the optimizer has not stepped."""
        if self.monitor:
            self.monitor.step()

    def on_optimizer_step(self, *_: object, **__: object) -> None:
        """Measure the update: the optimizer has stepped, and the learning rate is still that of the step."""
        if self.monitor:
            self.monitor.updated()

    def on_train_end(self, *_: object, **__: object) -> None:
        """Mark the record as finished."""
        if self.monitor:
            self.monitor.close()


def _refuse(args: "TrainingArguments") -> None:
    if getattr(args, "fp16", False):
        raise GeffectError("fp16 scales the gradients that are measured", remedy="Train with bf16=True")
    if getattr(args, "deepspeed", None):
        message = "DeepSpeed keeps gradients of its own, not those in .grad"
        raise GeffectError(message, remedy="Shard with FSDP2 (fsdp_version: 2), or train with DDP")


def _plain(value: object) -> object:
    return value if type(value) in (bool, int, float, str, type(None)) else str(getattr(value, "value", value))
