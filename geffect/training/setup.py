"""`Setup`: a run's model, its sets as the model sees them, and all that follows from them, read and encoded once."""

import functools
import itertools
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Self, TypeVar, overload

import torch

from geffect.config import EvaluateConfig, FinetuneConfig, LocalizeConfig, TextConfig, TrainConfig, UnlearnConfig
from geffect.core.architectures import Tokenizer
from geffect.core.devices import find_device
from geffect.core.layers import Layout, find_tied_weights, layout, split_layout, trainable_parameters
from geffect.core.masks import GradientMask, PackedMasks, complement
from geffect.core.splits import TARGETS, of_role, role_of
from geffect.data.checks import check_ids, warn_cut
from geffect.data.domains import balanced_sizes, bare_or_named, domain_sets, set_names, split_sets
from geffect.data.encode import EncodedExample, encode_set, pad_id_of
from geffect.data.load import ExampleSet, load_set
from geffect.data.prompts import Prompt, prompt_settings
from geffect.data.relabel import Answers, read_answers
from geffect.errors import GeffectError
from geffect.io.readers import JSON
from geffect.io.system import rank_and_size
from geffect.localization.storage import check_localized, read_localization, read_planted
from geffect.models.cache import weights_sha256
from geffect.models.load import Loaded, add_lora, outline
from geffect.models.tokenizers import vocabulary_size
from geffect.record.reader import recorded_prompts
from geffect.record.schema import MASKS
from geffect.record.writer import batch_arithmetic, describe, layout_to_json
from geffect.training.dry_run import num_finetune_steps, parameter_counts, passes, token_counts, training_arguments
from geffect.training.fit import memory_lines
from geffect.training.memory import MemoryEstimate, localization_memory, training_memory

if TYPE_CHECKING:
    from transformers import TrainingArguments

LOGGER = logging.getLogger(__name__)
PROMPT_NAMES = {"template": "chat template", "date": "--template-date", "system": "--system-prompt"}
VANISHES = 1e-4  # a bfloat16 weight near 1 moves by 1/128 or not at all
Config = TypeVar("Config", bound=TrainConfig | LocalizeConfig, covariant=True)
Trained = TypeVar("Trained", bound=TrainConfig, covariant=True)
Asked = TypeVar("Asked", bound=TrainConfig)


@dataclass(frozen=True)
class Setup(ABC, Generic[Config]):
    """What a verb starts from, read and encoded once by `prepare`: its dry run and its work share it.

    Attributes:
        config: of the verb.
        loaded: model and tokenizer; the model is an outline, without weights, until `with_weights` puts it in.
        encoded: role, split or (of a fine-tuning) set as it is named → its examples as the model sees them.
    """

    config: Config
    loaded: Loaded
    encoded: dict[str, list[EncodedExample]]

    def with_weights(self, loaded: Loaded) -> Self:
        """The same with the model in place of its outline."""
        warn_cut(self.encoded)
        warn_of_other_prompts(self.config, loaded)
        return replace(self, loaded=loaded)

    @functools.cached_property
    def device(self) -> torch.device:
        """The device that it computes on."""
        return find_device(self.config.device)

    @functools.cached_property
    def layout(self) -> Layout:
        """Where each parameter lies."""
        return layout(self.loaded.model)

    @property
    @abstractmethod
    def memory(self) -> MemoryEstimate:
        """A rough estimate of a process's peak."""

    @property
    def plan(self) -> dict[str, str]:
        """What the work asks for: model, sets, passes or batches, memory, in lines by name."""
        config = self.config
        return {
            "model": f"{config.model}, {parameter_counts(self.loaded.model)}, {config.dtype}",
            **self._lines(),
            **memory_lines(self.memory, find_device(config.device)),
            "out": str(config.out),
        }

    @abstractmethod
    def _lines(self) -> dict[str, str]:
        """The lines of the plan between model and memory."""


@dataclass(frozen=True)
class LocalizationSetup(Setup[LocalizeConfig]):
    """What a localization starts from."""

    @property
    def memory(self) -> MemoryEstimate:
        """As `Setup.memory`."""
        return localization_memory(self.config, self.loaded.model, self.encoded)

    def _lines(self) -> dict[str, str]:
        count = sum(map(len, self.encoded.values()))
        each = f"{self.config.draws} draws at once" if self.config.labels != "true" else "true labels"
        passed = f"{count} forward {count} backward, an example each ({each})"
        return {name: token_counts(examples) for name, examples in self.encoded.items()} | {"passes": passed}


