"""A callback that monitors any Hugging Face Trainer."""

import importlib
import logging
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from geffect.core.architectures import CausalLM, Tokenizer
from geffect.errors import GeffectError
from geffect.monitoring.monitor import Monitor, run_of
from geffect.monitoring.numbers import protection_numbers, step_numbers
from geffect.monitoring.protection import make_rule
from geffect.monitoring.targets import EXAMPLES, Target, TargetSet, check_names, is_among
from geffect.record.reader import Score, evaluations
from geffect.record.schema import STEPS
from geffect.reports.run import Run
from geffect.training.checkpoints import load_rectifier, save_rectifier

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

LOGGER = logging.getLogger(__name__)
MOST_TRAINED = 50_000  # rows of a training set that are looked at
ARGS = ("learning_rate", "optim", "per_device_train_batch_size", "gradient_accumulation_steps", "max_grad_norm", "seed")


class Callback(TrainerCallback):  # type: ignore[misc]
    """Monitors any ``transformers.Trainer``, TRL's among them: measures its steps, and changes no bit of its training.

    Where targets are protected, it changes the training: each gradient is rectified, then clipped, then stepped with.

    The numbers of a measured step go into the Trainer's own log, so that every tracker draws them:
    ``geffect/math/effect`` is the change of a target's loss by the step (nats a token; above 0: harm); see
    `geffect.monitoring.numbers.step_numbers` for all of them. The whole record is at hand as `run`.

    The Trainer accumulates and clips gradients before callbacks run, so the gradient is named ``applied_gradient``. See
    `geffect.monitor` for the arguments, the recorded gradients, their signs and what a measured step costs. The
    tokenizer is the Trainer's own by default. Where the Trainer resumes, the record is continued. Where
    ``auto_find_batch_size`` begins the training again, the record begins again, too. What the rectifier of protected
    targets carries from step to step is saved in every checkpoint.

    Args:
        targets: as of `geffect.monitor`, and so are those that are not named here.
        tokenizer: as there.
        every: as there.
        overhead: as there.
        update: as there; without it no effects are known, and a copy of the weights is saved.
        examples: as there.
        batch_size: as there.
        keep_on: as there.
        check: as there.
        overlap: as there.
        tokens: as there.
        protect: as there.
        rectifier: as there.
        alerts: target → rise of its loss since the first measured step (nats a token) above which a warning is told,
            and given to trackio where that runs.
        stop: target → rise above which the training ends after the step.
        log: whether numbers go into the Trainer's log.
        out: as of `geffect.monitor`.

    Raises:
        GeffectError: a limit or ``protect`` names no target, or the rectifier needs what a training lacks; when
            training begins: a set cannot be read, ``out`` exists, a model is monitored twice, or
            gradients are scaled (fp16), elsewhere than in ``.grad`` (DeepSpeed) or used in the backward pass.

    >>> from geffect import Callback
    >>> callback = Callback({"authors": "builtin:authors/retain[:40]"}, every=5, alerts={"authors": 0.1})
    """

    def __init__(
        self,
        targets: Mapping[str, TargetSet],
        *,
        tokenizer: Tokenizer | None = None,
        every: int | Literal["auto"] = 1,
        overhead: float = 0.05,
        update: bool = True,
        examples: int | None = EXAMPLES,
        batch_size: int = 8,
        keep_on: str | None = None,
        check: bool = False,
        overlap: float = 0.0,
        tokens: int = 0,
        protect: Sequence[str] = (),
        rectifier: str | None = None,
        alerts: Mapping[str, float] | None = None,
        stop: Mapping[str, float] | None = None,
        log: bool = True,
        out: Path | str | None = None,
    ) -> None:
        check_names(targets)
        make_rule(rectifier, protect, targets)  # refused before a training has begun
        self.alerts, self.stop = (_limits(name, each, targets) for name, each in (("alerts", alerts), ("stop", stop)))
        self._tokenizer, self._log = tokenizer, log
        self.monitor: Monitor | None = None
        self._host: Trainer | None = None
        self._first: dict[str, float] = {}  # target → loss at the first measured step
        self._told: set[str] = set()  # targets whose alert was told
        self._harmed: Counter[str] = Counter()  # target → measured steps that harmed it, of those under ""
        self._make = partial(
            Monitor,
            targets=targets,
            every=every,
            overhead=overhead,
            update=update,
            examples=examples,
            batch_size=batch_size,
            keep_on=keep_on,
            check=check,
            overlap=overlap,
            tokens=tokens,
            protect=protect,
            rectifier=rectifier,
            out=out,
        )

    @property
    def run(self) -> Run:
        """The record so far; a table in a notebook.

        Raises:
            GeffectError: training has not begun.
        """
        return run_of(self.monitor, "train()")

    def on_train_begin(
        self,
        args: "TrainingArguments",
        state: "TrainerState",
        control: "TrainerControl",
        *,
        model: CausalLM,
        processing_class: object = None,
        train_dataloader: object = None,
        **_: object,
    ) -> None:
        """Read the sets and open the record; warn of targets' examples that are trained on."""
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
        _warn_of_trained(self.monitor.targets, getattr(train_dataloader, "dataset", None))
        self._host, self._first, self._told = _calling_trainer(state), {}, set()
        self._harmed.clear()
        self._protect(args, state.global_step)
        if state.global_step and (self.monitor.path / STEPS).exists():  # a record that is continued
            self._first = {
                n: score.loss for line in evaluations(self.monitor.path)[:1] for n, score in line.scores.items()
            }

    def _protect(self, args: "TrainingArguments", step: int) -> None:
        """Rectify before the Trainer clips, and continue from a checkpoint."""
        monitor = self.monitor
        if monitor is None or monitor.protection is None:
            return
        if self._host is not None:
            _call_before_clipping(self._host, monitor.rectify)
        if step:
            found = load_rectifier(_checkpoint(args, step), monitor.parameters)
            memories = monitor.protection.rectifier.memories
            monitor.protection.state.update({name: each for name, each in found.items() if name in memories})
            if not set(found) & set(memories) and memories:
                LOGGER.warning("no average of protected gradients is saved in %s: it begins anew", args.output_dir)

    def on_save(self, args: "TrainingArguments", state: "TrainerState", *_: object, **__: object) -> None:
        """Save in the checkpoint what the rectifier of protected targets carries on."""
        if self.monitor and self.monitor.protection:
            directory = _checkpoint(args, state.global_step)
            save_rectifier(directory, self.monitor.protection.state, self.monitor.parameters)

    def on_pre_optimizer_step(self, *_: object, **__: object) -> None:
        """Measure the gradients: they are accumulated, averaged and clipped, and the optimizer has not stepped."""
        if self.monitor:
            self.monitor.step()

    def on_optimizer_step(self, *_: object, **__: object) -> None:
        """Measure the update: the optimizer has stepped, and the learning rate is still that of the step."""
        if self.monitor:
            self.monitor.updated()

    def on_step_end(
        self, args: "TrainingArguments", state: "TrainerState", control: "TrainerControl", **_: object
    ) -> None:
        """Log a measured step, under the number of steps that are done; alert, and end the training."""
        if self.monitor is None or self.monitor.line.get("step") != self.monitor.steps - 1:
            return
        scores = {name: Score(**score) for name, score in self.monitor.line["evaluation"].items()}
        if self._log and self._host is not None and self.monitor.gram is not None:
            of_rule = protection_numbers(self.monitor.line)
            numbers = step_numbers(self.monitor.gram, self.monitor.groups, scores) | of_rule
            numbers |= self._shares_harmed(numbers, list(scores))
            _log(self._host, numbers, control)
        for name, score in scores.items():
            rise = score.loss - self._first.setdefault(name, score.loss)
            self._judge(name, rise, control)

    def _shares_harmed(self, numbers: Mapping[str, float], targets: Sequence[str]) -> dict[str, float]:
        """Target → the share of the measured steps so far whose effect on it is above 0; none without effects."""
        effects = {name: numbers[f"geffect/{name}/effect"] for name in targets if f"geffect/{name}/effect" in numbers}
        self._harmed.update(["", *(name for name, effect in effects.items() if effect > 0)])
        return {f"geffect/{name}/harmed": self._harmed[name] / self._harmed[""] for name in effects}

    def on_train_end(self, *_: object, **__: object) -> None:
        """Mark the record as finished."""
        if self._host is not None:
            self._host.__dict__.pop("_clip_grad_norm", None)
        if self.monitor:
            self.monitor.close()

    def _judge(self, name: str, rise: float, control: "TrainerControl") -> None:
        """Tell a rise of a target's loss (nats a token) that is above its limits."""
        text = f"the loss of {name} has risen by {rise:.4g} nats a token since training began"
        alert, end = self.alerts.get(name), self.stop.get(name)
        above = alert is not None and not rise <= alert  # a loss that is not finite is above every limit
        if above and name not in self._told:
            LOGGER.warning("%s (alert at %g)", text, alert)
            _alert_trackio(f"geffect: {name}", text)
        (self._told.add if above else self._told.discard)(name)
        if end is not None and not rise <= end:
            LOGGER.warning("%s: the training ends (stop at %g)", text, end)
            control.should_training_stop = True


