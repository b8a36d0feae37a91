"""Monitor an external training loop: what each of its steps does to a forget and a retain set."""

import contextlib
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import nn

from geffect.core.architectures import Tokenizer, check_class, check_runs
from geffect.core.distributed import is_sharded, local_part, rank
from geffect.core.gradients import NamedTensors
from geffect.core.layers import TiedWeights, find_tied_weights, layout, split_layout, trainable_parameters, unwrap
from geffect.core.model_state import ModelState
from geffect.errors import GeffectError
from geffect.measurement.update import moved, snapshot
from geffect.models.tokenizers import vocabulary_size
from geffect.monitoring.targets import TargetSet, compute_gram, compute_target_gradients, make_target, without_ddp
from geffect.record.schema import CONFIG, ENVIRONMENT, STEPS
from geffect.record.writer import RunDirectory, check_lines, describe, layout_to_json, steps_of
from geffect.reports.run import Run
from geffect.training.run import final_metrics, open_record
from geffect.training.trainer import evaluation_line

GRADIENT, UPDATE = "applied_gradient", "update"
_OPEN: "weakref.WeakSet[Monitor]" = weakref.WeakSet()


class Monitor:
    """Monitors a training loop of your own: measures its steps, and changes no bit of it.

    Use it as ``with geffect.monitor(model, forget=…, retain=…) as monitor:``, and call ``monitor.step()`` between the
    backward pass and ``optimizer.step()``. The content of ``.grad`` at that time is the gradient ``applied_gradient``,
    whatever accumulation, clipping, noise or averaging over processes made it. It is recorded beside ``forget`` and
    ``retain``, the gradients ∇R of the token-mean NLL R of the two sets at the same weights, without dropout.
    ⟨∇R, applied_gradient⟩ > 0: plain descent of it lowers R. Under Adam the optimizer's own step says more:
    ``update`` = −Δθ, for which ΔR ≈ −⟨∇R, update⟩. Set ``update``, and call ``monitor.updated()`` after
    ``optimizer.step()``.

    A measured step costs the forward and backward passes over both sets and the memory of two gradients, with
    ``update`` that of two more. Unscale gradients that a scaler has scaled before ``step``.

    The model, its hooks and the random states stay the same bit for bit (`geffect.core.model_state`). Forward hooks run
    on the passes of a measured step; hooks on parameters and backward hooks of modules do not. A model with
    post-accumulate-grad hooks is refused, since an optimizer that steps in them leaves no gradient, and so is one whose
    forward pass changes trainable weights.

    Args:
        model: a causal language model, bare or wrapped by DDP, ``fully_shard``, PEFT or ``torch.compile``.
        forget: the forget set: its name, a set, or examples with ``input_ids`` and ``labels``.
        retain: the retain set, likewise.
        tokenizer: to encode sets that are named.
        every: measure every so many steps, beginning with the first.
        update: measure the optimizer's own update too.
        batch_size: examples of a set's forward pass.
        out: the run directory that is written; by default a temporary one, removed with this object.
        settings: more settings of the training for ``config.yaml``.
        training: identifies the training, for a trainer that does not tell when it ends in an exception: when this
            monitor opens, one of another training on the same model or record is closed unfinished.

    Raises:
        GeffectError: a set cannot be read, ``out`` exists, or the model is monitored already.
    """

    def __init__(
        self,
        model: nn.Module,
        forget: TargetSet,
        retain: TargetSet,
        *,
        tokenizer: Tokenizer | None = None,
        every: int = 1,
        update: bool = False,
        batch_size: int = 8,
        out: Path | str | None = None,
        settings: Mapping[str, object] | None = None,
        training: object = None,
    ) -> None:
        if every < 1 or batch_size < 1:
            raise GeffectError(
                f"every is {every} and batch_size {batch_size}; both must be at least 1", remedy="Correct them"
            )
        self.model, self.every, self.update, self.steps, self.training = model, every, update, 0, training
        context = getattr(getattr(unwrap(model), "config", None), "max_position_embeddings", None)
        sets, known = {"forget": forget, "retain": retain}, vocabulary_size(unwrap(model))
        self.targets = {n: make_target(n, each, tokenizer, batch_size, context, known) for n, each in sets.items()}
        self.path = Path(out) if out is not None else _temporary(self)
        names = {name: target.name for name, target in self.targets.items()}
        self.settings = {**(settings or {}), **names, "every": every, "update": update, "batch_size": batch_size}
        self.parameters: dict[str, nn.Parameter] = {}  # read when the monitor opens, with all below
        self.tied: TiedWeights | None = None
        self._state = ModelState(model)
        self._stack = contextlib.ExitStack()
        self._directory: RunDirectory | None = None  # locked by the first process from `open` to `close`
        self._sink: Callable[..., None] | None = None  # the same
        self._line: dict[str, Any] = {}  # of the step that is measured
        self._gradients: dict[str, NamedTensors] | None = None  # of that step, until its update is measured
        self._before: NamedTensors = {}

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
        self.steps, resumes = step, step > 0 and (self.path / CONFIG).exists()
        environment = self._environment()
        if rank() == 0:
            self._directory = self._stack.enter_context(RunDirectory(self.path, resume=resumes))
            if resumes:
                self._check_lines(step)
            self._sink = self._stack.enter_context(open_record(self._directory, self.settings, environment, step))
        _OPEN.add(self)
        return self

    def _environment(self) -> dict[str, Any]:
        first = next(iter(self.parameters.values()))
        return describe(first.device) | {
            "dtype": str(first.dtype).removeprefix("torch."),
            "data": {name: target.data for name, target in self.targets.items()},
            "parameters": layout_to_json(split_layout(layout(self.model), self.tied)),
        }

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
        at, self.steps = self.steps, self.steps + 1
        if at % self.every:
            return
        gradient = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        if not gradient:
            raise GeffectError(
                f"None of {len(self.parameters)} trainable parameters has a gradient in .grad",
                remedy="Call step() after backward() and before optimizer.step() and zero_grad()",
            )
        batches = {name: target.batches for name, target in self.targets.items()}
        losses, scores = compute_target_gradients(self.model, self.parameters, batches, self.tied, self._state)
        gradient = {name: local_part(each) for name, each in gradient.items()}
        self._line = {"step": at} | evaluation_line(scores)
        if not self.update:
            self._write({GRADIENT: gradient} | losses)
            return
        gradient = {name: each.clone() for name, each in gradient.items()}  # the training changes them
        self._gradients, self._before = {GRADIENT: gradient} | losses, snapshot(self.parameters)

    def updated(self) -> None:
        """Measure −Δθ of the optimizer's step: call it after every step of the optimizer."""
        if self._gradients is None:
            return
        gradients, self._gradients = self._gradients, None
        self._write(gradients | {UPDATE: {name: moved(self._before[name], p) for name, p in self.parameters.items()}})
        self._before = {}

    def close(self, *, finished: bool = True) -> None:
        """End: mark the record as finished if the training came to its end, and let the model be monitored again.

        Raises:
            GeffectError: it did, but `updated` was not called after the last step.
        """
        with self._stack:
            _OPEN.discard(self)
            directory, self._directory, self._sink = self._directory, None, None
            try:
                if finished:
                    self._refuse_lost()
            finally:
                self._gradients, self._before = None, {}
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
        if self._gradients is not None:
            self._gradients = None
            message = f"updated() was not called after step {self._line['step']}, which is not recorded"
            raise GeffectError(message, remedy="Call it after every optimizer.step(), or monitor without update=True")

    def _check_lines(self, step: int) -> None:
        """Refuse to continue a record that lacks a line of a measured step before this one."""
        first = next(iter(steps_of(self.path)), None)
        if first is not None:
            check_lines(self.path, [each for each in range(first, step) if each % self.every == 0])

    def _close_dead(self) -> None:
        """Close the monitors of trainings that ended in an exception: a notebook keeps the last exception alive."""
        for each in list(_OPEN):
            another = None not in (each.training, self.training) and each.training is not self.training
            same = unwrap(each.model) is unwrap(self.model) or each.path.resolve() == self.path.resolve()
            if another and same:
                each.close(finished=False)

    def _write(self, gradients: dict[str, NamedTensors]) -> None:
        gram = compute_gram(gradients, self.parameters, self.tied)
        if self._sink is not None:
            self._sink(self._line | gram.norms() | {"gram": gram})


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


monitor = Monitor  # a verb: with geffect.monitor(model, …) as monitor
