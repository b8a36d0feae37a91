"""The verbs: each takes a configuration or its fields, and returns an object that stands where a path does."""

import itertools
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial, update_wrapper, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

import pandas as pd

from geffect.config import (
    DeviceConfig,
    DoctorConfig,
    EvaluateConfig,
    FinetuneConfig,
    InspectConfig,
    LocalizeConfig,
    PreviewConfig,
    ReportConfig,
    TrainConfig,
    UnlearnConfig,
)
from geffect.config.schema import Schema
from geffect.core.architectures import CausalLM, Tokenizer
from geffect.core.devices import AUTO, deterministic_algorithms, find_device
from geffect.core.distributed import rank, wait_for_all
from geffect.core.forward import IGNORE_INDEX
from geffect.core.layers import trainable_parameters
from geffect.core.lots import control_seeds
from geffect.core.masks import Localization
from geffect.core.splits import role_of
from geffect.data.checks import check_ids, warn_shared
from geffect.data.domains import bare_or_named, target_sets
from geffect.data.encode import EncodedExample, encode_set, token_texts
from geffect.data.load import ExampleSet
from geffect.errors import Interrupted
from geffect.evaluation.results import (
    check_tasks,
    estimate_memory,
    evaluate_tasks,
    evaluate_variant,
    make_view,
    read_evaluation,
    read_part,
    read_reference,
    summary,
    write_texts,
)
from geffect.evaluation.success import successes
from geffect.evaluation.suites import Part, parts
from geffect.evaluation.variants import Variant, check_variants, variants
from geffect.evaluation.view import SCORED
from geffect.inspection.tasks import InspectionSetup, prepare_inspection, record_of
from geffect.io.readers import JSON, StrPath, read_json
from geffect.io.system import check_single_process, launch_command, raise_on_signals
from geffect.localization.localize import localize as find
from geffect.localization.localize import split_losses
from geffect.localization.storage import read_localization, write_localization
from geffect.localization.truth import Recovery, add_random, random_overlaps
from geffect.models.builtin import BUILT_IN, built_in_key, is_built_in, load_fitted, make_tiny
from geffect.models.cache import cached_directory
from geffect.models.checkpoints import named_checkpoints
from geffect.models.load import Loaded, load, quiet_transformers
from geffect.models.names import UNTRAINED
from geffect.models.scoring import Reference, check_trainable, in_evaluation_mode, shard_start
from geffect.models.tokenizers import vocabulary_size
from geffect.record.replacement import refuse_taken
from geffect.record.schema import EXAMPLES, METRICS
from geffect.record.writer import RunDirectory, describe, layout_to_json, replacing
from geffect.reports.run import Run, plot
from geffect.training.batches import compute_columns, training_sets
from geffect.training.fit import check_fit, peak_memory
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
from geffect.training.setup import (
    LocalizationSetup,
    TrainingSetup,
    check_launched,
    load_outline,
    prompt_of,
    prompts_of,
    read_gradient_mask,
    read_mask,
    read_only_mask,
    read_set,
    warn_of_other_prompts,
    warn_of_rounding,
)
from geffect.training.setup import prepare as read_setup

if TYPE_CHECKING:
    from geffect.preflight import Finding
    from geffect.reports.page import Report
    from geffect.training.unlearn import UnlearnTrainer

LOGGER = logging.getLogger(__name__)
Fields = ParamSpec("Fields")
Config = TypeVar("Config", bound=Schema)
Result = TypeVar("Result")
Trained = TypeVar("Trained", bound=TrainConfig)


class Verb(Generic[Fields, Config, Result]):
    """A verb: call it with a configuration, or with the fields of one by name.

    Args:
        schema: the configuration's class.
        run: carries it out.
    """

    def __init__(self, schema: Callable[Fields, Config], run: Callable[..., Result]) -> None:
        self.schema, self.run = schema, run
        update_wrapper(self, run)
        self.__doc__ = f"{run.__doc__}\n\nCall it with a configuration, or with its fields:\n\n{schema.__doc__}"

    @overload
    def __call__(self, config: Config, /, *, resume: bool = False) -> Result: ...
    @overload
    def __call__(self, *args: Fields.args, **fields: Fields.kwargs) -> Result: ...
    def __call__(self, *config: Any, **fields: Any) -> Result:
        """Carry out the verb; ``resume=True`` continues an unfinished run of ``unlearn``, ``finetune``, ``inspect``."""
        options = {"resume": True} if fields.pop("resume", False) else {}
        schema: Callable[..., object] = self.schema
        if config and fields:
            raise TypeError(f"A configuration is given alone: {', '.join(fields)} must be fields of it.")
        return self.run(*(config or [schema(**fields)]), **options)


