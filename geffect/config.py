"""One schema a verb: the YAML file, the command line's flags and the functions of `geffect.api` all read it."""

import contextlib
import datetime
import inspect
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, NamedTuple, Self, TypeVar, overload

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from geffect.core.registry import check_names
from geffect.errors import GeffectError, shorten
from geffect.io.readers import Unreadable, duplicate, read_yaml

if TYPE_CHECKING:
    from geffect.data.domains import Domain
    from geffect.objectives.base import Objective, Term
    from geffect.rectifiers.base import Freezing, Rectifier
    from geffect.rectifiers.registry import Rectification
    from geffect.stopping import Rule, StopRules

PATH_BYTES, NAME_BYTES = 4000, 250  # Linux takes 4095 and 255; something is written below, and beside, what is named
TEXT_LENGTH = 10_000  # characters of a setting


def place(path: Path) -> Path:
    """Where something is to be written.

    Args:
        path: as given; ``~`` is the home directory, as a shell reads it, and ``..`` is followed.

    Returns:
        The path.

    Raises:
        GeffectError: no file system takes it.
    """
    full = os.fsencode(os.path.abspath(path))
    longest = max(map(len, full.split(os.fsencode(os.sep))))
    if longest > NAME_BYTES or len(full) > PATH_BYTES:
        raise GeffectError(
            f"A path has {longest} bytes in a name and {len(full)} in all",
            remedy=f"Shorten it to at most {NAME_BYTES} in a name and {PATH_BYTES} in all",
        )
    expanded = Path(os.path.expanduser(path))
    return Path(os.path.realpath(expanded)) if ".." in expanded.parts else expanded


Value = TypeVar("Value", covariant=True)
Accepted = TypeVar("Accepted", contravariant=True)

if TYPE_CHECKING:

    class Setting(Generic[Value, Accepted]):
        """A field that accepts a text, or what the text names; a type checker reads both sides off this."""

        @overload
        def __get__(self, instance: None, owner: object) -> Self: ...
        @overload
        def __get__(self, instance: object, owner: object) -> Value: ...
        def __get__(self, instance: object, owner: object) -> Any: ...
        def __set__(self, instance: object, value: Accepted) -> None: ...

    Home = Setting[Path, str | os.PathLike[str]]
    OptionalHome = Setting[Path | None, str | os.PathLike[str] | None]
    Day = Setting[datetime.date, str | datetime.date]
    Texts = Setting[list[str], str | Sequence[str | os.PathLike[str]]]
    Name = Setting[str, str | os.PathLike[str]]
    OptionalName = Setting[str | None, str | os.PathLike[str] | None]
    ObjectiveSetting = Setting[Objective, str | Objective | Term]
    Objectives = Setting[list[Objective], str | Objective | Term | Sequence[str | Objective | Term]]
    RectifierSetting = Setting[Rectification, str | Rectification | Rectifier | Freezing]
    StopSetting = Setting[StopRules, str | StopRules | Rule]
    Domains = Setting[list[Domain], Sequence[str | Domain]]
