"""A callback that monitors a Lightning Trainer."""

import importlib
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from geffect.core.architectures import Tokenizer
from geffect.errors import GeffectError
from geffect.monitoring.monitor import Monitor, run_of
from geffect.monitoring.numbers import step_numbers
from geffect.monitoring.targets import EXAMPLES, TargetSet, check_names
from geffect.record.reader import Score
from geffect.reports.run import Run

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

PACKAGES = ("lightning.pytorch", "pytorch_lightning")  # the same library under two names
ELSEWHERE = ("DeepSpeedStrategy", "FSDPStrategy")  # with gradients of their own


def _base() -> Any:
    """Lightning's class of callbacks, from the package that is in use; ``object`` where none is installed."""
    for name in sorted(PACKAGES, key=lambda name: name not in sys.modules):
        try:
            return importlib.import_module(name).Callback
        except ImportError:
            continue
    return object


BASE = _base()


class LightningCallback(BASE):  # type: ignore[misc, valid-type]
    """Monitors a Lightning ``Trainer``: measures its steps, and changes no bit of its training.

    `geffect.Callback` for Lightning. The numbers of a measured step go to the trainer's loggers at once, and into
    ``trainer.callback_metrics``, where ``EarlyStopping`` and ``ModelCheckpoint`` find them. The whole record is at hand
    as `run`.

    Lightning makes and clips gradients in a closure that it gives the optimizer. They are measured when that closure
    returns, so ``applied_gradient`` is the clipped one that the optimizer finds.

    Args:
        targets: as of `geffect.monitor`, and so are those that are not named here.
        model: the attribute of the ``LightningModule`` that holds the causal language model.
        tokenizer: as there; by default the module's own ``tokenizer``, where it has one.
        every: as there.
        overhead: as there.
        update: as there.
        examples: as there.
        batch_size: as there.
        keep_on: as there.
        log: whether numbers are logged.
        out: as there.

    Raises:
        GeffectError: Lightning is not installed; or, when training begins, what `geffect.Callback` refuses, or the
            training has several optimizers.
    """

    def __init__(
        self,
        targets: Mapping[str, TargetSet],
        *,
        model: str = "model",
        tokenizer: Tokenizer | None = None,
        every: int | Literal["auto"] = 1,
        overhead: float = 0.05,
        update: bool = True,
        examples: int | None = EXAMPLES,
        batch_size: int = 8,
        keep_on: str | None = None,
        log: bool = True,
        out: Path | str | None = None,
    ) -> None:
        if BASE is object:
            raise GeffectError("Lightning is not installed", remedy="Install it: pip install lightning")
        check_names(targets)
        self.monitor: Monitor | None = None
        self._model, self._tokenizer, self._log, self._logged = model, tokenizer, log, -1
        self._make = partial(
            Monitor,
            targets=targets,
            every=every,
            overhead=overhead,
            update=update,
            examples=examples,
            batch_size=batch_size,
            keep_on=keep_on,
            out=out,
        )

    @property
    def run(self) -> Run:
        """The record so far; a table in a notebook.

        Raises:
            GeffectError: training has not begun.
        """
        return run_of(self.monitor, "fit()")

    def on_train_start(self, trainer: "Trainer", pl_module: "LightningModule") -> None:
        """Read the sets and open the record; the optimizer's own hooks call the monitor from here on."""
        _refuse(trainer)
        model = getattr(pl_module, self._model, None)
        if not isinstance(model, nn.Module):
            message = f"{type(pl_module).__name__}.{self._model} is no model"
            raise GeffectError(message, remedy="Name the attribute that holds the language model: model=…")
        tokenizer = self._tokenizer or getattr(pl_module, "tokenizer", None)
        settings = {"host": "lightning.Trainer", "steps": trainer.max_steps, "precision": str(trainer.precision)}
        self.monitor = self._make(
            model, optimizer=trainer.optimizers[0], tokenizer=tokenizer, settings=settings, training=trainer
        ).open(trainer.global_step)
        self._logged = -1

    def on_train_batch_end(self, trainer: "Trainer", pl_module: "LightningModule", *_: object) -> None:
        """Log a step that was measured, under the number of steps that are done."""
        monitor = self.monitor
        if not self._log or monitor is None or monitor.gram is None or monitor.line["step"] == self._logged:
            return
        self._logged = monitor.line["step"]
        scores = {name: Score(**score) for name, score in monitor.line["evaluation"].items()}
        numbers = step_numbers(monitor.gram, monitor.groups, scores)
        pl_module.log_dict(numbers, logger=False, on_step=True, on_epoch=False)
        for logger in trainer.loggers:  # whatever its log_every_n_steps
            logger.log_metrics(numbers, step=trainer.global_step)

    def on_train_end(self, *_: object) -> None:
        """Mark the record as finished."""
        if self.monitor:
            self.monitor.close()

    def on_exception(self, *_: object) -> None:
        """Close the record unfinished."""
        if self.monitor:
            self.monitor.close(finished=False)


def _refuse(trainer: "Trainer") -> None:
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        raise GeffectError("fp16 scales the gradients that are measured", remedy='Train with precision="bf16-mixed"')
    if (strategy := type(trainer.strategy).__name__) in ELSEWHERE:
        message = f"{strategy} keeps gradients of its own, not those in .grad"
        raise GeffectError(message, remedy='Train with strategy="ddp"')
    if len(trainer.optimizers) != 1:
        message = f"The training has {len(trainer.optimizers)} optimizers; this callback follows one"
        raise GeffectError(message, remedy="Return one optimizer, or call geffect.monitor by hand")