def verb(schema: Callable[Fields, Config]) -> Callable[[Callable[..., Result]], Verb[Fields, Config, Result]]:
    """Make a function of a configuration a `Verb`."""
    return lambda run: Verb(schema, run)


def _as_configured(run: Callable[..., Result]) -> Callable[..., Result]:
    """Run a verb with deterministic algorithms alone where its configuration asks for them."""

    @wraps(run)
    def carry_out(config: DeviceConfig, **options: Any) -> Result:
        with deterministic_algorithms(config.deterministic):
            return run(config, **options)

    return carry_out


class Evaluation(os.PathLike[str]):
    """The directory ``path`` of an evaluation; every function that takes a path takes it."""

    def __init__(self, path: StrPath) -> None:
        self.path = Path(path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"geffect.Evaluation({str(self.path)!r})"

    def to_frame(self) -> pd.DataFrame:
        """One number an example, metric and model, as `geffect.read_evaluation`."""
        return read_evaluation(self.path)

    @property
    def metrics(self) -> dict[str, JSON]:
        """Means with intervals, and the numbers made of several sets: ``metrics.json``, by model."""
        content: dict[str, JSON] = read_json(self.path / METRICS)["models"]
        return content


class LocalizationRun(Run):
    """A directory of `geffect.localize`: a `Run` that also reads its masks and magnitudes."""

    @property
    def localization(self) -> Localization:
        """Masks, overlaps and mean magnitudes, as `geffect.read_localization`."""
        return read_localization(self.path)


def load_model(
    spec: str,
    dtype: str = "float32",
    *,
    device: str = AUTO,
    trust_remote_code: bool = False,
    tokenizer: str | None = None,
    chat_template: str | None = None,
) -> Loaded:
    """Load a model by any name (`geffect.models.names.FORMS`), and its tokenizer, as `geffect.models.load.load`.

    ``device`` is ``auto`` (an accelerator if torch sees one, else the CPU), ``cpu``, ``cuda``, ``cuda:1``, ``mps`` and
    so on. A built-in model that comes without weights is fitted on first use (about a minute, on the CPU) and cached.
    """
    find_device(device)
    if is_built_in(spec):
        spec = str(builtin_tiny(spec))
    options: dict[str, Any] = {"tokenizer": tokenizer, "chat_template": chat_template}
    return load(spec, dtype, device=device, trust_remote_code=trust_remote_code, **options)


def _loader(config: TrainConfig | LocalizeConfig | InspectConfig | EvaluateConfig) -> Callable[[str], Loaded]:
    """Loads models by their names as a configuration says; a model to shard on the CPU, since a device holds parts."""
    return partial(
        load_model,
        dtype=config.dtype,
        device="cpu" if getattr(config, "shard", False) else config.device,
        trust_remote_code=config.trust_remote_code,
        tokenizer=config.tokenizer,
        chat_template=config.chat_template,
    )


def builtin_tiny(name: str = "builtin:tiny") -> Path:
    """The directory of a built-in model, made on first use; a name with ``-untrained`` after it is the model before."""
    base = name.removesuffix(UNTRAINED)
    make = partial(_save_untrained if name != base else _save_fitted, base)
    return cached_directory(name.removeprefix("builtin:"), built_in_key(base), make)


def _save_untrained(name: str, directory: Path) -> None:
    _save(directory, *make_tiny(0, name))


def _save_fitted(name: str, directory: Path) -> None:
    """Save the weights that the package holds, else fit them."""
    fitted = load_fitted(name)
    if fitted is None:
        fit_builtin(name, directory)
    else:
        _save(directory, *fitted)


def _save(directory: Path, model: CausalLM, tokenizer: Tokenizer) -> None:
    with quiet_transformers():
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)


