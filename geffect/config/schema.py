"""The mechanism of a schema: what a field accepts, a file and values read into fields, and refusals of one sentence."""

import contextlib
import datetime
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    NamedTuple,
    Self,
    TypeVar,
    get_args,
    get_origin,
    overload,
)

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

from geffect.core.registry import read_names
from geffect.errors import GeffectError, choice, missing_path, nearest, shorten, spelled
from geffect.io.readers import Unreadable, duplicate, read_yaml

if TYPE_CHECKING:
    from geffect.data.domains import Domain
    from geffect.objectives.base import Objective, Term
    from geffect.rectifiers.base import Freezing, Rectifier
    from geffect.rectifiers.registry import Rectification
    from geffect.stopping import Rule, StopRules

DRAFT: ContextVar[bool] = ContextVar("DRAFT", default=False)  # what needs torch stays a text: `Schema.draft`
PATH_BYTES, NAME_BYTES = 4000, 250  # Linux takes 4095 and 255; geffect writes below, and beside, what is named
MODEL_FIELDS = ("model", "start", "retrained", "calibrate", "checkpoints", "tokenizer")
SET_FIELDS = ("forget", "retain", "heldout", "general", "shots", "train", "set", "target", "domain", "validation")
BUILTIN = re.compile(r"(?:^|(?<=[=,]))builtin:[^,\[]*", re.IGNORECASE)  # the name of a set or model of ours
MANY = 10**9  # a larger count is a typing error

