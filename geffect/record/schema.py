"""The files of a run, their format, and what their lines and environment may hold (``docs/record.md``)."""

import itertools
import math
import operator
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geffect.core.splits import TARGETS, role_of
from geffect.errors import GeffectError
from geffect.io.system import rank_and_size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STEPS, TOKENS, POINTS = "steps.jsonl", "tokens.jsonl", "points.jsonl"
ENVIRONMENT, CONFIG, METRICS, DONE = "environment.json", "config.yaml", "metrics.json", "DONE"
EXAMPLES = "examples.csv"  # of an evaluation
MASKS, RECIPE = "masks", "localization.json"  # of a localization
FORMAT = 3  # of every file; a change that an older reader misreads raises it
FORMAT_COMMENT = "# geffect format "  # begins a config.yaml

Table = Mapping[str, Any]
GRAMS = {"euclidean": "gram", "adam": "adam_gram"}  # metric → where a line has its inner products
MOST_STEPS, MOST_BLOCKS = 10**9, 10_000
LARGEST = 1e100  # an inner product of float32 gradients is far below it
NEGATIVE = 1e-6  # of a tensor's largest product: what is left where a squared norm cancels
MONITORED = {"applied_gradient", "weights"}  # either is in every line of another training that is monitored


class LineChecker:
    """Checks the lines of one file in order against the run's table of parameters; ``repeats`` allows equal steps."""

    def __init__(self, table: Table | None, *, repeats: bool = False) -> None:
        self.table, self.repeats = table, repeats
        self.last, self.tokens = -1, dict[str, list[int]]()

    def check(self, line: Mapping[str, Any]) -> None:
        """Raise ValueError where the next line is not as geffect writes it."""
        self._order(line)
        for name, value in line.items():
            if name in CHECKS and value is not None:
                CHECKS[name](value, self.table)
            elif isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} {value}")
        self._evaluation(line)

    def _order(self, line: Mapping[str, Any]) -> None:
        step, shares = line.get("step"), set(line) == {"format", "step", "overlap"}  # one a share, of a localization
        if type(step) is not int or not 0 <= step <= MOST_STEPS:
            raise ValueError(f"{step!r:.50} for a step")
        if step < self.last or (step == self.last and not (self.repeats or shares)):
            raise ValueError(f"step {step} after step {self.last}")
        self.last = step

    def _evaluation(self, line: Mapping[str, Any]) -> None:
        scores, examples = line.get("evaluation") or {}, line.get("evaluation_examples") or {}
        diverged = "diverged" in line
        for name, score in scores.items():
            check(isinstance(score, dict) and "loss" in score, f"{score!r:.50} for the evaluation of {name}")
            _within(f"loss of {name}", score["loss"], -1e-6, math.inf, empty=diverged)
            _within(f"accuracy of {name}", score.get("accuracy", 0), 0, 1, empty=diverged)
        for name, part in examples.items():
            check(name in scores, f"examples of {name}, which has no evaluation")
            self._examples(name, part, diverged=diverged)

    def _examples(self, name: str, part: Any, *, diverged: bool) -> None:
        check(set(part) - {"right"} == {"nll", "tokens"}, f"the examples of {name}")
        nll, tokens, right = part["nll"], part["tokens"], part.get("right", [0] * len(part["tokens"]))
        _numbers(right, (int,))
        _numbers(nll, empty=diverged)
        _numbers(tokens, (int,))
        check(len(nll) == len(tokens), f"{len(nll)} of {len(tokens)} examples of {name}")
        check(min(tokens, default=0) >= 1, f"an example of {name} without tokens")
        within = len(right) == len(tokens) and all(map(operator.le, right, tokens))
        check(within and min(right, default=0) >= 0, f"more right tokens than tokens in {name}")
        check(self.tokens.setdefault(name, tokens) == tokens, f"other examples of {name} than before")


def check(right: bool, wrong: str) -> None:
    """Raise ValueError with what is wrong unless something is right."""
    if not right:
        raise ValueError(wrong)


def check_environment(content: Mapping[str, Any]) -> None:
    """Raise ValueError where the content of ``environment.json`` is not as geffect writes it."""
    for name in ("parameters", "data", "batch", "versions"):
        check(isinstance(content.get(name, {}), dict), f"{content.get(name)!r:.50} for {name}")
    for name, part in content.get("data", {}).items():
        right = isinstance(part, dict) and isinstance(part.get("sha256"), str)
        check(right, f"{part!r:.50} for the data of {name}")
    for name in ("processes", "examples", "steps"):
        _within(name, content.get("batch", {}).get(name, 1), 0, math.inf)
    if "parameters" in content:
        _check_table(content["parameters"])


