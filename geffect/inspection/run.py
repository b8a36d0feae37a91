"""Measure a series of checkpoints, and write the records that runs would have written."""

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from geffect.config import InspectConfig
from geffect.core.model_state import ModelState, preserve_random_states
from geffect.errors import GeffectError, Interrupted
from geffect.inspection.measure import dataset_step, measurement, paper_batches, point_lines, token_lines
from geffect.inspection.resolve import Checkpoint, recorded_start
from geffect.inspection.tasks import InspectionSetup, OpenTask, Task, open_task, tasks
from geffect.io.progress import Bar
from geffect.io.system import signal_of
from geffect.measurement.step import Step
from geffect.models.builtin import is_built_in
from geffect.models.checkpoints import CHECKSUMS, check_checksums
from geffect.models.load import Loaded, add_lora, base_of_adapter, model_errors, quiet_transformers, resolve, sha256_of
from geffect.record.reader import check_unfinished
from geffect.record.schema import POINTS, TOKENS
from geffect.training.run import disk_errors, final_metrics
from geffect.training.trainer import evaluate_sets
from geffect.training.unlearn import losses_by_role, paper_lines

Load = Callable[[str], Loaded]


def inspect(setup: InspectionSetup, load: Load, *, resume: bool) -> None:
    """Measure every objective at every checkpoint; Ctrl-C or a signal keeps what was measured."""
    left = tasks(setup.config, resume=resume)
    with contextlib.ExitStack() as stack:
        stack.enter_context(preserve_random_states())  # loading a model draws
        for task in left:
            stack.enter_context(task.directory)
            if task.directory.resume:
                check_unfinished(task.config.out)  # another process may have ended it meanwhile
        if left:
            _measure(setup, left, load)
        for task in left:
            with disk_errors(task.config.out, "then rerun with --resume"):
                task.directory.finish(final_metrics(task.config.out))


def _measure(setup: InspectionSetup, left: Sequence[Task], load: Load) -> None:
    """Measure the checkpoints that any task lacks: none where only the end of the records is missing."""
    start, series = _start_of(setup.config, load), setup.series
    steps = [0] * setup.starts + [place.step for place in series]
    first = min(task.first(steps) for task in left)
    if first > max(steps):
        return
    stops = _models(start if setup.starts and first == 0 else None, [p for p in series if p.step >= first], load)
    with contextlib.ExitStack() as stack, quiet_transformers():
        step, loaded = next(stops)
        sets = setup.sets.with_weights(loaded)
        open_tasks = [stack.enter_context(open_task(task, sets, start, steps)) for task in left]
        del sets
        start = None  # it may be the checkpoint at hand, which is let go before the next is loaded
        bar = stack.enter_context(contextlib.closing(Bar(len(steps), "checkpoint", done=steps.index(step))))
        try:
            bar.tell(_measure_at(step, loaded, open_tasks), steps=1)
            del loaded
            for step, loaded in stops:
                bar.tell(_measure_at(step, loaded, open_tasks), steps=1)
                del loaded
        except KeyboardInterrupt as stopped:
            again = "continue with the same command and --resume"
            message = f"stopped at step {step}; the checkpoints before it are kept; {again}"
            raise Interrupted(message, signal_of(stopped)) from None


def _start_of(config: InspectConfig, load: Load) -> Loaded | None:
    """The model before unlearning, with the adapter it carried then."""
    if config.start is None:
        return None
    loaded, expected = load(config.start), recorded_start(config)
    if expected not in (None, loaded.sha256):
        raise GeffectError(
            f"The run recorded a start with weights {str(expected)[:12]}, "
            f"and {config.start} has weights {str(loaded.sha256)[:12]}",
            remedy="Name that start with --start",
        )
    if config.lora:
        loaded.model = add_lora(loaded.model, config.lora, config.seed)
    return loaded


