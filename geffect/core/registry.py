"""Registries: classes by name, built from texts such as ``0.5*npo(beta=0.1) + 1.0*gd``, and the built-in names."""

import ast
import functools
import math
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from geffect.errors import GeffectError, nearest, shorten, spelled, unknown_name

Value = float | int | str | bool | None
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]  # of something, and not none of it
BESIDE = re.compile(r"(?<![\w.])(\d+\.?\d*|\.\d+)(?:\s+|\s*[×·]\s*)(?=[A-Za-z_])")  # a weight beside its term
Metric = Literal["euclidean", "adam"]
WORDS = {"none": None, "true": True, "false": False}  # of a parameter that takes no text
Item = TypeVar("Item")
Class = TypeVar("Class", bound=type[Any])


@dataclass(frozen=True)
class Call:
    """One term of a text: a weight, a name in lower case, its named parameters, and the term that it wraps, if any."""

    name: str
    parameters: dict[str, Value] = field(default_factory=dict)
    weight: float = 1.0
    wrapped: "Call | None" = None

    @property
    def parts(self) -> list["Call"]:
        """Itself, and what it wraps."""
        return [self, *(self.wrapped.parts if self.wrapped else ())]


def parse(text: str) -> list[Call]:
    """The terms of a sum, as written; refuse another form.

    A term is ``NAME``, ``NAME(parameter=value, …)``, ``NAME(TERM, parameter=value, …)``, which wraps a term, or
    ``NUMBER*TERM``, also as tables and papers have it: ``3 GD``, ``3×GD``.

    >>> [(call.weight, call.name, call.parameters) for call in parse("NPO(beta=0.1) + 2*gd")]
    [(1.0, 'npo', {'beta': 0.1}), (2.0, 'gd', {})]
    >>> parse("dual(gd, eps=0.3)")[0].wrapped.name
    'gd'
    """
    return [_term(node) for node in _terms(text)]


