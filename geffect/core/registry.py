"""Registries: classes by name, built from texts such as ``0.5*npo(beta=0.1) + 1.0*gd``, and the built-in names."""

import ast
import functools
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Annotated, Any, NamedTuple, TypeVar, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from geffect.errors import GeffectError, shorten, unknown_name

Value = float | int | str | bool | None
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]  # of something, and not none of it
WORDS = {"none": None, "true": True, "false": False}  # of a parameter that takes no text
Item = TypeVar("Item")
Class = TypeVar("Class", bound=type[Any])


@dataclass(frozen=True)
class Call:
    """One term of a text: a weight, a name in lower case, and its named parameters."""

    name: str
    parameters: dict[str, Value] = field(default_factory=dict)
    weight: float = 1.0


def parse(text: str) -> list[Call]:
    """The terms ``NAME``, ``NAME(parameter=value, …)`` or ``NUMBER*TERM`` of a sum, as written; refuse another form.

    >>> parse("NPO(beta=0.1) + 2*gd")  # doctest: +NORMALIZE_WHITESPACE
    [Call(name='npo', parameters={'beta': 0.1}, weight=1.0), Call(name='gd', parameters={}, weight=2.0)]
    """
    try:
        return _sum(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise GeffectError(
            f"{shorten(repr(text))} is no sum of names with parameters, such as 'npo(beta=0.1) + 1.0*gd'",
            remedy="Write names, numbers, *, + and named parameters only, a set's name in quotes",
        ) from error


def _sum(node: ast.expr) -> list[Call]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _sum(node.left) + _sum(node.right)
    return [_term(node)]


def _term(node: ast.expr) -> Call:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        inner = _term(node.right)
        return Call(inner.name, inner.parameters, _weight(node.left) * inner.weight)
    if isinstance(node, ast.Name):
        return Call(node.id.lower())
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
        names = [str(keyword.arg) for keyword in node.keywords]
        if len(set(names)) < len(names) or "None" in names:
            raise ValueError("each parameter is named once")
        return Call(node.func.id.lower(), {str(k.arg): _value(k.value) for k in node.keywords})
    raise ValueError(f"not a term: {ast.unparse(node)}")


def _value(node: ast.expr) -> Value:
    """A literal, or a bare name for text: ``on=general``."""
    value: Value = node.id if isinstance(node, ast.Name) else ast.literal_eval(node)
    return value


def _weight(node: ast.expr) -> float:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return _weight(node.left) * _weight(node.right)  # Python reads 2*0.5*ga from the left
    weight: float = ast.literal_eval(node)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise ValueError(f"a weight is a number, not {weight!r}")
    return weight


class Configurable:
    """The base of frozen dataclasses that texts name: a field's value must fit its annotation.

    An annotation is ``float``, ``int``, ``str``, ``bool``, a ``Literal`` or one of these or ``None``, with bounds as
    pydantic's ``Field`` gives them, so that Python code and a text are refused alike. Infinities and NaN are refused.

    Raises:
        GeffectError: a value does not fit.
    """

    def __post_init__(self) -> None:
        for name, annotation in annotations(type(self)).items():
            check_value(type(self).__name__, name, getattr(self, name), annotation)


def annotations(cls: Any) -> dict[str, Any]:
    """A dataclass's fields → their annotations, resolved."""
    hints = get_type_hints(cls, include_extras=True)
    return {each.name: hints[each.name] for each in fields(cls)}


_adapter = functools.cache(TypeAdapter[Any])


def check_value(owner: str, name: str, value: object, annotation: Any) -> None:
    """Raise GeffectError unless a value is of an annotation's type and within its bounds, without conversion."""
    wanted = [] if not isinstance(value, float) or math.isfinite(value) else ["a finite number"]
    if not wanted:
        try:
            _adapter(annotation).validate_python(value, strict=True)
        except ValidationError as error:
            wanted = [each["msg"].removeprefix("Input should be ") for each in error.errors()]
    if wanted:
        remedy = f"It should be {' or '.join(dict.fromkeys(wanted))}"
        raise GeffectError(f"{name} of {owner} is {shorten(repr(value))}", remedy=remedy)


class Registry(Mapping[str, type[Item]]):
    """Dataclasses by name, in lower case; ``kind`` says in messages what they are, with its article."""

    def __init__(self, kind: str, classes: Mapping[str, type[Item]]) -> None:
        self.kind = kind
        self._classes: dict[str, Any] = dict(classes)

    def __getitem__(self, name: str) -> type[Item]:
        cls: type[Item] = self._classes[name]
        return cls

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._classes))

    def __len__(self) -> int:
        return len(self._classes)

    def register(self, name: str) -> Callable[[Class], Class]:
        """Decorate a frozen dataclass to make it known by a name wherever a text names such things.

        Its fields are the parameters. It derives from `geffect.Term` (`geffect.register_objective`), from
        `geffect.Rectifier` or `geffect.Freezing` (`geffect.register_rectifier`), or from `geffect.Rule`
        (`geffect.register_stop_rule`): ``docs/extending.md``.

        Args:
            name: letters, digits and underscores; upper and lower case are the same.

        Returns:
            The decorator, which returns the class itself.

        Raises:
            GeffectError: the name is taken or no word, or (by the decorator) the class is no dataclass.
        """
        if not name.isidentifier() or name.lower() in self:
            problem = "taken" if name.lower() in self else "no word"
            raise GeffectError(f"The name {name!r} is {problem}", remedy=f"Choose another one for {self.kind}")

        def add(cls: Class) -> Class:
            if not is_dataclass(cls):
                raise GeffectError(
                    f"{cls.__name__} is no dataclass", remedy="Decorate it with @dataclass(frozen=True) first"
                )
            self._classes[name.lower()] = cls
            return cls

        return add

    def build(self, call: Call) -> Item:
        """The instance that a term names; its weight is left to the caller. Unknown names and values are refused."""
        if call.name not in self:
            raise unknown_name(self.kind, call.name, self)
        cls: Any = self[call.name]
        known, values = annotations(cls), {}
        for name, value in call.parameters.items():
            if name not in known:
                have = ", ".join(known) or "none"
                raise GeffectError(f"{call.name} has no parameter {name!r}", remedy=f"It has {have}")
            values[name] = _read_word(value, known[name])
            check_value(call.name, name, values[name], known[name])
        for each in fields(cls):
            if each.name not in values and each.default is each.default_factory is MISSING:
                remedy = f"Write {call.name}({each.name}=…)"
                raise GeffectError(f"{call.name} needs a value of {each.name}", remedy=remedy)
        item: Item = cls(**values)
        return item

    def write(self, item: Item) -> str:
        """The text that builds an equal instance; refuse one whose class is not registered."""
        names = [name for name, cls in self._classes.items() if cls is type(item)]
        if not names:
            remedy = "Register it under a name, so that a run's config.yaml can name it"
            raise GeffectError(f"{type(item).__name__} is not registered as {self.kind}", remedy=remedy)
        instance: Any = item
        values = [(each.name, getattr(instance, each.name), each.default) for each in fields(instance)]
        return f"{names[0]}({', '.join(f'{name}={value!r}' for name, value, default in values if value != default)})"