def _models(start: Loaded | None, series: Sequence[Checkpoint], load: Load) -> Iterator[tuple[int, Loaded]]:
    if start is not None:
        yield 0, start
    del start
    for place, loaded in load_each(series, load):
        yield place.step, loaded
        del loaded


def load_each(series: Sequence[Checkpoint], load: Callable[[str], Loaded]) -> Iterator[tuple[Checkpoint, Loaded]]:
    """Load one checkpoint after the other, adapters onto one base; a model is valid until the next is loaded."""
    loaded: Loaded | None = None
    for place in series:
        source = place.spec if is_built_in(place.spec) else resolve(place.spec)
        if loaded is not None and isinstance(source, Path) and base_of_adapter(source) is not None:
            _exchange(loaded, source)
        else:
            loaded = None
            gc.collect()  # the model before may lie in cycles
            loaded = load(place.spec)
        yield place, loaded


def _exchange(loaded: Loaded, source: Path) -> None:
    """Load another adapter's weights into the one before; `check_readable` has compared their shapes."""
    from peft import set_peft_model_state_dict

    with model_errors(str(source)):
        if (source / CHECKSUMS).exists():
            check_checksums(source, "*.safetensors")
        set_peft_model_state_dict(loaded.model, load_file(source / "adapter_model.safetensors"))
    loaded.source, loaded.sha256 = str(source), sha256_of(source)


def _measure_at(step: int, loaded: Loaded, open_tasks: Sequence[OpenTask]) -> dict[str, float | str | None]:
    """Measure this checkpoint for every objective that has no line of it yet; its losses, for the progress bar."""
    scores: dict[str, Any] = {}
    for here in (each for each in open_tasks if step not in each.task.done):
        began = time.perf_counter()
        with ModelState(loaded.model).preserve():
            scores = scores or evaluate_sets(
                loaded.model, here.evaluated, here.inputs.pad_id, here.task.config.batch_size
            )
            line = _numbers(step, loaded, here)
        head = {"step": step, "checkpoint": Path(loaded.source).name, "sha256": loaded.sha256}
        here.sink(head | scores | line | {"seconds": round(time.perf_counter() - began, 3)})
        loaded.model.zero_grad(set_to_none=True)
    return losses_by_role({name: each["loss"] for name, each in scores.get("evaluation", {}).items()})


def _numbers(step: int, loaded: Loaded, here: OpenTask) -> dict[str, Any]:
    """The numbers of one checkpoint; those of tokens and of single examples go to files of their own."""
    config, inputs = here.task.config, here.inputs
    singly = bool(config.tokens or config.points)
    run = measurement(loaded.model, inputs, config.overlap, standard_errors=not config.one_pass, keep=singly)
    window, measured = dataset_step(run, here.parts)
    line = measured.line()
    if singly:
        for file, extra in _example_lines(loaded, here, window):
            here.sink({"step": step} | extra, file)
    if config.mode == "paper":
        batches = paper_batches(inputs.sets, inputs.columns, inputs.pad_id, config.batch_size, config.seed)
        line["paper"] = paper_lines(run, batches)
    return line


def _example_lines(loaded: Loaded, here: OpenTask, window: Step) -> Iterator[tuple[str, dict[str, Any]]]:
    """Lines of the examples that the objective serves worst, token by token, and of every forget example's effects."""
    config, inputs, size = here.task.config, here.inputs, here.task.config.batch_size
    if config.tokens:
        direction, tokenizer = window.gradient("objective"), loaded.tokenizer
        lines = token_lines(loaded.model, tokenizer, here.evaluated, direction, inputs.pad_id, config.tokens, size)
        yield from ((TOKENS, line | {"direction": "objective"}) for line in lines)
    if config.points:
        losses = {"unlearn": window.gradient("forget"), "retain": window.gradient("retain")}
        points = point_lines(
            loaded.model, inputs.sets["forget"], inputs.columns, losses, here.points, inputs.pad_id, size
        )
        yield from ((POINTS, line) for line in points)
