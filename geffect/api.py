"""The verbs as functions: each takes the configuration its command takes, and returns what it made."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from geffect.config import (
    DoctorConfig,
    EvaluateConfig,
    FinetuneConfig,
    InspectConfig,
    LocalizeConfig,
    PreviewConfig,
    ReportConfig,
    TextConfig,
    TrainConfig,
    UnlearnConfig,
)
from geffect.core.splits import role_of
from geffect.errors import Interrupted
from geffect.io.system import check_single_process, launch_command, terminable
from geffect.record.writer import RunDirectory, describe, layout_to_json, refuse_existing, replacing
from geffect.training.run import (
    check_converged,
    disk_errors,
    final_metrics,
    find_checkpoint,
    first_step,
    lines_before,
    open_record,
    read_unfinished,
    recorded_config,
    resume_command,
    train,
    unmet_goals,
)

if TYPE_CHECKING:
    from geffect.inspection.tasks import InspectionSetup
    from geffect.models.load import Loaded
    from geffect.preflight.numerics import Finding
    from geffect.reports.page import Report
    from geffect.training.setup import LocalizationSetup, Setup, TrainingSetup

LOGGER = logging.getLogger(__name__)
Trained = TypeVar("Trained", bound=TrainConfig)


def load_model(
    spec: str,
    dtype: str = "float32",
    *,
    trust_remote_code: bool = False,
    tokenizer: str | None = None,
    chat_template: str | None = None,
) -> "Loaded":
    """Load a model by any of its names; one built in is fitted on first use (about a minute) and cached.

    Args:
        spec: see `geffect.models.load.load.FORMS`.
        dtype: of the weights.
        trust_remote_code: run code that comes with the model.
        tokenizer: a model or directory whose tokenizer takes the place of its own.
        chat_template: ``none``, a file, or a name among the tokenizer's several, in place of the tokenizer's own.

    Returns:
        Model and tokenizer.
    """
    from geffect.models.builtin import is_built_in
    from geffect.models.load import load

    if is_built_in(spec):
        spec = str(builtin_tiny(spec))
    return load(spec, dtype, trust_remote_code=trust_remote_code, tokenizer=tokenizer, chat_template=chat_template)


def _loader(config: TextConfig, dtype: str) -> "Callable[[str], Loaded]":
    """Loads models by their names as a configuration says."""
    return partial(
        load_model,
        dtype=dtype,
        trust_remote_code=config.trust_remote_code,
        tokenizer=config.tokenizer,
        chat_template=config.chat_template,
    )


def builtin_tiny(name: str = "builtin:tiny") -> Path:
    """The directory of a built-in model, made on first use and cached by content.

    Args:
        name: of the model, a key of `geffect.models.builtin.BUILT_IN`; with ``-untrained`` after it, before it was
            fitted.

    Returns:
        The directory.
    """
    from geffect.models.builtin import UNTRAINED, built_in_key
    from geffect.models.cache import cached_directory

    base = name.removesuffix(UNTRAINED)
    make = partial(_save_tiny if name != base else _fit_tiny, base)
    return cached_directory(name.removeprefix("builtin:"), built_in_key(base), make)


def _save_tiny(name: str, directory: Path) -> None:
    from geffect.models.builtin import make_tiny
    from geffect.models.load import quiet_transformers

    model, tokenizer = make_tiny(0, name)
    with quiet_transformers():
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)


def _fit_tiny(name: str, directory: Path) -> None:
    from geffect.models.builtin import BUILT_IN

    LOGGER.info("fitting %s once, about a minute; it is kept in %s", name, directory.parent)
    _save_tiny(name, directory / "init")
    sets, recipe, _ = BUILT_IN[name]
    config = FinetuneConfig.read(model=str(directory / "init"), train=list(sets), out=directory / "fit", **recipe)
    try:
        finetune(config)
    except Interrupted as stopped:  # a cache holds nothing unfinished
        raise Interrupted(f"stopped while {name} was fitted; nothing of it is kept", stopped.signum) from None
    for file in (directory / "fit").iterdir():
        file.rename(directory / file.name)
    for leftover in ("init", "fit"):
        shutil.rmtree(directory / leftover)


@terminable()
def finetune(
    config: FinetuneConfig, *, resume: bool = False, setup: "TrainingSetup[FinetuneConfig] | None" = None
) -> Path:
    """Descend the NLL of named sets and write a model (or adapter) directory that is also a run.

    Args:
        config: the run.
        resume: as of `unlearn`; the checkpoints are removed once the model is written.
        setup: as of `prepare`, which is called where there is none.

    Returns:
        The directory.
    """
    from geffect.models.load import quiet_transformers
    from geffect.training.finetune import FinetuneTrainer

    check_single_process("geffect finetune")
    if resume and setup is None:
        config = read_unfinished(config)
    with RunDirectory(config.out, resume=resume) as run:
        start = _start(setup or config)
        each_row = (row for rows in start.encoded.values() for row in rows)
        loaded, rows = start.loaded, [replace(row, index=i) for i, row in enumerate(each_row)]
        arguments, environment = start.arguments, start.environment()
        checkpoint = find_checkpoint(config.out, environment) if resume else None
        with (
            quiet_transformers(),
            open_record(run, recorded_config(config), environment, first_step(checkpoint)) as sink,
        ):
            trainer = FinetuneTrainer(
                loaded.model,
                arguments,
                tokenizer=loaded.tokenizer,
                rows=rows,
                evaluation_sets=start.encoded,
                until_accuracy=config.until_accuracy,
                keep_dropout=config.keep_dropout,
                autocast=config.autocasts,
                sink=sink,
            )
            train(trainer, checkpoint, f"geffect finetune {resume_command(config)}")
            if not trainer.diverged:
                loaded.model.save_pretrained(config.out)
                loaded.tokenizer.save_pretrained(config.out)
            run.finish(final_metrics(config.out) | unmet_goals(config))
            shutil.rmtree(config.out / "checkpoints", ignore_errors=True)  # last: half of them would be no checkpoint
    check_converged(trainer, config.out)
    return config.out


@terminable()
def unlearn(
    config: UnlearnConfig,
    *,
    resume: bool = False,
    free_rows: bool = True,
    setup: "TrainingSetup[UnlearnConfig] | None" = None,
) -> Path:
    """Unlearn a set and record the G-effect while it happens.

    Args:
        config: the run.
        resume: go on from the last whole checkpoint of the run that ``config.out`` holds, to the same record and
            weights; the reference is still the run's start.
        free_rows: take rows that follow from others by algebra; False back-propagates each (for tests).
        setup: as of `prepare`, which is called where there is none.

    Returns:
        The run directory.
    """
    from geffect.core.distributed import rank, wait_for_all
    from geffect.evaluation.metrics.success import successes
    from geffect.models.load import quiet_transformers
    from geffect.models.scoring import Reference
    from geffect.training.aux_inputs import compute_columns
    from geffect.training.setup import check_launched, read_gradient_mask, training_sets
    from geffect.training.unlearn import Diagnostics, UnlearnTrainer

    if resume and setup is None:
        config = read_unfinished(config)
    with RunDirectory(config.out, resume=resume) as run:
        start = _start(setup or config)
        loaded, sets = start.loaded, training_sets(start)
        check_launched(config, sets)
        frozen, scored = read_gradient_mask(config, loaded), successes(loaded.model, loaded.tokenizer, start.encoded)
        whole = recorded_config(config) | {"reference": {"path": loaded.source, "sha256": loaded.sha256}}
        diagnostics = Diagnostics(
            config.diagnose_every,
            config.overlap,
            config.prediction,
            tuple(config.save_rows),
            config.standard_errors,
            config.until_accuracy,
            config.mode,
            free_rows,
            start.layout.layers,
        )
        environment = start.environment() | ({"frozen": frozen.shares()} if frozen else {})
        checkpoint = find_checkpoint(config.out, environment) if resume else None
        wanted = set(config.evaluate or map(role_of, start.encoded))
        evaluated = {name: rows for name, rows in start.encoded.items() if role_of(name) in wanted}
        with quiet_transformers(), open_record(run, whole, environment, first_step(checkpoint)) as sink:
            trainer = UnlearnTrainer(
                loaded.model,
                start.arguments,
                tokenizer=loaded.tokenizer,
                objective=config.objective,
                rectifier=config.rectifier.rule,
                sets=sets,
                columns=compute_columns(
                    loaded.model, loaded.tokenizer, config.objective, sets, config.seed, autocast=config.autocasts
                ),
                reference=Reference(loaded.model) if config.objective.needs_reference else None,
                diagnostics=diagnostics,
                keep_dropout=config.keep_dropout,
                autocast=config.autocasts,
                sink=sink,
                evaluation_sets=evaluated,
                frozen=frozen,
                sharded=config.shard,
                rules=config.stop,
                past=lines_before(config.out, checkpoint),
            )
            train(trainer, checkpoint, f"{launch_command()}geffect unlearn {resume_command(config)}")
            if trainer.diverged:
                scored = {}
            end = successes(loaded.model, loaded.tokenizer, start.encoded) if scored else {}
            if rank() == 0:
                success = {"success": {"start": scored, "end": end}} if scored else {}
                run.finish(final_metrics(config.out, config.stop) | unmet_goals(config) | success)
            wait_for_all()  # the others read what the first has written
    check_converged(trainer, config.out)
    return config.out


@terminable()
def localize(config: LocalizeConfig, *, setup: "LocalizationSetup | None" = None) -> Path:
    """Find where each split of each domain lives in a model's trainable weights, and write masks and overlaps.

    Args:
        config: model, domains, shares and importance.
        setup: as of `prepare`, which is called where there is none.

    Returns:
        The directory: a record that `geffect.read` and `geffect.read_overlap` read, masks, and figures.

    Raises:
        GeffectError: a set, a share or the model is refused, or a loss is not finite.
    """
    from geffect.core.layers import trainable_parameters
    from geffect.localization.localize import localize as find
    from geffect.localization.losses import split_losses
    from geffect.localization.storage import write_localization
    from geffect.models.scoring import check_trainable, in_evaluation_mode
    from geffect.record.writer import peak_memory_gb
    from geffect.reports.run import plot
    from geffect.training.setup import prepare as read
    from geffect.training.setup import prompts_of

    check_single_process("geffect localize")
    with RunDirectory(config.out) as run:
        start = setup or read(config)
        start = start.with_weights(_loader(config, config.dtype)(config.model))
        loaded = start.loaded
        check_trainable(loaded.model)
        parameters, began = trainable_parameters(loaded.model), time.perf_counter()
        with in_evaluation_mode(loaded.model):
            losses = split_losses(loaded, start.encoded, config.labels, config.draws, config.seed)
            found = find(parameters, losses, config.share, config.importance, masks_only=config.masks_only)
        seconds = time.perf_counter() - began
        recipe = config.model_dump(mode="json", include={"model", "importance", "labels", "draws", "seed"}) | {
            "sha256": loaded.sha256,
            "shapes": {name: list(p.shape) for name, p in parameters.items()},
        }
        table = {
            "parameters": layout_to_json(start.layout),
            "dtype": config.dtype,
            "prompts": prompts_of(config, loaded.tokenizer),
        }
        with disk_errors(config.out, "name another --out"):
            run.create(config.model_dump(mode="json", exclude_none=True), describe() | table)
            write_localization(run, found, recipe)
            run.finish({"examples": found.examples, "seconds": seconds, "peak_memory_gb": round(peak_memory_gb(), 3)})
    with disk_errors(config.out, "then draw the figures with geffect plot"):
        plot([config.out])
    return config.out


@terminable()
def inspect(config: InspectConfig, *, resume: bool = False, setup: "InspectionSetup | None" = None) -> list[Path]:
    """Measure objectives at every checkpoint of a series, over whole sets and without training.

    Args:
        config: checkpoints, sets and objectives; of a run of `unlearn`, what is not given is taken from it.
        resume: go on with an inspection that was stopped; what is finished is left as it is.
        setup: as of `prepare`, which is called where there is none.

    Returns:
        One record an objective, which everything that reads a run reads.

    Raises:
        GeffectError: a set is missing, or a checkpoint cannot be read, is of another architecture or not finite.
        Interrupted: by Ctrl-C; what was measured is kept.
    """
    from geffect.inspection.run import inspect as inspect_all
    from geffect.inspection.tasks import prepare_inspection, record_of

    check_single_process("geffect inspect")
    setup = setup or prepare_inspection(config, resume=resume)
    completed = setup.config
    inspect_all(setup, _loader(completed, completed.dtype), resume=resume)
    return [record_of(completed, objective) for objective in completed.objective]


@terminable()
def evaluate(config: EvaluateConfig) -> Path:
    """Score a model, an adapter or every checkpoint of a run, row by row.

    What was computed before, by the same weights, rows, options and code, is taken from the cache, and said.

    Args:
        config: model, suite or metrics and sets.

    Returns:
        The directory: ``examples.csv`` (`geffect.read_evaluation`), ``texts.jsonl`` (what the model wrote) and
        ``metrics.json`` (means with intervals, and numbers made of several sets).

    Raises:
        GeffectError: a metric, a set or a reference is refused.
    """
    import pandas as pd

    from geffect.data.checks import warn_shared
    from geffect.evaluation.harness import check_tasks
    from geffect.evaluation.results import EXAMPLES, read_evaluation, read_reference, summary, write_texts
    from geffect.evaluation.run import evaluate_tasks, evaluate_variant, make_view, read_part
    from geffect.evaluation.suites import parts
    from geffect.evaluation.variants import check_variants, variants
    from geffect.models.checkpoints import named_checkpoints
    from geffect.models.load import quiet_transformers
    from geffect.training.setup import prompts_of, warn_of_other_prompts

    check_single_process("geffect evaluate")
    began = time.perf_counter()
    with RunDirectory(config.out) as run:
        chosen = [(part, read_part(config, part)) for part in parts(config)]
        check_variants(config, chosen)
        warn_shared({part.name: rows for part, rows in chosen})
        if config.task:
            check_tasks(config.task, config.task_dir)
        if config.reference is not None:
            read_evaluation(config.reference)
        load = _loader(config, config.dtype)
        frames, texts, told, prompts = [], [], {}, {}
        for label, spec in named_checkpoints(config.model) if config.checkpoints else [(config.model, config.model)]:
            for variant in variants(config, spec, label, chosen, load, partial(make_view, config), finetune):
                prompts[variant.label] = prompts_of(config, variant.loaded.tokenizer)
                if variant.label == label:
                    warn_of_other_prompts(config, variant.loaded)
                with quiet_transformers():
                    frame, said = evaluate_variant(config, chosen, variant)
                    told[variant.label] = variant.numbers, evaluate_tasks(config, variant)
                frames.append(frame)
                texts += said
        examples = pd.concat(frames, ignore_index=True)
        found = summary(config, examples, read_reference(config, examples), told)
        with disk_errors(config.out, "name another --out"):
            environment = describe() | {"dtype": config.dtype, "prompts": prompts}
            run.create(config.model_dump(mode="json", exclude_none=True), environment)
            with replacing(config.out / EXAMPLES) as file:
                examples.to_csv(file, index=False)
            write_texts(config.out, texts)
            run.finish({"models": found, "seconds": round(time.perf_counter() - began, 3)})
    return config.out


def report(config: ReportConfig) -> "Report":
    """Write runs as one offline HTML page: the outcome first, then what they show beyond noise.

    Args:
        config: runs, file and scheme of layer groups.

    Returns:
        ``path`` of the page, ``findings`` (`geffect.reports.findings.Finding`) of all runs, and ``outcomes``
        (`geffect.reports.outcome.Outcome`) by run.

    Raises:
        GeffectError: there is no run or no measured step, or the file is none of ours or cannot be written.
    """
    from geffect.reports.compare import named
    from geffect.reports.page import write

    return write(named(config.runs), config.page, config.scheme)


def _start(start: "TrainConfig | TrainingSetup[Any]") -> "TrainingSetup[Any]":
    """What a run starts from, with the model's weights."""
    from geffect.training.setup import prepare as read
    from geffect.training.setup import warn_of_rounding

    config = start if isinstance(start, TrainConfig) else start.config
    warn_of_rounding(config)
    setup = read(start) if isinstance(start, TrainConfig) else start
    return setup.with_weights(_loader(config, config.dtype)(config.model))