else:  # what a text names is imported once a configuration is built: loading torch takes seconds

    def _objective(value):
        from geffect.objectives.base import Objective, Term
        from geffect.objectives.registry import OBJECTIVES, make_objective

        text = OBJECTIVES.write(value) if isinstance(value, Term) else value
        return _parsed(text, Objective, make_objective, "an objective")

    def _rectifier(value):
        from geffect.rectifiers.base import Freezing, Rectifier
        from geffect.rectifiers.registry import RECTIFIERS, Rectification, make_rectification

        text = RECTIFIERS.write(value) if isinstance(value, Rectifier | Freezing) else value
        return _parsed(text, Rectification, make_rectification, "a rectifier")

    def _stop(value):
        from geffect.stopping import RULES, Rule, StopRules, make_rules

        text = RULES.write(value) if isinstance(value, Rule) else value
        return _parsed(text, StopRules, make_rules, "stop rules")

    def _domains(values):
        from geffect.data.domains import Domain, parse_domains

        if not isinstance(values, list) or not all(isinstance(value, str | Domain) for value in values):
            raise PydanticCustomError("domains", "a valid list of texts")
        return parse_domains(values)

    def _parsed(value, kind, make, name):
        if isinstance(value, str):
            return make(value)
        if not isinstance(value, kind):
            raise PydanticCustomError("parsed", "{name} or its text", {"name": name})
        return value

    def _list(value):
        return [value] if isinstance(value, str) or not isinstance(value, list | dict) else value

    AS_TEXT = PlainSerializer(str)
    AS_TEXTS = PlainSerializer(lambda values: [str(value) for value in values])
    Home = Annotated[Path, AfterValidator(place)]
    OptionalHome = Home | None
    Name, OptionalName = str, str | None
    Texts = Annotated[list[str], BeforeValidator(_list)]
    Day = Annotated[datetime.date, BeforeValidator(lambda value: _day(value))]
    ObjectiveSetting = Annotated[Any, BeforeValidator(_objective), AS_TEXT]
    Objectives = Annotated[list[ObjectiveSetting], BeforeValidator(_list)]
    RectifierSetting = Annotated[Any, BeforeValidator(_rectifier), AS_TEXT]
    StopSetting = Annotated[Any, BeforeValidator(_stop), AS_TEXT]
    Domains = Annotated[list[Any], BeforeValidator(_domains), AS_TEXTS]

# defaults of fields whose accepted type is wider than their own
NONE: Any = None
EMPTY: Any = list
TEMPLATE_DATE: Any = datetime.date(2025, 4, 10)
DOCTOR_OUT: Any = Path("runs/unlearn")
MANY = 10**9  # a larger count is a typing error


NO_FLAG: dict[str, Any] = {"flag": False}  # set by geffect, not a flag
RUNS_CODE = ("trust_remote_code", "task_dir")  # what a file may not ask for on its own
ARGUMENT: dict[str, Any] = {"flag": False, "argument": True}  # a field that stands without a flag


class Need(NamedTuple):
    """A setting that does nothing without another one.

    Attributes:
        name: of the field.
        other: the field it needs.
        values: of the other field, any of which will do; none: any but zero, false and nothing.
    """

    name: str
    other: str
    values: tuple[str, ...] = ()


class Schema(BaseModel):
    """Unknown keys are errors; values are checked, never silently cut. A constructor and a file are refused alike."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)  # --help reads none: a quarter of its time
    NEEDS: ClassVar[tuple[Need, ...]] = ()

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Write every field and its default into the docstring, for ``help()``."""
        head = inspect.cleandoc(cls.__doc__ or "").partition("\n\nAttributes:")[0]
        fields = [
            f"    {name}: {field.description} [{shown_default(field)}]" for name, field in cls.model_fields.items()
        ]
        cls.__doc__ = "\n".join([head, "", "Attributes:", *fields])

    def __init__(self, **settings: Any) -> None:
        for name, value in settings.items():
            check_names(name, value)
        try:
            super().__init__(**{name: _as_text(value) for name, value in settings.items()})
        except ValidationError as error:
            raise _refusal(type(self), error) from error

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and annotation is not bool:
            raise PydanticCustomError("bool", "a number or text")  # pydantic would read 'lora: true' as rank 1
        if value == "" and "Path" in str(annotation):
            raise PydanticCustomError("path", "a path")  # pathlib would read it as the current directory
        _check_texts(value)
        return value

    @field_validator("*")
    @classmethod
    def _no_twins(cls, value: Any) -> Any:
        if isinstance(value, list) and duplicate(map(str, value)) is not None:
            raise PydanticCustomError("twice", "each value once")
        return value

    @model_validator(mode="after")
    def _no_idle(self) -> Self:
        """Refuse a setting that changes nothing, given the others."""
        for name, other, values in self.NEEDS:
            default, needed = type(self).model_fields[name].get_default(call_default_factory=True), getattr(self, other)
            if _texts(getattr(self, name)) != _texts(default) and not (needed in values if values else needed):
                flag, wanted = _flag(name), f"{_flag(other)} {' or '.join(values)}".strip()
                raise GeffectError(
                    f"{flag} does nothing without {wanted}, which is {needed or 'none'}",
                    remedy=f"Add {wanted}, or leave {flag} out",
                )
        return self

    @classmethod
    def read(cls, file: Path | str | None = None, /, **settings: Any) -> Self:
        """Build a configuration from a YAML file and values that override it.

        Args:
            file: a YAML mapping, such as a run's ``config.yaml``.
            **settings: values by field name; they win over the file. A path may stand where a text does.

        Returns:
            The checked configuration.

        Raises:
            GeffectError: the file cannot be read, or a key or value is refused; the first such is named. So is a file
                that asks to run code (`RUNS_CODE`): files are passed on, and only the command itself may ask for that.
        """
        content = _mapping(Path(file)) if file else {}
        config = cls(**(content | settings))
        for name in (name for name in RUNS_CODE if getattr(config, name, None) and name not in settings):
            raise GeffectError(
                f"{file} asks to run code ({name}: {content[name]}), which a file alone may not",
                remedy=f"Add {_flag(name)} to the command if you trust that code, else delete the line",
            )
        return config

    def replace(self, **settings: Any) -> Self:
        """The same configuration with other values, checked (`model_copy` checks nothing)."""
        return type(self)(**({name: getattr(self, name) for name in self.model_fields_set} | settings))


