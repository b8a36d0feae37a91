"""Start, resume and finish a run: its directory, its record, its last state."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from geffect.config import FinetuneConfig, InspectConfig, TrainConfig, UnlearnConfig
from geffect.core.splits import role_of
from geffect.errors import GeffectError, Interrupted
from geffect.io.system import rank_and_size
from geffect.models.checkpoints import checkpoints
from geffect.record.reader import StepLine, evaluations, step_lines
from geffect.record.resume import check_lines, check_resumable, check_unfinished, cut_back, recorded_start
from geffect.record.schema import CONFIG, STEPS
from geffect.record.writer import RunDirectory

if TYPE_CHECKING:
    from geffect.stopping import StopRules
    from geffect.training.trainer import RecordingTrainer

LOGGER = logging.getLogger(__name__)
ELSEWHERE = ("model", "reference", "trust_remote_code")  # the start is told by its weights, not by where it lies
Config = TypeVar("Config", TrainConfig, UnlearnConfig, FinetuneConfig, InspectConfig)


def resolved(config: TrainConfig | InspectConfig) -> dict[str, Any]:
    """A configuration as a run records it."""
    return config.model_dump(mode="json", exclude_none=True)


def unfinished(config: Config) -> Config:
    """The recorded configuration of the unfinished run in ``config.out``.

    Args:
        config: what is asked for.

    Returns:
        The same, with the start the run had.

    Raises:
        GeffectError: there is no such run, it is finished, or a setting differs; the first such is named.
    """
    check_unfinished(config.out)
    found = type(config).read(config.out / CONFIG, out=config.out, trust_remote_code=config.trust_remote_code)
    recorded, asked = resolved(found), resolved(config)
    for key in {**recorded, **asked}:
        if key not in ELSEWHERE and recorded.get(key) != asked.get(key):
            raise GeffectError(
                f"{key}: {recorded.get(key)} as {config.out / CONFIG} has it",
                str(asked.get(key)),
                "resume it from that file",
            )
    if isinstance(found, InspectConfig) or isinstance(config, InspectConfig):
        return found
    return found.replace(model=where_it_is(config.model, recorded_start(config.out)))


def where_it_is(model: str, recorded: object) -> str:
    """A model's name, or the directory it stood for when a run recorded it, where a path leads nowhere from here."""
    there = isinstance(recorded, str) and Path(recorded).is_dir()
    is_path = not model.startswith(("builtin:", "gguf:")) and model != "smollm2"
    return str(recorded) if is_path and there and not Path(model).expanduser().exists() else model


@contextlib.contextmanager
def started(
    run: RunDirectory, config: dict[str, Any], environment: dict[str, Any], step: int
) -> Iterator[Callable[..., None]]:
    """A sink for a run's lines.

    With the first line the configuration is written, so that a start that fails leaves nothing, or a run that goes on
    has its lines cut back to where it does, so that a checkpoint that is refused costs none.

    Args:
        run: the directory, held.
        config: as recorded.
        environment: as recorded.
        step: of the first line; those a run that has begun holds from there on are written anew.

    Yields:
        The sink.

    Raises:
        GeffectError: the disk is full or cannot be written to.
    """
    fresh, writes = True, rank_and_size()[0] == 0

    def sink(line: dict[str, Any], file: str = STEPS) -> None:
        nonlocal fresh
        if not writes:
            return
        if fresh and run.resume:
            cut_back(run.path, step)
        elif fresh:
            run.create(config, environment)
        fresh = False
        run.append(line, file)

    with to_disk(run.path, "then rerun with --resume if the run has begun"):
        yield sink


