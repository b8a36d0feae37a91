"""What a line of a record, and its environment, may hold: checked whenever one is read, by whichever command."""

import itertools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from geffect.core.layers import layer_groups
from geffect.core.splits import TARGETS, role_of

Table = Mapping[str, Any]
MOST_STEPS, MOST_BLOCKS = 10**9, 10_000
LARGEST = 1e100  # an inner product of float32 gradients is far below it
NEGATIVE = 1e-6  # of a tensor's largest product: what is left where a squared norm cancels
DIRECTIONS = {"objective", "applied_gradient"}  # the latter of a training that was watched


class Lines:
    """Checks the lines of one file in order.

    Args:
        table: ``parameters`` of the run's environment; None where it has none.
        repeats: several lines may have one step.
    """

    def __init__(self, table: Table | None, *, repeats: bool = False) -> None:
        self.table, self.repeats = table, repeats
        self.last, self.tokens = -1, dict[str, list[int]]()

    def check(self, line: Mapping[str, Any]) -> None:
        """Raise where a line is not as geffect writes it.

        Args:
            line: the next one.

        Raises:
            ValueError: what is wrong.
        """
        self._order(line)
        for name, value in line.items():
            if name in CHECKS and value is not None:
                CHECKS[name](value, self.table)
            elif isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} {value}")
        self._evaluation(line)

    def _order(self, line: Mapping[str, Any]) -> None:
        step, shares = line.get("step"), set(line) == {"step", "overlap"}  # one a share, of a localization
        if type(step) is not int or not 0 <= step <= MOST_STEPS:
            raise ValueError(f"{step!r:.50} for a step")
        if step < self.last or (step == self.last and not (self.repeats or shares)):
            raise ValueError(f"step {step} after step {self.last}")
        self.last = step

    def _evaluation(self, line: Mapping[str, Any]) -> None:
        scores, rows = line.get("evaluation") or {}, line.get("evaluation_examples") or {}
        diverged = "diverged" in line
        for name, each in scores.items():
            check(isinstance(each, dict) and "loss" in each, f"{each!r:.50} for the evaluation of {name}")
            _within(f"risk of {name}", each["loss"], -1e-6, math.inf, empty=diverged)
            _within(f"accuracy of {name}", each.get("accuracy", 0), 0, 1, empty=diverged)
        for name, each in rows.items():
            check(name in scores and set(each) - {"right"} == {"nll", "tokens"}, f"the rows of {name}")
            right = each.get("right", [0] * len(each["tokens"]))
            _numbers(right, (int,))
            _numbers(each["nll"], empty=diverged)
            _numbers(each["tokens"], (int,))
            check(
                len(each["nll"]) == len(each["tokens"]), f"{len(each['nll'])} of {len(each['tokens'])} rows of {name}"
            )
            check(min(each["tokens"], default=0) >= 1, f"a row of {name} without tokens")
            within = len(right) == len(each["tokens"]) and all(map(operator.le, right, each["tokens"]))
            check(within and min(right, default=0) >= 0, f"more right tokens than tokens in {name}")
            check(self.tokens.setdefault(name, each["tokens"]) == each["tokens"], f"other rows of {name} than before")


def check(right: bool, wrong: str) -> None:
    """Raise unless something is right.

    Args:
        right: whether it is.
        wrong: what is wrong.

    Raises:
        ValueError: it is not.
    """
    if not right:
        raise ValueError(wrong)


def check_environment(content: Mapping[str, Any]) -> None:
    """Raise where an environment is not as geffect writes it.

    Args:
        content: of ``environment.json``.

    Raises:
        ValueError: what is wrong.
    """
    for name, kind in KINDS.items():
        check(isinstance(content.get(name, kind()), kind), f"{content.get(name)!r:.50} for {name}")
    for name, each in content.get("data", {}).items():
        right = isinstance(each, dict) and isinstance(each.get("sha256"), str)
        check(right, f"{each!r:.50} for the data of {name}")
    for name in ("processes", "rows", "steps"):
        _within(name, content.get("batch", {}).get(name, 1), 0, math.inf)
    if "parameters" in content:
        _check_table(content["parameters"])


def _check_table(table: Table) -> None:
    check({"num_blocks", "names", "layers", "numel"} <= set(table), "a table of parameters that lacks a column")
    blocks, columns = table["num_blocks"], [table[name] for name in ("names", "layers", "numel")]
    check(type(blocks) is int and 0 <= blocks <= MOST_BLOCKS, f"{blocks!r:.50} for num_blocks")
    check(all(isinstance(each, list) for each in columns), "a table of parameters that is no table")
    names, layers, numel = columns
    check(len(names) == len(layers) == len(numel), "a table of parameters whose columns differ in length")
    check({str} >= set(map(type, (*names, *layers))) and len(set(names)) == len(names), "parameters without own names")
    _numbers(numel, (int,))
    check(min(numel, default=0) >= 0, "a parameter of negative size")
    unknown = set(layers) - set(layer_groups(blocks))
    check(not unknown, f"layer {min(unknown, default='')!r:.50} in a model of {blocks} blocks")