@overload
def prepare(config: InspectConfig, *, resume: bool = False) -> "InspectionSetup": ...
@overload
def prepare(config: LocalizeConfig) -> "LocalizationSetup": ...
@overload
def prepare(config: Trained, *, resume: bool = False) -> "TrainingSetup[Trained]": ...
def prepare(config: Any, *, resume: bool = False) -> Any:
    """Check a run, and read and encode its sets once, for its plan and for the run; no weight is loaded.

    Args:
        config: of ``finetune``, ``unlearn``, ``localize`` or ``inspect``.
        resume: the run directory is there already.

    Returns:
        The setup: print its ``plan``, then give it to the verb.

    Raises:
        GeffectError: the directory is taken, something cannot be read, or this machine cannot carry the run out.
    """
    from geffect.data.checks import warn_shared
    from geffect.models.scoring import check_trainable
    from geffect.training.setup import prepare as read

    if isinstance(config, InspectConfig):
        from geffect.inspection.tasks import prepare_inspection

        inspection = prepare_inspection(config, resume=resume)
        check_trainable(inspection.outline.model)
        warn_shared(inspection.sets.sets)
        return inspection
    if resume:
        config = read_unfinished(config)
    else:
        refuse_existing(config.out)
    setup = read(config)
    check_trainable(setup.loaded.model)
    if isinstance(config, UnlearnConfig):
        warn_shared(setup.sets)
    return setup