@contextlib.contextmanager
def to_disk(path: Path, then: str) -> Iterator[None]:
    """Tell a disk's error in one line.

    Args:
        path: what is written.
        then: what to do once the disk can be written.

    Raises:
        GeffectError: the disk is full or cannot be written to.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        remedy = f"free disk space or fix the path; {then}"
        raise GeffectError(f"a disk that {path} can be written to", reason, remedy) from error


def take_up(path: Path, environment: Mapping[str, Any]) -> Path | None:
    """The checkpoint an unfinished run resumes from; None where it has none and starts again.

    Args:
        path: the run directory, held.
        environment: as the run would record it now.

    Returns:
        The checkpoint.

    Raises:
        GeffectError: another process has finished the run meanwhile, its data or number of processes differ, or a line
            of its record is missing, doubled or out of order.
    """
    check_resumable(path, environment)
    checkpoint = next(reversed(checkpoints(path)), None)
    check_lines(path, range(first_step(checkpoint)))
    LOGGER.info("resuming %s at step %d", path, first_step(checkpoint))
    return checkpoint


def train(trainer: "RecordingTrainer", checkpoint: Path | None, again: str) -> None:
    """Train, and tell how to go on where Ctrl-C or a signal stopped it."""
    trainer.train(resume_from_checkpoint=checkpoint)
    done, steps = trainer.state.global_step, trainer.args.max_steps
    if trainer.interrupted and done < steps:
        message = f"stopped after step {done} of {steps}, whose state is kept; go on with: {again}"
        raise Interrupted(message, trainer.interrupted)


def again(config: TrainConfig) -> str:
    """What to add to a verb so that it continues a run; what runs code has to be asked for again."""
    return f"{config.out / CONFIG} --resume{' --trust-remote-code' if config.trust_remote_code else ''}"


def check_converged(trainer: "RecordingTrainer", path: Path) -> None:
    """Raise where a run's last update left a model that is not finite; the record says so, and is kept.

    Args:
        trainer: the run's.
        path: its directory.

    Raises:
        GeffectError: it diverged.
    """
    if trainer.diverged:
        found = f"{trainer.diverged} after step {trainer.state.global_step - 1}, the last; the record in {path} is kept"
        raise GeffectError("a model that is finite at the end", found, "lower --learning-rate or set --max-grad-norm")


def first_step(checkpoint: Path | None) -> int:
    """The step at which a run resumes from a checkpoint; 0 where it begins."""
    from geffect.training.checkpoints import step_of

    return 0 if checkpoint is None else step_of(checkpoint)


def lines_before(path: Path, checkpoint: Path | None) -> list[StepLine]:
    """The lines of a run up to the checkpoint it resumes from; none where it begins."""
    return [] if checkpoint is None else [line for line in step_lines(path) if line.step < first_step(checkpoint)]


def ends(path: Path, rules: "StopRules | None" = None) -> dict[str, Any]:
    """The first and last evaluation, the checkpoint that rules choose, and the peak memory."""
    from geffect.record.writer import peak_memory_gb
    from geffect.stopping import chosen
    from geffect.training.checkpoints import step_of

    lines = evaluations(path)
    scores: dict[str, Any] = {
        name: {"step": line.step} | {key: score._asdict() for key, score in line.scores.items()}
        for name, line in (("start", lines[0]), ("end", lines[-1]))
    }
    if lines[-1].diverged:
        scores["diverged"] = lines[-1].diverged
    if rules:
        kept = [step_of(each) for each in checkpoints(path)]
        scores["chosen"] = chosen(rules, step_lines(path), kept)
    return scores | {"peak_memory_gb": round(peak_memory_gb(), 3)}


def unmet(config: FinetuneConfig | UnlearnConfig) -> dict[str, list[str]]:
    """What a run was to come to and did not; it is told.

    Args:
        config: of a run that has taken all its steps.

    Returns:
        ``unmet``, a sentence each, for ``metrics.json``; nothing where all was met.
    """
    lines = step_lines(config.out)
    found = [told for told in (_unmet_accuracy(config, lines), _unmet_rules(config, lines)) if told]
    for told in found:
        LOGGER.warning("%s", told)
    return {"unmet": found} if found else {}


def _unmet_accuracy(config: FinetuneConfig | UnlearnConfig, lines: Sequence[StepLine]) -> str:
    last = [line for line in lines if line.scores][-1]
    scores, until = {name: score.accuracy for name, score in last.scores.items()}, config.until_accuracy
    if isinstance(config, FinetuneConfig):
        missed = {name: value for name, value in scores.items() if value < until <= 1}
        more = "--steps" if config.steps else "--epochs"
    else:
        missed = {name: value for name, value in scores.items() if role_of(name) == "forget" and value >= until > 0}
        more = "--steps"
    each = ", ".join(f"{value:.3f} on {name}" for name, value in missed.items())
    told = f"--until-accuracy {until:g} was not reached: after {last.step} steps the token accuracy is {each}"
    return f"{told}; raise {more} or --learning-rate" if missed else ""


def _unmet_rules(config: FinetuneConfig | UnlearnConfig, lines: Sequence[StepLine]) -> str:
    rules = config.stop if isinstance(config, UnlearnConfig) else None
    if not rules or any(line.stop for line in lines):
        return ""
    return f"no rule of --stop {rules.text!r} was met: the run took all its {config.steps} steps"
