"""One schema a verb: the YAML file, the command line's flags and the functions of `geffect.api` all read it."""

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from geffect.config.presets import preset_settings
from geffect.config.schema import (
    ARGUMENT,
    DATA,
    DEVICE,
    DRAFT,
    EMPTY,
    MAIN,
    MANY,
    MEASURING,
    METHOD,
    MODEL,
    NO_FLAG,
    NONE,
    OUTPUT,
    TRAINING,
    Count,
    Day,
    Device,
    Domains,
    Dtype,
    Fraction,
    Gradient,
    Home,
    Mode,
    Name,
    NamedSets,
    Need,
    Objectives,
    ObjectiveSetting,
    OptionalHome,
    OptionalName,
    Positive,
    Rate,
    RectifierSetting,
    Role,
    Schema,
    Seed,
    Share,
    StepNumbers,
    StopSetting,
    Texts,
    flag_name,
    named_paths,
    names_in_transformers,
)
from geffect.core.groups import Scheme
from geffect.core.lots import control_seeds, planted_lot
from geffect.errors import GeffectError
from geffect.io.readers import duplicate

NAMED_BY = {"optimizer": ("training_args.py", "OptimizerNames"), "schedule": ("trainer_utils.py", "SchedulerType")}
NO_STEPS: Any = ""
TEMPLATE_DATE: Any = datetime.date(2025, 4, 10)
DOCTOR_OUT: Any = Path("runs/unlearn")


def _unknown(known: list[str]) -> PydanticCustomError:
    return PydanticCustomError("unknown", "one of {names}", {"names": ", ".join(known), "known": known})


class TextConfig(Schema):
    """How sets are read, and how they become tokens."""

    template_date: Day = Field(
        default=TEMPLATE_DATE,
        description="date that a chat template takes for today's: YYYY-MM-DD, or today",
        title=DATA,
    )
    system_prompt: str | None = Field(
        default=None, description="system turn of a chat template, for conversations without one", title=DATA
    )
    chat_template: OptionalName = Field(
        default=NONE,
        description="chat template in place of the tokenizer's own: none, a file or a name of the tokenizer's several",
        title=DATA,
    )
    tokenizer: OptionalName = Field(
        default=NONE, description="model or directory whose tokenizer replaces the model's own", title=MODEL
    )
    trust_remote_code: bool = Field(
        default=False, description="run code that comes with a model; never taken from a file or a run", title=MODEL
    )
    data_dir: Path | None = Field(
        default=None, description="directory that holds tofu/NAME.json, knowundo, muse and wmdp", title=DATA
    )
    question_column: str = Field(default="question", description="column of a file that holds the question", title=DATA)
    answer_column: str = Field(default="answer", description="column of a file that holds the answer", title=DATA)
    text_column: str = Field(
        default="text", description="column of a file without questions that holds texts", title=DATA
    )
    max_length: int = Field(
        default=512, ge=2, le=MANY, description="tokens of an example, or of a chunk of texts, at most", title=DATA
    )


MODELS = (
    "builtin:tiny (or -domains; each also -untrained), smollm2, gguf:FILE, a hub id (ORG/NAME or ORG/NAME@REVISION), "
    "open_unlearning:NAME, or a directory of a model, adapter or run"
)


class ModelConfig(Schema):
    """What is read, trained or measured."""

    model: Name = Field(description=MODELS, title=MAIN)


class DataConfig(TextConfig, ModelConfig):  # fields stand in the reverse of this order: the model first
    """A model, and the sets it is shown."""


class DeviceConfig(Schema):
    """Where a model computes, and how much memory that may take."""

    device: Device = Field(
        default="auto",
        description="where the model computes: auto (an accelerator if there is one), cpu, cuda, cuda:1 or mps",
        title=DEVICE,
    )
    deterministic: bool = Field(
        default=False,
        description="use deterministic algorithms alone, and refuse an operation that has none",
        title=DEVICE,
    )
    max_memory: Rate = Field(
        default=0.0,
        description="refuse to start if the memory estimate exceeds so many GB; 0: warn if more than is free",
        title=DEVICE,
    )