def _refusal(schema: type[Schema], error: ValidationError) -> GeffectError:
    """The first thing that pydantic refused, as a sentence."""
    first = error.errors()[0]
    cause, name = first.get("ctx", {}).get("error"), str(first["loc"][0]) if first["loc"] else "the configuration"
    if isinstance(cause, GeffectError):
        return cause
    if first["type"] == "extra_forbidden":
        return GeffectError(f"There is no key {name!r}", remedy=f"Use one of {', '.join(schema.model_fields)}")
    stands = name in schema.model_fields and schema.model_fields[name].json_schema_extra == ARGUMENT
    shown = name if stands or name not in schema.model_fields else _flag(name)
    if first["type"] == "missing":
        where = "after the verb" if stands else "as a flag"
        return GeffectError(f"{shown} has no value", remedy=f"Add it {where} or to the YAML file")
    if first["type"] == "twice":
        twice = duplicate(map(str, first["input"]))
        return GeffectError(f"{shown} names {twice!r} twice", remedy="Leave one of them out")
    wanted = "a path" if first["type"] == "path_type" else first["msg"]
    should = re.sub("^(Input|String|List|Value) should ", "It should ", wanted)
    return GeffectError(
        f"{shown} is {shorten(repr(first['input']))}",
        remedy=should if should.startswith("It ") else f"It should be {wanted}",
    )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def shown_default(field: FieldInfo) -> str:
    """A field's default as help shows it."""
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    return f"default: {'none' if default in (None, '', []) else default}"


def _texts(value: Any) -> Any:
    return [str(each) for each in value] if isinstance(value, list) else value


def _check_texts(value: Any) -> None:
    """Raise where a text cannot be written to a file or handed to the system."""
    if isinstance(value, str):
        if "\0" in value or len(value) > TEXT_LENGTH or any("\ud800" <= each <= "\udfff" for each in value):
            told = f"at most {TEXT_LENGTH} characters of UTF-8 without NUL"
            raise PydanticCustomError("text", "{told}", {"told": told})
    elif isinstance(value, list | tuple | dict):
        for each in value:
            _check_texts(each)
        _check_texts(list(value.values()) if isinstance(value, dict) else None)