def fit_builtin(name: str, directory: Path) -> None:
    """Fit a built-in model by its recipe into an empty directory, which becomes a finished run."""
    LOGGER.info("fitting %s once, about a minute; it is kept in %s", name, directory.parent)
    _save_untrained(name, directory / "init")
    sets, recipe, _ = BUILT_IN[name]
    place = {"model": str(directory / "init"), "out": directory / "fit", "device": "cpu"}  # the same on every machine
    config = FinetuneConfig.read(train=list(sets), **place, **recipe)
    try:
        finetune(config)
    except Interrupted as stopped:  # a cache holds nothing unfinished
        raise Interrupted(f"stopped while {name} was fitted; nothing of it is kept", stopped.signum) from None
    for file in (directory / "fit").iterdir():
        file.rename(directory / file.name)
    for leftover in ("init", "fit"):
        shutil.rmtree(directory / leftover)


def _start(config: Trained, setup: TrainingSetup[Trained] | None = None) -> TrainingSetup[Trained]:
    """What a run starts from, with the model's weights."""
    warn_of_rounding(config)
    return (setup or _read_setup(config)).with_weights(_loader(config)(config.model))


@overload
def _read_setup(config: LocalizeConfig) -> LocalizationSetup: ...
@overload
def _read_setup(config: Trained) -> TrainingSetup[Trained]: ...
def _read_setup(config: LocalizeConfig | TrainConfig) -> LocalizationSetup | TrainingSetup[TrainConfig]:
    """What a verb starts from; warn or raise where the model will not fit the memory."""
    setup: LocalizationSetup | TrainingSetup[TrainConfig] = read_setup(config)
    check_fit(config, setup.memory, find_device(config.device))
    return setup


def _read_inspection(config: InspectConfig, *, resume: bool) -> InspectionSetup:
    setup = prepare_inspection(config, resume=resume)
    check_fit(setup.config, setup.memory, find_device(config.device))
    return setup


@verb(FinetuneConfig)
@raise_on_signals()
@_as_configured
def finetune(
    config: FinetuneConfig,
    *,
    resume: bool = False,
    states: Sequence[int] = (),
    setup: TrainingSetup[FinetuneConfig] | None = None,
) -> Run:
    """Descend the NLL of named sets (full weights or LoRA) and write a model directory with a record.

    With ``resume`` an unfinished run continues from its last checkpoint. The checkpoints are removed once the model is
    written. ``states`` are numbers of steps after which the model is also written, to ``state-N`` in the directory.
    Without a ``setup``, `prepare` makes it.
    """
    from geffect.training.finetune import FinetuneTrainer

    check_single_process("geffect finetune")
    if resume and setup is None:
        config = read_unfinished(config)
    with RunDirectory(config.out, resume=resume, overwrite=config.overwrite) as run:
        start = _start(config, setup)
        loaded, encoded = start.loaded, itertools.chain(*start.encoded.values())
        frozen = read_only_mask(config, loaded)
        environment = start.environment() | {"optimizer": start.arguments.optim}
        environment |= {"frozen": frozen.shares()} if frozen else {}
        checkpoint = find_checkpoint(config.out, environment, config) if resume else None
        recorded, first = recorded_config(config), first_step(checkpoint)
        with quiet_transformers(), open_record(run, recorded, environment, first) as sink:
            trainer = FinetuneTrainer(
                loaded.model,
                start.arguments,
                tokenizer=loaded.tokenizer,
                config=config,
                examples=[replace(example, index=i) for i, example in enumerate(encoded)],
                states=states,
                frozen=frozen,
                evaluation_sets=start.encoded,
                sink=sink,
            )
            train(trainer, checkpoint, f"geffect finetune {resume_command(config)}")
            if not trainer.diverged:
                loaded.model.save_pretrained(config.out)
                loaded.tokenizer.save_pretrained(config.out)
            run.finish(final_metrics(config.out) | unmet_goals(config))
            shutil.rmtree(config.out / "checkpoints", ignore_errors=True)  # last: half of them would be no checkpoint
    check_converged(trainer, config.out)
    return Run(config.out)


