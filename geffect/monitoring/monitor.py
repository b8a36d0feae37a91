"""Monitor an external training loop: what each of its steps does to named sets of examples."""

import contextlib
import itertools
import logging
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from geffect.core.architectures import Tokenizer, check_class, check_runs
from geffect.core.distributed import is_sharded, local_part, num_processes, rank
from geffect.core.gradients import NamedTensors
from geffect.core.gram import Gram
from geffect.core.layers import TiedWeights, find_tied_weights, layout, split_layout, trainable_parameters, unwrap
from geffect.core.model_state import ModelState
from geffect.errors import GeffectError
from geffect.inspection.measure import token_lines
from geffect.measurement.basis import Combinations, Tensors
from geffect.measurement.measurement import Batch
from geffect.measurement.topk import Masks
from geffect.measurement.update import exchanged, moved, snapshot
from geffect.models.scoring import Likelihood
from geffect.models.tokenizers import vocabulary_size
from geffect.monitoring.numbers import predictions
from geffect.monitoring.pace import Pace
from geffect.monitoring.protection import DEFAULT, Protection, make_protection, make_rule
from geffect.monitoring.targets import (
    EXAMPLES,
    GRADIENT,
    UPDATE,
    WEIGHTS,
    Others,
    TargetSet,
    is_among,
    make_targets,
    measure_targets,
    pad_of,
    score_targets,
    without_ddp,
)
from geffect.record.schema import CONFIG, ENVIRONMENT, STEPS, TOKENS
from geffect.record.writer import RunDirectory, check_lines, describe, layout_to_json, steps_of
from geffect.reports.run import Run
from geffect.training.run import final_metrics, open_record
from geffect.training.trainer import evaluation_line

LOGGER = logging.getLogger(__name__)
_OPEN: "weakref.WeakSet[Monitor]" = weakref.WeakSet()