def _as_text(value: Any) -> Any:
    """A path, or each of a list, as the shell would have it: text."""
    if isinstance(value, list | tuple):
        return [_as_text(each) for each in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _mapping(file: Path) -> dict[str, Any]:
    try:
        content = read_yaml(file)
    except Unreadable as error:
        raise GeffectError(
            f"{file} is no readable YAML file: {error}", remedy="Correct the path or the file"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        kind = type(content).__name__
        raise GeffectError(f"{file} holds no names with values but a {kind}", remedy="Write one 'name: value' a line")
    return content


def _day(value: Any) -> Any:
    """A date, as YYYY-MM-DD or 10 Apr 2025; ``today`` becomes the date it is, so that a record does not move."""
    if value == "today":
        return datetime.date.today()
    if type(value) is datetime.date:  # as YAML reads one
        return value
    for form in ("%Y-%m-%d", "%d %b %Y"):
        with contextlib.suppress(ValueError, TypeError):
            return datetime.datetime.strptime(value, form).date()
    raise PydanticCustomError("date", "a date as YYYY-MM-DD, or today")


class TextConfig(Schema):
    """How sets are read, and how they become tokens."""

    template_date: Day = Field(
        default=TEMPLATE_DATE, description="date that a chat template takes for today's: YYYY-MM-DD, or today"
    )
    system_prompt: str | None = Field(
        default=None, description="system turn of a chat template, for conversations without one"
    )
    chat_template: OptionalName = Field(
        default=NONE,
        min_length=1,
        description="chat template in place of the tokenizer's own: none, a file or a name of the tokenizer's several",
    )
    tokenizer: OptionalName = Field(
        default=NONE, min_length=1, description="model or directory whose tokenizer replaces the model's own"
    )
    trust_remote_code: bool = Field(
        default=False, description="run code that comes with a model; never taken from a file or a run"
    )
    data_dir: Path | None = Field(
        default=None, description="directory that holds tofu/NAME.json, knowundo, muse and wmdp"
    )
    question_column: str = Field(default="question", description="column of a file that holds the question")
    answer_column: str = Field(default="answer", description="column of a file that holds the answer")
    text_column: str = Field(default="text", description="column of a file without questions that holds texts")
    max_length: int = Field(
        default=512, ge=2, le=MANY, description="tokens of an example, or of a chunk of texts, at most"
    )

    @field_validator("system_prompt")
    @classmethod
    def _characters(cls, value: str | None) -> str | None:
        if value is not None and any("\ud800" <= each <= "\udfff" for each in value):
            raise PydanticCustomError("characters", "text without halves of characters")
        return value


MODEL = (
    "builtin:tiny (or -domains; each also -untrained), smollm2, gguf:FILE, a hub id (ORG/NAME or ORG/NAME@REVISION), "
    "or a directory of a model, adapter or run"
)


class ModelConfig(Schema):
    """What is read, trained or measured."""

    model: Name = Field(min_length=1, description=MODEL)


class DataConfig(TextConfig, ModelConfig):  # fields stand in the reverse of this order: the model first
    """A model, and the sets it is shown."""


class PreviewConfig(DataConfig):
    """``geffect preview``."""

    data: Name = Field(min_length=1, description="the set to show")
    limit: int = Field(default=4, ge=1, le=MANY, description="examples shown")


class TrainConfig(DataConfig):
    """What fitting and unlearning share."""

    NEEDS: ClassVar[tuple[Need, ...]] = (Need("lora_dropout", "lora"),)
    out: Home = Field(description="the run directory to make; an existing one is refused")
    dtype: Literal["float32", "bfloat16", "float64"] = Field(
        default="float32", description="dtype of the weights (LoRA on bfloat16 stays float32)"
    )
    lora: int = Field(default=0, ge=0, le=MANY, description="rank of a fresh LoRA adapter; 0 trains all weights")
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="on a fresh adapter's inputs, with --keep-dropout")
    seed: int = Field(default=0, ge=0, lt=2**32, description="of the order of examples and the adapter's start")
    batch_size: int = Field(
        default=4,
        ge=1,
        le=MANY,
        description="examples of a micro-batch (unlearn: of each forget set, and as many retain examples)",
    )
    grad_accum_steps: int = Field(default=1, ge=1, le=MANY, description="micro-batches in an optimizer step")
    learning_rate: float = Field(default=1e-5, ge=0, allow_inf_nan=False, description="peak learning rate")
    optimizer: str = Field(default="adamw_torch", description="any of Hugging Face's optimizers")
    schedule: str = Field(default="constant", description="any of Hugging Face's learning-rate schedules")
    warmup_steps: int = Field(default=0, ge=0, le=MANY, description="optimizer steps of linear warm-up")
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="weight decay of the optimizer")
    max_grad_norm: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="clip the gradient to this norm, after rectifying; 0: never"
    )
    keep_dropout: bool = Field(default=False, description="train with the model's dropout; losses are measured without")
    gradient_checkpointing: bool = Field(default=False, description="recompute activations: less memory, more time")
    autocast: Literal["none", "bfloat16"] = Field(
        default="none", description="dtype of the computation, with the weights in --dtype"
    )
    save_every: int = Field(
        default=0, ge=0, le=MANY, description="optimizer steps between checkpoints; 0: the last state only"
    )
    report_to: Texts = Field(
        default_factory=EMPTY, description="a tracker that Hugging Face's Trainer knows; repeat it"
    )

    @property
    def autocasts(self) -> bool:
        """Whether losses are computed in bfloat16 whatever the weights' dtype."""
        return self.autocast == "bfloat16"

    @field_validator("optimizer", "schedule")
    @classmethod
    def _known(cls, value: str, info: ValidationInfo) -> str:
        from transformers import SchedulerType
        from transformers.training_args import OptimizerNames

        known = [str(each.value) for each in (OptimizerNames if info.field_name == "optimizer" else SchedulerType)]
        if value not in known:
            raise PydanticCustomError("unknown", f"one of {', '.join(known)}")
        return value