def _terms(text: str) -> list[ast.expr]:
    """The terms of a sum, in Python's syntax."""
    try:
        nodes = _sum(ast.parse(_starred(text.strip()), mode="eval").body)
        for node in nodes:
            _term(node)
    except (SyntaxError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise GeffectError(
            f"{shorten(repr(text))} is no sum of names with parameters, such as 'npo(beta=0.1) + 1.0*gd'",
            remedy="Write names, numbers, *, + and named parameters only, a set's name in quotes",
        ) from error
    return nodes


def _starred(text: str) -> str:
    """``3 GD`` and ``3×GD`` as ``3*GD``; a text with quotes stays as it is."""
    return text if {"'", '"'} & {*text} else BESIDE.sub(r"\1*", text)


def expand(call: Call, aliases: Mapping[str, str]) -> list[Call]:
    """The terms that a term stands for, where its name or that of what it wraps is an alias: a name → its text.

    >>> [(each.weight, each.name) for each in expand(parse("2*GradDiff")[0], {"graddiff": "ga + gd"})]
    [(2.0, 'ga'), (2.0, 'gd')]
    """
    inner = expand(call.wrapped, aliases) if call.wrapped else []
    text = aliases.get(call.name)
    terms = parse(text) if text else [call]
    if len(inner) > 1 or (len(terms) > 1 and (call.parameters or inner)):
        name = call.wrapped.name if call.wrapped and len(inner) > 1 else call.name
        raise GeffectError(f"{name} stands for the sum {aliases[name]!r}, not for one term", remedy="Write the sum out")
    wrapped = inner[0] if inner else None
    if not text:
        return [replace(call, wrapped=wrapped)]
    return [
        Call(each.name, each.parameters | call.parameters, each.weight * call.weight, each.wrapped or wrapped)
        for each in terms
    ]


def _sum(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _sum(node.left) + _sum(node.right)
    return [node]


def _term(node: ast.expr) -> Call:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        inner = _term(node.right)
        return replace(inner, weight=_weight(node.left) * inner.weight)
    if isinstance(node, ast.Name):
        return Call(node.id.lower())
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) < 2:
        names = [str(keyword.arg) for keyword in node.keywords]
        if len(set(names)) < len(names) or "None" in names:
            raise ValueError("each parameter is named once")
        parameters = {str(k.arg): _value(k.value) for k in node.keywords}
        return Call(node.func.id.lower(), parameters, wrapped=_term(node.args[0]) if node.args else None)
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
    pydantic's ``Field`` gives them, so that Python code and a text are refused alike. Infinities and NaN are refused. A
    field whose annotation is a subclass of this one is the thing that an instance wraps; there is one at most.

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


def _wrapped_field(cls: Any) -> str | None:
    """The field that holds what an instance wraps; None where it wraps nothing."""
    return next((name for name, annotation in annotations(cls).items() if _wraps(annotation)), None)


def _wraps(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Configurable)


def check_value(owner: str, name: str, value: object, annotation: Any) -> None:
    """Raise GeffectError unless a value is of an annotation's type and within its bounds, without conversion."""
    wanted = [] if not isinstance(value, float) or math.isfinite(value) else ["a finite number"]
    if _wraps(annotation):
        wanted = [] if isinstance(value, annotation) else [f"a {annotation.__name__}"]
    elif not wanted:
        try:
            _adapter(annotation).validate_python(value, strict=True)
        except ValidationError as error:
            wanted = [each["msg"].removeprefix("Input should be ") for each in error.errors()]
    if wanted:
        remedy = f"It should be {' or '.join(dict.fromkeys(wanted))}"
        raise GeffectError(f"{name} of {owner} is {shorten(repr(value))}", remedy=remedy)


class Registry(Mapping[str, type[Item]]):
    """Dataclasses by name, in lower case; ``kind`` says in messages what they are, with its article.

    Attributes:
        aliases: other names → the texts that they stand for (`expand`).
    """

    def __init__(self, kind: str, classes: Mapping[str, type[Item]], aliases: Mapping[str, str] | None = None) -> None:
        self.kind, self.aliases = kind, dict(aliases or {})
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
        is_taken = name.lower() in self or name.lower() in self.aliases
        if not name.isidentifier() or is_taken:
            problem = "taken" if is_taken else "no word"
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
            raise _unknown(self.kind, call.name, [*self, *self.aliases])
        cls: Any = self[call.name]
        known, values = annotations(cls), self._wrapped(cls, call)
        known = {name: annotation for name, annotation in known.items() if name not in values}
        for name, value in call.parameters.items():
            if name not in known:
                raise _no_parameter(call.name, name, known)
            values[name] = _read_word(value, known[name])
            check_value(call.name, name, values[name], known[name])
        for each in fields(cls):
            if each.name not in values and each.default is each.default_factory is MISSING:
                remedy = f"Write {call.name}({each.name}=…)"
                raise GeffectError(f"{call.name} needs a value of {each.name}", remedy=remedy)
        item: Item = cls(**values)
        return item

    def _wrapped(self, cls: Any, call: Call) -> dict[str, Any]:
        """The field that holds what a term wraps, built; empty where the class wraps nothing."""
        name = _wrapped_field(cls)
        if name is None and call.wrapped is not None:
            remedy = f"Write its parameters by name, as in {call.name}(…=…)"
            raise GeffectError(f"{call.name} takes no term such as {call.wrapped.name!r}", remedy=remedy)
        if name is None:
            return {}
        if call.wrapped is None:
            raise GeffectError(f"{call.name} needs a term", remedy=f"Write {call.name}(TERM)")
        if call.wrapped.weight != 1:
            message = f"The term in {call.name}(…) has the weight {call.wrapped.weight:g}"
            raise GeffectError(message, remedy=f"Write the weight before {call.name}")
        return {name: self.build(call.wrapped)}

    def write(self, item: Item) -> str:
        """The text that builds an equal instance; refuse one whose class is not registered."""
        names = [name for name, cls in self._classes.items() if cls is type(item)]
        if not names:
            remedy = "Register it under a name, so that a run's config.yaml can name it"
            raise GeffectError(f"{type(item).__name__} is not registered as {self.kind}", remedy=remedy)
        instance: Any = item
        wrapped = _wrapped_field(type(item))
        texts = [self.write(getattr(instance, wrapped))] if wrapped else []
        values = [(e.name, getattr(instance, e.name), e.default) for e in fields(instance) if e.name != wrapped]
        texts += [f"{name}={value!r}" for name, value, default in values if value != default]
        return f"{names[0]}({', '.join(texts)})"


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
        text: every built-in name, between blanks, its parameters in brackets.
        weighed: a setting is a weighted sum of names, not one name.
        aliases: as of the registry.
    """

    kind: str
    module: str
    text: str
    weighed: bool = True
    aliases: Mapping[str, str] = MappingProxyType({})

    @property
    def names(self) -> list[str]:
        """Every built-in name."""
        return [*self.parameters]

    @property
    def parameters(self) -> dict[str, list[str]]:
        """Built-in name → its parameters."""
        parts = [each.rstrip(")").partition("(") for each in self.text.split()]
        return {name: [*filter(None, own.split(","))] for name, _, own in parts}

    def has(self, name: str) -> bool:
        """Whether a name in lower case is built in."""
        return name in self.names or name in self.aliases

    def read(self, setting: str) -> list[Call]:
        """The terms in a setting, and what they wrap."""
        if not self.weighed:
            return [Call(spelled(setting, self.names))]
        terms = [term for call in parse(setting) for term in expand(call, self.aliases)] if setting else []
        return [part for term in terms for part in term.parts]


ALIASES = {"gradascent": "ga", "graddiff": "ga + gd", "idknll": "po", "idkdpo": "dpo"}  # open-unlearning's names
OBJECTIVES = Names(
    "an objective",
    "geffect.objectives.registry",
    "adversarial(variant) ceu(skip) dpo(beta,variant,answers) dual(eps,eta,start) flat(answers) ga gd(on,variant) "
    "kl(on,variant) npo(beta) pdu po(variant,answers) random(variant) rmu(layer,c,vector,dims,seed) rr(on,layer,dims) "
    "sam(rho) satimp(beta1,beta2) simnpo(beta,gamma) tnpo(beta,epsilon) undial(beta) wga(alpha) "
    "wtnpo(beta,alpha,epsilon)",
    aliases=ALIASES,
)
_ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus")
_GROUPS = ("", "_embed", "_shallow", "_middle", "_deep", "_lm_head", "_shared", "_tied")
_NORMS = tuple(f"gradient_norm{group}" for group in _GROUPS)
METRICS = Names(
    "a metric",
    "geffect.evaluation.metrics",
    "loss perplexity mean_perplexity accuracy probability probability_normalized exact_memorization "
    "extraction_strength extraction_strength_floored extraction_strength_generated rouge_l_recall rouge_l_f1 "
    "truth_ratio truth_ratio_geometric log_truth_ratio_geometric forget_truth retain_truth verbmem knowmem "
    "min_k min_k_plus_plus zlib forget_quality privleak auc_reference unlearning_score choice_accuracy uds "
    "paraphrase_probability paraphrase_rouge_l_recall reworded_probability reworded_rouge_l_recall "
    + " ".join([*_NORMS, *(f"{kind}_{name}" for kind in ("auc", "rel_diff") for name in (*_ATTACKS, *_NORMS))]),
    weighed=False,
)
MODELS = ("builtin:tiny", "builtin:tiny-domains", "builtin:tiny-domains-qwen2")  # each also with -untrained
OF_SETTING = {
    "objective": OBJECTIVES,
    "points": OBJECTIVES,
    "rectifier": Names(
        "a rectifier",
        "geffect.rectifiers.registry",
        "blur(gamma,scope) confine(k) consistent(threshold) disruption gem(memory,space,scope) "
        "grail(k_unlearn,k_retain,reading,sets) gru(decay,cos_clip,add_retain,space,scope,metric) "
        "gu(memory,tolerance,scope) hamu(gain,radius,scope,metric) memflex(mu,sigma,thresholds) ngdiff(scope) none "
        "orthograd(examples,scope) pcgrad(alpha,scope) random(seed,scope) sago(alpha,gamma) torchjd(weighting,scope)",
    ),
    "stop": Names(
        "a stop rule",
        "geffect.stopping",
        "accuracy(share) collapse(share) dear(cost,metric) forget_loss(level) knee(harm)",
    ),
    "suite": Names("a suite", "geffect.evaluation.suites", "builtin tofu knowundo muse wmdp", weighed=False),
    "metric": METRICS,
    "quantize": Names("a quantization", "geffect.evaluation.variants", "nf4(group) int4(group)"),
}


def read_names(setting: str, value: object) -> object:
    """A setting's value with the names of ours in it as they are written here; other settings stay as they are.

    Raises:
        GeffectError: it names what no registry can have. A registry that is there already judges that itself.
    """
    registry = OF_SETTING.get(setting)
    if registry is None:
        return value
    if isinstance(value, list):
        return [read_names(setting, each) for each in value]
    if not isinstance(value, str):
        return value
    known = registry.parameters
    for call in registry.read(value) if registry.module not in sys.modules else ():
        if call.name not in known:
            raise _unknown(registry.kind, call.name, [*known, *registry.aliases], value)
        for name in call.parameters:
            if name not in known[call.name]:
                raise _no_parameter(call.name, name, known[call.name])
    return value if registry.weighed else spelled(value, registry.names)


def _no_parameter(owner: str, name: str, known: Iterable[str]) -> GeffectError:
    known = [*known]
    remedy = f"{nearest(name, known)}It has {', '.join(known) or 'none'}"
    return GeffectError(f"{owner} has no parameter {name!r}", remedy=remedy)


def _unknown(kind: str, name: str, names: list[str], text: str = "") -> GeffectError:
    """The refusal of a name, which may be another flag's; ``text`` is the sum in which it stands."""
    sums = {flag: each for flag, each in OF_SETTING.items() if each.weighed and flag != "points"}
    other = next((flag for flag, each in sums.items() if each.has(name) and each.kind != kind), None)
    if other is None:
        return unknown_name(kind, name, names)
    own = next((flag for flag, each in OF_SETTING.items() if each.kind == kind), other)
    terms = [(_term(node).name, ast.unparse(node)) for node in _terms(text or name)]
    shares = {flag: [term for each, term in terms if OF_SETTING[flag].has(each)] for flag in (own, other)}
    remedy = " ".join(f"--{flag} {shlex.quote(' + '.join(share))}" for flag, share in shares.items() if share)
    return GeffectError(f"{name!r} is not {kind} but {OF_SETTING[other].kind}", remedy=f"Write {remedy}")
