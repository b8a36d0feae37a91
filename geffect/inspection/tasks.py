"""`InspectionSetup`, and a task for each objective of an inspection: its record and what it is measured with."""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from geffect.config import InspectConfig, UnlearnConfig
from geffect.core.devices import find_device
from geffect.core.layers import trainable_parameters
from geffect.data.domains import target_sets
from geffect.data.encode import EncodedExample, collate, pad_id_of
from geffect.errors import GeffectError
from geffect.inspection.measure import Inputs, chunks, dataset_parts, num_parts
from geffect.inspection.resolve import Checkpoint, as_run, check_readable, complete, find_checkpoints
from geffect.measurement.measurement import Batch
from geffect.models.load import Loaded, add_lora
from geffect.models.scoring import Reference
from geffect.objectives.base import Objective
from geffect.objectives.registry import make_objective
from geffect.record.reader import check_same_data
from geffect.record.schema import CONFIG, DONE, STEPS
from geffect.record.writer import RunDirectory, check_lines, steps_of
from geffect.training.batches import Columns, compute_columns, training_sets
from geffect.training.dry_run import parameter_counts, token_counts
from geffect.training.fit import memory_lines
from geffect.training.memory import MemoryEstimate, inspection_memory
from geffect.training.run import open_record, read_unfinished, recorded_config
from geffect.training.setup import TrainingSetup, answers_of, load_outline, prepare

EVALUATED = ("forget", "retain", "heldout")
Sink = Callable[..., None]


@dataclass(frozen=True)
class Task:
    """One objective of an inspection, and its record.

    Attributes:
        config: of the inspection, with this objective alone.
        run: the matching configuration of a run (`as_run`).
        directory: its record, to be locked before it is read.
    """

    config: InspectConfig
    run: UnlearnConfig
    directory: RunDirectory

    @functools.cached_property
    def done(self) -> frozenset[int]:
        """The steps that its record holds."""
        begun = self.directory.resume and (self.directory.path / STEPS).exists()
        return frozenset(step for step in steps_of(self.directory.path) if step is not None) if begun else frozenset()

    def first(self, steps: Sequence[int]) -> int:
        """The first of all checkpoints' steps that its record lacks; one past the last where it lacks none.

        A record with a line that is doubled, out of order or behind a missing one is refused.
        """
        if self.done:
            check_lines(self.directory.path, steps[: len(self.done)])
        return next((step for step in steps if step not in self.done), max(steps) + 1)


@dataclass(frozen=True)
class OpenTask:
    """A task whose record is open.

    Attributes:
        task: it.
        inputs: what every checkpoint is measured with.
        parts: every example of its sets, in micro-batches (`geffect.inspection.measure.dataset_parts`).
        points: name → objective whose weights are recorded beside each forget example's effects.
        evaluated: the sets that are scored, and whose tokens are recorded.
        sink: takes lines.
    """

    task: Task
    inputs: Inputs
    parts: list[list[dict[str, Batch]]]
    points: dict[str, Objective]
    evaluated: dict[str, list[EncodedExample]]
    sink: Sink


def record_of(config: InspectConfig, objective: Objective) -> Path:
    """The directory of an objective's record: ``out`` itself, or one below it where there are several objectives."""
    several = len(config.objective) > 1
    return config.out / re.sub(r"[^\w.]+", "-", objective.text).strip("-") if several else config.out


def tasks(config: InspectConfig, *, resume: bool) -> list[Task]:
    """The tasks of an inspection, one an objective; resuming leaves out those that are finished.

    A directory that exists already, or that holds another inspection, is refused.
    """
    left, paths = [], [record_of(config, objective) for objective in config.objective]
    if len(set(paths)) < len(paths):
        objectives = ", ".join(map(str, config.objective))
        raise GeffectError(f"An objective is named twice: {objectives}", remedy="Name each once")
    if resume and not any((place / CONFIG).exists() for place in paths):
        message = f"There is no unfinished inspection to --resume: no {CONFIG} in {', '.join(map(str, paths))}"
        raise GeffectError(message, remedy="Leave --resume out to start it")
    for objective, place in zip(config.objective, paths, strict=True):
        alone = config.replace(objective=[objective], out=place)
        begun = resume and (alone.out / CONFIG).exists()
        if begun and (alone.out / DONE).exists():
            continue
        if begun:
            alone = read_unfinished(alone)
        left.append(
            Task(alone, as_run(alone, objective), RunDirectory(alone.out, resume=begun, overwrite=config.overwrite))
        )
    return left