class Monitor:
    """Monitors a training loop of your own: measures its steps, and changes no bit of it unless targets are protected.

    Use it as ``with geffect.monitor(model, {"math": …, "chat": …}, optimizer=optimizer) as monitor:`` around the loop.
    The targets are any named sets of examples; ``forget`` and ``retain`` are two names that reports of unlearning know.
    Of each target R, the token-mean NLL at the weights before the step and without dropout, these are recorded:

    - ``update`` = −Δθ, whatever the optimizer made of its gradient. To first order the step changes R by
      −⟨∇R, update⟩ nats a token (`geffect.Run.effects`): above 0 it harms that target, below 0 it helps.
    - ``applied_gradient``, the content of ``.grad``, whatever accumulation, clipping, noise or averaging over processes
      made it. ⟨∇R, applied_gradient⟩ > 0: plain descent of it lowers R. It is left out of a step whose optimizer
      changed ``.grad`` in place, and copied in the steps after.
    - ``weights``, θ before the step: ‖update‖ / ‖weights‖ is the relative size of a step, by layer.

    Without ``optimizer``, call ``monitor.step()`` between the backward pass and ``optimizer.step()``; ``update`` and
    ``weights`` are then left out, unless ``update`` is set and ``monitor.updated()`` is called after the step.

    A measured step costs a forward and a backward pass over all targets and, of n targets, the memory of n − 1
    gradients and, with ``update``, of one copy of the trainable weights. Unscale gradients that a scaler has scaled
    before ``step``.

    The model, its hooks and the random states stay the same bit for bit (`geffect.core.model_state`). With ``update``,
    the passes run after the optimizer's step, at the weights before it, which are put back meanwhile. Forward hooks run
    on the passes of a measured step; hooks on parameters and backward hooks of modules do not. A model with
    post-accumulate-grad hooks is refused, since an optimizer that steps in them leaves no gradient, and so is one whose
    forward pass changes trainable weights.

    With ``protect``, each gradient is rectified before the optimizer steps, so that the step does not raise the loss of
    these targets, as far as the ``rectifier`` goes (`geffect.monitoring.protection.Protection`): call `rectify` between
    the backward pass and the clipping of its gradient. Every step then costs a forward and a backward pass over
    ``batch_size`` examples of each of them, and the memory of two gradients.

    Args:
        model: a causal language model, bare or wrapped by DDP, ``fully_shard``, PEFT or ``torch.compile``.
        targets: name → a set's name, a set, or rows: with columns as a set's file has them, with a prompt and a
            completion, preference pairs (``chosen`` and ``rejected``, each then a target, ``NAME/chosen`` and
            ``NAME/rejected``), or with ``input_ids`` and ``labels``.
        optimizer: the loop's; `step` and `updated` are then called by its own hooks.
        tokenizer: to encode sets that are named.
        every: measure every so many steps, beginning with the first. ``"auto"``: the first and the sixth, then as
            often as ``overhead`` allows, by the seconds that these took; a line of log tells what was chosen.
        overhead: the share of the training's time that ``every="auto"`` may add.
        update: measure the optimizer's own update too; by default where ``optimizer`` is given.
        examples: take at most so many examples of a target, evenly spaced; None: all.
        batch_size: examples of a forward pass.
        keep_on: the device where the copy of the weights is held, such as ``cpu``; by default the weights' own.
        check: score the targets after a measured step too, so that the record says how far the step's effects came true
            where the next step is not measured; with ``every=1`` it says so without.
        overlap: share of the largest entries of the targets' gradients and of the update whose overlaps are recorded.
        tokens: examples of each target, those that the update harms most, to record token by token; it needs a
            tokenizer, one process, ``update``, and the memory of one more gradient.
        protect: the targets whose loss the steps must not raise.
        rectifier: what keeps them from it, such as ``gru(decay=0.5)``, or ``gru(space=both)``, which corrects the
            optimizer's own update too; by default ``gru``.
        out: the run directory that is written; by default a temporary one, removed with this object.
        settings: more settings of the training for ``config.yaml``.
        training: identifies the training, for a trainer that does not tell when it ends in an exception: when this
            monitor opens, one of another training on the same model or record is closed unfinished.

    Raises:
        GeffectError: a target cannot be named or read, ``out`` exists, or the model is monitored already.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Mapping[str, TargetSet],
        *,
        optimizer: torch.optim.Optimizer | None = None,
        tokenizer: Tokenizer | None = None,
        every: int | Literal["auto"] = 1,
        overhead: float = 0.05,
        update: bool | None = None,
        examples: int | None = EXAMPLES,
        batch_size: int = 8,
        keep_on: str | None = None,
        check: bool = False,
        overlap: float = 0.0,
        tokens: int = 0,
        protect: Sequence[str] = (),
        rectifier: str | None = None,
        out: Path | str | None = None,
        settings: Mapping[str, object] | None = None,
        training: object = None,
    ) -> None:
        _check_numbers({"every": every, "batch_size": batch_size, "examples": examples}, overhead)
        self.model, self.steps, self.training = model, 0, training
        self.protect, self._rule = tuple(protect), make_rule(rectifier, protect, targets)
        self.pace = Pace(None if every == "auto" else every, overhead)
        self.optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper holds it
        self.update = self.optimizer is not None if update is None else update
        self.keep_on = None if keep_on is None else torch.device(keep_on)
        self.extras = Extras(check, overlap, tokens, tokenizer)
        self.extras.refuse(update=self.update)
        bare = unwrap(model)
        self.targets = make_targets(targets, tokenizer, batch_size, examples, bare.config, vocabulary_size(bare))
        self.path = Path(out) if out is not None else _temporary(self)
        self._batch_size, self._pad_id = batch_size, pad_of(tokenizer)
        own = {"every": every, "update": self.update, "examples": examples, "batch_size": batch_size}
        names = {"targets": {name: target.name for name, target in self.targets.items()}}
        rectified = {"protect": list(self.protect), "rectifier": rectifier or DEFAULT} if self.protect else {}
        own = {name: value for name, value in own.items() if value is not None}
        self.settings = {**(settings or {}), **names, **own, **rectified}
        self.parameters: dict[str, nn.Parameter] = {}  # read when the monitor opens, with all below
        self.tied: TiedWeights | None = None
        self.groups: dict[str, str] = {}  # parameter → layer group
        self.gram: Gram | None = None  # of the last measured step
        self.line: dict[str, Any] = {}  # of that step
        self._state = ModelState(model)
        self._stack = contextlib.ExitStack()
        self._directory: RunDirectory | None = None  # locked by the first process from `open` to `close`
        self._sink: Callable[..., None] | None = None  # the same
        self._gradient: dict[str, tuple[Tensor, int]] = {}  # of a step before its update: ``.grad`` and its version
        self._before: NamedTensors | None = None  # the weights then
        self._at = 0  # the number of the step that is measured
        self._copies = False  # this loop's optimizer changes ``.grad``
        self.protection: Protection | None = None  # made when the monitor opens
        self._rectified = False  # this step's gradient
        self._due = False  # this step is measured
        self._left: list[int] | None = None  # the version of every weight when the last step was over

    @property
    def run(self) -> Run:
        """The record so far; a table in a notebook."""
        return Run(self.path)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(finished=kind is None)

    def open(self, step: int = 0) -> Self:
        """Begin, or continue the record in ``out``; this monitor itself is returned.

        Args:
            step: the number of the next step; above 0 a record in ``out`` is cut back to it and continued.

        Raises:
            GeffectError: ``out`` exists, gradients are hidden or may be used in the backward pass, or the model is
                monitored already.
        """
        self._close_dead()
        if any(unwrap(each.model) is unwrap(self.model) for each in _OPEN):
            raise GeffectError(
                "The model is monitored already", remedy="Remove one of the two monitors, or close the first"
            )
        _check_model(self.model)
        self.parameters, self.tied = trainable_parameters(self.model), find_tied_weights(without_ddp(self.model))
        self._state = ModelState(self.model)
        places = split_layout(layout(self.model), self.tied)
        self.groups = places.groups()
        self.protection = self._make_protection()
        self.pace.begin(step)
        self._left = None
        self.steps, resumes = step, step > 0 and (self.path / CONFIG).exists()
        environment = self._environment() | {"parameters": layout_to_json(places)}
        if rank() == 0:
            self._directory = self._stack.enter_context(RunDirectory(self.path, resume=resumes))
            if resumes:
                self._check_lines(step)
            self._sink = self._stack.enter_context(open_record(self._directory, self.settings, environment, step))
        if self.optimizer is not None:
            hooks = (
                self.optimizer.register_step_pre_hook(_measures_first(self)),
                self.optimizer.register_step_post_hook(lambda *_: self.updated()),
            )
            for hook in hooks:
                self._stack.callback(hook.remove)
        _OPEN.add(self)
        return self

    def _environment(self) -> dict[str, Any]:
        first = next(iter(self.parameters.values()))
        return describe(first.device) | {
            "dtype": str(first.dtype).removeprefix("torch."),
            "data": {name: target.data for name, target in self.targets.items()},
        }

    def _make_protection(self) -> Protection | None:
        if self._rule is None:
            return None
        protected = {name: target for name, target in self.targets.items() if is_among(name, self.protect)}
        return make_protection(
            self.model, self.parameters, protected, self._rule, self._state, self._batch_size, self._pad_id
        )

    def _gradients(self) -> dict[str, Tensor]:
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        if not gradients:
            raise GeffectError(
                f"None of {len(self.parameters)} trainable parameters has a gradient in .grad",
                remedy="Call step() after backward() and before optimizer.step() and zero_grad(); an optimizer that "
                "steps in the backward pass leaves none",
            )
        return gradients

    @property
    def _corrects(self) -> bool:
        return self._rule is not None and self._rule.corrects

    def rectify(self) -> None:
        """Rectify the gradients in ``.grad``: call it after the backward pass and before they are clipped.

        `step` does so where it was not called. Without ``protect`` it does nothing.
        """
        if self.protection is not None and not self._rectified:
            self._gradients()
            self.protection.rectify(self.steps)
            self._rectified = True

    def step(self) -> None:
        """Measure the gradients in ``.grad``: call it between the backward pass and the optimizer's step.

        Raises:
            GeffectError: no parameter has a gradient, one has a hook that may have used it, `updated` was not called
                after the last step, a pass changes the trainable weights, or this monitor is closed.
        """
        if self not in _OPEN:
            raise GeffectError("This monitor is closed", remedy="Open it, or use it in a with statement")
        self._refuse_lost()
        _refuse_hooks(self.parameters)
        self.rectify()
        self._at, self.steps, self._rectified = self.steps, self.steps + 1, False
        self._due = self.pace.due(self._at)
        gradient = self._gradients() if self._due else {}
        if self._corrects or (self._due and self.update):
            self._before = snapshot(self.parameters, self.keep_on)
        if not self._due:
            return
        if not self.update:
            self._measure(Others((GRADIENT,), lambda name: {GRADIENT: _part(gradient.get(name))}))
            self.pace.measured()
            return
        kept = {name: each.clone() if self._copies else each for name, each in gradient.items()}
        self._gradient = {name: (each, each._version) for name, each in kept.items()}
        self.pace.pause()

    def updated(self) -> None:
        """Correct θ where a rectifier does, and measure −Δθ: call it after every step of the optimizer."""
        if self._before is not None:
            before, self._before = self._before, None
            if self.protection is not None:
                self.protection.correct(before)
            if self._due and self.update:
                self._measure_update(before)
        self._left = self._versions()

    def _measure_update(self, before: NamedTensors) -> None:
        gradient, self._gradient = self._gradient, {}
        whole = self._copies or all(
            each is self.parameters[name].grad and each._version == version
            for name, (each, version) in gradient.items()
        )
        self._copies |= not whole  # from now on: this step's gradient is lost

        def update_of(name: str) -> Tensor:  # while the weights before the step and after it are exchanged
            weights = local_part(self.parameters[name].detach())
            return moved(weights, before[name].to(weights.device))

        def tensors(name: str) -> Tensors:
            received = {GRADIENT: _part(gradient[name][0] if name in gradient else None)} if whole else {}
            return received | {UPDATE: update_of(name), WEIGHTS: local_part(self.parameters[name].detach())}

        names = (*((GRADIENT,) if whole else ()), UPDATE, WEIGHTS)
        self.pace.resume()
        after = self._score() if self.extras.check and self.pace.every != 1 else None
        with exchanged(self.parameters, before):
            self._measure(Others(names, tensors), after)
            if self.extras.tokens:
                self._record_tokens({name: update_of(name) for name in self.parameters})
        self.pace.measured()

    def _versions(self) -> list[int]:
        return [local_part(parameter.detach())._version for parameter in self.parameters.values()]

    def close(self, *, finished: bool = True) -> None:
        """End: mark the record as finished if the training came to its end, and let the model be monitored again.

        Raises:
            GeffectError: it did, but `updated` was not called after the last step.
        """
        with self._stack:
            _OPEN.discard(self)
            directory = self._directory
            try:
                if finished:
                    self._refuse_lost()
                    self._evaluate()
            finally:
                self._directory = self._sink = None
                self._gradient, self._before = {}, None
            if finished and directory and (self.path / CONFIG).exists():
                directory.finish(final_metrics(self.path))

    def withdraw(self) -> None:
        """End, and remove what was written since `open`: the training begins again from its first step."""
        if self._directory and not self._directory.resume:
            for name in (STEPS, CONFIG, ENVIRONMENT):
                (self.path / name).unlink(missing_ok=True)
        self.close(finished=False)

    def _refuse_lost(self) -> None:
        """Refuse to continue where `updated`, which writes the line of a step, was not called."""
        if self._before is not None:
            self._before = None
            message = f"updated() was not called after step {self._at}, which is not recorded"
            raise GeffectError(message, remedy="Call it after every optimizer.step(), or monitor without update=True")

    def _check_lines(self, step: int) -> None:
        """Refuse to continue a record that lacks a line of a measured step before this one."""
        first = next(iter(steps_of(self.path)), None)
        if first is not None and self.pace.every is not None:
            check_lines(self.path, [each for each in range(first, step) if each % self.pace.every == 0])

    def _close_dead(self) -> None:
        """Close the monitors of trainings that ended in an exception: a notebook keeps the last exception alive."""
        for each in list(_OPEN):
            another = None not in (each.training, self.training) and each.training is not self.training
            same = unwrap(each.model) is unwrap(self.model) or each.path.resolve() == self.path.resolve()
            if another and same:
                each.close(finished=False)

    def _evaluate(self) -> None:
        """Write the targets' scores at the weights after the last step, if these are still in place."""
        if self.gram is None:
            return
        if self._left is not None and self._left != self._versions():
            LOGGER.warning("the targets are not scored at the end: the weights are no longer those of the last step")
            return
        try:
            scores = self._score()
        except GeffectError as error:  # the training itself is over, and well
            LOGGER.warning("the targets are not scored at the end: %s", error)
            return
        if self._sink is not None:
            self._sink({"step": self.steps} | evaluation_line(scores))

    @property
    def _batches(self) -> dict[str, list[Batch]]:
        return {name: target.batches for name, target in self.targets.items()}

    def _score(self) -> dict[str, Likelihood]:
        return score_targets(self.model, self._batches, self._state)

    def _measure(self, others: Others, after: Mapping[str, Likelihood] | None = None) -> None:
        """Write the step's line; ``after`` are the targets' scores at the weights after it."""
        share = self.extras.overlap
        masks = Masks(share, sharded=is_sharded(self.parameters)) if share else None
        place = self.parameters, self._batches, self.tied, self._state
        gram, scores = measure_targets(self.model, *place, others, masks)
        rule = self.protection.told() if self.protection is not None else {}
        self.gram, self.line = gram, {"step": self._at, **evaluation_line(scores), **rule}
        parts: dict[str, Any] = {"gram": gram}
        if masks is not None:
            named = Combinations.everywhere({each: {each: 1.0} for each in gram.names if each != WEIGHTS})
            parts["overlap"] = masks.overlap(named, list(self.parameters), self.tied)
        if after is not None:
            parts["prediction"] = predictions(gram, scores, after)
        if self._sink is not None:
            self._sink(self.line | gram.norms() | parts)

    def _record_tokens(self, update: NamedTensors) -> None:
        """Write the examples of each target that an update harms most, token by token."""
        if self._sink is None or self.extras.tokenizer is None:
            return
        examples = {name: target.examples for name, target in self.targets.items()}
        with self._state.preserve():
            lines = token_lines(
                without_ddp(self.model),
                self.extras.tokenizer,
                examples,
                update,
                self._pad_id,
                self.extras.tokens,
                self._batch_size,
            )
            for line in lines:
                self._sink({"step": self._at} | line | {"direction": UPDATE}, TOKENS)


