"""The one grammar of objectives and rectifiers: ``0.5*npo(beta=0.1) + 1.0*gd``."""

import ast
import math
from dataclasses import dataclass, field, fields
from typing import Any

from geffect.errors import GeffectError

Value = float | int | str | bool
KINDS: dict[Any, str] = {float: "a number", int: "a whole number", str: "a word"}
SHAPE = "names with parameters, such as 'npo(beta=0.1) + 1.0*gd' or 'gru(decay=0.2)'"


@dataclass(frozen=True)
class Call:
    """One term: a weight, a name, and its named parameters."""

    name: str
    parameters: dict[str, Value] = field(default_factory=dict)
    weight: float = 1.0


def parse(text: str) -> list[Call]:
    """Read a weighted sum of named terms.

    Args:
        text: terms joined by ``+``; each is ``NAME``, ``NAME(parameter=value, …)`` or ``NUMBER*TERM``.

    Returns:
        The terms in the order written.

    Raises:
        GeffectError: the text is of another form.

    >>> parse("npo(beta=0.1) + 2*gd")  # doctest: +NORMALIZE_WHITESPACE
    [Call(name='npo', parameters={'beta': 0.1}, weight=1.0), Call(name='gd', parameters={}, weight=2.0)]
    """
    try:
        return _sum(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise GeffectError(
            SHAPE, repr(text), "write names, numbers, *, + and named parameters only, a set's name in quotes"
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
        return Call(node.id)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args:
        names = [str(keyword.arg) for keyword in node.keywords]
        if len(set(names)) < len(names) or "None" in names:
            raise ValueError("each parameter is named once")
        return Call(node.func.id, {str(k.arg): _value(k.value) for k in node.keywords})
    raise ValueError(f"not a term: {ast.unparse(node)}")


def _value(node: ast.expr) -> Value:
    """A literal, or a bare name for text: ``on=general``."""
    value: Value = node.id if isinstance(node, ast.Name) else ast.literal_eval(node)
    return value


def _weight(node: ast.expr) -> float:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return _weight(node.left) * _weight(node.right)  # Python reads 2*0.5*ga from the left
    weight: float = ast.literal_eval(node)
    if not _is_number(weight):
        raise ValueError(f"a weight is a number, not {weight!r}")
    return weight


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def choose(table: dict[str, type[Any]], call: Call, kind: str) -> Any:
    """Build what a term names from a literal table of classes.

    Args:
        table: name → dataclass.
        call: the term; its weight is left to the caller.
        kind: what the table holds, for the message.

    Returns:
        The dataclass with the term's parameters.

    Raises:
        GeffectError: the name or a parameter is unknown, or a parameter's value is refused.
    """
    if call.name not in table:
        raise GeffectError(f"{kind} among {', '.join(sorted(table))}", repr(call.name), "choose one of these")
    cls = table[call.name]
    known = {each.name: each.type for each in fields(cls)}
    unknown = [name for name in call.parameters if name not in known]
    if unknown:
        has = ", ".join(known) or "none"
        raise GeffectError(f"parameters of {call.name} among: {has}", repr(unknown[0]), "correct the name")
    for name, value in call.parameters.items():
        if not _fits(value, known[name]):
            kind = KINDS[known[name]]
            raise GeffectError(f"{kind} for {name} of {call.name}", repr(value), f"give {kind}")
    return cls(**call.parameters)


def _fits(value: object, kind: Any) -> bool:
    if kind is str:
        return isinstance(value, str)
    return _is_number(value) and (kind is float or isinstance(value, int))