def _check_table(table: Table) -> None:
    check({"num_blocks", "names", "layers", "numel"} <= set(table), "a table of parameters that lacks a column")
    blocks, columns = table["num_blocks"], [table[name] for name in ("names", "layers", "numel")]
    check(type(blocks) is int and 0 <= blocks <= MOST_BLOCKS, f"{blocks!r:.50} for num_blocks")
    check(all(isinstance(column, list) for column in columns), "a table of parameters that is no table")
    names, layers, numel = columns
    check(len(names) == len(layers) == len(numel), "a table of parameters whose columns differ in length")
    check({str} >= set(map(type, (*names, *layers))) and len(set(names)) == len(names), "parameters without own names")
    _numbers(numel, (int,))
    check(min(numel, default=0) >= 0, "a parameter of negative size")
    from geffect.core.groups import layer_groups  # imports numpy, which a missing run need not wait for

    unknown = set(layers) - set(layer_groups(blocks))
    check(not unknown, f"layer {min(unknown, default='')!r:.50} in a model of {blocks} blocks")


def _numbers(values: Any, kinds: tuple[type, ...] = (int, float), *, empty: bool = False) -> None:
    """Raise unless these are finite numbers of one list, or null where that is allowed."""
    if not isinstance(values, list):  # a message made in vain would take longer than the check
        raise ValueError(f"{values!r:.50} for a list of numbers")
    _types(values, kinds, empty=empty)
    largest = max(map(abs, (value for value in values if value is not None)), default=0)
    check(largest <= LARGEST, f"{largest!r:.50} where a number belongs")


def _types(values: list[Any], kinds: tuple[type, ...], *, empty: bool) -> None:
    allowed = {*kinds, type(None)} if empty else {*kinds}
    wrong = sorted(kind.__name__ for kind in set(map(type, values)) - allowed)
    check(not wrong, f"{''.join(wrong[:1])} where a number belongs")


def _within(what: str, value: Any, low: float, high: float, *, empty: bool = False) -> None:
    if value is None and empty:
        return
    right = type(value) in (int, float) and low <= value <= high and abs(value) <= LARGEST
    check(right, f"{value!r:.50} for the {what}")


def _gradients(part: Any, *keys: str) -> list[str]:
    """The names of a part's gradients."""
    if not (isinstance(part, dict) and {"gradients", *keys} <= set(part)):  # as in `_numbers`
        raise ValueError(f"{part!r:.50} where gradients belong")
    names: list[str] = part["gradients"]
    right = isinstance(names, list) and {str} >= set(map(type, names)) and len(set(names)) == len(names) > 0
    check(right, f"{names!r:.50} for the names of gradients")
    return names