class WritingConfig(Schema):
    """What may happen to what stands in ``out`` already."""

    overwrite: bool = Field(
        default=False,
        exclude=True,
        description="replace a run that --out holds, which is removed once the new one begins; never taken from a file",
        title=OUTPUT,
    )

    @model_validator(mode="after")
    def _check_inputs(self) -> Self:
        """Refuse to overwrite what is read."""
        out = getattr(self, "out", None)
        if self.overwrite and out is not None:
            for name in self.model_fields_set - {"out"}:
                for path in named_paths(getattr(self, name)):
                    if path.exists() and path.resolve().is_relative_to(out.resolve()):
                        message = f"--overwrite would remove {path}, which {flag_name(name)} names"
                        raise GeffectError(message, remedy="Choose another --out")
        return self


class PreviewConfig(DataConfig):
    """``geffect preview``."""

    ALIASES: ClassVar[Mapping[str, str]] = {"data": "set"}
    set: Name = Field(description="the set to show, as SET or NAME=SET", title=MAIN)
    limit: Positive = Field(default=4, description="examples shown", title=DATA)


class TrainConfig(WritingConfig, DeviceConfig, DataConfig):
    """What fitting and unlearning share."""

    NEEDS: ClassVar[tuple[Need, ...]] = (Need("lora_dropout", "lora"),)
    out: Home = Field(description="the run directory to make; an existing one is refused", title=MAIN)
    dtype: Dtype = Field(
        default="float32", description="dtype of the weights (LoRA on bfloat16 stays float32)", title=MODEL
    )
    lora: Count = Field(default=0, description="rank of a fresh LoRA adapter; 0 trains all weights", title=MODEL)
    lora_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="dropout on a fresh adapter's inputs; needs --keep-dropout", title=MODEL
    )
    seed: Seed = Field(
        default=0, description="seed of the order of examples and of the adapter's start", title=TRAINING
    )
    batch_size: Positive = Field(
        default=4,
        description="examples of a micro-batch (unlearn: of each forget set, and as many retain examples)",
        title=TRAINING,
    )
    grad_accum_steps: Positive = Field(default=1, description="micro-batches in an optimizer step", title=TRAINING)
    learning_rate: Rate = Field(default=1e-5, description="peak learning rate", title=TRAINING)
    optimizer: str = Field(default="adamw_torch", description="any of Hugging Face's optimizers", title=TRAINING)
    schedule: str = Field(
        default="constant", description="any of Hugging Face's learning-rate schedules", title=TRAINING
    )
    warmup_steps: Count = Field(default=0, description="optimizer steps of linear warm-up", title=TRAINING)
    weight_decay: Rate = Field(default=0.0, description="weight decay of the optimizer", title=TRAINING)
    max_grad_norm: Rate = Field(
        default=0.0, description="clip the gradient to this norm, after rectifying; 0: never", title=TRAINING
    )
    keep_dropout: bool = Field(
        default=False, description="train with the model's dropout; losses are measured without", title=TRAINING
    )
    gradient_checkpointing: bool = Field(
        default=False, description="recompute activations: less memory, more time", title=TRAINING
    )
    autocast: Literal["none", "bfloat16"] = Field(
        default="none", description="dtype of the computation, with the weights in --dtype", title=TRAINING
    )
    save_every: Count = Field(
        default=0, description="optimizer steps between checkpoints; 0: the last state only", title=OUTPUT
    )
    report_to: Texts = Field(
        default_factory=EMPTY,
        description="tensorboard, wandb or another tracker of Hugging Face's Trainer; repeat it",
        title=OUTPUT,
    )

    @property
    def autocasts(self) -> bool:
        """Whether losses are computed in bfloat16 whatever the weights' dtype."""
        return self.autocast == "bfloat16"

    @field_validator("optimizer", "schedule")
    @classmethod
    def _known(cls, value: str, info: ValidationInfo) -> str:
        if DRAFT.get():
            known = names_in_transformers(*NAMED_BY[str(info.field_name)])
            if known and value not in known:
                raise _unknown(known)
            return value
        from transformers import SchedulerType
        from transformers.training_args import OptimizerNames

        known = [str(each.value) for each in (OptimizerNames if info.field_name == "optimizer" else SchedulerType)]
        if value not in known:
            raise _unknown(known)
        return value

    @field_validator("report_to")
    @classmethod
    def _known_trackers(cls, value: list[str]) -> list[str]:
        known = names_in_transformers("integrations/integration_utils.py", "INTEGRATION_TO_CALLBACK")
        if DRAFT.get() and known and not {*value} <= {*known, "all", "none"}:
            raise _unknown([*known, "all", "none"])
        return value