@dataclass(frozen=True)
class TrainingSetup(Setup[Trained]):
    """What a run of unlearning or fine-tuning starts from, or an inspection, which is given as such a run.

    Attributes:
        sets: the names of ``encoded`` → sets.
        answers: what ``po`` and ``dpo`` answer forget questions with; None where no set of them is named.
    """

    sets: dict[str, ExampleSet]
    answers: Answers | None = None

    def with_weights(self, loaded: Loaded) -> Self:
        """The same with the model, and its --lora, in place of its outline; weights other than recorded are refused."""
        if self.config.lora:
            loaded.model = add_lora(loaded.model, self.config.lora, self.config.seed, self.config.lora_dropout)
        if isinstance(self.config, UnlearnConfig):
            _check_recorded(self.config, loaded)
        return super().with_weights(loaded)

    @functools.cached_property
    def layout(self) -> Layout:
        """Where each parameter lies; a tied tensor is split by use, but for a sharded one."""
        by_name = layout(self.loaded.model)
        splits = isinstance(self.config, UnlearnConfig) and not self.config.shard
        return split_layout(by_name, find_tied_weights(self.loaded.model)) if splits else by_name

    @functools.cached_property
    def arguments(self) -> "TrainingArguments":
        """Hugging Face's training arguments; making them refuses what this machine cannot carry out."""
        return training_arguments(self.config, self.steps)

    @property
    def steps(self) -> int:
        """Optimizer steps, at most."""
        config = self.config
        return config.steps if isinstance(config, UnlearnConfig) else num_finetune_steps(config, self.num_examples)

    @property
    def num_examples(self) -> int:
        """Examples of all sets."""
        return sum(map(len, self.encoded.values()))

    @property
    def sizes(self) -> dict[str, int]:
        """Forget or retain split → its examples that steps draw from; empty of a fine-tuning."""
        if not isinstance(self.config, UnlearnConfig):
            return {}
        sizes = {name: len(examples) for name, examples in self.encoded.items() if role_of(name) in TARGETS}
        return balanced_sizes(self.config, sizes)

    def batches(self, steps: int | None = None) -> dict[str, JSON]:
        """The batch arithmetic of so many steps, its own by default, in forget examples or, fine-tuning, in all."""
        config, examples = self.config, max(of_role(self.sizes, "forget"), default=self.num_examples)
        steps = self.steps if steps is None else steps
        return batch_arithmetic(examples, config.batch_size, config.grad_accum_steps, steps, rank_and_size()[1])

    @property
    def memory(self) -> MemoryEstimate:
        """As `Setup.memory`."""
        return training_memory(self.config, self.loaded.model, self.encoded)

    def _lines(self) -> dict[str, str]:
        config = self.config
        lines = {name: f"{spec}: {token_counts(self.encoded[key])}" for name, spec, key in _sets_of(config)}
        lines |= {"trains only": config.only_mask} if isinstance(config, FinetuneConfig) and config.only_mask else {}
        if isinstance(config, UnlearnConfig):
            lines |= {"objective": config.objective.text, "rectifier": config.rectifier.text}
            lines["a step"] = passes(config.objective, config.rectifier.rule, config.diagnose_every)
        return lines | {"batches": self.batches(self.arguments.max_steps)["sentence"]}

    def environment(self, steps: int | None = None) -> dict[str, JSON]:
        """What a run of so many steps, its own by default, records in ``environment.json``."""
        config, path = self.config, getattr(self.config, "masks", None)
        masks = {"masks": {"set": str(path), "sha256": weights_sha256(path / MASKS)}} if path else {}
        others = masks | ({"answers": self.answers.data} if self.answers else {})
        return describe(self.device) | {
            "dtype": config.dtype,
            "start": {"path": self.loaded.source, "sha256": self.loaded.sha256},
            "attention": getattr(self.loaded.model.config, "_attn_implementation", None),
            "data": {k: {"set": s.name, "examples": len(s), "sha256": s.sha256} for k, s in self.sets.items()} | others,
            "prompts": prompts_of(config, self.loaded.tokenizer),
            "batch": self.batches(steps),
            "parameters": layout_to_json(self.layout),
        }