@verb(UnlearnConfig)
@raise_on_signals()
@_as_configured
def unlearn(
    config: UnlearnConfig,
    *,
    resume: bool = False,
    reuse_gradients: bool = True,
    setup: TrainingSetup[UnlearnConfig] | None = None,
) -> Run:
    """Unlearn a set with an objective and a rectifier, recording the G-effect of every update.

    With ``resume`` an unfinished run continues from its last whole checkpoint, to the record and weights it would have
    had; the reference is still the run's start. ``reuse_gradients`` takes gradients that follow from others by algebra;
    tests set it to False. Without a ``setup``, `prepare` makes it.
    """
    if resume and setup is None:
        config = read_unfinished(config)
    with RunDirectory(config.out, resume=resume, overwrite=config.overwrite) as run:
        start = _start(config, setup)
        loaded, sets = start.loaded, training_sets(start)
        check_launched(config, sets)
        frozen = read_gradient_mask(config, loaded)
        recorded = recorded_config(config) | {"reference": {"path": loaded.source, "sha256": loaded.sha256}}
        environment = start.environment() | {"optimizer": start.arguments.optim}
        environment |= {"frozen": frozen.shares()} if frozen else {}
        checkpoint = find_checkpoint(config.out, environment, config) if resume else None
        reference = Reference(loaded.model) if config.objective.needs_reference else None
        if config.shard:
            shard_start(loaded.model, reference, frozen, start.arguments.device.type)
        success = {"start": successes(loaded.model, loaded.tokenizer, start.encoded)}
        past = lines_before(config.out, checkpoint)
        with quiet_transformers(), open_record(run, recorded, environment, first_step(checkpoint)) as sink:
            options = {"past": past, "reuse_gradients": reuse_gradients, "sink": sink}
            trainer = _unlearn_trainer(start, sets, frozen=frozen, reference=reference, **options)
            train(trainer, checkpoint, f"{launch_command()}geffect unlearn {resume_command(config)}")
            if success["start"] and not trainer.diverged:
                success["end"] = successes(loaded.model, loaded.tokenizer, start.encoded)
            if rank() == 0:
                metrics = {"success": success} if "end" in success else {}
                run.finish(final_metrics(config.out, config.stop) | unmet_goals(config) | metrics)
            wait_for_all()  # the others read what the first has written
    check_converged(trainer, config.out)
    return Run(config.out)


def _unlearn_trainer(
    start: TrainingSetup[UnlearnConfig], sets: dict[str, list[EncodedExample]], **options: Any
) -> "UnlearnTrainer":
    """The trainer of a run; the options are further arguments of it."""
    from geffect.training.unlearn import UnlearnTrainer

    config, model, tokenizer = start.config, start.loaded.model, start.loaded.tokenizer
    targets = {name: start.encoded[name] for name, _ in target_sets(config)}
    evaluated = {*(config.evaluate or map(role_of, start.encoded)), *map(role_of, targets)}
    return UnlearnTrainer(
        model,
        start.arguments,
        tokenizer=tokenizer,
        config=config,
        sets=sets,
        evaluation_sets={name: each for name, each in start.encoded.items() if role_of(name) in evaluated},
        columns=compute_columns(model, tokenizer, config.objective, sets, config.seed, autocast=config.autocasts),
        layers=start.layout.layers,
        targets=targets,
        **options,
    )


