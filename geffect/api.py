"""The verbs as functions: each takes the configuration its command takes, and returns what it made."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

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
from geffect.record.writer import RunDirectory, describe, layout_to_json, replacing
from geffect.training.run import (
    again,
    check_converged,
    ends,
    first_step,
    lines_before,
    resolved,
    started,
    take_up,
    to_disk,
    train,
    unfinished,
    unmet,
)

if TYPE_CHECKING:
    from geffect.models.load import Loaded
    from geffect.preflight.numerics import Finding
    from geffect.reports.html.page import Report
    from geffect.training.setup import Start

LOGGER = logging.getLogger(__name__)


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
def finetune(config: FinetuneConfig, *, resume: bool = False) -> Path:
    """Descend the NLL of named sets and write a model (or adapter) directory that is also a run.

    Args:
        config: the run.
        resume: as of `unlearn`; the checkpoints are removed once the model is written.

    Returns:
        The directory.
    """
    from geffect.models.load import quiet_transformers
    from geffect.training.dry_run import num_fit_steps
    from geffect.training.finetune import FinetuneTrainer
    from geffect.training.hf_arguments import training_arguments

    check_single_process("geffect finetune")
    if resume:
        config = unfinished(config)
    with RunDirectory(config.out, resume=resume) as run:
        start = _start(config)
        each_row = (row for rows in start.encoded.values() for row in rows)
        loaded, rows = start.loaded, [replace(row, index=i) for i, row in enumerate(each_row)]
        steps = num_fit_steps(config, len(rows))
        arguments = training_arguments(config, steps)
        environment = start.environment(config, steps)
        checkpoint = take_up(config.out, environment) if resume else None
        with quiet_transformers(), started(run, resolved(config), environment, first_step(checkpoint)) as sink:
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
            train(trainer, checkpoint, f"geffect finetune {again(config)}")
            if not trainer.diverged:
                loaded.model.save_pretrained(config.out)
                loaded.tokenizer.save_pretrained(config.out)
            run.finish(ends(config.out) | unmet(config))
            shutil.rmtree(config.out / "checkpoints", ignore_errors=True)  # last: half of them would be no checkpoint
    check_converged(trainer, config.out)
    return config.out


@terminable()
def unlearn(config: UnlearnConfig, *, resume: bool = False, free_rows: bool = True) -> Path:
    """Unlearn a set and record the G-effect while it happens.

    Args:
        config: the run.
        resume: go on from the last whole checkpoint of the run that ``config.out`` holds, to the same record and
            weights; the reference is still the run's start.
        free_rows: take rows that follow from others by algebra; False back-propagates each (for tests).

    Returns:
        The run directory.
    """
    from geffect.core.distributed import rank, wait_for_all
    from geffect.evaluation.metrics.success import successes
    from geffect.models.load import quiet_transformers
    from geffect.models.scoring import Reference
    from geffect.training.aux_inputs import compute_columns
    from geffect.training.diagnostics import Diagnostics
    from geffect.training.hf_arguments import training_arguments
    from geffect.training.setup import check_launched, masked_by, training_sets
    from geffect.training.unlearn import UnlearnTrainer

    if resume:
        config = unfinished(config)
    with RunDirectory(config.out, resume=resume) as run:
        start = _start(config)
        loaded, sets = start.loaded, training_sets(config, start, config.objective)
        check_launched(config, sets)
        frozen, scored = masked_by(config, loaded), successes(loaded.model, loaded.tokenizer, start.encoded)
        whole = resolved(config) | {"reference": {"path": loaded.source, "sha256": loaded.sha256}}
        arguments = training_arguments(config, config.steps)
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
        environment = start.environment(config, config.steps) | ({"frozen": frozen.shares()} if frozen else {})
        checkpoint = take_up(config.out, environment) if resume else None
        wanted = set(config.evaluate or map(role_of, start.encoded))
        evaluated = {name: rows for name, rows in start.encoded.items() if role_of(name) in wanted}
        with quiet_transformers(), started(run, whole, environment, first_step(checkpoint)) as sink:
            trainer = UnlearnTrainer(
                loaded.model,
                arguments,
                tokenizer=loaded.tokenizer,
                objective=config.objective,
                rectifier=config.rectifier.rule,
                sets=sets,
                columns=compute_columns(
                    loaded.model, loaded.tokenizer, config.objective, sets, config.seed, autocast=config.autocasts
                ),
                reference=Reference(loaded.model) if config.objective.needs & {"ref_logits", "ref_hidden"} else None,
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
            train(trainer, checkpoint, f"{launch_command()}geffect unlearn {again(config)}")
            if trainer.diverged:
                scored = {}
            end = successes(loaded.model, loaded.tokenizer, start.encoded) if scored else {}
            if rank() == 0:
                success = {"success": {"start": scored, "end": end}} if scored else {}
                run.finish(ends(config.out, config.stop) | unmet(config) | success)
            wait_for_all()  # the others read what the first has written
    check_converged(trainer, config.out)
    return config.out


@terminable()
def localize(config: LocalizeConfig) -> Path:
    """Find where each split of each domain lives in a model's trainable weights, and write masks and overlaps.

    Args:
        config: model, domains, shares and importance.

    Returns:
        The directory: a record that `geffect.read` and `geffect.read_overlap` read, masks, and figures.

    Raises:
        GeffectError: a set, a share or the model is refused, or a loss is not finite.
    """
    from geffect.core.layers import layout, trainable_parameters
    from geffect.data.checks import warn_cut
    from geffect.localization.localize import localize as find
    from geffect.localization.losses import split_losses
    from geffect.localization.storage import write_localization
    from geffect.models.scoring import check_trainable, in_evaluation_mode
    from geffect.record.writer import peak_memory_gb
    from geffect.reports.compare import overlap_figures
    from geffect.training.setup import localized_rows, prompts_of, warn_of_other_prompts

    check_single_process("geffect localize")
    with RunDirectory(config.out) as run:
        loaded = _loader(config, config.dtype)(config.model)
        check_trainable(loaded.model)
        warn_of_other_prompts(config, loaded)
        rows, parameters, began = (
            localized_rows(config, loaded),
            trainable_parameters(loaded.model),
            time.perf_counter(),
        )
        warn_cut(rows)
        with in_evaluation_mode(loaded.model):
            losses = split_losses(loaded, rows, config.labels, config.draws, config.seed)
            found = find(parameters, losses, config.share, config.importance, masks_only=config.masks_only)
        seconds = time.perf_counter() - began
        recipe = config.model_dump(mode="json", include={"model", "importance", "labels", "draws", "seed"}) | {
            "sha256": loaded.sha256,
            "shapes": {name: list(p.shape) for name, p in parameters.items()},
        }
        table = {
            "parameters": layout_to_json(layout(loaded.model)),
            "dtype": config.dtype,
            "prompts": prompts_of(config, loaded.tokenizer),
        }
        with to_disk(config.out, "name another --out"):
            run.create(config.model_dump(mode="json", exclude_none=True), describe() | table)
            write_localization(run, found, recipe)
            run.finish({"examples": found.examples, "seconds": seconds, "peak_memory_gb": round(peak_memory_gb(), 3)})
    with to_disk(config.out, "then draw the figures with geffect plot"):
        overlap_figures(config.out)
    return config.out


@terminable()
def inspect(config: InspectConfig, *, resume: bool = False) -> list[Path]:
    """Measure objectives at every checkpoint of a series, over whole sets and without training.

    Args:
        config: checkpoints, sets and objectives; of a run of `unlearn`, what is not given is taken from it.
        resume: go on with an inspection that was stopped; what is finished is left as it is.

    Returns:
        One record an objective, which everything that reads a run reads.

    Raises:
        GeffectError: a set is missing, or a checkpoint cannot be read, is of another architecture or not finite.
        Interrupted: by Ctrl-C; what was measured is kept.
    """
    from geffect.inspection.defaults import completed
    from geffect.inspection.places import places, readable
    from geffect.inspection.run import inspect as inspect_all
    from geffect.inspection.tasks import record_of

    check_single_process("geffect inspect")
    series = readable(places(config.checkpoints), skip_broken=config.skip_broken)
    whole = completed(config)
    inspect_all(whole, series, _loader(whole, whole.dtype), resume=resume)
    return [record_of(whole, objective) for objective in whole.objective]


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
        with to_disk(config.out, "name another --out"):
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
        ``path`` of the page, ``findings`` (`geffect.reports.findings.finding.Finding`) of all runs, and ``outcomes``
        (`geffect.reports.findings.outcome.Outcome`) by run.

    Raises:
        GeffectError: there is no run or no measured step, or the file is none of ours or cannot be written.
    """
    from geffect.reports.compare import named
    from geffect.reports.html.page import write

    return write(named(config.runs), config.page, config.scheme)


