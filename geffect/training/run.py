"""Start, resume and finish a run: its directory, its record, its last state."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from geffect.config import FinetuneConfig, InspectConfig, TrainConfig, UnlearnConfig
from geffect.core.splits import role_of
from geffect.errors import GeffectError, Interrupted, shorten
from geffect.io.readers import JSON
from geffect.io.system import rank_and_size
from geffect.models.checkpoints import checkpoint_step, checkpoints
from geffect.record.reader import (
    StepLine,
    check_resumable,
    check_unfinished,
    evaluations,
    is_finished,
    lengthened,
    recorded_start,
    step_lines,
)
from geffect.record.schema import CONFIG, STEPS
from geffect.record.writer import RunDirectory, check_lines, cut_back
from geffect.training.fit import peak_memory

if TYPE_CHECKING:
    from geffect.stopping import StopRules
    from geffect.training.trainer import RecordingTrainer

LOGGER = logging.getLogger(__name__)
ELSEWHERE = ("model", "reference", "trust_remote_code", "max_memory")  # the start is told by its weights, not its place
ENDLESS = ("constant", "constant_with_warmup", "inverse_sqrt")  # schedules that know no last step
Config = TypeVar("Config", TrainConfig, UnlearnConfig, FinetuneConfig, InspectConfig)


def recorded_config(config: TrainConfig | InspectConfig) -> dict[str, JSON]:
    """A configuration as a run records it."""
    return config.model_dump(mode="json", exclude_none=True)


def read_unfinished(config: Config) -> Config:
    """The recorded configuration of the unfinished run in ``config.out``, with the start that the run had.

    It refuses where there is no such run, it is finished, or a setting differs from what is asked for, by its name.
    More ``steps`` or ``epochs`` may be asked for (`check_longer`), of a finished run too.
    """
    check_unfinished(config.out, config)
    asked_again = {"trust_remote_code": config.trust_remote_code, "max_memory": config.max_memory}
    begun = type(config).read(config.out / CONFIG, out=config.out, **asked_again)
    recorded, asked = recorded_config(begun), recorded_config(config)
    longer = {name: new for name, (_, new) in lengthened(config.out, config).items()}
    for key in {**recorded, **asked}:
        if key not in ELSEWHERE and key not in longer and recorded.get(key) != asked.get(key):
            message = f"{key} is {shorten(asked.get(key))}, and {shorten(recorded.get(key))} in {config.out / CONFIG}"
            raise GeffectError(message, remedy="Resume the run from that file")
    if isinstance(begun, InspectConfig) or isinstance(config, InspectConfig):
        return begun
    if longer:
        check_longer(begun, longer)
    return begun.replace(model=locate_model(config.model, recorded_start(config.out)), **longer)


def check_longer(begun: TrainConfig, longer: Mapping[str, int]) -> None:
    """Refuse to make a run longer where a run of that length in one go would have been another one from its start.

    It would under a schedule that depends on the number of steps, and where evaluations would lie elsewhere. A run that
    ended early by its rules would have ended there too, and a finished fine-tuning has no checkpoint left.
    """
    (name, asked), *_ = longer.items()
    out, recorded, flag = begun.out, getattr(begun, name), f"--{name} {asked}"
    anew = f"Start a new run with {flag} and another --out"
    if begun.schedule not in ENDLESS:
        message = f"--schedule {begun.schedule} depends on the number of {name}, so that the {recorded} {name} in {out}"
        raise GeffectError(f"{message} are not the first of {asked}", remedy=anew)
    if isinstance(begun, FinetuneConfig):
        if begun.steps and "epochs" not in longer and begun.steps // begun.epochs != asked // begun.epochs:
            message = f"A fine-tuning of {asked} steps is evaluated at other steps than that of {recorded} in {out}"
            raise GeffectError(message, remedy=f"{anew}, or leave --steps to --epochs")
        if is_finished(out):
            message = f"The fine-tuning in {out} is finished, and its checkpoints were removed with its end"
            raise GeffectError(message, remedy=f"Train its model further with --model {out} and another --out")
    last = step_lines(out)[-1]
    if is_finished(out) and isinstance(begun, UnlearnConfig) and (last.stop or last.step < begun.steps - 1):
        message = f"The run in {out} ended after step {last.step} of {recorded}, by its rules; so would one of {asked}"
        raise GeffectError(message, remedy="Start a new run without --stop and --until-accuracy")


def locate_model(model: str, recorded: object) -> str:
    """A model's name, or the recorded directory where the name is a path that does not exist from here."""
    there = isinstance(recorded, str) and Path(recorded).is_dir()
    is_path = not model.startswith(("builtin:", "gguf:")) and model != "smollm2"
    return str(recorded) if is_path and there and not Path(model).expanduser().exists() else model