@verb(LocalizeConfig)
@raise_on_signals()
@_as_configured
def localize(config: LocalizeConfig, *, setup: LocalizationSetup | None = None) -> LocalizationRun:
    """Find the weights where each domain's knowledge lies: top-k masks of every split, and their overlaps."""
    check_single_process("geffect localize")
    with RunDirectory(config.out, overwrite=config.overwrite) as run:
        start = (setup or _read_setup(config)).with_weights(_loader(config)(config.model))
        loaded = start.loaded
        check_trainable(loaded.model)
        parameters, began = trainable_parameters(loaded.model), time.perf_counter()
        with in_evaluation_mode(loaded.model):
            losses = split_losses(loaded, start.encoded, config.labels, config.draws, config.seed)
            planted = read_mask(config, loaded)
            recovery = Recovery(planted, {name: p.numel() for name, p in parameters.items()}) if planted else None
            options: dict[str, Any] = {"masks_only": config.masks_only, "seed": config.seed, "mu": config.mu}
            localization = find(parameters, losses, config.share, config.importance, recovery=recovery, **options)
        controls = random_overlaps(localization, parameters, control_seeds(config.control))
        judged: dict[str, Any] = {"controls": controls} if controls else {}
        if recovery is not None:
            add_random(recovery, localization, parameters, control_seeds(config.control))
            judged["truth"] = recovery.rows()
        seconds = time.perf_counter() - began
        named = {"model", "importance", "labels", "draws", "seed"} | ({"mu"} if config.importance == "wagle" else set())
        recipe = config.model_dump(mode="json", include=named) | {
            "sha256": loaded.sha256,
            "shapes": {name: list(p.shape) for name, p in parameters.items()},
        }
        environment = describe(start.device) | {
            "parameters": layout_to_json(start.layout),
            "dtype": config.dtype,
            "prompts": prompts_of(config, loaded.tokenizer),
        }
        with disk_errors(config.out, "name another --out"):
            run.create(config.model_dump(mode="json", exclude_none=True), environment)
            write_localization(run, localization, recipe)
            run.finish({"examples": localization.examples, "seconds": seconds} | judged | peak_memory())
    with disk_errors(config.out, "then draw the figures with geffect plot"):
        plot([config.out])
    return LocalizationRun(config.out)


@verb(InspectConfig)
@raise_on_signals()
@_as_configured
def inspect(config: InspectConfig, *, resume: bool = False, setup: InspectionSetup | None = None) -> list[Run]:
    """Measure objectives at every checkpoint of a series, over whole sets and without training; a run an objective.

    Of a run of `unlearn`, what is not named is taken from its configuration. With ``resume`` an inspection that was
    stopped continues; what is finished is left as it is.
    """
    from geffect.inspection.run import inspect as inspect_all

    check_single_process("geffect inspect")
    setup = setup or _read_inspection(config, resume=resume)
    completed = setup.config
    inspect_all(setup, _loader(completed), resume=resume)
    return [Run(record_of(completed, objective)) for objective in completed.objective]


@verb(EvaluateConfig)
@raise_on_signals()
@_as_configured
def evaluate(config: EvaluateConfig) -> Evaluation:
    """Score a model, an adapter or a run's checkpoints on a suite, or on sets by named metrics.

    What was computed before, by the same weights, examples, options and code, is taken from the cache. The directory
    holds ``examples.csv`` (`geffect.read_evaluation`), ``texts.jsonl`` (what the model wrote) and ``metrics.json``
    (means with intervals, and numbers of several sets).
    """
    check_single_process("geffect evaluate")
    device, began = find_device(config.device), time.perf_counter()
    with RunDirectory(config.out, overwrite=config.overwrite) as run:
        sets = [(part, read_part(config, part)) for part in parts(config)]
        check_variants(config, sets)
        warn_shared({part.name: examples for part, examples in sets})
        if config.task:
            check_tasks(config.task, config.task_dir)
        if config.reference is not None:
            read_evaluation(config.reference)
        if sets:
            check_fit(config.replace(batch_size=config.batch_size or SCORED), estimate_memory(config, sets), device)
        frames, texts, numbers, prompts = [], [], {}, {}
        for variant in _variants(config, sets):
            prompts[variant.label] = prompts_of(config, variant.loaded.tokenizer)
            with quiet_transformers():
                frame, answers = evaluate_variant(config, sets, variant)
                numbers[variant.label] = variant.numbers, evaluate_tasks(config, variant)
            frames.append(frame)
            texts += answers
        examples = pd.concat(frames, ignore_index=True)
        models = summary(config, examples, read_reference(config, examples), numbers)
        with disk_errors(config.out, "name another --out"):
            environment = describe(device) | {"dtype": config.dtype, "prompts": prompts}
            run.create(config.model_dump(mode="json", exclude_none=True), environment)
            with replacing(config.out / EXAMPLES) as file:
                examples.to_csv(file, index=False)
            write_texts(config.out, texts)
            run.finish({"models": models, "seconds": round(time.perf_counter() - began, 3)} | peak_memory())
    return Evaluation(config.out)


