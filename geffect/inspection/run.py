"""A series of checkpoints → the records that runs would have written."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from geffect.config import InspectConfig
from geffect.core.layers import trainable_parameters
from geffect.core.model_state import ModelState, preserve_random_states
from geffect.errors import GeffectError, Interrupted
from geffect.inspection.defaults import recorded_start
from geffect.inspection.iterate import walk
from geffect.inspection.measure import dataset_step, measurement
from geffect.inspection.places import Place
from geffect.inspection.tasks import Ready, Task, ready, tasks
from geffect.inspection.tokens import point_lines, token_lines
from geffect.inspection.windows import published_batches
from geffect.io.system import signal_of
from geffect.measurement.measurement import Measurement
from geffect.measurement.step import Step
from geffect.models.load import Loaded, add_lora, outline, quiet_transformers
from geffect.record.resume import check_unfinished
from geffect.record.schema import POINTS, TOKENS
from geffect.training.diagnostics import published_lines
from geffect.training.run import ends, to_disk
from geffect.training.trainer import evaluated

Load = Callable[[str], Loaded]


def inspect(config: InspectConfig, series: Sequence[Place], load: Load, *, resume: bool) -> None:
    """Measure every objective at every checkpoint.

    Args:
        config: the inspection, completed.
        series: its checkpoints, all readable.
        load: reads a model.
        resume: go on with what was begun.

    Raises:
        GeffectError: what was begun is another inspection, or a checkpoint cannot be measured.
        Interrupted: by Ctrl-C, SIGTERM or SIGHUP; what was measured is kept.
    """
    left = tasks(config, resume=resume)
    with contextlib.ExitStack() as held:
        held.enter_context(preserve_random_states())  # loading a model draws
        for task in left:
            held.enter_context(task.directory)
            if task.directory.resume:
                check_unfinished(task.config.out)  # another process may have ended it meanwhile
        if left:
            _measure(config, left, series, load)
        for task in left:
            with to_disk(task.config.out, "then rerun with --resume"):
                task.directory.finish(ends(task.config.out))


def _measure(config: InspectConfig, left: Sequence[Task], series: Sequence[Place], load: Load) -> None:
    """Every checkpoint that any of the tasks lacks, none where all are there and only their end is missing."""
    start = _start_of(config, load)
    begins = start is not None and _same_parameters(start, series[0], trust_remote_code=config.trust_remote_code)
    steps = [0] * begins + [place.step for place in series]
    first = min(task.first(steps) for task in left)
    if first > max(steps):
        return
    stops = _stops(start if begins and first == 0 else None, [p for p in series if p.step >= first], load)
    with contextlib.ExitStack() as stack, quiet_transformers():
        step, loaded = next(stops)
        each_ready = [stack.enter_context(ready(task, loaded, start, steps)) for task in left]
        start = None  # it may be the checkpoint at hand, which is let go before the next is loaded
        bar = stack.enter_context(tqdm(total=len(steps), initial=steps.index(step), unit="checkpoint", disable=None))
        try:
            _visit(step, loaded, each_ready)
            bar.update()
            del loaded
            for step, loaded in stops:
                _visit(step, loaded, each_ready)
                bar.update()
                del loaded
        except KeyboardInterrupt as stopped:
            again = "go on with the same command and --resume"
            message = f"stopped at step {step}; the checkpoints before it are kept; {again}"
            raise Interrupted(message, signal_of(stopped)) from None


def _start_of(config: InspectConfig, load: Load) -> Loaded | None:
    """The model before unlearning, with the adapter it carried then."""
    if config.start is None:
        return None
    loaded, expected = load(config.start), recorded_start(config)
    if expected not in (None, loaded.sha256):
        raise GeffectError(
            f"the start that the run recorded (weights {str(expected)[:12]})",
            f"{config.start} (weights {str(loaded.sha256)[:12]})",
            "name it with --start",
        )
    if config.lora:
        loaded.model = add_lora(loaded.model, config.lora, config.seed)
    return loaded


def _same_parameters(start: Loaded, first: Place, *, trust_remote_code: bool) -> bool:
    """Whether the start's rows are those of the checkpoints: not where these alone have an adapter."""
    models = start.model, outline(first.spec, trust_remote_code=trust_remote_code)[0]
    own, its = ({name: p.shape for name, p in trainable_parameters(model).items()} for model in models)
    return own == its


def _stops(start: Loaded | None, series: Sequence[Place], load: Load) -> Iterator[tuple[int, Loaded]]:
    if start is not None:
        yield 0, start
    del start
    for place, loaded in walk(series, load):
        yield place.step, loaded
        del loaded


def _visit(step: int, loaded: Loaded, each_ready: Sequence[Ready]) -> None:
    """Every objective that has no line of this checkpoint yet."""
    scores: dict[str, Any] = {}
    for here in (each for each in each_ready if step not in each.task.done):
        began = time.perf_counter()
        with ModelState(loaded.model).preserve():
            scores = scores or evaluated(loaded.model, here.evaluated, here.given.pad_id, here.task.config.batch_size)
            line = _line(step, loaded, here)
        head = {"step": step, "checkpoint": Path(loaded.source).name, "sha256": loaded.sha256}
        here.sink(head | scores | line | {"seconds": round(time.perf_counter() - began, 3)})
        loaded.model.zero_grad(set_to_none=True)


def _line(step: int, loaded: Loaded, here: Ready) -> dict[str, Any]:
    """The numbers of one checkpoint; those of tokens and of single rows go to files of their own."""
    config, given = here.task.config, here.given
    singly = bool(config.tokens or config.points)
    run = measurement(loaded.model, given, config.overlap, standard_errors=not config.one_pass, keep=singly)
    taken, measured = dataset_step(run, here.parts)
    line = measured.line()
    if singly:
        for file, extra in _singly(loaded, here, taken):
            here.sink({"step": step} | extra, file)
    if config.mode == "paper":
        line["paper"] = _published(run, here)
    return line


def _singly(loaded: Loaded, here: Ready, taken: Step) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows that the objective serves worst, token by token, and every forget row's own effects."""
    config, given, size = here.task.config, here.given, here.task.config.batch_size
    if config.tokens:
        direction, tokenizer = taken.gradient("objective"), loaded.tokenizer
        lines = token_lines(loaded.model, tokenizer, here.evaluated, direction, given.pad_id, config.tokens, size)
        yield from ((TOKENS, line | {"direction": "objective"}) for line in lines)
    if config.points:
        risks = {"unlearn": taken.gradient("forget"), "retain": taken.gradient("retain")}
        rows = given.sets["forget"]
        points = point_lines(loaded.model, rows, given.columns, risks, here.points, given.pad_id, size)
        yield from ((POINTS, line) for line in points)


def _published(run: Measurement, here: Ready) -> list[dict[str, Any]]:
    config, given = here.task.config, here.given
    batches = published_batches(given.sets, given.columns, given.pad_id, config.batch_size, config.seed)
    return published_lines(run, batches)