def _read_word(value: Value, annotation: Any) -> Value:
    """``none``, ``true`` and ``false`` as what they mean, of a parameter that takes no such text."""
    if not isinstance(value, str) or value.lower() not in WORDS:
        return value
    try:
        _adapter(annotation).validate_python(value, strict=True)
    except ValidationError:
        return WORDS[value.lower()]
    return value


class Names(NamedTuple):
    """The built-in names of one registry, so that a misspelled one is refused before torch is imported.

    Attributes:
        kind: of what they name, with its article.
        module: defines the registry; once it is imported, others may have added to it, and it judges a name itself.
        text: every built-in name, between blanks.
        weighed: a setting is a weighted sum of names, not one name.
    """

    kind: str
    module: str
    text: str
    weighed: bool = True

    @property
    def names(self) -> list[str]:
        """Every built-in name."""
        return self.text.split()

    def read(self, setting: str) -> list[str]:
        """The names in a setting."""
        if not self.weighed:
            return [setting]
        return [call.name for call in parse(setting)] if setting else []


OBJECTIVES = Names(
    "an objective",
    "geffect.objectives.registry",
    "adversarial dpo ga gd kl npo po random rmu rr satimp simnpo tnpo wga wtnpo",
)
METRICS = Names(
    "a metric",
    "geffect.evaluation.metrics",
    "loss perplexity mean_perplexity accuracy probability probability_normalized exact_memorization "
    "extraction_strength extraction_strength_floored extraction_strength_generated rouge_l_recall rouge_l_f1 "
    "truth_ratio truth_ratio_geometric log_truth_ratio_geometric forget_truth retain_truth verbmem knowmem "
    "min_k min_k_plus_plus zlib forget_quality privleak "
    "auc_reference auc_loss auc_zlib auc_min_k auc_min_k_plus_plus",
    weighed=False,
)
MODELS = ("builtin:tiny", "builtin:tiny-domains", "builtin:tiny-domains-qwen2")  # each also with -untrained
OF_SETTING = {
    "objective": OBJECTIVES,
    "points": OBJECTIVES,
    "rectifier": Names(
        "a rectifier",
        "geffect.rectifiers.registry",
        "blur disruption gem grail gru hamu memflex ngdiff none pcgrad sago torchjd",
    ),
    "stop": Names("a stop rule", "geffect.stopping", "accuracy collapse forget_loss knee"),
    "suite": Names("a suite", "geffect.evaluation.suites", "builtin tofu knowundo", weighed=False),
    "metric": METRICS,
}


def check_names(setting: str, value: object) -> None:
    """Raise where a setting of a configuration names what no registry can have; other settings pass."""
    registry = OF_SETTING.get(setting)
    if registry is None or registry.module in sys.modules:
        return
    for text in [value] if isinstance(value, str) else value if isinstance(value, list) else []:
        for name in registry.read(text) if isinstance(text, str) else ():
            if name not in registry.names:
                raise unknown_name(registry.kind, name, registry.names)