@dataclass(frozen=True)
class Extras:
    """What a monitor measures beside effects, see `Monitor`."""

    check: bool
    overlap: float
    tokens: int
    tokenizer: Tokenizer | None

    def refuse(self, *, update: bool) -> None:
        """Refuse what cannot be measured."""
        if not 0 <= self.overlap <= 1:
            raise GeffectError(f"overlap is {self.overlap}, no share between 0 and 1", remedy="Write 0.1 for 10 %")
        for name in (each for each in ("check", "tokens") if getattr(self, each) and not update):
            raise GeffectError(f"{name} needs the optimizer's update", remedy="Monitor with update=True")
        if self.tokens and self.tokenizer is None:
            raise GeffectError("tokens needs a tokenizer to tell their texts", remedy="Pass tokenizer=…")
        if self.tokens and num_processes() > 1:
            message = f"tokens works in one process, and {num_processes()} were launched"
            raise GeffectError(message, remedy="Leave it out, or monitor a training of one process")


def _check_numbers(counts: Mapping[str, int | str | None], overhead: float) -> None:
    for name, value in counts.items():
        if isinstance(value, int) and value < 1:
            raise GeffectError(f"{name} is {value}; it must be at least 1", remedy="Correct it")
    if not 0 < overhead < 1:
        raise GeffectError(f"overhead is {overhead}; it must lie between 0 and 1", remedy="Write 0.05 for 5 %")


