"""One schema a verb: the YAML file, the command line's flags and the functions of `geffect.api` all read it."""

import contextlib
import datetime
import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from geffect.errors import GeffectError
from geffect.io.readers import Unreadable, read_yaml
from geffect.io.unique import duplicate

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
            f"a path of at most {NAME_BYTES} bytes a name and {PATH_BYTES} in all",
            f"{longest} in a name, {len(full)} in all",
            "shorten it",
        )
    expanded = Path(os.path.expanduser(path))
    return Path(os.path.realpath(expanded)) if ".." in expanded.parts else expanded


Home = Annotated[Path, AfterValidator(place)]
MANY = 10**9  # a count beyond it is a slip of the pen


NO_FLAG: dict[str, Any] = {"flag": False}  # a field that runs write and nobody types
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
    """Unknown keys are errors; values are checked, never silently cut."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)  # --help reads none: a quarter of its time
    NEEDS: ClassVar[tuple[Need, ...]] = ()

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

    @classmethod
    def read(cls, file: Path | str | None = None, /, **given: Any) -> Self:
        """Build a configuration from a YAML file and values that override it.

        Args:
            file: a YAML mapping, such as a run's ``config.yaml``.
            **given: values by field name; they win over the file. A path may stand where a text does.

        Returns:
            The checked configuration.

        Raises:
            GeffectError: the file cannot be read, or a key or value is refused; the first such is named. So is a file
                that asks to run code (`RUNS_CODE`): files are passed on, and only the command itself may ask for that.
        """
        content = _mapping(Path(file)) if file else {}
        try:
            found = cls(**(content | {name: _written(value) for name, value in given.items()}))
            found._refuse_idle()
        except ValidationError as error:
            first = error.errors()[0]
            cause = first.get("ctx", {}).get("error")
            if isinstance(cause, GeffectError):
                raise cause from None
            key = "--" + str(first["loc"][0]).replace("_", "-") if first["loc"] else "the configuration"
            if first["type"] == "missing":
                stands = cls.model_fields[str(first["loc"][0])].json_schema_extra == ARGUMENT
                wanted, place = (key[2:], "after the verb") if stands else (f"a value for {key}", "as a flag")
                raise GeffectError(wanted, "none", f"add it {place} or to the YAML file") from error
            if first["type"] == "extra_forbidden":
                known = ", ".join(cls.model_fields)
                raise GeffectError(f"a key among {known}", repr(first["loc"][0]), "correct the key") from error
            if first["type"] == "twice":
                value = f"{duplicate(map(str, first['input']))!r} twice"
                name = str(first["loc"][0])
                shown = name if cls.model_fields[name].json_schema_extra == ARGUMENT else key
                raise GeffectError(f"each value of {shown} once", value, "leave one of them out") from error
            wanted = "a path" if first["type"] == "path_type" else first["msg"].lower()
            raise GeffectError(f"{key}: {wanted}", repr(first["input"]), "correct it") from error
        for name in (name for name in RUNS_CODE if getattr(found, name, None) and name not in given):
            flag, what = "--" + name.replace("_", "-"), f"{name}: {content[name]} in {file}"
            raise GeffectError(
                f"{flag} beside a file that asks to run code",
                what,
                f"add {flag} to the command if you trust that code, else delete the line",
            )
        return found

    def _refuse_idle(self) -> None:
        """A setting that changes nothing, given the others, is a slip."""
        for name, other, values in self.NEEDS:
            default, its = type(self).model_fields[name].get_default(call_default_factory=True), getattr(self, other)
            if getattr(self, name) != default and not (its in values if values else its):
                flag, wanted = (f"--{each.replace('_', '-')}" for each in (name, other))
                wanted = f"{wanted} {' or '.join(values)}".strip()
                raise GeffectError(
                    f"{wanted} beside {flag}, which does nothing without it",
                    str(its or "none"),
                    f"add {wanted}, or leave {flag} out",
                )


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


def _written(value: Any) -> Any:
    """A path, or each of a list, as the shell would have it: text."""
    if isinstance(value, list | tuple):
        return [_written(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _mapping(file: Path) -> dict[str, Any]:
    try:
        content = read_yaml(file)
    except Unreadable as error:
        raise GeffectError(f"a readable YAML file at {file}", str(error), "correct the path or the file") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise GeffectError(f"names with values in {file}", type(content).__name__, "write one 'name: value' a line")
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


Day = Annotated[datetime.date, BeforeValidator(_day)]


class TextConfig(Schema):
    """How sets are read, and how they become tokens."""

    template_date: Day = Field(
        datetime.date(2025, 4, 10), description="the date that a chat template takes for today's, or today"
    )
    system_prompt: str | None = Field(
        None, description="the system turn of a chat template, where a conversation has none of its own"
    )
    chat_template: str | None = Field(
        None,
        min_length=1,
        description="none, a file, or a name among the tokenizer's several, in place of the tokenizer's own",
    )
    tokenizer: str | None = Field(
        None, min_length=1, description="a model or a directory whose tokenizer takes the place of the model's"
    )
    trust_remote_code: bool = Field(
        False, description="run code that comes with a model; never taken from a file or a run"
    )
    data_dir: Path | None = Field(None, description="where tofu/NAME.json, knowundo, muse and wmdp lie")
    question_column: str = Field("question", description="column of a file that holds the question")
    answer_column: str = Field("answer", description="column of a file that holds the answer")
    text_column: str = Field("text", description="column of a file without questions that holds texts")
    max_length: int = Field(512, ge=2, le=MANY, description="tokens kept of a row, or of a chunk of texts")

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

    model: str = Field(min_length=1, description=MODEL)


class DataConfig(TextConfig, ModelConfig):  # fields stand in the reverse of this order: the model first
    """A model, and the sets it is shown."""


class PreviewConfig(DataConfig):
    """``geffect preview``."""

    data: str = Field(min_length=1, description="the set to show")
    limit: int = Field(4, ge=1, le=MANY, description="rows shown")


class TrainConfig(DataConfig):
    """What fitting and unlearning share."""

    NEEDS: ClassVar[tuple[Need, ...]] = (Need("lora_dropout", "lora"),)
    out: Home = Field(description="the run directory to make; an existing one is refused")
    dtype: Literal["float32", "bfloat16", "float64"] = Field(
        "float32", description="of the weights (LoRA on bfloat16 stays float32)"
    )
    lora: int = Field(0, ge=0, le=MANY, description="rank of a fresh LoRA adapter; 0 trains all weights")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="on a fresh adapter's inputs, where dropout is kept")
    seed: int = Field(0, ge=0, lt=2**32, description="of the order of rows and the adapter's start")
    batch_size: int = Field(
        4,
        ge=1,
        le=MANY,
        description="rows of a micro-batch (unlearn: forget rows, of each domain; as many retain rows go beside)",
    )
    grad_accum_steps: int = Field(1, ge=1, le=MANY, description="micro-batches an optimizer step")
    learning_rate: float = Field(1e-5, ge=0, allow_inf_nan=False, description="peak learning rate")
    optimizer: str = Field("adamw_torch", description="any of Hugging Face's optimizers")
    schedule: str = Field("constant", description="any of Hugging Face's learning-rate schedules")
    warmup_steps: int = Field(0, ge=0, le=MANY, description="optimizer steps of linear warm-up")
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False, description="of the optimizer")
    max_grad_norm: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="clip the gradient's norm, after rectifying; 0 never clips"
    )
    keep_dropout: bool = Field(False, description="train with the model's dropout; risks are measured without")
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, more time")
    autocast: Literal["none", "bfloat16"] = Field("none", description="compute in it, with the weights in --dtype")
    save_every: int = Field(
        0, ge=0, le=MANY, description="optimizer steps between checkpoints; 0 keeps the last state only"
    )
    report_to: list[str] = Field(default_factory=list, description="trackers known to Hugging Face's Trainer")

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


Row = Literal["objective", "forget", "retain", "retain_average", "masked", "rectified"]

Role = Literal["forget", "retain", "general", "heldout", "forget_val", "retain_val"]

Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
DOMAIN = "a domain, NAME=UNLEARN,RETENTION or NAME=SOURCE (knowundo:privacy, builtin:domains/privacy); repeat it"
VALIDATION = "a domain's validation sets, NAME=UNLEARN,RETENTION; repeat it; a SOURCE has its own"


class LocalizeConfig(DataConfig):
    """``geffect localize``."""

    NEEDS = (Need("draws", "labels", ("random", "corrupted")),)
    out: Home = Field(description="the directory to make; an existing one is refused")
    domain: list[str] = Field(min_length=1, description=DOMAIN)
    validation: list[str] = Field(default_factory=list, description=VALIDATION + "; its rows are used too")
    share: list[Share] = Field(
        default_factory=lambda: [0.1, 0.2],
        min_length=1,
        max_length=100,
        description="of a tensor's entries in a mask; repeat it",
    )
    importance: Literal["mean_abs", "mean_square", "zscore"] = Field(
        "mean_abs", description="of an entry: mean |g|, mean g², or |z| of the signed mean (the official code)"
    )
    labels: Literal["random", "true", "corrupted"] = Field(
        "random", description="of the gradients: the answer's redrawn, true, or inputs corrupted (the official code)"
    )
    draws: int = Field(3, ge=1, le=1000, description="of labels, averaged")
    masks_only: bool = Field(
        False, description="leave out the splits' mean gradients, which memflex needs: less time and memory"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of the draws")
    dtype: Literal["float32", "bfloat16", "float64"] = Field("float32", description="of the weights")


class InspectConfig(TextConfig):
    """``geffect inspect``."""

    checkpoints: list[str] = Field(min_length=1, description="what is inspected, in order", json_schema_extra=ARGUMENT)
    out: Home = Field(description="the record to make (with several objectives, one below it each)")
    start: str | None = Field(
        None, min_length=1, description=f"the model before unlearning: step 0, and NPO's reference: {MODEL}"
    )
    forget: str | None = Field(None, min_length=1, description="the set that was to go")
    retain: str | None = Field(None, min_length=1, description="the set that was to stay")
    heldout: str | None = Field(None, min_length=1, description="a further set to evaluate, in no gradient")
    general: str | None = Field(None, min_length=1, description="a further set for gd, kl and rr (on=general)")
    objective: list[str] = Field(
        default_factory=list, description="whose gradient is measured at every checkpoint; repeat it"
    )
    batch_size: int = Field(8, ge=1, le=MANY, description="rows of each set at a time")
    one_pass: bool = Field(False, description="leave out standard errors over batches: half the time, less memory")
    overlap: float = Field(0.0, ge=0, le=1, description="share of a row's largest entries whose overlaps are recorded")
    mode: Literal["exact", "paper"] = Field("exact", description="paper: the published script's estimates too")
    tokens: int = Field(
        0, ge=0, le=MANY, description="rows of each set, those the objective harms most, whose tokens are told apart"
    )
    points: list[str] = Field(
        default_factory=list,
        description="record every forget row's own effects (PG), and this objective's weight on it; repeat it",
    )
    skip_broken: bool = Field(False, description="leave out checkpoints that cannot be read, and say which")
    lora: int = Field(0, ge=0, le=MANY, description="rank of the fresh adapter that the start carried")
    dtype: Literal["float32", "bfloat16", "float64"] = Field("float32", description="of the weights")
    seed: int = Field(0, ge=0, lt=2**32, description="of retain draws (--mode paper) and of the adapter's start")

    @field_validator("checkpoints", "objective", "points", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value  # as a record holds its own


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
    checkpoints: bool = Field(False, description="every checkpoint of the run directory --model, not its last alone")
    suite: Literal["builtin", "tofu", "knowundo"] | None = Field(None, description="sets and metrics of a benchmark")
    split: str = Field("forget01", min_length=1, description="the forget set of the tofu suite")
    domain: list[str] = Field(
        default_factory=lambda: ["privacy=knowundo:privacy"], description="of the knowundo suite: " + DOMAIN
    )
    metric: list[str] = Field(default_factory=list, description="a metric, taken on every --set; repeat it")
    set: list[str] = Field(
        default_factory=list, description="NAME=SET to take --metric on (forget, holdout, …); repeat it"
    )
    reference: Path | None = Field(
        None, description="the evaluation of a model that never saw the forget set, for forget_quality and privleak"
    )
    limit: int = Field(0, ge=0, le=MANY, description="rows of each set, its first; 0: all")
    task: list[str] = Field(
        default_factory=list, description="a task of lm-evaluation-harness (mmlu, arc_easy, wmdp_bio, …); repeat it"
    )
    task_dir: Path | None = Field(
        None, description="a directory with such tasks of your own, whose code runs; not read from a file"
    )
    shots: str | None = Field(
        None, min_length=1, description="the set whose first ten rows precede knowmem's questions"
    )
    rounded: bool = Field(False, description="evaluate the weights rounded to 8 bits, too")
    calibrate: str | None = Field(
        None,
        min_length=1,
        description="the start, mixed in until --tau of what it extracts on the heldout (else retain) set is kept",
    )
    tau: float = Field(0.95, gt=0, le=1, allow_inf_nan=False, description="share kept, for --calibrate")
    relearn: int = Field(0, ge=0, le=MANY, description="evaluate after so many steps of fit on the forget set, too")
    relearn_rate: float = Field(1e-5, gt=0, allow_inf_nan=False, description="learning rate, for --relearn")
    batch_size: int = Field(16, ge=1, le=MANY, description="rows at a time; it does not change a result")
    max_new_tokens: int = Field(200, ge=1, le=MANY, description="of an answer the model writes itself")
    confidence: float = Field(0.95, gt=0, lt=1, allow_inf_nan=False, description="of the bootstrap intervals")
    seed: int = Field(0, ge=0, lt=2**32, description="of the bootstrap")
    dtype: Literal["float32", "bfloat16", "float64"] = Field("float32", description="of the weights")


class ReportConfig(Schema):
    """``geffect report``."""

    runs: list[Path] = Field(min_length=1, description="run directories", json_schema_extra=ARGUMENT)
    out: Home | None = Field(None, description="the page to write; of one run its report.html by default")
    scheme: Literal["thirds", "paper", "paper_script"] = Field("thirds", description="how layers make groups")

    @property
    def page(self) -> Path:
        """The file to write.

        Raises:
            GeffectError: several runs, and no file is named.
        """
        if self.out is None and len(self.runs) > 1:
            raise GeffectError("a value for --out", f"none for {len(self.runs)} runs", "name the page to write")
        return self.out or self.runs[0] / "report.html"


class UnlearnConfig(TrainConfig):
    """``geffect unlearn``."""

    NEEDS = (*TrainConfig.NEEDS, Need("balance", "domain"))
    forget: str | None = Field(None, min_length=1, description="the set to unlearn")
    retain: str | None = Field(None, min_length=1, description="the set to preserve; gradients are drawn from it")
    domain: list[str] = Field(default_factory=list, description="in place of --forget and --retain: " + DOMAIN)
    validation: list[str] = Field(default_factory=list, description=VALIDATION)
    balance: Literal["refuse", "cut", "repeat"] = Field(
        "refuse", description="of a domain's sets of different sizes: cut to the smaller (the paper's), or repeat rows"
    )
    masks: Path | None = Field(None, description="a directory of geffect localize, for grail and memflex")
    heldout: str | None = Field(None, min_length=1, description="a set to preserve that no gradient is drawn from")
    general: str | None = Field(None, min_length=1, description="a further set for gd, kl and rr (on=general)")
    objective: str = Field("ga", description="what is descended, as in 'npo(beta=0.1) + 1.0*gd'")
    rectifier: str = Field("none", description="what its gradient becomes, as in 'gru(decay=0.2)'")
    steps: int = Field(25, ge=1, le=MANY, description="optimizer steps")
    until_accuracy: float = Field(
        0.0,
        ge=0,
        le=1,
        description="stop after an evaluation with the forget set's token accuracy below this; 0: never",
    )
    stop: str = Field(
        "",
        description="rules that end the run and choose its checkpoint, as in 'kept(share=0.9) + knee + collapse', "
        "or 'forgotten(risk=3)'",
    )
    diagnose_every: int = Field(1, ge=1, le=MANY, description="optimizer steps between two Grams of all rows")
    evaluate_every: int = Field(5, ge=1, le=MANY, description="optimizer steps between evaluations of the sets")
    evaluate: list[Role] = Field(
        default_factory=list, description="a set to evaluate; repeat it; all where none is named"
    )
    overlap: float = Field(0.0, ge=0, le=1, description="share of a row's largest entries whose overlaps are recorded")
    prediction: int = Field(
        0, ge=0, le=MANY, description="probe rows of each set whose risk's change is predicted and measured"
    )
    standard_errors: bool = Field(False, description="go over each window's micro-batches again for standard errors")
    shard: bool = Field(
        False, description="leave each launched process a part of weights, gradients and optimizer state (FSDP2)"
    )
    save_rows: list[Row] = Field(default_factory=list, description="a row to write as safetensors; repeat it")
    mode: Literal["exact", "paper"] = Field("exact", description="paper: the published script's estimates too")
    reference: dict[str, str | None] | None = Field(
        None, description="the start's directory and hash, as a run resolved them", json_schema_extra=NO_FLAG
    )

    @classmethod
    def read(cls, file: Path | str | None = None, /, **given: Any) -> Self:
        """As `Schema.read`; what is unlearned is named by ``domain``, or by ``forget`` and ``retain``."""
        found = super().read(file, **given)
        for name in ("forget", "retain"):
            if bool(found.domain) == bool(getattr(found, name)):
                both = f"--domain and --{name}" if found.domain else "none"
                remedy = "name domains alone" if found.domain else "add it as a flag or to the YAML file, or --domain"
                raise GeffectError(f"a value for --{name}", both, remedy)
        return found


class DoctorConfig(UnlearnConfig):
    """``geffect doctor``: the configuration of the run it looks at."""

    out: Home = Field(Path("runs/unlearn"), description="the run directory; not written to")


class FinetuneConfig(TrainConfig):
    """``geffect finetune``."""

    train: list[str] = Field(min_length=1, description="a set to learn; repeat it for several")
    epochs: int = Field(6, ge=1, le=MANY, description="passes over the rows at most")
    steps: int = Field(
        0, ge=0, le=MANY, description="optimizer steps at most, in place of --epochs; 0: as --epochs say"
    )
    until_accuracy: float = Field(
        1.1, ge=0, description="stop once every set has this token accuracy, checked after each epoch; above 1: never"
    )
    learning_rate: float = Field(1e-4, ge=0, allow_inf_nan=False, description="peak learning rate")
    batch_size: int = Field(8, ge=1, le=MANY, description="rows of a micro-batch")