@overload
def prepare(config: LocalizeConfig) -> LocalizationSetup: ...
@overload
def prepare(config: Asked) -> TrainingSetup[Asked]: ...
def prepare(config: LocalizeConfig | TrainConfig) -> LocalizationSetup | TrainingSetup[TrainConfig]:
    """Read and encode a configuration's sets, each once, for the outline of its model; no weight is loaded."""
    find_device(config.device)
    answers = None
    if isinstance(config, UnlearnConfig):
        check_shards(config)
        answers = answers_of(config)
    loaded = load_outline(config, config.model)
    if isinstance(config, LocalizeConfig):
        read_mask(config, loaded)
        return LocalizationSetup(config, loaded, localization_examples(config, loaded))
    if config.lora:
        loaded.model = add_lora(loaded.model, config.lora, config.seed)
    read_mask(config, loaded)
    triples = _sets_of(config)
    sets = {spec: read_set(config, spec) for spec in dict.fromkeys(spec for _, spec, _ in triples)}
    encoded = {spec: encode(config, loaded, examples) for spec, examples in sets.items()}
    by_key = {key: encoded[spec] for _, spec, key in triples}
    return TrainingSetup(config, loaded, by_key, {key: sets[spec] for _, spec, key in triples}, answers)


def _sets_of(config: TrainConfig) -> list[tuple[str, str, str]]:
    """(role, split or number; set; key in a `Setup`) of a configuration, in the order printed."""
    if isinstance(config, FinetuneConfig):
        pairs = map(bare_or_named, config.train)
        return [(f"train {i}" if i else "train", spec, name) for i, (name, spec) in enumerate(pairs)]
    return [(name, spec, name) for name, spec in set_names(config)] if isinstance(config, UnlearnConfig) else []


def read_set(config: TextConfig, spec: str) -> ExampleSet:
    """Load a set with a configuration's columns and data directory."""
    return load_set(spec, config.data_dir, config.question_column, config.answer_column, config.text_column)


def warn_of_rounding(config: TrainConfig) -> None:
    """Warn where a run's steps are lost in its weights' precision."""
    if config.dtype == "bfloat16" and config.learning_rate < VANISHES:
        LOGGER.warning("steps of %g vanish in bfloat16's rounding: use --dtype float32", config.learning_rate)


def encode(
    config: TextConfig, loaded: Loaded, examples: ExampleSet, *, by: Callable[..., list[EncodedExample]] = encode_set
) -> list[EncodedExample]:
    """A set as the model sees it, refused where a token is none of the model's.

    ``by`` is `encode_set` or `encode_examples`, which differ for texts.
    """
    context = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    encoded = by(loaded.tokenizer, examples, config.max_length, context, prompt_of(config))
    check_ids(encoded, vocabulary_size(loaded.model), examples.name, pad_id_of(loaded.tokenizer))
    return encoded


def localization_examples(config: LocalizeConfig, loaded: Loaded) -> dict[str, list[EncodedExample]]:
    """Split → the examples a localization goes over: every domain's, those of its validation part too.

    They are numbered throughout, so that no two share an index, and with it their random labels. It refuses a split of
    a single example, and a validation set of no domain.
    """
    trained, validated = domain_sets(config)
    splits: dict[str, list[EncodedExample]] = {}
    names = [domain.name for domain in trained]
    for other in (each.name for each in validated if each.name not in names):
        message = f"--validation has the domain {other}, which is none of {', '.join(names)}"
        raise GeffectError(message, remedy=f"Add --domain {other}=UNLEARN,RETENTION, or leave that --validation out")
    for domain in (*trained, *validated):
        for name, spec in split_sets(domain):
            splits.setdefault(name, []).extend(encode(config, loaded, read_set(config, spec)))
    for name, examples in splits.items():
        if len(examples) < 2:
            raise GeffectError(f"{name} has 1 example, and needs two", remedy="Name a larger set or a wider slice")
    numbers = itertools.count()
    return {name: [replace(each, index=next(numbers)) for each in examples] for name, examples in splits.items()}


def load_outline(config: TextConfig, spec: str) -> Loaded:
    """A model's shapes without its weights, and the tokenizer it is used with."""
    model, tokenizer = outline(
        spec, trust_remote_code=config.trust_remote_code, tokenizer=config.tokenizer, chat_template=config.chat_template
    )
    return Loaded(model, tokenizer, spec, None)


def prompt_of(config: TextConfig) -> Prompt:
    """The date and the system turn that a configuration gives a chat template."""
    return Prompt(config.template_date, config.system_prompt)


def prompts_of(config: TextConfig, tokenizer: Tokenizer) -> dict[str, JSON]:
    """What determines a prompt, for records and cache keys: chat template, its date, system turn and tokenizer."""
    return prompt_settings(tokenizer, prompt_of(config))