def _log(host: Trainer, numbers: dict[str, float], control: "TrainerControl") -> None:
    """Log by the Trainer's plain method; a line of its own that is due now is still logged after.

    What prints to a terminal is left out, which a hundred numbers a step would fill.
    """
    due, handler = control.should_log, host.callback_handler
    everybody = handler.callbacks
    handler.callbacks = [each for each in everybody if not isinstance(each, PrinterCallback | ProgressCallback)]
    try:
        Trainer.log(host, numbers)  # a subclass's own method empties averages that its next line tells
    finally:
        handler.callbacks = everybody
        control.should_log = due


def _limits(name: str, limits: Mapping[str, float] | None, targets: Mapping[str, TargetSet]) -> dict[str, float]:
    for target in (each for each in limits or {} if not is_among(each, targets)):
        raise GeffectError(f"{name} names {target}, which is no target", remedy=f"Choose among {', '.join(targets)}")
    return dict(limits or {})


def _warn_of_trained(targets: Mapping[str, Target], dataset: object) -> None:
    """Warn of examples that stand in the training set token by token; a set that makes its rows anew is not asked."""
    if type(dataset) is list:
        trained = [row.get("input_ids") for row in dataset[:MOST_TRAINED] if isinstance(row, Mapping)]
    elif "input_ids" in (getattr(dataset, "column_names", None) or ()) and hasattr(dataset, "with_format"):
        trained = dataset.with_format(None)[:MOST_TRAINED]["input_ids"]
    else:
        return
    known = {tuple(map(int, ids)) for ids in trained if ids is not None}
    for name, target in targets.items():
        if count := sum(tuple(example.input_ids) in known for example in target.examples):
            text = (
                "%d of %d examples of the target %s are in the training set: what is trained on is no measure of harm"
            )
            LOGGER.warning(text, count, len(target.examples), name)


