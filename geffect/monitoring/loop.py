"""Monitor an external training loop: what each of its steps does to a forget and a retain set."""

import contextlib
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from geffect.core.architectures import check_kind, check_runs
from geffect.core.distributed import is_sharded, local_part, rank
from geffect.core.gradients import NamedTensors
from geffect.core.host_state import HostState
from geffect.core.layers import find_tied_weights, layout, split_layout, trainable_parameters, unwrap
from geffect.errors import GeffectError
from geffect.measurement.step import norms
from geffect.models.tokenizers import vocabulary_size
from geffect.monitoring.measure import GRADIENT, UPDATE, bare, gram_of, risk_rows
from geffect.monitoring.probes import ProbeSet, make_probe
from geffect.record.environment import describe
from geffect.record.resume import check_lines, steps_of
from geffect.record.schema import CONFIG, ENVIRONMENT, STEPS
from geffect.record.writer import RunDirectory, layout_to_json
from geffect.reports.run import Run
from geffect.training.run import ends, started
from geffect.training.trainer import evaluation_line

_OPEN: "weakref.WeakSet[Watch]" = weakref.WeakSet()


class Watch:
    """Measures the steps of a training loop that is not geffect's, and changes no bit of it.

    Used as ``with geffect.watch(model, forget=…, retain=…) as watch:``, with ``watch.step()`` between the backward pass
    and ``optimizer.step()``. What lies in ``.grad`` then is the row ``applied_gradient``, whatever accumulation,
    clipping, noise or averaging over processes made it; beside it stand ``forget`` and ``retain``, ∇ of the token-mean
    NLL of the two probe sets at the same weights, without dropout. ⟨∇R, applied_gradient⟩ > 0: plain descent of it
    lowers R. Under Adam the honest row is ``update`` = −Δθ, for which ΔR ≈ −⟨∇R, update⟩: ask for it with ``update``,
    and call ``watch.updated()`` after ``optimizer.step()``.

    A measured step costs the forward and backward passes over both probe sets and the memory of two gradients, with
    ``update`` that of two more. Gradients that a scaler has scaled must be unscaled before ``step``.

    The model, its hooks and the random states are left bit for bit as they were found (`geffect.core.host_state`).
    Hooks on
    parameters and backward hooks of modules do not run on the passes of a measured step, forward hooks do. Refused are
    post-accumulate-grad hooks, since an optimizer that steps in them leaves no gradient, and a model whose forward pass
    changes trainable weights.

    Args:
        model: a causal language model, bare or wrapped by DDP, ``fully_shard``, PEFT or ``torch.compile``.
        forget: the forget set: its name, a set, or examples with ``input_ids`` and ``labels``.
        retain: the retain set, likewise.
        tokenizer: to encode sets that are given by name.
        every: steps between two that are measured, the first one included.
        update: measure the optimizer's own update too.
        batch_size: rows of a probe's pass.
        out: the run directory that is written; a temporary one by default, gone with this object.
        settings: what else ``config.yaml`` shall say of the training.
        training: stands for the host's training, where the host does not tell when that ends in an exception: a watch
            of another one, on the same model or record, is closed unfinished when this one opens.

    Raises:
        GeffectError: a set cannot be read, ``out`` is taken, or the model is being watched already.
    """

    def __init__(
        self,
        model: nn.Module,
        forget: ProbeSet,
        retain: ProbeSet,
        *,
        tokenizer: Any = None,
        every: int = 1,
        update: bool = False,
        batch_size: int = 8,
        out: Path | str | None = None,
        settings: dict[str, Any] | None = None,
        training: object = None,
    ) -> None:
        if every < 1 or batch_size < 1:
            raise GeffectError(
                f"every is {every} and batch_size {batch_size}; both must be at least 1", remedy="Correct them"
            )
        self.model, self.every, self.update, self.steps, self.training = model, every, update, 0, training
        context = getattr(getattr(unwrap(model), "config", None), "max_position_embeddings", None)
        given, known = {"forget": forget, "retain": retain}, vocabulary_size(unwrap(model))
        self.probes = {n: make_probe(n, each, tokenizer, batch_size, context, known) for n, each in given.items()}
        self.path = Path(out) if out is not None else _temporary(self)
        self.settings = (
            (settings or {})
            | {name: probe.name for name, probe in self.probes.items()}
            | {"every": every, "update": update, "batch_size": batch_size}
        )
        self._stack = contextlib.ExitStack()
        self._directory: RunDirectory | None = None  # held by the first process from `open` to `close`
        self._rows: dict[str, NamedTensors] | None = None  # of a measured step whose update is still to come
        self._before: NamedTensors = {}

    @property
    def run(self) -> Run:
        """The record so far, which shows itself in a notebook."""
        return Run(self.path)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close(finished=kind is None)

    def open(self, step: int = 0) -> Self:
        """Begin, or go on with what ``out`` holds.

        Args:
            step: the first that is coming; beyond 0 a record in ``out`` is cut back to it and continued.

        Returns:
            This.

        Raises:
            GeffectError: ``out`` is taken, gradients cannot be seen or may be used in the backward pass, or the model
                is being watched already.
        """
        self._close_dead()
        if any(unwrap(each.model) is unwrap(self.model) for each in _OPEN):
            raise GeffectError(
                "The model is monitored already", remedy="Remove one of the two monitors, or close the first"
            )
        _refuse_hidden(self.model)
        check_kind(unwrap(self.model))
        if not is_sharded(trainable_parameters(self.model)):  # FSDP2 exchanges parameters during a pass
            check_runs(unwrap(self.model))
        self.parameters, self.tie = trainable_parameters(self.model), find_tied_weights(bare(self.model))
        self._untouched = HostState(self.model)
        table = split_layout(layout(self.model), self.tie)
        self.steps, resumes = step, step > 0 and (self.path / CONFIG).exists()
        environment = describe() | {
            "dtype": str(next(iter(self.parameters.values())).dtype).removeprefix("torch."),
            "data": {name: probe.data for name, probe in self.probes.items()},
            "parameters": layout_to_json(table),
        }
        if rank() == 0:
            self._directory = self._stack.enter_context(RunDirectory(self.path, resume=resumes))
            if resumes:
                self._check_lines(step)
            self._sink = self._stack.enter_context(started(self._directory, self.settings, environment, step))
        _OPEN.add(self)
        return self

    def step(self) -> None:
        """Measure what lies in ``.grad``: call it between the backward pass and the optimizer's step.

        Raises:
            GeffectError: no parameter has a gradient, a hook that may have used it is there, `updated` was left out
                after the step before, a pass changes the trainable weights, or this is closed.
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
        batches = {name: probe.batches for name, probe in self.probes.items()}
        risks, scores = risk_rows(self.model, self.parameters, batches, self.tie, self._untouched)
        rows = {GRADIENT: {name: local_part(each) for name, each in gradient.items()}} | risks
        self._line = {"step": at} | evaluation_line(scores)
        if not self.update:
            self._write(rows)
            return
        rows[GRADIENT] = {name: each.clone() for name, each in rows[GRADIENT].items()}  # until it has been stepped with
        self._rows, self._before = rows, {name: local_part(p.detach()).clone() for name, p in self.parameters.items()}

    def updated(self) -> None:
        """Measure −Δθ of a measured step: call it after every step of the optimizer."""
        if self._rows is None:
            return
        rows, self._rows = self._rows, None
        self._write(rows | {UPDATE: {name: self._moved(name) for name in self.parameters}})
        self._before = {}

    def close(self, *, finished: bool = True) -> None:
        """End: the record is marked as finished, and the model can be watched anew.

        Args:
            finished: the training came to its end.

        Raises:
            GeffectError: it did, but `updated` was left out after the last step.
        """
        with self._stack:
            _OPEN.discard(self)
            held, self._directory = self._directory, None
            try:
                if finished:
                    self._refuse_lost()
            finally:
                self._rows, self._before = None, {}
            if finished and held and (self.path / CONFIG).exists():
                held.finish(ends(self.path))

    def withdraw(self) -> None:
        """End, and remove what was written since this was opened: the training takes its steps back and begins anew."""
        held = self._directory
        if held and not held.resume:
            for name in (STEPS, CONFIG, ENVIRONMENT):
                (self.path / name).unlink(missing_ok=True)
        self.close(finished=False)

    def _refuse_lost(self) -> None:
        """Raise where a measured step waits for `updated`, which would have written it."""
        if self._rows is not None:
            self._rows = None
            raise GeffectError(
                f"updated() was not called after step {self._line['step']}, which is not recorded",
                remedy="Call it after every optimizer.step(), or monitor without update=True",
            )

    def _check_lines(self, step: int) -> None:
        """A record that is continued holds a line for every step that was measured, from its first to this one."""
        first = next(iter(steps_of(self.path)), None)
        if first is not None:
            check_lines(self.path, [each for each in range(first, step) if each % self.every == 0])

    def _close_dead(self) -> None:
        """Let go what trainings that ended in an exception have left open: a notebook keeps the last one alive."""
        for each in list(_OPEN):
            another = None not in (each.training, self.training) and each.training is not self.training
            meets = unwrap(each.model) is unwrap(self.model) or each.path.resolve() == self.path.resolve()
            if another and meets:
                each.close(finished=False)

    def _moved(self, name: str) -> Tensor:
        after = local_part(self.parameters[name].detach())
        wide = torch.promote_types(after.dtype, torch.float32)
        return self._before[name].to(wide) - after.to(wide)

    def _write(self, rows: dict[str, NamedTensors]) -> None:
        gram = gram_of(rows, self.parameters, self.tie)
        if rank() == 0:
            self._sink(self._line | norms(gram) | {"gram": gram})


def _temporary(owner: Watch) -> Path:
    path = Path(tempfile.mkdtemp(prefix="geffect-watch-"))
    weakref.finalize(owner, shutil.rmtree, path, ignore_errors=True)
    return path


def _refuse_hidden(model: nn.Module) -> None:
    """Raise where a wrapper keeps gradients out of sight."""
    names = {type(module).__name__ for module in model.modules()}
    if hidden := sorted(names & {"FullyShardedDataParallel", "DeepSpeedEngine"}):
        raise GeffectError(
            f"{hidden[0]} keeps gradients of its own, not those in .grad",
            remedy="Shard with FSDP2 (fsdp_version: 2, fully_shard), or train with DDP",
        )
    is_sharded(trainable_parameters(model))
    _refuse_hooks(trainable_parameters(model))


def _refuse_hooks(parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise where an optimizer may step inside the backward pass: no gradient is left to look at then."""
    for name, parameter in parameters.items():
        if parameter._post_accumulate_grad_hooks:
            raise GeffectError(
                f"{name} has a post-accumulate-grad hook, as an optimizer that steps in the backward pass has, "
                "so that .grad may hold no gradient",
                remedy="Step the optimizer after the backward pass and remove the hooks",
            )


watch = Watch  # reads as a verb: with geffect.watch(model, …) as watch