DOMAIN = "a domain, NAME=UNLEARN,RETENTION or NAME=SOURCE (knowundo:privacy, builtin:domains/privacy); repeat it"
VALIDATION = "a domain's validation sets, NAME=UNLEARN,RETENTION; repeat it; a SOURCE has its own"


class LocalizeConfig(WritingConfig, DeviceConfig, DataConfig):
    """``geffect localize``."""

    NEEDS = (Need("draws", "labels", ("random", "corrupted")), Need("mu", "importance", ("wagle",)))
    out: Home = Field(description="the directory to make; an existing one is refused", title=MAIN)
    domain: Domains = Field(min_length=1, description=DOMAIN, title=MAIN)
    validation: Domains = Field(
        default_factory=EMPTY, description=VALIDATION + "; its examples are used too", title=DATA
    )
    share: list[Share] = Field(
        default_factory=lambda: [0.1, 0.2],
        min_length=1,
        max_length=100,
        description="share of a tensor's entries in a mask, in (0, 1]; repeat it",
        title=MEASURING,
    )
    importance: Literal["mean_abs", "mean_square", "zscore", "ratio", "wagle", "random"] = Field(
        default="mean_abs",
        description="importance of an entry: mean abs(g), mean g², abs(z) of the signed mean (the official code), "
        "abs(g_f)/abs(g_r) of both signed means (ratio), abs((θ − g_r/μ)·g_f) (wagle), or drawn by lot (random)",
        title=MEASURING,
    )
    mu: float = Field(
        default=1.0,
        gt=0,
        allow_inf_nan=False,
        description="wagle's μ, the curvature of the retain loss",
        title=MEASURING,
    )
    control: Texts = Field(
        default_factory=EMPTY,
        description="random:SEED or random:FIRST-LAST: masks of the same sizes drawn by lot, to stand beside",
        title=MEASURING,
    )
    truth: OptionalName = Field(
        default=NONE,
        description="the --only-mask that the model was fine-tuned with: print how much of it is found",
        title=MEASURING,
    )
    labels: Literal["random", "true", "corrupted"] = Field(
        default="random",
        description="labels of the losses: redrawn (random), true, or true after corrupted inputs (the official code)",
        title=MEASURING,
    )
    draws: int = Field(
        default=3, ge=1, le=1000, description="number of draws of the labels, which are averaged", title=MEASURING
    )
    masks_only: bool = Field(
        default=False,
        description="leave out the splits' mean gradients, which memflex needs: less time and memory",
        title=MEASURING,
    )
    seed: Seed = Field(default=0, description="seed of the draws", title=MEASURING)
    dtype: Dtype = Field(default="float32", description="dtype of the weights", title=MODEL)

    @model_validator(mode="after")
    def _check_lots(self) -> Self:
        control_seeds(self.control)
        planted_lot(self.truth or "")
        return self