@contextlib.contextmanager
def open_record(
    run: RunDirectory, config: dict[str, JSON], environment: dict[str, JSON], step: int
) -> Iterator[Callable[..., None]]:
    """A sink for a run's lines, from ``step`` on; the directory is locked by the caller.

    The first line writes the configuration, so that a start that fails leaves nothing; in a resumed run it cuts the
    record back to ``step``, so that a checkpoint that is refused costs no line.
    """
    fresh, writes = True, rank_and_size()[0] == 0

    def sink(line: dict[str, JSON], file: str = STEPS) -> None:
        nonlocal fresh
        if not writes:
            return
        if fresh and run.resume:
            run.lengthen(config, environment)
            cut_back(run.path, step)
        elif fresh:
            run.create(config, environment)
        fresh = False
        run.append(line, file)

    with disk_errors(run.path, "then rerun with --resume if the run has begun"):
        yield sink


@contextlib.contextmanager
def disk_errors(path: Path, then: str) -> Iterator[None]:
    """Report a full or read-only disk below ``path`` in one line; ``then`` says what to do once it can be written."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0]
        remedy = f"Free disk space or fix the path; {then}"
        raise GeffectError(f"{path} cannot be written to: {reason}", remedy=remedy) from error


def find_checkpoint(path: Path, environment: Mapping[str, JSON], config: TrainConfig) -> Path | None:
    """The checkpoint an unfinished run resumes from; None where it has none and starts again.

    It refuses where another process has finished the run meanwhile, where its data or number of processes differ from
    what the run would record now, and where a line of its record is missing, doubled or out of order.
    """
    check_resumable(path, environment, config)
    checkpoint = next(reversed(checkpoints(path)), None)
    check_lines(path, range(first_step(checkpoint)))
    LOGGER.info("resuming %s at step %d", path, first_step(checkpoint))
    return checkpoint


def train(trainer: "RecordingTrainer", checkpoint: Path | None, again: str) -> None:
    """Train, and raise `Interrupted` with the command that resumes it where Ctrl-C or a signal stopped it."""
    trainer.train(resume_from_checkpoint=checkpoint)
    done, steps = trainer.state.global_step, trainer.args.max_steps
    if trainer.interrupted and done < steps:
        message = f"stopped after step {done} of {steps}, whose state is kept; continue with: {again}"
        raise Interrupted(message, trainer.interrupted)


def resume_command(config: TrainConfig) -> str:
    """The arguments that resume a run; ``--trust-remote-code`` is never taken from a file."""
    return f"{config.out / CONFIG} --resume{' --trust-remote-code' if config.trust_remote_code else ''}"


def check_converged(trainer: "RecordingTrainer", path: Path) -> None:
    """Raise where a run's last update left a model that is not finite; the record in ``path`` says so."""
    if trainer.diverged:
        when = f"{trainer.diverged} after step {trainer.state.global_step - 1}, the last; the record in {path} is kept"
        message = f"The model is not finite at the end: {when}"
        raise GeffectError(message, remedy="Lower --learning-rate or set --max-grad-norm")


def first_step(checkpoint: Path | None) -> int:
    """The step at which a run resumes from a checkpoint; 0 where it begins."""
    return (checkpoint and checkpoint_step(checkpoint)) or 0


def lines_before(path: Path, checkpoint: Path | None) -> list[StepLine]:
    """The lines of a run up to the checkpoint it resumes from; none where it begins."""
    return [] if checkpoint is None else [line for line in step_lines(path) if line.step < first_step(checkpoint)]


def final_metrics(path: Path, rules: "StopRules | None" = None) -> dict[str, JSON]:
    """The first and last evaluation, the checkpoint that rules choose, and the peak memory."""
    from geffect.stopping import checkpoint_choice

    lines = evaluations(path)
    scores: dict[str, JSON] = {
        name: {"step": line.step} | {key: score._asdict() for key, score in line.scores.items()}
        for name, line in (("start", lines[0]), ("end", lines[-1]))
    }
    if lines[-1].diverged:
        scores["diverged"] = lines[-1].diverged
    if rules:
        scores["chosen"] = checkpoint_choice(rules, step_lines(path), [first_step(each) for each in checkpoints(path)])
    return scores | peak_memory()


def unmet_goals(config: FinetuneConfig | UnlearnConfig) -> dict[str, list[str]]:
    """Warn of goals that a run which took all its steps did not reach; ``metrics.json`` gets them as ``unmet``."""
    lines = step_lines(config.out)
    sentences = [each for each in (_unmet_accuracy(config, lines), _unmet_rules(config, lines)) if each]
    for sentence in sentences:
        LOGGER.warning("%s", sentence)
    return {"unmet": sentences} if sentences else {}


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
    sentence = f"--until-accuracy {until:g} was not reached: after {last.step} steps the token accuracy is {each}"
    return f"{sentence}; raise {more} or --learning-rate" if missed else ""


def _unmet_rules(config: FinetuneConfig | UnlearnConfig, lines: Sequence[StepLine]) -> str:
    rules = config.stop if isinstance(config, UnlearnConfig) else None
    if not rules or any(line.stop for line in lines):
        return ""
    return f"no rule of --stop {rules.text!r} was met: the run took all its {config.steps} steps"