def _variants(config: EvaluateConfig, sets: Sequence[tuple[Part, ExampleSet]]) -> Iterator[Variant]:
    """Every model, or checkpoint of a run, in each of its variants, loaded one after the other."""
    loader, view = _loader(config), partial(make_view, config)
    named = {"start": config.start, "retrained": config.retrained}
    beside = {name: loader(model) for name, model in named.items() if model is not None}
    for label, spec in named_checkpoints(config.model) if config.checkpoints else [(config.model, config.model)]:
        for variant in variants(config, spec, label, sets, loader, view, finetune.run):
            if variant.label == label:
                warn_of_other_prompts(config, variant.loaded)
            yield replace(variant, beside=beside)


@verb(ReportConfig)
def report(config: ReportConfig) -> "Report":
    """Write runs as one HTML page for any browser, offline: outcome, findings, figures, layers, worst examples.

    The result has the ``path`` of the page, ``findings`` of all runs, and ``outcomes`` by run.
    """
    from geffect.reports.compare import named
    from geffect.reports.page import write

    return write(named(config.runs), config.page, config.scheme)


@verb(DoctorConfig)
def doctor(config: DoctorConfig) -> "Iterator[Finding]":
    """Check a run before it begins: precision, determinism, masks, tied weights, what the model knows, memory.

    Findings come one after the other, each with its remedy; nothing is written.
    """
    from geffect.preflight import examine

    with deterministic_algorithms(config.deterministic):
        yield from examine(_start(config, read_setup(config)))


@verb(PreviewConfig)
def preview(config: PreviewConfig) -> list[tuple[str, list[tuple[str, bool]]]]:
    """The first examples of a set as a model sees them: (title, [(token's text, carries loss)]) an example."""
    loaded = load_outline(config, config.model)
    _, spec = bare_or_named(config.set)
    encoded = encode_set(loaded.tokenizer, read_set(config, spec), config.max_length, prompt=prompt_of(config))
    examples = encoded[: config.limit]
    check_ids(examples, vocabulary_size(loaded.model), spec)
    warn_of_other_prompts(config, loaded)
    shown = []
    for example in examples:
        learned = [label != IGNORE_INDEX for label in example.labels]
        tokens = token_texts(loaded.tokenizer, example.input_ids)
        cut = f", {example.cut} cut off" if example.cut else ""
        title = f"example {example.index}: {sum(learned)} of {len(tokens)} tokens{cut}"
        shown.append((title, list(zip(tokens, learned, strict=True))))
    return shown


@overload
def prepare(config: InspectConfig, *, resume: bool = False) -> InspectionSetup: ...
@overload
def prepare(config: LocalizeConfig) -> LocalizationSetup: ...
@overload
def prepare(config: Trained, *, resume: bool = False) -> TrainingSetup[Trained]: ...
def prepare(
    config: InspectConfig | LocalizeConfig | TrainConfig, *, resume: bool = False
) -> InspectionSetup | LocalizationSetup | TrainingSetup[TrainConfig]:
    """Check a run, and read and encode its sets once, for its plan and for the run; no weight is loaded.

    Args:
        config: of ``finetune``, ``unlearn``, ``localize`` or ``inspect``.
        resume: the run directory is there already.

    Returns:
        The setup: print its ``plan``, then give it to the verb.

    Raises:
        GeffectError: the directory is taken, something cannot be read, or this machine cannot carry the run out.
    """
    if isinstance(config, InspectConfig):
        inspection = _read_inspection(config, resume=resume)
        check_trainable(inspection.outline.model)
        warn_shared(inspection.sets.sets)
        return inspection
    if resume and isinstance(config, TrainConfig):
        config = read_unfinished(config)
    else:
        refuse_taken(config.out, overwrite=config.overwrite)
    setup: LocalizationSetup | TrainingSetup[TrainConfig] = _read_setup(config)
    check_trainable(setup.loaded.model)
    if isinstance(config, UnlearnConfig) and isinstance(setup, TrainingSetup):
        warn_shared(setup.sets)
    return setup


def plan(config: TrainConfig | LocalizeConfig | InspectConfig, *, resume: bool = False) -> dict[str, str]:
    """What a run would do, in lines by name: model, sets, batch arithmetic, memory. The arguments are `prepare`'s."""
    setup = prepare(config, resume=resume) if not isinstance(config, LocalizeConfig) else prepare(config)
    return setup.plan
