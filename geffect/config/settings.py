"""Types of a configuration's fields: what each accepts, and what it becomes."""

import contextlib
import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, Self, TypeVar, overload

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer
from pydantic_core import PydanticCustomError

from geffect.errors import GeffectError

if TYPE_CHECKING:
    from geffect.data.domains import Domain
    from geffect.objectives.base import Objective, Term
    from geffect.rectifiers.base import Freezing, Rectifier
    from geffect.rectifiers.registry import Rectification
    from geffect.stopping import Rule, StopRules

PATH_BYTES, NAME_BYTES = 4000, 250  # Linux takes 4095 and 255; geffect writes below, and beside, what is named
MANY = 10**9  # a larger count is a typing error

Count = Annotated[int, Field(ge=0, le=MANY)]
Positive = Annotated[int, Field(ge=1, le=MANY)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Dtype = Literal["float32", "bfloat16", "float64"]
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

    AS_TEXT = PlainSerializer(str)
    AS_TEXTS = PlainSerializer(lambda values: [str(value) for value in values])
    Home = Annotated[Path, AfterValidator(place)]
    OptionalHome = Home | None
    Name, OptionalName = Annotated[str, Field(min_length=1)], Annotated[str | None, Field(min_length=1)]
    Texts = Annotated[list[str], BeforeValidator(_list)]
    Day = Annotated[datetime.date, BeforeValidator(_day)]
    ObjectiveSetting = Annotated[Any, BeforeValidator(_objective), AS_TEXT]
    Objectives = Annotated[list[ObjectiveSetting], BeforeValidator(_list)]
    RectifierSetting = Annotated[Any, BeforeValidator(_rectifier), AS_TEXT]
    StopSetting = Annotated[Any, BeforeValidator(_stop), AS_TEXT]
    Domains = Annotated[list[Any], BeforeValidator(_domains), AS_TEXTS]

# defaults of fields whose accepted type is wider than their own
NONE: Any = None
EMPTY: Any = list