def _start(config: TrainConfig) -> "Start":
    from geffect.training.setup import read_start, warn_of_rounding

    warn_of_rounding(config)
    return read_start(config, _loader(config, config.dtype)(config.model))


def plan(config: TrainConfig | LocalizeConfig | InspectConfig, *, resume: bool = False) -> dict[str, str]:
    """What a run would do: model, sets, batch arithmetic, memory. Nothing is written and no weight loaded.

    Args:
        config: of ``fit``, ``unlearn``, ``localize`` or ``inspect``.
        resume: the run directory is there already.

    Returns:
        Lines by name.
    """
    from geffect.training.dry_run import plan as make_plan
    from geffect.training.dry_run import plan_localization

    if isinstance(config, LocalizeConfig):
        return plan_localization(config)
    if isinstance(config, InspectConfig):
        from geffect.inspection.dry_run import plan_inspection

        return plan_inspection(config, resume=resume)
    if resume:
        config = unfinished(config)
    return make_plan(config, resume=resume)


def doctor(config: DoctorConfig) -> "Iterator[Finding]":
    """Look at a run that has not begun; nothing is written.

    Args:
        config: of the run.

    Yields:
        One finding after the other, each with its remedy.
    """
    from geffect.preflight.checks import examine

    yield from examine(config, _start(config))


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
    from geffect.training.setup import outlined, prompt_of, read_set, warn_of_other_prompts

    loaded = outlined(config, config.model)
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