@dataclass(frozen=True)
class InspectionSetup:
    """What an inspection starts from: its dry run and its work share it.

    Attributes:
        config: completed.
        series: its checkpoints, all readable.
    """

    config: InspectConfig
    series: list[Checkpoint]

    @functools.cached_property
    def outline(self) -> Loaded:
        """Model, without weights, and tokenizer of the first checkpoint."""
        return load_outline(self.config, self.series[0].spec)

    @functools.cached_property
    def starts(self) -> bool:
        """Whether the model before unlearning is measured as step 0: where it has the checkpoints' parameters."""
        config = self.config
        if config.start is None:
            return False
        start = load_outline(config, config.start).model
        model = add_lora(start, config.lora, config.seed) if config.lora else start
        shapes = [{n: p.shape for n, p in trainable_parameters(m).items()} for m in (model, self.outline.model)]
        return shapes[0] == shapes[1]

    @functools.cached_property
    def sets(self) -> TrainingSetup[UnlearnConfig]:
        """Its sets, encoded by the tokenizer of what is measured first."""
        first = self.config.start if self.starts else self.series[0].spec
        run = as_run(self.config, self.config.objective[0])
        return prepare(run.replace(model=first, lora=0))  # an adapter is there already

    @property
    def memory(self) -> MemoryEstimate:
        """A rough estimate of the process's peak."""
        encoded = self.sets.encoded
        parts = num_parts(min(map(len, encoded.values())), self.config.batch_size)
        return inspection_memory(self.config, self.outline.model, encoded, parts)

    @property
    def plan(self) -> dict[str, str]:
        """What the inspection asks for: checkpoints, sets, objectives, memory, in lines by name."""
        config, model, encoded = self.config, self.outline.model, self.sets.encoded
        steps = ", ".join(str(place.step) for place in self.series)
        return {
            "model": f"{parameter_counts(model)}, {config.dtype}",
            "steps": f"{'the start, ' if config.start else ''}{len(self.series)} checkpoints: {steps}",
            **{name: f"{each.name}: {token_counts(encoded[name])}" for name, each in self.sets.sets.items()},
            "objective": "; ".join(map(str, config.objective)),
            "gradients": "of whole sets" + (", computed twice for standard errors" if not config.one_pass else ""),
            **memory_lines(self.memory, find_device(config.device)),
            "out": str(config.out),
        }


def prepare_inspection(config: InspectConfig, *, resume: bool = False) -> InspectionSetup:
    """Find an inspection's checkpoints, fill its options, and refuse directories that are taken."""
    find_device(config.device)
    series = check_readable(find_checkpoints(config.checkpoints), skip_broken=config.skip_broken)
    setup = InspectionSetup(complete(config), series)
    tasks(setup.config, resume=resume)
    return setup


@contextlib.contextmanager
def open_task(
    task: Task, sets: TrainingSetup[UnlearnConfig], start: Loaded | None, steps: Sequence[int]
) -> Iterator[OpenTask]:
    """Compute what a task's objective needs of the start, and open its record, which is closed when this ends.

    ``sets`` has the first checkpoint that is measured in place of the outline, ``start`` is None where it is not known.
    """
    same = task.run.objective.answers == sets.config.objective.answers
    sets = replace(sets, config=task.run, answers=sets.answers if same else answers_of(task.run))
    points = {point.text: point for point in task.config.points}
    inputs = _inputs(task, sets, points, start)
    environment = sets.environment(len(steps))
    environment["batch"]["sentence"] = f"whole sets, {task.config.batch_size} examples of each at a time"
    if task.directory.resume:
        check_same_data(task.config.out, environment)
    targets = [name for name, _ in target_sets(task.run)]
    evaluated = {name: sets.encoded[name] for name in (*EVALUATED, *targets) if name in sets.encoded}
    parts = dataset_parts(inputs.sets, inputs.columns, inputs.pad_id, task.config.batch_size)
    del sets, start  # one model at a time: nothing here holds the first once the next is loaded
    with open_record(task.directory, recorded_config(task.config), environment, task.first(steps)) as sink:
        yield OpenTask(task, inputs, parts, points, evaluated, sink)


def _inputs(
    task: Task, setup: TrainingSetup[UnlearnConfig], points: dict[str, Objective], start: Loaded | None
) -> Inputs:
    objective, origin = task.run.objective, start or setup.loaded
    sets = training_sets(setup)
    asked = [objective, *points.values()]
    if start is None and (text := next((each.text for each in asked if each.needs_start), None)):
        raise GeffectError(f"{text!r} needs the model before unlearning", remedy="Name it with --start")
    if start is not None and points:
        asked.append(make_objective("npo"))  # every example's NLL at the start stands beside its points
    columns: Columns = {}
    for each in asked:
        for name, by_column in compute_columns(origin.model, origin.tokenizer, each, sets, task.config.seed).items():
            columns[name] = columns.get(name, {}) | by_column
    reference = Reference(origin.model) if objective.needs_reference else None
    pad_id, size = pad_id_of(origin.tokenizer), task.config.batch_size
    targets = {
        name: [collate(chunk, pad_id) for chunk in chunks(setup.encoded[name], size)]
        for name, _ in target_sets(task.run)
    }
    return Inputs(objective, sets, columns, reference, setup.layout.layers, pad_id, targets)
