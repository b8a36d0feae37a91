"""What a run starts from: its model, its sets as the model sees them, and what its objective needs of each row."""

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from geffect.config import EvaluateConfig, FinetuneConfig, LocalizeConfig, TextConfig, TrainConfig, UnlearnConfig
from geffect.core.layers import Layout, find_tied_weights, layout, split_layout, trainable_parameters
from geffect.core.masks import GradientMask
from geffect.core.splits import TARGETS, domain_of, of_role, role_of, split_name, split_names
from geffect.data.checks import check_ids, warn_cut
from geffect.data.domains import balanced_sizes, domain_sets, set_names, split_sets
from geffect.data.encode import EncodedExample, encode_set, pad_id_of
from geffect.data.load import ExampleSet, QASet, load_set
from geffect.data.prompts import Prompt, prompt_settings
from geffect.data.relabel import BUILT_IN, Answers, read_answers, replace_answers
from geffect.errors import GeffectError
from geffect.io.system import check_memory, rank_and_size
from geffect.localization.storage import check_localized, read_localization
from geffect.models.cache import weights_sha256
from geffect.models.load import Loaded, add_lora, outline
from geffect.models.tokenizers import vocabulary_size
from geffect.objectives.base import Objective
from geffect.record.resume import recorded_prompts
from geffect.record.schema import MASKS
from geffect.record.writer import batch_arithmetic, describe, layout_to_json

LOGGER = logging.getLogger(__name__)
ROW_BYTES, TOKEN_BYTES = 300, 16  # of an encoding in memory
PROMPT_NAMES = {"template": "chat template", "date": "--template-date", "system": "--system-prompt"}
VANISHES = 1e-4  # a bfloat16 weight near 1 moves by 1/128 or not at all


@dataclass
class Start:
    """A run about to begin.

    Attributes:
        loaded: model and tokenizer.
        sets: role or name → set.
        encoded: the same as the model sees them.
        layout: where each parameter lies.
        answers: what ``po`` and ``dpo`` answer forget questions with; None where no set of them is named.
    """

    loaded: Loaded
    sets: dict[str, ExampleSet]
    encoded: dict[str, list[EncodedExample]]
    layout: Layout
    answers: Answers | None = None

    def environment(self, config: TrainConfig, steps: int) -> dict[str, Any]:
        """What a run's ``environment.json`` says of it."""
        sizes = {name: len(rows) for name, rows in self.encoded.items() if role_of(name) in TARGETS}
        used = balanced_sizes(config, sizes) if isinstance(config, UnlearnConfig) else {}
        forget, path = of_role(used, "forget"), getattr(config, "masks", None)
        masks = {"masks": {"set": str(path), "sha256": weights_sha256(path / MASKS)}} if path else {}
        others = masks | ({"answers": self.answers.data} if self.answers else {})
        rows = max(forget) if forget else sum(map(len, self.encoded.values()))
        return describe() | {
            "dtype": config.dtype,
            "start": {"path": self.loaded.source, "sha256": self.loaded.sha256},
            "attention": getattr(self.loaded.model.config, "_attn_implementation", None),
            "data": {k: {"set": s.name, "examples": len(s), "sha256": s.sha256} for k, s in self.sets.items()} | others,
            "prompts": prompts_of(config, self.loaded.tokenizer),
            "batch": batch_arithmetic(rows, config.batch_size, config.grad_accum_steps, steps, rank_and_size()[1]),
            "parameters": layout_to_json(self.layout),
        }


def read_set(config: TextConfig, spec: str) -> ExampleSet:
    """Load a set with a configuration's columns.

    Args:
        config: columns and data directory.
        spec: the set.

    Returns:
        The set.
    """
    return load_set(spec, config.data_dir, config.question_column, config.answer_column, config.text_column)


def roles(config: TrainConfig) -> list[tuple[str, str]]:
    """(role or split, set) of a configuration, in the order printed."""
    if isinstance(config, FinetuneConfig):
        return [(f"train {i}" if i else "train", spec) for i, spec in enumerate(config.train)]
    return set_names(config) if isinstance(config, UnlearnConfig) else []


def warn_of_rounding(config: TrainConfig) -> None:
    """Say so where a run's steps are lost in its weights' precision."""
    if config.dtype == "bfloat16" and config.learning_rate < VANISHES:
        LOGGER.warning("steps of %g vanish in bfloat16's rounding: use --dtype float32", config.learning_rate)