def _triangles(part: Table, table: Table | None, kinds: tuple[type, ...], *, empty: bool) -> "NDArray[np.float64]":
    """The upper triangle of every parameter, ``[P, M (M + 1) / 2]``, NaN for null; raise where one is no such thing."""
    import numpy as np  # here: a refusal imports none

    values, size = part["values"], len(part["gradients"])
    check(isinstance(values, list) and {list} >= set(map(type, values)), "no list of numbers a parameter")
    if table is not None:
        check(len(values) == len(table["names"]), f"{len(values)} of {len(table['names'])} parameters")
    lengths = set(map(len, values)) - {size * (size + 1) // 2}
    check(not lengths, f"{min(lengths, default=0)} products of {size} gradients")
    flat = list(itertools.chain.from_iterable(values))
    _types(flat, kinds, empty=empty)
    try:
        array = np.array(flat, dtype=np.float64).reshape(len(values), size * (size + 1) // 2)
    except OverflowError as error:
        raise ValueError("a whole number of hundreds of digits where a number belongs") from error
    largest = np.fmax.reduce(np.abs(array), axis=None, initial=0)
    check(largest <= LARGEST, f"{largest!r:.50} where a number belongs")
    return array


def _gram(part: Any, table: Table | None) -> None:
    names = _gradients(part, "values")
    values = _triangles(part, table, (int, float), empty=True)  # a product that overflowed is null
    roles = set(map(role_of, names))
    if roles & MONITORED:  # beside any targets
        known = len(roles - MONITORED) > 0
    else:
        known = {*TARGETS} <= roles if "objective" in roles else roles <= {*TARGETS}  # the latter of a localization
    check(known, f"{', '.join(names):.50} for the names of gradients")
    _squares(names, values, table)


def _adam_gram(part: Any, table: Table | None) -> None:
    names = _gradients(part, "values")
    check(names == [*TARGETS, "applied"], f"{', '.join(names):.50} for the gradients in Adam's metric")
    _squares(names, _triangles(part, table, (int, float), empty=True), table)


def _squares(names: list[str], values: "NDArray[np.float64]", table: Table | None) -> None:
    """Raise where a squared norm is negative."""
    import numpy as np

    parameters = table["names"] if table is not None else [""] * len(values)
    diagonal = list(itertools.accumulate(range(len(names), 1, -1), initial=0))  # places of a gradient's own product
    least = np.fmin.reduce(values[:, diagonal], axis=1, initial=0)
    below = least < -NEGATIVE * np.fmax.reduce(np.abs(values), axis=1, initial=0)
    for place in np.flatnonzero(below):
        whole = "@" not in parameters[place]  # parts of a tied tensor are products of different tensors
        check(not whole, f"a squared norm of {least[place]:.3g} in {parameters[place]}")


def _overlap(part: Any, table: Table | None) -> None:
    _gradients(part, "share", "values")
    _within("share", part["share"], 0, 1)
    _triangles(part, table, (int,), empty=False)
    check(all(min(triangle) >= 0 for triangle in part["values"]), "a negative number of entries")


def _standard_errors(part: Any, _: Table | None) -> None:
    size = len(_gradients(part, "labels", "linearized", "halves"))
    pairs, labels = size * (size + 1) // 2, part["labels"]
    check(isinstance(labels, list) and {str} >= set(map(type, labels)), "no labels of standard errors")
    same = len(labels) == len(part["halves"]) == len(part["linearized"])
    check(same, "standard errors whose labels differ in number")
    for batches, halves in zip(part["linearized"], part["halves"], strict=True):
        for products in (*batches, halves):
            _numbers(products, empty=True)
            check(len(products) == pairs, f"{len(products)} products of {size} gradients in standard errors")


def _prediction(part: Any, _: Table | None) -> None:
    check(isinstance(part, dict), f"{part!r:.50} for a prediction")
    for target in part.values():
        check(isinstance(target, dict) and {"before", "after"} <= set(target), f"{target!r:.50} in a prediction")
        _numbers([value for value in target.values() if not isinstance(value, dict)], empty=True)


def _paper(part: Any, table: Table | None) -> None:
    check(isinstance(part, list), f"{part!r:.50} for the published estimates")
    for call in part:
        check(isinstance(call, dict) and type(call.get("call")) is int and "gram" in call, "no published estimate")
        _gram(call["gram"], table)


def _named(part: Any, _: Table | None) -> None:
    check(isinstance(part, dict), f"{part!r:.50} where names with values belong")


def _rates(part: Any, _: Table | None) -> None:
    _numbers(part if isinstance(part, list) else [part], empty=True)


STRUCTURES: dict[str, Callable[[Any, Table | None], None]] = {  # parts of a line that are no column of its own
    "gram": _gram,
    "adam_gram": _adam_gram,
    "overlap": _overlap,
    "standard_errors": _standard_errors,
    "prediction": _prediction,
    "paper": _paper,
    "evaluation": _named,
    "evaluation_examples": _named,
    "stopped": _named,
}
CHECKS = STRUCTURES | {"lr": _rates, "seconds": _rates}


LOCK = ".lock"  # exists, and is held, while a process writes
PARTIAL = ".partial"  # ends the name of a file that is being written
BEGINNING = b'{\n "format": '  # of what `geffect.record.writer.write_json` writes


def refuse_existing(path: Path) -> None:
    """Refuse a run directory that holds a file already, or that cannot be made."""
    if rank_and_size()[0]:  # of several processes the first writes, and may have begun
        return
    dangling = path.is_symlink() and not path.exists()
    if dangling or (path.exists() and not (path.is_dir() and _holds_no_run(path))):
        raise GeffectError(f"--out {path} exists already", remedy="Choose another name, or move it away")
    full = path.absolute()
    ground = next(folder for folder in (full, *full.parents) if folder.exists())
    if not ground.is_dir() or not os.access(ground, os.W_OK):
        raise GeffectError(
            f"--out {path} cannot be made: {ground} is no directory that can be written to",
            remedy="Choose another place",
        )


def _holds_no_run(path: Path) -> bool:
    """Whether a directory holds no file but, at most, what a run that was killed before its first line leaves."""
    left = path / ENVIRONMENT
    for file in path.rglob("*"):  # ends at the first
        partial = file.name.startswith(".") and file.name.endswith(PARTIAL)
        if not (file == left or file.name == LOCK or partial or file.is_dir()):
            return False
    if not left.is_file():
        return True
    with left.open("rb") as stream:
        return stream.read(len(BEGINNING)) == BEGINNING