def _part(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else local_part(gradient)


def _temporary(owner: Monitor) -> Path:
    path = Path(tempfile.mkdtemp(prefix="geffect-monitor-"))
    weakref.finalize(owner, shutil.rmtree, path, ignore_errors=True)
    return path


def _check_model(model: nn.Module) -> None:
    """Refuse wrappers with gradients elsewhere than in ``.grad``, hooks on parameters, and unsupported models."""
    names = {type(module).__name__ for module in model.modules()}
    if hidden := sorted(names & {"FullyShardedDataParallel", "DeepSpeedEngine"}):
        message = f"{hidden[0]} keeps gradients of its own, not those in .grad"
        raise GeffectError(message, remedy="Shard with FSDP2 (fsdp_version: 2, fully_shard), or train with DDP")
    parameters, base = trainable_parameters(model), unwrap(model)
    sharded = is_sharded(parameters)
    _refuse_hooks(parameters)
    check_class(type(base).__name__, getattr(base, "config", None))
    if not sharded:  # FSDP2 exchanges parameters during a pass
        check_runs(base)


def _refuse_hooks(parameters: Mapping[str, nn.Parameter]) -> None:
    """Refuse hooks in which an optimizer may step during the backward pass: no gradient is left to measure then."""
    for name, parameter in parameters.items():
        if parameter._post_accumulate_grad_hooks:
            raise GeffectError(
                f"{name} has a post-accumulate-grad hook, as an optimizer that steps in the backward pass has, "
                "so that .grad may hold no gradient",
                remedy="Step the optimizer after the backward pass and remove the hooks",
            )


def run_of(monitor: Monitor | None, call: str) -> Run:
    """The record of a callback's monitor, which is made when training begins, by ``call``."""
    if monitor is None:
        raise GeffectError("Training has not begun", remedy=f"Call the Trainer's {call} first")
    return monitor.run


def _measures_first(monitor: Monitor) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]] | None]:
    """A hook before an optimizer's step. Where a closure makes the gradients, they are measured after its first call.

    A closure that makes none, as Lightning's where a batch is skipped, is not measured.
    """

    def hook(
        optimizer: object, args: tuple[Any, ...], given: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        closure, calls = args[1] if args[1:] else given.get("closure"), itertools.count()
        if closure is None:
            monitor.step()
            return None

        def measured() -> object:
            loss: object = closure()
            if next(calls) == 0 and any(p.grad is not None for p in monitor.parameters.values()):
                monitor.step()
            return loss

        return ((optimizer, measured, *args[2:]), given) if args[1:] else (args, given | {"closure": measured})

    return hook


monitor = Monitor  # a verb: with geffect.monitor(model, …) as monitor