Gradient = Literal["objective", "forget", "retain", "retain_average", "masked", "rectified"]

Role = Literal["forget", "retain", "general", "heldout", "forget_val", "retain_val"]

Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
DOMAIN = "a domain, NAME=UNLEARN,RETENTION or NAME=SOURCE (knowundo:privacy, builtin:domains/privacy); repeat it"
VALIDATION = "a domain's validation sets, NAME=UNLEARN,RETENTION; repeat it; a SOURCE has its own"


class LocalizeConfig(DataConfig):
    """``geffect localize``."""

    NEEDS = (Need("draws", "labels", ("random", "corrupted")),)
    out: Home = Field(description="the directory to make; an existing one is refused")
    domain: Domains = Field(min_length=1, description=DOMAIN)
    validation: Domains = Field(default_factory=EMPTY, description=VALIDATION + "; its examples are used too")
    share: list[Share] = Field(
        default_factory=lambda: [0.1, 0.2],
        min_length=1,
        max_length=100,
        description="share of a tensor's entries in a mask, in (0, 1]; repeat it",
    )
    importance: Literal["mean_abs", "mean_square", "zscore"] = Field(
        default="mean_abs",
        description="importance of an entry: mean abs(g), mean g², or abs(z) of the signed mean (the official code)",
    )
    labels: Literal["random", "true", "corrupted"] = Field(
        default="random",
        description="labels of the losses: redrawn (random), true, or true after corrupted inputs (the official code)",
    )
    draws: int = Field(default=3, ge=1, le=1000, description="number of draws of the labels, which are averaged")
    masks_only: bool = Field(
        default=False, description="leave out the splits' mean gradients, which memflex needs: less time and memory"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of the draws")
    dtype: Literal["float32", "bfloat16", "float64"] = Field(default="float32", description="dtype of the weights")


class InspectConfig(TextConfig):
    """``geffect inspect``."""

    checkpoints: Texts = Field(min_length=1, description="what to inspect, in order", json_schema_extra=ARGUMENT)
    out: Home = Field(description="directory of the record to make (of several objectives, one below it each)")
    start: OptionalName = Field(
        default=NONE, min_length=1, description=f"the model before unlearning: step 0, and NPO's reference: {MODEL}"
    )
    forget: OptionalName = Field(default=NONE, min_length=1, description="the set that was to be forgotten")
    retain: OptionalName = Field(default=NONE, min_length=1, description="the set that was to be retained")
    heldout: OptionalName = Field(default=NONE, min_length=1, description="a set to evaluate that is in no gradient")
    general: OptionalName = Field(
        default=NONE, min_length=1, description="a further set for gd, kl and rr (on=general)"
    )
    objective: Objectives = Field(
        default_factory=EMPTY, description="objective whose gradient is measured at every checkpoint; repeat it"
    )
    batch_size: int = Field(default=8, ge=1, le=MANY, description="examples of each set at a time")
    one_pass: bool = Field(default=False, description="omit standard errors over batches: half the time, less memory")
    overlap: float = Field(
        default=0.0, ge=0, le=1, description="share of a gradient's largest entries whose overlaps are recorded"
    )
    mode: Literal["exact", "paper"] = Field(
        default="exact", description="paper records the published script's estimates, too"
    )
    tokens: int = Field(
        default=0,
        ge=0,
        le=MANY,
        description="examples of each set, those the objective harms most, to record token by token",
    )
    points: Objectives = Field(
        default_factory=EMPTY,
        description="record every forget example's own effects (PG), and this objective's weight on it; repeat it",
    )
    skip_broken: bool = Field(default=False, description="omit checkpoints that cannot be read, with a warning")
    lora: int = Field(
        default=0, ge=0, le=MANY, description="rank of the fresh LoRA adapter that the start carried; 0: none"
    )
    dtype: Literal["float32", "bfloat16", "float64"] = Field(default="float32", description="dtype of the weights")
    seed: int = Field(
        default=0, ge=0, lt=2**32, description="seed of retain draws (--mode paper) and of the adapter's start"
    )


class EvaluateConfig(DataConfig):
    """``geffect evaluate``."""

    NEEDS = (
        Need("split", "suite", ("tofu",)),
        Need("domain", "suite", ("knowundo",)),
        Need("task_dir", "task"),
        Need("tau", "calibrate"),
        Need("relearn_rate", "relearn"),
    )
    out: Home = Field(description="the directory to make; an existing one is refused")
    checkpoints: bool = Field(
        default=False, description="evaluate every checkpoint of the run directory --model, not only its last"
    )
    suite: OptionalName = Field(
        default=NONE,
        min_length=1,
        description="sets and metrics of a benchmark: builtin, tofu, knowundo or a registered one",
    )
    split: str = Field(default="forget01", min_length=1, description="the forget set of the tofu suite")
    domain: Domains = Field(
        default_factory=lambda: ["privacy=knowundo:privacy"],
        validate_default=True,
        description="for the knowundo suite: " + DOMAIN,
    )
    metric: Texts = Field(default_factory=EMPTY, description="a metric to compute on every --set; repeat it")
    set: Texts = Field(
        default_factory=EMPTY, description="NAME=SET to compute --metric on (forget, holdout, …); repeat it"
    )
    reference: Path | None = Field(
        default=None,
        description="the evaluation of a model that never saw the forget set, for forget_quality and privleak",
    )
    limit: int = Field(default=0, ge=0, le=MANY, description="examples of each set, its first; 0: all")
    task: Texts = Field(
        default_factory=EMPTY, description="a task of lm-evaluation-harness (mmlu, arc_easy, wmdp_bio, …); repeat it"
    )
    task_dir: Path | None = Field(
        default=None, description="a directory of your own tasks, whose code runs; never taken from a file"
    )
    shots: OptionalName = Field(
        default=NONE, min_length=1, description="the set whose first ten examples precede knowmem's questions"
    )
    rounded: bool = Field(default=False, description="evaluate the weights rounded to 8 bits, too")
    calibrate: OptionalName = Field(
        default=NONE,
        min_length=1,
        description="the start, mixed in until --tau of what it extracts on the heldout (else retain) set is preserved",
    )
    tau: float = Field(default=0.95, gt=0, le=1, allow_inf_nan=False, description="share preserved, for --calibrate")
    relearn: int = Field(
        default=0,
        ge=0,
        le=MANY,
        description="evaluate after so many steps of finetuning on the forget set, too; 0: none",
    )
    relearn_rate: float = Field(default=1e-5, gt=0, allow_inf_nan=False, description="learning rate, for --relearn")
    batch_size: int = Field(default=16, ge=1, le=MANY, description="examples at a time; it does not change a result")
    max_new_tokens: int = Field(
        default=200, ge=1, le=MANY, description="longest answer that the model writes, in tokens"
    )
    confidence: float = Field(
        default=0.95, gt=0, lt=1, allow_inf_nan=False, description="confidence level of the bootstrap intervals"
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of the bootstrap")
    dtype: Literal["float32", "bfloat16", "float64"] = Field(default="float32", description="dtype of the weights")


class ReportConfig(Schema):
    """``geffect report``."""

    runs: list[Path] = Field(min_length=1, description="run directories", json_schema_extra=ARGUMENT)
    out: OptionalHome = Field(default=NONE, description="the page to write; of one run its report.html by default")
    scheme: Literal["thirds", "paper", "paper_script"] = Field(default="thirds", description="how layers make groups")

    @property
    def page(self) -> Path:
        """The file to write.

        Raises:
            GeffectError: several runs, and no file is named.
        """
        if self.out is None and len(self.runs) > 1:
            raise GeffectError(f"There is no page to write for {len(self.runs)} runs", remedy="Name one with --out")
        return self.out or self.runs[0] / "report.html"


ON_SHARDS = ("adamw_torch", "sgd", "adagrad", "rmsprop")  # whose state is sharded as the parameters are


class UnlearnConfig(TrainConfig):
    """``geffect unlearn``."""

    NEEDS = (*TrainConfig.NEEDS, Need("balance", "domain"))
    forget: OptionalName = Field(default=NONE, min_length=1, description="the set to unlearn")
    retain: OptionalName = Field(
        default=NONE, min_length=1, description="the set to retain; gradients are drawn from it"
    )
    domain: Domains = Field(default_factory=EMPTY, description="in place of --forget and --retain: " + DOMAIN)
    validation: Domains = Field(default_factory=EMPTY, description=VALIDATION)
    balance: Literal["refuse", "cut", "repeat"] = Field(
        default="refuse",
        description="of a domain's sets of different sizes: cut to the smaller (the paper's), or repeat examples",
    )
    masks: Path | None = Field(default=None, description="directory of geffect localize, for grail and memflex")
    heldout: OptionalName = Field(
        default=NONE, min_length=1, description="a set to retain that no gradient is drawn from"
    )
    general: OptionalName = Field(
        default=NONE, min_length=1, description="a further set for gd, kl and rr (on=general)"
    )
    objective: ObjectiveSetting = Field(
        default="ga", validate_default=True, description="what is descended, as in 'npo(beta=0.1) + 1.0*gd'"
    )
    rectifier: RectifierSetting = Field(
        default="none", validate_default=True, description="how its gradient is changed, as in 'gru(decay=0.2)'"
    )
    steps: int = Field(default=25, ge=1, le=MANY, description="optimizer steps")
    until_accuracy: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="stop after an evaluation with the forget set's token accuracy below this; 0: never",
    )
    stop: StopSetting = Field(
        default="",
        validate_default=True,
        description="rules that end the run and choose its checkpoint, as in 'accuracy(share=0.9) + knee + collapse', "
        "or 'forget_loss(level=3)'",
    )
    diagnose_every: int = Field(
        default=1, ge=1, le=MANY, description="optimizer steps between two Grams of all gradients"
    )
    evaluate_every: int = Field(default=5, ge=1, le=MANY, description="optimizer steps between evaluations of the sets")
    evaluate: list[Role] = Field(default_factory=list, description="a set to evaluate; repeat it; all by default")
    overlap: float = Field(
        default=0.0, ge=0, le=1, description="share of a gradient's largest entries whose overlaps are recorded"
    )
    prediction: int = Field(
        default=0, ge=0, le=MANY, description="probe examples of each set whose loss's change is predicted and measured"
    )
    standard_errors: bool = Field(
        default=False, description="compute each step's micro-batches a second time, for standard errors"
    )
    shard: bool = Field(
        default=False, description="shard weights, gradients and optimizer state over the launched processes (FSDP2)"
    )
    save_gradients: list[Gradient] = Field(
        default_factory=list, description="a gradient to write as safetensors; repeat it"
    )
    mode: Literal["exact", "paper"] = Field(
        default="exact", description="paper records the published script's estimates, too"
    )
    reference: dict[str, str | None] | None = Field(
        default=None, description="the start's directory and hash, as a run resolved them", json_schema_extra=NO_FLAG
    )

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        """Refuse a method or a diagnostic that lacks what it needs."""
        from geffect.core.splits import role_of
        from geffect.data.domains import set_names

        for name in ("forget", "retain"):
            if bool(self.domain) == bool(getattr(self, name)):
                told = f"--domain and --{name} name one set twice" if self.domain else f"--{name} has no value"
                remedy = "Name domains alone" if self.domain else "Add it as a flag or to the YAML file, or --domain"
                raise GeffectError(told, remedy=remedy)
        if "general" in self.objective.sets and self.general is None:
            raise GeffectError(f"{self.objective.text!r} needs a set for on=general", remedy="Name one with --general")
        if len(self.objective.answers) > 1:
            answers = " and ".join(name or "the built-in ones" for name in self.objective.answers)
            raise GeffectError(f"{self.objective.text!r} names several answers: {answers}", remedy="Name one set")
        self._check_rectifier()
        self._check_evaluated({role_of(name) for name, _ in set_names(self)})
        if self.standard_errors and self.grad_accum_steps < 2:
            remedy = "Add --grad-accum-steps 4, or leave --standard-errors out"
            raise GeffectError("--standard-errors needs two or more micro-batches a step", remedy=remedy)
        if self.shard and self.optimizer not in ON_SHARDS:
            remedy = f"Choose one of {', '.join(ON_SHARDS)}, or leave --shard out"
            raise GeffectError(f"--shard does not know the optimizer {self.optimizer}", remedy=remedy)
        return self

    def _check_rectifier(self) -> None:
        freezing, memory = self.rectifier.freezing, self.rectifier.rule.memory
        if freezing and self.masks is None:
            remedy = "Make one with geffect localize, and name it with --masks"
            raise GeffectError(f"{self.rectifier.text!r} needs a directory of masks", remedy=remedy)
        if self.masks is not None and not freezing:
            raise GeffectError(f"{self.rectifier.text!r} takes no --masks ({self.masks})", remedy="Leave --masks out")
        recorded = {"retain_average": memory, "masked": freezing, "rectified": memory or freezing}
        for gradient in self.save_gradients:
            if not recorded.get(gradient, True):
                remedy = f"Add --rectifier {'grail' if gradient == 'masked' else 'gru'}"
                raise GeffectError(f"{self.rectifier.text!r} has no gradient {gradient} to save", remedy=remedy)

    def _check_evaluated(self, named: set[str]) -> None:
        absent = [role for role in self.evaluate if role not in named]
        if absent:
            flag = "validation" if absent[0].endswith("_val") else absent[0]
            raise GeffectError(f"--evaluate {absent[0]} names no set of this run", remedy=f"Name one with --{flag}")
        evaluated = set(self.evaluate) or named
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

    out: Home = Field(default=DOCTOR_OUT, description="the run directory; not written to")


class FinetuneConfig(TrainConfig):
    """``geffect finetune``."""

    train: Texts = Field(min_length=1, description="a set to learn; repeat it for several")
    epochs: int = Field(default=6, ge=1, le=MANY, description="passes over the examples at most")
    steps: int = Field(
        default=0, ge=0, le=MANY, description="largest number of optimizer steps, in place of --epochs; 0: by --epochs"
    )
    until_accuracy: float = Field(
        default=1.1,
        ge=0,
        description="stop once every set has this token accuracy, checked after each epoch; above 1: never",
    )
    learning_rate: float = Field(default=1e-4, ge=0, allow_inf_nan=False, description="peak learning rate")
    batch_size: int = Field(default=8, ge=1, le=MANY, description="examples of a micro-batch")
