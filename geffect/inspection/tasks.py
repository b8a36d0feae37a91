"""One objective's record: what it holds already, what it is measured with, and where its lines go."""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from geffect.config import InspectConfig, UnlearnConfig
from geffect.data.encode import EncodedExample, pad_id_of
from geffect.errors import GeffectError
from geffect.inspection.defaults import as_run
from geffect.inspection.measure import Given
from geffect.inspection.windows import dataset_parts
from geffect.measurement.measurement import Batch
from geffect.models.load import Loaded
from geffect.models.scoring import Reference
from geffect.objectives.base import Objective
from geffect.objectives.registry import make_objective
from geffect.record.resume import check_lines, check_same_data, steps_of
from geffect.record.schema import CONFIG, DONE, STEPS
from geffect.record.writer import RunDirectory
from geffect.training.aux_inputs import Columns, compute_columns
from geffect.training.run import resolved, started, unfinished
from geffect.training.setup import Start, read_start, training_sets

EVALUATED = ("forget", "retain", "heldout")
FROM_START = frozenset({"ref_nll", "ref_logits", "ref_hidden"})
Sink = Callable[..., None]


@dataclass(frozen=True)
class Task:
    """One objective's record, begun or not.

    Attributes:
        config: of the inspection, with this objective alone.
        run: the same as a run's, for what reads sets and objectives.
        directory: its record, to be held before it is looked into.
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
        """The first step that is missing; one past the last where none is.

        Args:
            steps: of all checkpoints.

        Returns:
            The step.

        Raises:
            GeffectError: a line of the record is doubled, out of order, or stands behind one that is missing.
        """
        if self.done:
            check_lines(self.directory.path, steps[: len(self.done)])
        return next((step for step in steps if step not in self.done), max(steps) + 1)


@dataclass(frozen=True)
class Ready:
    """A task that can be carried out.

    Attributes:
        task: it.
        given: what every checkpoint is measured with.
        parts: every row of its sets, in micro-batches (`geffect.inspection.windows.dataset_parts`).
        points: name → objective whose weights are told beside each forget row's own effects.
        evaluated: the sets that are scored, and whose tokens are told.
        sink: takes lines.
    """

    task: Task
    given: Given
    parts: list[list[dict[str, Batch]]]
    points: dict[str, Objective]
    evaluated: dict[str, list[EncodedExample]]
    sink: Sink


def record_of(config: InspectConfig, objective: Objective) -> Path:
    """Where an objective's record lies: ``out`` itself, or below it where there are several."""
    several = len(config.objective) > 1
    return config.out / re.sub(r"[^\w.]+", "-", objective.text).strip("-") if several else config.out


def tasks(config: InspectConfig, *, resume: bool) -> list[Task]:
    """What is left to do, an objective each.

    Args:
        config: the inspection, completed.
        resume: leave what is finished, and go on with what was begun.

    Returns:
        The tasks.

    Raises:
        GeffectError: a directory is taken, or what was begun is another inspection.
    """
    found, places = [], [record_of(config, objective) for objective in config.objective]
    if len(set(places)) < len(places):
        raise GeffectError("objectives that differ", ", ".join(map(str, config.objective)), "name each once")
    if resume and not any((place / CONFIG).exists() for place in places):
        found_there = f"no {CONFIG} in {', '.join(map(str, places))}"
        raise GeffectError("an unfinished inspection to --resume", found_there, "leave --resume out to start it")
    for objective, place in zip(config.objective, places, strict=True):
        own = config.replace(objective=[objective], out=place)
        begun = resume and (own.out / CONFIG).exists()
        if begun and (own.out / DONE).exists():
            continue
        if begun:
            own = unfinished(own)
        found.append(Task(own, as_run(own, objective), RunDirectory(own.out, resume=begun)))
    return found


@contextlib.contextmanager
def ready(task: Task, loaded: Loaded, start: Loaded | None, steps: Sequence[int]) -> Iterator[Ready]:
    """Read a task's sets, compute what its objective needs of the start, and open its record.

    Args:
        task: the task.
        loaded: the first checkpoint that is measured.
        start: the model before unlearning, where it is known.
        steps: of all checkpoints.

    Yields:
        The task, ready; its record is closed when this ends.

    Raises:
        GeffectError: a set cannot be read, the objective needs a start, or the record began with other sets.
    """
    read = read_start(task.run.replace(lora=0), loaded)  # an adapter is there already
    points = {point.text: point for point in task.config.points}
    given = _given(task, read, points, start)
    environment = read.environment(task.run, len(steps))
    environment["batch"]["sentence"] = f"whole sets, {task.config.batch_size} rows of each at a time"
    if task.directory.resume:
        check_same_data(task.config.out, environment)
    evaluated = {name: read.encoded[name] for name in EVALUATED if name in read.encoded}
    parts = dataset_parts(given.sets, given.columns, given.pad_id, task.config.batch_size)
    del read, loaded, start  # one model at a time: nothing here holds the first once the next is loaded
    with started(task.directory, resolved(task.config), environment, task.first(steps)) as sink:
        yield Ready(task, given, parts, points, evaluated, sink)


def _given(task: Task, read: Start, points: dict[str, Objective], start: Loaded | None) -> Given:
    objective, origin = task.run.objective, start or read.loaded
    sets = training_sets(task.run, read, objective)
    asked = [objective, *points.values()]
    if start is None and any(each.needs & FROM_START for each in asked):
        text = next(each.text for each in asked if each.needs & FROM_START)
        raise GeffectError(f"a start for {text!r}", "none", "name the model before unlearning with --start")
    if start is not None and points:
        asked.append(make_objective("npo"))  # every row's NLL at the start stands beside its points
    columns: Columns = {}
    for each in asked:
        for name, found in compute_columns(origin.model, origin.tokenizer, each, sets, task.config.seed).items():
            columns[name] = columns.get(name, {}) | found
    reference = Reference(origin.model) if objective.needs & {"ref_logits", "ref_hidden"} else None
    return Given(objective, sets, columns, reference, read.layout.layers, pad_id_of(origin.tokenizer))