class InspectConfig(WritingConfig, DeviceConfig, TextConfig):
    """``geffect inspect``."""

    ALIASES: ClassVar[Mapping[str, str]] = {"set": "target"}
    checkpoints: Texts = Field(min_length=1, description="what to inspect, in order", json_schema_extra=ARGUMENT)
    out: Home = Field(
        description="directory of the record to make (of several objectives, one below it each)", title=MAIN
    )
    start: OptionalName = Field(
        default=NONE, description=f"the model before unlearning: step 0, and NPO's reference: {MODELS}", title=MODEL
    )
    forget: OptionalName = Field(default=NONE, description="the set that was to be forgotten", title=MAIN)
    retain: OptionalName = Field(default=NONE, description="the set that was to be retained", title=MAIN)
    heldout: OptionalName = Field(default=NONE, description="a set to evaluate that is in no gradient", title=DATA)
    general: OptionalName = Field(default=NONE, description="a further set for gd, kl and rr (on=general)", title=DATA)
    target: NamedSets = Field(
        default_factory=EMPTY,
        description="NAME=SET, a further set to tell the effects on, in nats, and to evaluate; repeat it",
        title=DATA,
    )
    objective: Objectives = Field(
        default_factory=EMPTY,
        description="objective whose gradient is measured at every checkpoint; repeat it",
        title=MAIN,
    )
    batch_size: Positive = Field(default=8, description="examples of each set at a time", title=MEASURING)
    one_pass: bool = Field(
        default=False, description="omit standard errors over batches: half the time, less memory", title=MEASURING
    )
    overlap: Fraction = Field(
        default=0.0, description="share of a gradient's largest entries whose overlaps are recorded", title=MEASURING
    )
    mode: Mode = Field(
        default="exact", description="paper records the published script's estimates, too", title=MEASURING
    )
    tokens: Count = Field(
        default=0,
        description="examples of each set, those the objective harms most, to record token by token",
        title=MEASURING,
    )
    points: Objectives = Field(
        default_factory=EMPTY,
        description="record each forget example's own G-effects (PG-effects), and the weight that this objective gives "
        "it; repeat it",
        title=MEASURING,
    )
    skip_broken: bool = Field(
        default=False, description="omit checkpoints that cannot be read, with a warning", title=OUTPUT
    )
    lora: Count = Field(
        default=0, description="rank of the fresh LoRA adapter that the start carried; 0: none", title=MODEL
    )
    dtype: Dtype = Field(default="float32", description="dtype of the weights", title=MODEL)
    seed: Seed = Field(
        default=0, description="seed of retain draws (--mode paper) and of the adapter's start", title=MEASURING
    )