def plan(config: TrainConfig | LocalizeConfig | InspectConfig, *, resume: bool = False) -> dict[str, str]:
    """What a run would do: model, sets, batch arithmetic, memory. Nothing is written and no weight loaded.

    Args:
        config: of ``fit``, ``unlearn``, ``localize`` or ``inspect``.
        resume: the run directory is there already.

    Returns:
        Lines by name.
    """
    setup: Setup[Any] | InspectionSetup = prepare(config, resume=resume)
    return setup.plan


def doctor(config: DoctorConfig) -> "Iterator[Finding]":
    """Look at a run that has not begun; nothing is written.

    Args:
        config: of the run.

    Yields:
        One finding after the other, each with its remedy.
    """
    from geffect.preflight.checks import examine

    yield from examine(_start(config))


def preview(config: PreviewConfig) -> list[tuple[str, list[tuple[str, bool]]]]:
    """The first rows of a set as a model sees them.

    Args:
        config: model, set and how many rows.

    Returns:
        (title, [(token's text, carries loss)]) a row.
    """
    from geffect.core.forward import IGNORE_INDEX
    from geffect.data.checks import check_ids
    from geffect.data.encode import encode_set, token_texts
    from geffect.models.tokenizers import vocabulary_size
    from geffect.training.setup import load_outline, prompt_of, read_set, warn_of_other_prompts

    loaded = load_outline(config, config.model)
    rows = encode_set(loaded.tokenizer, read_set(config, config.data), config.max_length, prompt=prompt_of(config))
    check_ids(rows[: config.limit], vocabulary_size(loaded.model), config.data)
    warn_of_other_prompts(config, loaded)
    shown = []
    for row in rows[: config.limit]:
        learned = [label != IGNORE_INDEX for label in row.labels]
        tokens = token_texts(loaded.tokenizer, row.input_ids)
        shown.append((
            f"row {row.index}: {sum(learned)} of {len(tokens)} tokens" + (f", {row.cut} cut off" if row.cut else ""),
            list(zip(tokens, learned, strict=True)),
        ))
    return shown
