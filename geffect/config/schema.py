"""The mechanism of a schema: fields from a YAML file and from values, checked, and refused in one sentence."""

import inspect
import os
import re
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from geffect.core.names import check_names
from geffect.errors import GeffectError, shorten
from geffect.io.readers import Unreadable, duplicate, read_yaml

TEXT_LENGTH = 10_000  # characters of a setting
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

    def __init__(self, **settings: object) -> None:
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
                flag, wanted = flag_name(name), f"{flag_name(other)} {' or '.join(values)}".strip()
                raise GeffectError(
                    f"{flag} does nothing without {wanted}, which is {needed or 'none'}",
                    remedy=f"Add {wanted}, or leave {flag} out",
                )
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
                that asks to run code (`RUNS_CODE`): files are passed on, and only the command itself may ask for that.
        """
        content = _mapping(Path(file)) if file else {}
        config = cls(**(content | settings))
        for name in (name for name in RUNS_CODE if getattr(config, name, None) and name not in settings):
            raise GeffectError(
                f"{file} asks to run code ({name}: {content[name]}), which a file alone may not",
                remedy=f"Add {flag_name(name)} to the command if you trust that code, else delete the line",
            )
        return config

    def replace(self, **settings: object) -> Self:
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
    shown = name if stands or name not in schema.model_fields else flag_name(name)
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


def flag_name(name: str) -> str:
    """The flag of a field."""
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