def model_key(config: EvaluateConfig, loaded: Loaded) -> list[JSON] | None:
    """Model, dtype and prompts, which decide numbers beside the examples; None where the weights have no hash.

    The model is given before an adapter is merged into it.
    """
    weights = loaded.fingerprint()
    return None if weights is None else [weights, config.dtype, prompts_of(config, loaded.tokenizer)]


def warn_of_other_prompts(config: TextConfig, loaded: Loaded) -> None:
    """Warn where a run's model or checkpoint is shown other prompts than the run showed it."""
    asked, recorded = prompts_of(config, loaded.tokenizer), recorded_prompts(Path(loaded.source))
    silent = {"date", "system"} if asked["template"] == recorded.get("template") is None else set()
    for name, begun in recorded.items():
        if name not in silent and asked.get(name) != begun:
            both = f": {begun} there, {asked.get(name)} here" if name in ("date", "system") else ""
            LOGGER.warning("%s was trained with another %s%s", loaded.source, PROMPT_NAMES.get(name, name), both)


def answers_of(config: UnlearnConfig) -> Answers | None:
    """The set that an objective's ``answers`` names; None where it names none."""
    name = next(iter(config.objective.answers), None)
    return read_answers(name, partial(read_set, config)) if name else None


def check_shards(config: UnlearnConfig) -> None:
    """Raise where ``--shard`` has a single process."""
    if config.shard and rank_and_size()[1] == 1:
        remedy = "Start it with torchrun --nproc-per-node 2 -m geffect unlearn, or leave --shard out"
        raise GeffectError("--shard needs several processes; there is one", remedy=remedy)


def check_launched(config: UnlearnConfig, sets: Mapping[str, Sequence[EncodedExample]]) -> None:
    """Refuse, with several processes, a diagnostic that takes one, and forget examples that do not divide."""
    size = rank_and_size()[1]
    if size == 1:
        return
    alone = {"--standard-errors": config.standard_errors, "--mode paper": config.mode == "paper"}
    for flag in (flag for flag, asked in alone.items() if asked):
        message = f"{flag} works in one process, and {size} were launched"
        raise GeffectError(message, remedy="Leave it out, or inspect the checkpoints after")
    count, step = max(of_role({name: len(each) for name, each in sets.items()}, "forget")), config.batch_size * size
    if count % step:
        raise GeffectError(
            f"{count} forget examples do not divide by {config.batch_size} examples × {size} processes",
            remedy=f"Slice the set to {count // step * step} examples, or choose another --batch-size",
        )


def read_gradient_mask(config: UnlearnConfig, loaded: Loaded) -> GradientMask | None:
    """The entries that a run's localization, of this very model, freezes; None where its rectifier freezes nothing."""
    freezing = config.rectifier.freezing
    if freezing is None or config.masks is None:
        return None
    check_localized(config.masks, loaded.sha256, _shapes(loaded))
    return freezing.gradient_mask(trainable_parameters(loaded.model), read_localization(config.masks))


def read_mask(config: LocalizeConfig | TrainConfig, loaded: Loaded) -> PackedMasks | None:
    """The entries of ``--truth`` or ``--only-mask``, of the model's trainable parameters; None where none are named."""
    text = getattr(config, "truth", None) or getattr(config, "only_mask", None)
    return read_planted(text, _shapes(loaded)) if text else None


def read_only_mask(config: FinetuneConfig, loaded: Loaded) -> GradientMask | None:
    """What a fine-tuning that trains the entries of a mask alone leaves as it is; None where it trains all."""
    planted = read_mask(config, loaded)
    if planted is None:
        return None
    parameters = trainable_parameters(loaded.model)
    outside = complement(planted, parameters)
    return GradientMask(parameters, outside, outside)


def _shapes(loaded: Loaded) -> dict[str, list[int]]:
    return {name: list(parameter.shape) for name, parameter in trainable_parameters(loaded.model).items()}


def _check_recorded(config: UnlearnConfig, loaded: Loaded) -> None:
    """Refuse to replay a configuration from other weights than it records."""
    expected = (config.reference or {}).get("sha256")
    if expected is not None and expected != loaded.sha256:
        raise GeffectError(
            f"The configuration records a start with weights {expected[:12]}, "
            f"and {config.model} has weights {str(loaded.sha256)[:12]}",
            remedy="Restore that model, or remove 'reference'",
        )