class EvaluateConfig(WritingConfig, DeviceConfig, DataConfig):
    """``geffect evaluate``."""

    NEEDS = (
        Need("split", "suite", ("tofu",)),
        Need("domain", "suite", ("knowundo",)),
        Need("corpus", "suite", ("muse",)),
        Need("task_dir", "task"),
        Need("tau", "calibrate"),
        Need("relearn_rate", "relearn"),
    )
    ALIASES: ClassVar[Mapping[str, str]] = {"target": "set"}
    out: Home = Field(description="the directory to make; an existing one is refused", title=MAIN)
    checkpoints: bool = Field(
        default=False,
        description="evaluate every checkpoint of the run directory --model, not only its last",
        title=MEASURING,
    )
    suite: OptionalName = Field(
        default=NONE,
        description="sets and metrics of a benchmark: builtin, tofu, knowundo, muse, wmdp or a registered one",
        title=MAIN,
    )
    split: str = Field(default="forget01", min_length=1, description="the forget set of the tofu suite", title=DATA)
    domain: Domains = Field(
        default_factory=lambda: ["privacy=knowundo:privacy"],
        validate_default=True,
        description="for the knowundo suite: " + DOMAIN,
        title=DATA,
    )
    corpus: Literal["news", "books"] = Field(default="news", description="the corpus of the muse suite", title=DATA)
    metric: Texts = Field(
        default_factory=EMPTY,
        description="a metric to compute on every --set, see geffect list metrics; repeat it",
        title=MAIN,
    )
    set: Texts = Field(
        default_factory=EMPTY, description="NAME=SET to compute --metric on (forget, holdout, …); repeat it", title=MAIN
    )
    reference: Path | None = Field(
        default=None,
        description="the evaluation of a model that never saw the forget set, for forget_quality, privleak, rel_diff_* "
        "and unlearning_score",
        title=MEASURING,
    )
    start: OptionalName = Field(default=NONE, description="the model before unlearning, for uds", title=MODEL)
    retrained: OptionalName = Field(
        default=NONE, description="a model that never saw the forget set, for uds", title=MODEL
    )
    limit: Count = Field(default=0, description="examples of each set, its first; 0: all", title=DATA)
    task: Texts = Field(
        default_factory=EMPTY,
        description="a task of lm-evaluation-harness (mmlu, arc_easy, wmdp_bio, …); repeat it",
        title=MEASURING,
    )
    task_dir: Path | None = Field(
        default=None,
        description="a directory of your own tasks, whose code runs; never taken from a file",
        title=MEASURING,
    )
    shots: OptionalName = Field(
        default=NONE, description="the set whose first ten examples precede knowmem's questions", title=DATA
    )
    rounded: bool = Field(default=False, description="evaluate the weights rounded to 8 bits, too", title=MEASURING)
    quantize: Texts = Field(
        default_factory=EMPTY,
        description="evaluate the blocks' weights in 4 bits, too: nf4 or int4, in groups of 64 or as nf4(group=128); "
        "repeat it",
        title=MEASURING,
    )
    calibrate: OptionalName = Field(
        default=NONE,
        description="the start, mixed in until --tau of what it extracts on the heldout (else retain) set is preserved",
        title=MEASURING,
    )
    tau: Share = Field(default=0.95, description="share preserved, for --calibrate", title=MEASURING)
    relearn: StepNumbers = Field(
        default=NO_STEPS,
        description="evaluate after so many steps of finetuning on the forget set, too: a number, or "
        "several that rise, as 0,5,20,100, for a curve; 0: the model as it is",
        title=MEASURING,
    )
    relearn_rate: float = Field(
        default=1e-5, gt=0, allow_inf_nan=False, description="learning rate, for --relearn", title=MEASURING
    )
    batch_size: Count = Field(
        default=0,
        description="examples at a time, at most; it does not change a result; 0: 16 to score, and to generate up to "
        "128, of which 1 GB holds the keys and values",
        title=MEASURING,
    )
    max_new_tokens: Positive = Field(
        default=200, description="longest answer that the model writes, in tokens", title=MEASURING
    )
    confidence: float = Field(
        default=0.95,
        gt=0,
        lt=1,
        allow_inf_nan=False,
        description="confidence level of the bootstrap intervals",
        title=MEASURING,
    )
    seed: Seed = Field(default=0, description="seed of the bootstrap", title=MEASURING)
    dtype: Dtype = Field(default="float32", description="dtype of the weights", title=MODEL)

    @model_validator(mode="after")
    def _check_sets(self) -> Self:
        from geffect.data.domains import named_set

        for text in self.set:
            named_set(text, "--set")
        if not (self.suite or self.set or self.task):
            remedy = "Add --suite builtin, or --metric and --set, or --task"
            raise GeffectError("There is nothing to evaluate: no suite, no set and no task", remedy=remedy)
        return self

    @property
    def relearn_steps(self) -> list[int]:
        """The numbers of steps of relearning, without 0."""
        return [int(each) for each in self.relearn.split(",") if each]


class ReportConfig(Schema):
    """``geffect report``."""

    runs: list[Path] = Field(min_length=1, description="run directories", json_schema_extra=ARGUMENT)
    out: OptionalHome = Field(
        default=NONE, description="the page to write; of one run its report.html by default", title=MAIN
    )
    scheme: Scheme = Field(default="thirds", description="how layers make groups", title=OUTPUT)

    @property
    def page(self) -> Path:
        """The file to write.

        Raises:
            GeffectError: several runs, and no file is named.
        """
        if self.out is None and len(self.runs) > 1:
            raise GeffectError(f"There is no page to write for {len(self.runs)} runs", remedy="Name one with --out")
        return self.out or self.runs[0] / "report.html"


WITHOUT_DOMAIN: dict[str, Any] = {"default": "required without --domain"}
WITH_MOMENTS = ("adamw_torch", "adamw_torch_fused")  # whose state has exp_avg_sq
ON_SHARDS = ("adamw_torch", "sgd", "adagrad", "rmsprop")  # whose state is sharded as the parameters are