def read_start(config: TrainConfig, loaded: Loaded) -> Start:
    """Put a model and a configuration's sets together.

    Args:
        config: of ``fit`` or ``unlearn``.
        loaded: its model, without the adapter that ``config.lora`` asks for.

    Returns:
        The start.

    Raises:
        GeffectError: a set is missing or cannot be encoded, or the start is not the recorded one.
    """
    if config.lora:
        loaded.model = add_lora(loaded.model, config.lora, config.seed, config.lora_dropout)
    if isinstance(config, UnlearnConfig):
        check_shards(config)
        _check_recorded(config, loaded)
    named = roles(config) if isinstance(config, UnlearnConfig) else [(spec, spec) for _, spec in roles(config)]
    sets = {name: read_set(config, spec) for name, spec in named}
    encoded = {name: encode(config, loaded, rows) for name, rows in sets.items()}
    warn_cut(encoded)
    warn_of_other_prompts(config, loaded)
    whole = layout(loaded.model)
    if isinstance(config, UnlearnConfig) and not config.shard:  # a sharded tied tensor is not split by use
        whole = split_layout(whole, find_tied_weights(loaded.model))
    return Start(loaded, sets, encoded, whole, answers_of(config) if isinstance(config, UnlearnConfig) else None)


def encode(
    config: TextConfig, loaded: Loaded, rows: ExampleSet, *, by: Callable[..., list[EncodedExample]] = encode_set
) -> list[EncodedExample]:
    """A set as the model sees it.

    Args:
        config: the length kept of a row.
        loaded: tokenizer, and the model's context.
        rows: the set.
        by: `encode_set`, or `encode_examples`, which differ for texts.

    Returns:
        One encoding a row.

    Raises:
        GeffectError: as of `geffect.data.encode.encode_set`, or a token is none of the model's.
    """
    context = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    encoded = by(loaded.tokenizer, rows, config.max_length, context, prompt_of(config))
    check_ids(encoded, vocabulary_size(loaded.model), rows.name, pad_id_of(loaded.tokenizer))
    return encoded


def localized_rows(config: LocalizeConfig, loaded: Loaded) -> dict[str, list[EncodedExample]]:
    """The rows a localization goes over: every domain's, those of its validation part too, numbered throughout.

    Args:
        config: the localization.
        loaded: its model's tokenizer.

    Returns:
        Split → rows; no two share an index, so that none share their random labels.

    Raises:
        GeffectError: a split has a single row, or a validation set is of no domain.
    """
    trained, validated = domain_sets(config)
    found: dict[str, list[EncodedExample]] = {}
    names = [domain.name for domain in trained]
    for other in (each.name for each in validated if each.name not in names):
        remedy = f"add --domain {other}=UNLEARN,RETENTION, or leave that --validation out"
        raise GeffectError(f"--validation of a domain among {', '.join(names)}", other, remedy)
    for domain in (*trained, *validated):
        for name, spec in split_sets(domain):
            found.setdefault(name, []).extend(encode(config, loaded, read_set(config, spec)))
    for name, rows in found.items():
        if len(rows) < 2:
            raise GeffectError(f"{name} has 1 example, and needs two", remedy="Name a larger set or a wider slice")
    numbers = itertools.count()
    return {name: [replace(row, index=next(numbers)) for row in rows] for name, rows in found.items()}


def outlined(config: TextConfig, spec: str) -> Loaded:
    """A model's shapes without its weights, and the tokenizer it is used with."""
    model, tokenizer = outline(
        spec, trust_remote_code=config.trust_remote_code, tokenizer=config.tokenizer, chat_template=config.chat_template
    )
    return Loaded(model, tokenizer, spec, None)


def prompt_of(config: TextConfig) -> Prompt:
    """What a configuration tells a chat template beside the turns."""
    return Prompt(config.template_date, config.system_prompt)


def prompts_of(config: TextConfig, tokenizer: Any) -> dict[str, Any]:
    """What decides a prompt: chat template, its date, the system turn and the tokenizer, for records and cache keys."""
    return prompt_settings(tokenizer, prompt_of(config))


def decides(config: EvaluateConfig, loaded: Loaded) -> list[Any] | None:
    """What decides a model's numbers beside the rows, for the key of a kept result.

    Args:
        config: dtype, date and system turn.
        loaded: the model, before an adapter is merged into it.

    Returns:
        Model, dtype and prompts; None where the model's weights have no hash.
    """
    found = loaded.fingerprint()
    return None if found is None else [found, config.dtype, prompts_of(config, loaded.tokenizer)]


def warn_of_other_prompts(config: TextConfig, loaded: Loaded) -> None:
    """Say so where a run's model or checkpoint is shown other prompts than the run showed it.

    Args:
        config: what is asked for.
        loaded: the model.
    """
    asked, recorded = prompts_of(config, loaded.tokenizer), recorded_prompts(Path(loaded.source))
    silent = {"date", "system"} if asked["template"] == recorded.get("template") is None else set()
    for name, begun in recorded.items():
        if name not in silent and asked.get(name) != begun:
            both = f": {begun} there, {asked.get(name)} here" if name in ("date", "system") else ""
            LOGGER.warning("%s was trained with another %s%s", loaded.source, PROMPT_NAMES.get(name, name), both)


def answers_of(config: UnlearnConfig) -> Answers | None:
    """The set that an objective's ``answers`` names; None where it names none."""
    named = config.objective.answers
    return read_answers(named[0], partial(read_set, config)) if named and named[0] else None