def _calling_trainer(state: "TrainerState") -> Trainer | None:
    """The Trainer whose loop calls: a callback is given its state, and not the Trainer itself, which alone can log."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        host = frame.f_locals.get("self")
        if isinstance(host, Trainer) and host.state is state:
            return host
    return None


def _call_before_clipping(host: Trainer, rectify: Callable[[], None]) -> None:
    """Rectify before this Trainer clips: a callback is called after. Without clipping, `Monitor.step` rectifies."""
    clip = type(host)._clip_grad_norm.__get__(host)  # of the class: an earlier training may have left its own

    def rectify_and_clip(*args: object, **kwargs: object) -> object:
        rectify()
        return clip(*args, **kwargs)

    host._clip_grad_norm = rectify_and_clip


def _checkpoint(args: "TrainingArguments", step: int) -> Path:
    return Path(args.output_dir) / f"checkpoint-{step}"


def _alert_trackio(title: str, text: str) -> None:
    """Alert a trackio run of this process, if there is one."""
    if "trackio" not in sys.modules:
        return
    trackio = importlib.import_module("trackio")
    if importlib.import_module("trackio.context_vars").current_run.get() is not None:
        trackio.alert(title=title, text=text)


def _refuse(args: "TrainingArguments") -> None:
    if getattr(args, "fp16", False):
        raise GeffectError("fp16 scales the gradients that are measured", remedy="Train with bf16=True")
    if getattr(args, "deepspeed", None):
        message = "DeepSpeed keeps gradients of its own, not those in .grad"
        raise GeffectError(message, remedy="Shard with FSDP2 (fsdp_version: 2), or train with DDP")


def _plain(value: object) -> object:
    return value if type(value) in (bool, int, float, str, type(None)) else str(getattr(value, "value", value))