class UnlearnConfig(TrainConfig):
    """``geffect unlearn``."""

    NEEDS = (*TrainConfig.NEEDS, Need("balance", "domain"))
    ALIASES: ClassVar[Mapping[str, str]] = {"set": "target"}
    forget: OptionalName = Field(
        default=NONE, description="the set to unlearn", title=MAIN, json_schema_extra=WITHOUT_DOMAIN
    )
    retain: OptionalName = Field(
        default=NONE,
        description="the set to retain; gradients are drawn from it",
        title=MAIN,
        json_schema_extra=WITHOUT_DOMAIN,
    )
    domain: Domains = Field(
        default_factory=EMPTY, description="in place of --forget and --retain: " + DOMAIN, title=DATA
    )
    validation: Domains = Field(default_factory=EMPTY, description=VALIDATION, title=DATA)
    balance: Literal["refuse", "cut", "repeat"] = Field(
        default="refuse",
        description="of a domain's sets of different sizes: cut to the smaller (the paper's), or repeat examples",
        title=DATA,
    )
    masks: Path | None = Field(
        default=None, description="directory of geffect localize, for grail and memflex", title=METHOD
    )
    heldout: OptionalName = Field(
        default=NONE, description="a set to retain that no gradient is drawn from", title=DATA
    )
    general: OptionalName = Field(default=NONE, description="a further set for gd, kl and rr (on=general)", title=DATA)
    target: NamedSets = Field(
        default_factory=EMPTY,
        description="NAME=SET, a further set to tell the effects on, in nats, and to evaluate; repeat it",
        title=DATA,
    )
    objective: ObjectiveSetting = Field(
        default="ga", validate_default=True, description="what is descended, as in 'npo(beta=0.1) + 1.0*gd'", title=MAIN
    )
    preset: OptionalName = Field(
        default=NONE,
        description="a benchmark's published settings, such as open_unlearning:NPO, for what is not given otherwise; "
        "see geffect list presets",
        title=METHOD,
    )
    rectifier: RectifierSetting = Field(
        default="none",
        validate_default=True,
        description="how its gradient is changed, as in 'gru(decay=0.2)'",
        title=MAIN,
    )
    max_rise: Rate | None = Field(
        default=None,
        description="largest measured rise of the loss of a step's own retain examples, in nats a token; a step that "
        "raises it more is halved, six times at most",
        title=METHOD,
    )
    steps: Positive = Field(default=25, description="optimizer steps", title=TRAINING)
    until_accuracy: Fraction = Field(
        default=0.0,
        description="stop after an evaluation with the forget set's token accuracy below this; 0: never",
        title=TRAINING,
    )
    stop: StopSetting = Field(
        default="",
        validate_default=True,
        description="rules that end the run and choose its checkpoint, as in 'accuracy(share=0.9) + knee + collapse', "
        "or 'forget_loss(level=3)'",
        title=TRAINING,
    )
    diagnose_every: Positive = Field(
        default=1, description="optimizer steps between two Grams of all gradients", title=MEASURING
    )
    evaluate_every: Positive = Field(
        default=5, description="optimizer steps between evaluations of the sets", title=MEASURING
    )
    evaluate: list[Role] = Field(
        default_factory=list, description="a set to evaluate; repeat it; all by default", title=MEASURING
    )
    overlap: Fraction = Field(
        default=0.0, description="share of a gradient's largest entries whose overlaps are recorded", title=MEASURING
    )
    prediction: Count = Field(
        default=0,
        description="probe examples of each set whose loss's change is predicted and measured",
        title=MEASURING,
    )
    standard_errors: bool = Field(
        default=False,
        description="compute each step's micro-batches a second time, for standard errors",
        title=MEASURING,
    )
    adam_metric: bool = Field(
        default=False, description="record what the price of forgetting takes in Adam's metric, too", title=MEASURING
    )
    keep_on: Literal["device", "cpu"] = Field(
        default="device",
        description="where gradients, and the weights before a step, are held for --prediction, --standard-errors and "
        "--save-gradients: cpu spares an accelerator's memory, and each travels there and back",
        title=DEVICE,
    )
    shard: bool = Field(
        default=False,
        description="shard weights, gradients and optimizer state over the launched processes (FSDP2)",
        title=DEVICE,
    )
    save_gradients: list[Gradient] = Field(
        default_factory=list, description="a gradient to write as safetensors; repeat it", title=OUTPUT
    )
    mode: Mode = Field(
        default="exact", description="paper records the published script's estimates, too", title=MEASURING
    )
    reference: dict[str, str | None] | None = Field(
        default=None, description="the start's directory and hash, as a run resolved them", json_schema_extra=NO_FLAG
    )

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, settings: Any) -> Any:
        """Take from the preset what is not given."""
        preset = settings.get("preset") if isinstance(settings, dict) else None
        return preset_settings(preset) | settings if isinstance(preset, str) else settings

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        """Refuse a method or a diagnostic that lacks what it needs."""
        self._check_sets()
        if not DRAFT.get():
            self._check_objective()
            self._check_rectifier()
        return self

    def _check_sets(self) -> None:
        from geffect.core.splits import TARGETS, check_target_names, role_of
        from geffect.data.domains import named_sets, target_sets

        used = {role_of(name) for name, _ in named_sets(self)}
        check_target_names([name for name, _ in target_sets(self)], taken={*used, *TARGETS, "alternative"})
        for name in ("forget", "retain"):
            if bool(self.domain) == bool(getattr(self, name)):
                message = f"--domain and --{name} name one set twice" if self.domain else f"--{name} has no value"
                remedy = "Name domains alone" if self.domain else "Add it as a flag or to the YAML file, or --domain"
                raise GeffectError(message, remedy=remedy)
        self._check_evaluated(used)
        if self.standard_errors and self.grad_accum_steps < 2:
            remedy = "Add --grad-accum-steps 4, or leave --standard-errors out"
            raise GeffectError("--standard-errors needs two or more micro-batches a step", remedy=remedy)
        if self.shard and self.optimizer not in ON_SHARDS:
            remedy = f"Choose one of {', '.join(ON_SHARDS)}, or leave --shard out"
            raise GeffectError(f"--shard does not know the optimizer {self.optimizer}", remedy=remedy)

    def _check_objective(self) -> None:
        if "general" in self.objective.sets and self.general is None:
            raise GeffectError(f"{self.objective.text!r} needs a set for on=general", remedy="Name one with --general")
        if len(self.objective.answers) > 1:
            answers = " and ".join(name or "the built-in ones" for name in self.objective.answers)
            raise GeffectError(f"{self.objective.text!r} names several answers: {answers}", remedy="Name one set")

    def _check_rectifier(self) -> None:
        freezing, rule = self.rectifier.freezing, self.rectifier.rule
        if freezing and self.masks is None:
            remedy = "Make one with geffect localize, and name it with --masks"
            raise GeffectError(f"{self.rectifier.text!r} needs a directory of masks", remedy=remedy)
        if self.masks is not None and not freezing:
            raise GeffectError(f"{self.rectifier.text!r} takes no --masks ({self.masks})", remedy="Leave --masks out")
        self._check_rule()
        average, rectifies = "retain_average" in rule.memories, rule.rectifies or freezing
        recorded = {"retain_average": average, "masked": freezing, "rectified": rectifies}
        for gradient in self.save_gradients:
            if not recorded.get(gradient, True):
                remedy = f"Add --rectifier {'grail' if gradient == 'masked' else 'gru'}"
                raise GeffectError(f"{self.rectifier.text!r} has no gradient {gradient} to save", remedy=remedy)

    def _check_rule(self) -> None:
        """Refuse a rule, or a term, that this run cannot give what it reads."""
        rule, text, terms = self.rectifier.rule, self.rectifier.text, self.objective
        if rule.metric == "adam" and self.optimizer not in WITH_MOMENTS:
            message = f"{text!r} reads Adam's second moments, which --optimizer {self.optimizer} has not"
            raise GeffectError(message, remedy=f"Choose one of {', '.join(WITH_MOMENTS)}, or another rectifier")
        if self.adam_metric and self.optimizer not in WITH_MOMENTS:
            message = f"--adam-metric reads Adam's second moments, which --optimizer {self.optimizer} has not"
            raise GeffectError(message, remedy=f"Choose one of {', '.join(WITH_MOMENTS)}, or leave it out")
        dear = [each for each in self.stop.rules.values() if getattr(each, "metric", "") == "adam"]
        if dear and not self.adam_metric:
            message = f"--stop {self.stop.text!r} reads products in Adam's metric"
            raise GeffectError(message, remedy="Add --adam-metric, or leave metric=adam out")
        if len(rule.memories) > self.steps:
            message = f"{text!r} remembers {len(rule.memories)} steps, and this run has {self.steps}"
            raise GeffectError(message, remedy=f"Write memory={self.steps}")
        if rule.by_domain and (len(self.domain) < 2 or not terms.on("forget")):
            message = f"{text!r} compares an objective on the forget sets of several domains, which this run has not"
            raise GeffectError(message, remedy="Name two or more with --domain, and a term such as ga")
        if self.shard and (rule.examples or terms.rho is not None):
            what = "single examples' gradients" if rule.examples else "weights that sam moves during a pass"
            raise GeffectError(f"--shard has no {what}", remedy="Leave --shard out, or choose another method")

    def _check_evaluated(self, roles: set[str]) -> None:
        absent = [role for role in self.evaluate if role not in roles]
        if absent:
            flag = "validation" if absent[0].endswith("_val") else absent[0]
            raise GeffectError(f"--evaluate {absent[0]} names no set of this run", remedy=f"Name one with --{flag}")
        evaluated = set(self.evaluate) or roles
        if self.until_accuracy and "forget" not in evaluated:
            raise GeffectError("--until-accuracy needs the forget set evaluated", remedy="Add --evaluate forget")
        if self.stop and not ("forget" in evaluated and {"retain", "heldout"} & evaluated and not self.domain):
            names = ", ".join(sorted(evaluated))
            raise GeffectError(
                f"--stop needs a forget set and a retain or heldout set evaluated, without domains; there are {names}",
                remedy="Add --evaluate forget --evaluate heldout, or leave --stop out",
            )