def _numbers(values: Any, kinds: tuple[type, ...] = (int, float), *, empty: bool = False) -> None:
    """Raise unless these are finite numbers of one list, or null where that is allowed."""
    allowed = {*kinds, type(None)} if empty else {*kinds}
    check(isinstance(values, list), f"{values!r:.50} for a list of numbers")
    found = set(map(type, values)) - allowed
    check(not found, f"{min(each.__name__ for each in found) if found else ''} where a number belongs")
    largest = max(map(abs, (each for each in values if each is not None)), default=0)
    check(largest <= LARGEST, f"{largest!r:.50} where a number belongs")


def _within(what: str, value: Any, low: float, high: float, *, empty: bool = False) -> None:
    if value is None and empty:
        return
    right = type(value) in (int, float) and low <= value <= high and abs(value) <= LARGEST
    check(right, f"{value!r:.50} for the {what}")


def _rows(part: Any, *keys: str) -> list[str]:
    """The names of a part's gradients."""
    check(isinstance(part, dict) and {"rows", *keys} <= set(part), f"{part!r:.50} where gradients belong")
    rows = part["rows"]
    right = isinstance(rows, list) and {str} >= set(map(type, rows)) and len(set(rows)) == len(rows) > 0
    check(right, f"{rows!r:.50} for the names of gradients")
    found: list[str] = rows
    return found


def _triangles(part: Table, table: Table | None, kinds: tuple[type, ...], *, empty: bool) -> None:
    """Raise unless every parameter has its upper triangle of numbers."""
    values, size = part["values"], len(part["rows"])
    check(isinstance(values, list) and {list} >= set(map(type, values)), "no list of numbers a parameter")
    if table is not None:
        check(len(values) == len(table["names"]), f"{len(values)} of {len(table['names'])} parameters")
    lengths = set(map(len, values)) - {size * (size + 1) // 2}
    check(not lengths, f"{min(lengths, default=0)} products of {size} gradients")
    _numbers(list(itertools.chain.from_iterable(values)), kinds, empty=empty)


def _diagonals(part: Table) -> list[list[Any]]:
    """Every parameter's products of a gradient with itself."""
    size = len(part["rows"])
    places = list(itertools.accumulate(range(size, 1, -1), initial=0))
    return [[each[i] for i in places] for each in part["values"]]


def _gram(part: Any, table: Table | None) -> None:
    rows = _rows(part, "values")
    _triangles(part, table, (int, float), empty=True)  # a product that overflowed is null
    roles = set(map(role_of, rows))
    known = {*TARGETS} <= roles if DIRECTIONS & set(rows) else roles <= {*TARGETS}  # the latter of a localization
    check(known, f"{', '.join(rows):.50} for the names of gradients")
    names = table["names"] if table is not None else [""] * len(part["values"])
    for name, own, each in zip(names, _diagonals(part), part["values"], strict=True):
        least = min((x for x in own if x is not None), default=0)
        most = max((abs(x) for x in each if x is not None), default=0)
        whole = "@" not in name  # parts of a tied tensor are products of different tensors
        check(not whole or least >= -NEGATIVE * most, f"a squared norm of {least:.3g} in {name}")


def _overlap(part: Any, table: Table | None) -> None:
    _rows(part, "share", "values")
    _within("share", part["share"], 0, 1)
    _triangles(part, table, (int,), empty=False)
    check(all(min(each) >= 0 for each in part["values"]), "a negative number of entries")


def _spread(part: Any, _: Table | None) -> None:
    size = len(_rows(part, "labels", "linearized", "halves"))
    pairs, labels = size * (size + 1) // 2, part["labels"]
    check(isinstance(labels, list) and {str} >= set(map(type, labels)), "no labels of a spread")
    check(len(labels) == len(part["halves"]) == len(part["linearized"]), "a spread whose labels differ in number")
    for batches, halves in zip(part["linearized"], part["halves"], strict=True):
        for each in (*batches, halves):
            _numbers(each, empty=True)
            check(len(each) == pairs, f"{len(each)} products of {size} gradients in a spread")


def _prediction(part: Any, _: Table | None) -> None:
    check(isinstance(part, dict), f"{part!r:.50} for a prediction")
    for each in part.values():
        check(isinstance(each, dict) and {"before", "after"} <= set(each), f"{each!r:.50} in a prediction")
        _numbers([value for value in each.values() if not isinstance(value, dict)], empty=True)


def _paper(part: Any, table: Table | None) -> None:
    check(isinstance(part, list), f"{part!r:.50} for the published estimates")
    for each in part:
        check(isinstance(each, dict) and type(each.get("call")) is int and "gram" in each, "no published estimate")
        _gram(each["gram"], table)


def _named(part: Any, _: Table | None) -> None:
    check(isinstance(part, dict), f"{part!r:.50} where names with values belong")


def _rates(part: Any, _: Table | None) -> None:
    _numbers(part if isinstance(part, list) else [part], empty=True)


Check = Callable[[Any, Table | None], None]
CHECKS: Mapping[str, Check] = {
    "gram": _gram,
    "overlap": _overlap,
    "standard_errors": _spread,
    "prediction": _prediction,
    "paper": _paper,
    "evaluation": _named,
    "evaluation_examples": _named,
    "stopped": _named,
    "lr": _rates,
    "seconds": _rates,
}
KINDS: Mapping[str, type[Any]] = {"parameters": dict, "data": dict, "batch": dict, "versions": dict}