Count = Annotated[int, Field(ge=0, le=MANY)]
Positive = Annotated[int, Field(ge=1, le=MANY)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Dtype = Literal["float32", "bfloat16", "float64"]
DEVICE_KINDS = ("auto", "cpu", "cuda", "mps", "xpu", "hpu", "npu", "mlu", "mtia", "musa", "xla", "meta")


def _device(name: str) -> str:
    """A device by its kind and number; a backend of one's own is known once it is registered with torch."""
    kind = re.fullmatch("([a-z_0-9]+)(:[0-9]{1,3})?", name)
    own = sys.modules["torch"]._C._get_privateuse1_backend_name() if "torch" in sys.modules else ""
    if kind is None or kind[1] not in (*DEVICE_KINDS, own):
        raise PydanticCustomError("device", "a device")
    return name


Device = Annotated[str, AfterValidator(_device)]
Mode = Literal["exact", "paper"]
Gradient = Literal["objective", "forget", "retain", "retain_average", "masked", "rectified"]
Role = Literal["forget", "retain", "general", "heldout", "forget_val", "retain_val"]


def place(path: Path) -> Path:
    """The path to write to: ``~`` is the home directory, as a shell reads it, and ``..`` is followed.

    Raises:
        GeffectError: no file system takes it.
    """
    full = os.fsencode(os.path.abspath(path))
    longest = max(map(len, full.split(os.fsencode(os.sep))))
    if longest > NAME_BYTES or len(full) > PATH_BYTES:
        message = f"A path has {longest} bytes in a name and {len(full)} in all"
        raise GeffectError(message, remedy=f"Shorten it to at most {NAME_BYTES} in a name and {PATH_BYTES} in all")
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
    StepNumbers = Setting[str, str | int | Sequence[int]]
    NamedSets = Setting[list[str], str | Sequence[str] | Mapping[str, str | os.PathLike[str]]]
else:  # a setting imports what its text names when it is checked: loading torch takes seconds

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

    def _named_sets(value):
        """Names with sets, as NAME=SET."""
        return [f"{name}={each}" for name, each in value.items()] if isinstance(value, dict) else _list(value)

    def _list(value):
        return [value] if isinstance(value, str) or not isinstance(value, list | dict) else value

    def _day(value):
        """A date, as YYYY-MM-DD or 10 Apr 2025; ``today`` becomes the date it is, so that a record does not move."""
        if value == "today":
            return datetime.date.today()
        if type(value) is datetime.date:  # as YAML reads one
            return value
        for form in ("%Y-%m-%d", "%d %b %Y"):
            with contextlib.suppress(ValueError, TypeError):
                return datetime.datetime.strptime(value, form).date()
        raise PydanticCustomError("date", "a date as YYYY-MM-DD, or today")

    def _steps(value):
        """Numbers of steps that rise, as 0,5,20 or a list, without the 0."""
        numbers = value if isinstance(value, list | tuple) else str(value).split(",")
        texts = [str(each).strip() for each in numbers]
        if texts in ([], [""]):
            return ""
        counts = [int(each) if each.isdecimal() and each.isascii() and len(each) < 10 else -1 for each in texts]
        if min(counts) < 0 or counts != sorted(set(counts)):
            raise PydanticCustomError("steps", "a number of steps, or several that rise, as 0,5,20,100")
        return ",".join(map(str, filter(None, counts)))

    def _unless_draft(check):
        return BeforeValidator(lambda value: value if DRAFT.get() else check(value))

    AS_TEXT = PlainSerializer(str)
    AS_TEXTS = PlainSerializer(lambda values: [str(value) for value in values])
    Home = Annotated[Path, AfterValidator(place)]
    OptionalHome = Home | None
    Name, OptionalName = Annotated[str, Field(min_length=1)], Annotated[str | None, Field(min_length=1)]
    Texts = Annotated[list[str], BeforeValidator(_list)]
    NamedSets = Annotated[list[str], BeforeValidator(_named_sets)]
    StepNumbers = Annotated[str, BeforeValidator(_steps)]
    Day = Annotated[datetime.date, BeforeValidator(_day)]
    ObjectiveSetting = Annotated[Any, _unless_draft(_objective), AS_TEXT]
    Objectives = Annotated[list[ObjectiveSetting], BeforeValidator(_list)]
    RectifierSetting = Annotated[Any, _unless_draft(_rectifier), AS_TEXT]
    StopSetting = Annotated[Any, _unless_draft(_stop), AS_TEXT]
    Domains = Annotated[list[Any], BeforeValidator(_domains), AS_TEXTS]

# defaults of fields whose accepted type is wider than their own
NONE: Any = None
EMPTY: Any = list


TEXT_LENGTH = 10_000  # characters of a setting
MAIN, MODEL, DATA, METHOD = "Main", "Model", "Data", "Objective and rectifier"
TRAINING, MEASURING, OUTPUT, DEVICE = "Training", "Measuring", "Output", "Device"
GROUPS = (MAIN, MODEL, DATA, METHOD, TRAINING, MEASURING, OUTPUT, DEVICE)  # a field's title: its heading in --help
NO_FLAG: dict[str, Any] = {"flag": False}  # set by geffect, not a flag
DEVICES = "auto, cpu, cuda, cuda:1 (a GPU by its number) or mps"
NOT_BY_FILE = {  # what a file may not ask for on its own
    "trust_remote_code": ("run code", "you trust that code"),
    "task_dir": ("run code", "you trust that code"),
    "overwrite": ("overwrite a run", "that run may go"),
}
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
    ALIASES: ClassVar[Mapping[str, str]] = {}  # other words for a field, as flags and keys

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Write every field and its default into the docstring, for ``help()``."""
        head = inspect.cleandoc(cls.__doc__ or "").partition("\n\nAttributes:")[0]
        fields = [
            f"    {name}: {field.description} [{shown_default(field)}]" for name, field in cls.model_fields.items()
        ]
        cls.__doc__ = "\n".join([head, "", "Attributes:", *fields])

    def __init__(self, **settings: object) -> None:
        given = self._named_once(settings)
        try:
            super().__init__(**{name: _as_text(read_names(name, value)) for name, value in given.items()})
        except ValidationError as error:
            raise _refusal(type(self), error) from error

    @classmethod
    def _named_once(cls, settings: Mapping[str, object]) -> dict[str, object]:
        """Settings by their fields' names; refuse two of one field."""
        given: dict[str, object] = {}
        for name, value in settings.items():
            field = cls.ALIASES.get(name, name)
            if field in given:
                words = " and ".join(flag_name(each) for each in settings if cls.ALIASES.get(each, each) == field)
                raise GeffectError(f"{words} are one setting", remedy="Leave one of them out")
            given[field] = value
        return given

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and annotation is not bool:
            raise PydanticCustomError("bool", "a number or text")  # pydantic would read 'lora: true' as rank 1
        if value == "" and "Path" in str(annotation):
            raise PydanticCustomError("path", "a path")  # pathlib would read it as the current directory
        _check_texts(value)
        return _spelled(str(info.field_name), value, words_of(annotation))

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
                flag, wanted = flag_name(name), f"{flag_name(other)} {' or '.join(values)}".strip()
                message = f"{flag} does nothing without {wanted}, which is {needed or 'none'}"
                raise GeffectError(message, remedy=f"Add {wanted}, or leave {flag} out")
        return self

    @classmethod
    def read(cls, file: Path | str | None = None, /, **settings: object) -> Self:
        """Build a configuration from a YAML file and values that override it.

        Args:
            file: a YAML mapping, such as a run's ``config.yaml``.
            **settings: values by field name; they win over the file. A path may stand where a text does.

        Returns:
            The checked configuration.

        Raises:
            GeffectError: the file cannot be read, or a key or value is refused; the first such is named. So is a file
                that asks to run code or to overwrite (`NOT_BY_FILE`): files are passed on, and only the command itself
                may ask for that.
        """
        return cls.combine(read_mapping(Path(file)) if file else {}, settings, file)

    @classmethod
    def draft(cls, settings: Mapping[str, object]) -> Self:
        """The same with every field checked but for those that need torch: objectives, rectifiers and rules as texts.

        The command line refuses a mistake here, before anything heavy is imported.
        """
        token = DRAFT.set(True)
        try:
            return cls(**settings)
        finally:
            DRAFT.reset(token)

    @classmethod
    def combine(cls, content: Mapping[str, object], settings: Mapping[str, object], file: Path | str | None) -> Self:
        """The configuration of a file's content and of values that override it; see `read`."""
        config = cls(**cls._named_once(content) | cls._named_once(settings))
        for name in (name for name in NOT_BY_FILE if getattr(config, name, None) and name not in settings):
            what, condition = NOT_BY_FILE[name]
            raise GeffectError(
                f"{file} asks to {what} ({name}: {content[name]}), which a file alone may not",
                remedy=f"Add {flag_name(name)} to the command if {condition}, else delete the line",
            )
        return config

    def replace(self, **settings: object) -> Self:
        """The same configuration with other values, checked (`model_copy` checks nothing)."""
        return type(self)(**({name: getattr(self, name) for name in self.model_fields_set} | settings))


def _refusal(schema: type[Schema], error: ValidationError) -> GeffectError:
    """The first thing that pydantic refused, as a sentence; an unknown key may be what is missing, misspelled."""
    errors = error.errors()
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    cause, name = first.get("ctx", {}).get("error"), str(first["loc"][0]) if first["loc"] else "the configuration"
    if isinstance(cause, GeffectError):
        return cause
    if first["type"] == "extra_forbidden":
        remedy = choice(nearest(name, schema.model_fields), "Use one of", list(schema.model_fields))
        return GeffectError(f"There is no key {name!r}", remedy=remedy)
    stands = name in schema.model_fields and schema.model_fields[name].json_schema_extra == ARGUMENT
    shown = name if stands or name not in schema.model_fields else flag_name(name)
    if first["type"] == "missing":
        where = "after the verb" if stands else "as a flag"
        return GeffectError(f"{shown} has no value", remedy=f"Add it {where} or to the YAML file")
    if first["type"] == "twice":
        twice = duplicate(map(str, first["input"]))
        return GeffectError(f"{shown} names {twice!r} twice", remedy="Leave one of them out")
    words = words_of(schema.model_fields[name].annotation) if name in schema.model_fields else []
    given = first["input"][-1] if isinstance(first["input"], list) and first["input"] else first["input"]
    hint = nearest(str(given), DEVICE_KINDS if name == "device" else words or first.get("ctx", {}).get("known", ()))
    wanted = "a path" if first["type"] == "path_type" else first["msg"]
    wanted = DEVICES if name == "device" else wanted
    should = re.sub("^(Input|String|List|Value) should ", "It should ", wanted)
    return GeffectError(
        f"{shown} is {shorten(repr(first['input']))}",
        remedy=hint + (should if should.startswith("It ") else f"It should be {wanted}"),
    )


def named_paths(value: Any) -> list[Path]:
    """The paths that a setting may name: a text, NAME=PATH, PATH,PATH, a kind before a colon, rows behind a bracket."""
    texts = [str(each) for each in (value if isinstance(value, list) else [value])] if value else []
    parts = [part for text in texts for part in re.split(r"[=,]", text.partition("[")[0])]
    return [Path(each).expanduser() for part in parts for each in {part, part.rpartition(":")[2]} if each.strip()]


def flag_name(name: str) -> str:
    """The flag of a field."""
    return "--" + name.replace("_", "-")


def has_flag(field: FieldInfo) -> bool:
    """Whether the command line has a flag for a field."""
    return field.json_schema_extra not in (NO_FLAG, ARGUMENT)


def words_of(annotation: Any) -> list[str]:
    """The words that a field, or each of its list, takes one of; none where it takes others, too."""
    kinds = get_args(annotation) if get_origin(annotation) is list else (annotation,)
    return [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]


def shown_default(field: FieldInfo) -> str:
    """A field's default as help shows it."""
    if field.is_required():
        return "required"
    if isinstance(field.json_schema_extra, dict) and "default" in field.json_schema_extra:
        return str(field.json_schema_extra["default"])
    default = field.get_default(call_default_factory=True)
    return f"default: {'none' if default in (None, '', []) else default}"


def _spelled(name: str, value: Any, words: Sequence[str]) -> Any:
    """A value with the names of ours in it as they are written here, in whatever case they were given."""
    if isinstance(value, list):
        return [_spelled(name, each, words) for each in value]
    if not isinstance(value, str):
        return value
    if name == "device":
        return value.lower()
    built_in = name in (*MODEL_FIELDS, *SET_FIELDS)
    return BUILTIN.sub(lambda match: match[0].lower(), value) if built_in else spelled(value, words)


def _texts(value: Any) -> Any:
    return [str(each) for each in value] if isinstance(value, list) else value


def _check_texts(value: Any) -> None:
    """Raise where a text cannot be written to a file or handed to the system."""
    if isinstance(value, str):
        if "\0" in value or len(value) > TEXT_LENGTH or any("\ud800" <= each <= "\udfff" for each in value):
            raise PydanticCustomError("text", f"at most {TEXT_LENGTH} characters of UTF-8 without NUL")
    elif isinstance(value, list | tuple | dict):
        for each in value:
            _check_texts(each)
        _check_texts(list(value.values()) if isinstance(value, dict) else None)


def _as_text(value: Any) -> Any:
    """A path, or each of a list, as the shell would have it: text."""
    if isinstance(value, list | tuple):
        return [_as_text(each) for each in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def names_in_transformers(file: str, enumeration: str) -> list[str]:
    """The values of an enumeration, or keys of a table, of transformers by its source; empty if not found.

    Importing it takes seconds.
    """
    package = importlib.util.find_spec("transformers")
    source = Path(str(package.origin)).parent / file if package else Path(file)
    with contextlib.suppress(OSError, UnicodeError):
        text = source.read_text(encoding="utf-8")
        body = re.search(rf"^(?:class )?{enumeration}\b[^\n]*\n((?:[ \t][^\n]*\n|\n)*)", text, re.MULTILINE)
        return re.findall(r"^    (?:[A-Z0-9_]+ = )?\"([\w.-]+)\"", body[1], re.MULTILINE) if body else []
    return []


def read_mapping(file: Path) -> dict[str, Any]:
    """The names and values in a YAML file."""
    try:
        content = read_yaml(file)
    except Unreadable as error:
        message, remedy = f"{file} is no readable YAML file: {error}", "Correct the path or the file"
        raise GeffectError(message, remedy=remedy if file.exists() else missing_path(file, remedy)) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        kind = type(content).__name__
        raise GeffectError(f"{file} holds no names with values but a {kind}", remedy="Write one 'name: value' a line")
    return content