class DoctorConfig(UnlearnConfig):
    """``geffect doctor``: the configuration of the run it looks at."""

    out: Home = Field(default=DOCTOR_OUT, description="the run directory; not written to", title=MAIN)
    overwrite: bool = Field(default=False, exclude=True, description="does nothing here", json_schema_extra=NO_FLAG)


class FinetuneConfig(TrainConfig):
    """``geffect finetune``."""

    ALIASES: ClassVar[Mapping[str, str]] = {"set": "train", "data": "train"}
    train: Texts = Field(
        min_length=1, description="a set to learn, as SET or NAME=SET; repeat it for several", title=MAIN
    )
    epochs: Positive = Field(default=6, description="passes over the examples at most", title=TRAINING)
    steps: Count = Field(
        default=0, description="largest number of optimizer steps, in place of --epochs; 0: by --epochs", title=TRAINING
    )
    until_accuracy: float = Field(
        default=1.1,
        ge=0,
        description="stop once every set has this token accuracy, checked after each epoch; above 1: never",
        title=TRAINING,
    )
    only_mask: OptionalName = Field(
        default=NONE,
        description="train only these entries: random:SEED:SHARE of each tensor, or the forget masks in a file of "
        "geffect localize (masks/share-….safetensors)",
        title=MODEL,
    )
    learning_rate: Rate = Field(default=1e-4, description="peak learning rate", title=TRAINING)
    batch_size: Positive = Field(default=8, description="examples of a micro-batch", title=TRAINING)

    @model_validator(mode="after")
    def _check_train(self) -> Self:
        from geffect.data.domains import bare_or_named

        planted_lot(self.only_mask or "")
        if (twice := duplicate(bare_or_named(each)[0] for each in self.train)) is not None:
            raise GeffectError(f"--train names two sets {twice}", remedy="Give each a name of its own")
        return self