def check_shards(config: UnlearnConfig) -> None:
    """Raise where ``--shard`` has a single process."""
    if config.shard and rank_and_size()[1] == 1:
        remedy = "Start it with torchrun --nproc-per-node 2 -m geffect unlearn, or leave --shard out"
        raise GeffectError("--shard needs several processes; there is one", remedy=remedy)


def check_launched(config: UnlearnConfig, sets: Mapping[str, Sequence[EncodedExample]]) -> None:
    """Raise where a run cannot be shared among the processes that were launched.

    Args:
        config: the run.
        sets: the sets whose rows meet in a step.

    Raises:
        GeffectError: a diagnostic is of one process, or rows do not divide.
    """
    size = rank_and_size()[1]
    if size == 1:
        return
    alone = {"--standard-errors": config.standard_errors, "--mode paper": config.mode == "paper"}
    for flag in (flag for flag, asked in alone.items() if asked):
        raise GeffectError(f"one process for {flag}", f"{size}", "leave it out, or inspect the checkpoints after")
    rows, step = max(of_role({name: len(each) for name, each in sets.items()}, "forget")), config.batch_size * size
    if rows % step:
        remedy = f"slice the set to {rows // step * step} rows, or choose another --batch-size"
        raise GeffectError(f"forget rows that divide by {config.batch_size} rows × {size} processes", f"{rows}", remedy)


def alternatives(config: UnlearnConfig, start: Start, forget: str, size: int) -> list[EncodedExample]:
    """The forget questions with refusals, an epoch of the run after another.

    Args:
        config: the run.
        start: its sets.
        forget: the forget split.
        size: how many of its rows are used.

    Returns:
        One encoding a question and epoch.

    Raises:
        GeffectError: the forget set has no questions, or memory does not hold so many refusals.
    """
    whole = start.sets[forget]
    if not isinstance(whole, QASet):
        remedy = "name a set of questions, or another objective"
        raise GeffectError(
            f"questions to refuse in {whole.name}, which {config.objective.text!r} needs", "texts", remedy
        )
    rows = replace(whole, rows=whole.rows[:size])
    batches = config.steps * config.grad_accum_steps * rank_and_size()[1]
    epochs = -(-batches // -(-len(rows) // config.batch_size))
    found: list[EncodedExample] = []
    for epoch in range(epochs):
        each = encode(config, start.loaded, replace_answers(rows, epoch, config.seed, start.answers or BUILT_IN))
        if not found:
            needed = epochs * sum(ROW_BYTES + TOKEN_BYTES * len(row.input_ids) for row in each)
            check_memory(f"{epochs} epochs of refusals", needed, "lower --steps")
        found += [EncodedExample(len(found) + i, row.input_ids, row.labels) for i, row in enumerate(each)]
    return found


def training_sets(config: UnlearnConfig, start: Start, objective: Objective) -> dict[str, list[EncodedExample]]:
    """The sets whose rows meet in a step."""
    used = balanced_sizes(config, {name: len(rows) for name, rows in start.encoded.items() if role_of(name) in TARGETS})
    sets = {name: start.encoded[name][:size] for name, size in used.items()}
    if config.domain and len({*used.values(), *(len(start.encoded[name]) for name in used)}) > 1:
        told = ", ".join(f"{name} {size} of {len(start.encoded[name])}" for name, size in used.items())
        LOGGER.warning("sizes differ; rows used: %s; an epoch is as long as the largest forget set", told)
    if "general" in objective.sets:
        sets["general"] = start.encoded["general"]
    if "alternative" in objective.sets:
        for name in split_names("forget", used):
            sets[split_name("alternative", domain_of(name))] = alternatives(config, start, name, used[name])
    return sets


def masked_by(config: UnlearnConfig, loaded: Loaded) -> GradientMask | None:
    """What a run's localization freezes; None where its rectifier freezes nothing.

    Args:
        config: the run.
        loaded: its model.

    Returns:
        The frozen entries.

    Raises:
        GeffectError: the localization is missing, or of another model or adapter.
    """
    freezing = config.rectifier.freezing
    if freezing is None or config.masks is None:
        return None
    parameters = trainable_parameters(loaded.model)
    shapes = {name: list(parameter.shape) for name, parameter in parameters.items()}
    check_localized(config.masks, loaded.sha256, shapes)
    return freezing.frozen(parameters, read_localization(config.masks))


def _check_recorded(config: UnlearnConfig, loaded: Loaded) -> None:
    """A replayed configuration must start where the run it came from did."""
    expected = (config.reference or {}).get("sha256")
    if expected is not None and expected != loaded.sha256:
        raise GeffectError(
            f"the start recorded in the configuration (weights {expected[:12]})",
            f"{config.model} (weights {str(loaded.sha256)[:12]})",
            "restore that model, or remove 'reference'",
        )
