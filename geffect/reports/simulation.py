"""What other rectifiers would have done at every recorded step: their coefficients need the inner products alone."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from geffect.core.gram import Gram, inner
from geffect.errors import GeffectError
from geffect.io.readers import StrPath
from geffect.record.frames import read_groups, read_layers, read_targets
from geffect.record.reader import grams
from geffect.rectifiers.base import InnerProducts, Rectifier
from geffect.rectifiers.registry import make_rectification

AS_IT_WAS = "as it was"
OBJECTIVES = ("objective", "applied_gradient")  # what a rule calls the objective, and its name in a monitored training
TIED = "tied"


def simulate(path: StrPath, rules: Sequence[str], by: str = "total", scheme: str = "thirds") -> pd.DataFrame:
    """What rectifiers would have made of each recorded gradient, from the inner products of a run.

    Every rule combines the gradients of the weights that the run had at that step: later steps do not follow from it.
    A gradient that a rule remembers of earlier steps, and that the record lacks, is this step's retain gradient. Each
    direction is scaled to the length of what the run descended, so that rules differ by where they go, not how far.

    Args:
        path: a run with a record of ``objective`` and ``retain`` (of a monitored training, ``applied_gradient``).
        rules: texts of rectifiers, such as ``gru`` or ``pcgrad``, as ``--rectifier`` takes them.
        by: ``total`` or ``group``.
        scheme: how layers make groups.

    Returns:
        Columns ``step``, ``by``, ``rule`` (``as it was``, then the given ones), ``target``, ``effect`` = −⟨∇R, d⟩, the
        first-order change of the target's loss R for a learning rate of 1 (nats a token; above 0: harm), and
        ``cosine`` of the whole direction with that of the run.

    Raises:
        GeffectError: a rule is unknown, masks entries, or reads a gradient that is not recorded.
    """
    if by not in ("total", "group"):
        raise GeffectError(f"by is {by!r}", remedy="Choose one of total, group")
    made = {text: _rule(text) for text in rules}
    groups, layers, targets = read_groups(path, scheme), read_layers(path), read_targets(path)
    thirds = read_groups(path)
    labels = {name: TIED if "@" in name else group for name, group in groups.items()} if by == "group" else {}
    rows = []
    for step, gram in grams(path):
        was = {"": {_descended(gram): 1.0}}
        directions = {AS_IT_WAS: _vectors(gram, was, "model", layers)}
        for text, rule in made.items():
            places = thirds if rule.scope == "group" else layers
            directions[text] = _vectors(gram, _coefficients(text, rule, gram, places), rule.scope, places)
        rows += _rows(step, gram, directions, targets, labels, by)
    if not rows:
        raise GeffectError(f"{path} has no measured step", remedy="Name a run of geffect unlearn, or a monitored one")
    return pd.DataFrame(rows)


def _rule(text: str) -> Rectifier:
    asked = make_rectification(text)
    if asked.freezing is not None or not asked.rule.gradients or asked.rule.metric == "adam":
        message = f"{text!r} cannot be simulated: it is no combination of recorded gradients"
        raise GeffectError(message, remedy="Name a rule such as gru, or run it")
    return asked.rule


def _descended(gram: Gram) -> str:
    return next(each for each in ("rectified", *OBJECTIVES) if each in gram.names)


def _source(name: str, gram: Gram, text: str) -> str:
    """The recorded gradient that a rule's name stands for."""
    choices: tuple[str, ...] = OBJECTIVES if name == "objective" else (name,)
    choices += () if name in ("objective", "forget", "retain") else ("retain",)
    found = next((each for each in choices if each in gram.names), None)
    if found is None:
        remedy = f"Name a rule that reads some of {', '.join(gram.names)}"
        raise GeffectError(f"{text!r} reads the gradient {name}, which was not recorded", remedy=remedy)
    return found


def _coefficients(text: str, rule: Rectifier, gram: Gram, layers: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Part of the model → recorded gradient → its coefficient in what the rule makes; parts as of `_part`."""
    sources = {name: _source(name, gram, text) for name in rule.gradients}
    read = gram.combine({name: {source: 1.0} for name, source in sources.items()})
    part_of = {name: _part(name, rule.scope, layers) for name in read.values}
    parts = {"": read.total()} if rule.scope == "model" else read.by(part_of)
    found: dict[str, dict[str, float]] = {}
    for part, matrix in parts.items():
        combined: dict[str, float] = {}
        for name, coefficient in rule.coefficients(InnerProducts(read.names, matrix)).items():
            combined[sources[name]] = combined.get(sources[name], 0.0) + coefficient
        if rule.add_retain:
            combined["retain"] = combined.get("retain", 0.0) + rule.add_retain
        found[part] = combined
    return found


def _part(name: str, scope: str, layers: Mapping[str, str]) -> str:
    """The part of the model that a tensor belongs to; a tied one's uses, which a rule reads as one, to ``tied``."""
    if scope == "model":
        return ""
    tensor, tied, _ = name.partition("@")
    return tensor if scope == "parameter" else TIED if tied else layers[name]


def _vectors(
    gram: Gram, by_part: Mapping[str, Mapping[str, float]], scope: str, layers: Mapping[str, str]
) -> dict[str, Tensor]:
    """Tensor → the coefficient of every recorded gradient in a direction."""
    parts = {name: by_part[_part(name, scope, layers)] for name in gram.values}
    return {
        name: torch.tensor([part.get(each, 0.0) for each in gram.names], dtype=torch.float64)
        for name, part in parts.items()
    }


def _rows(
    step: int,
    gram: Gram,
    directions: Mapping[str, Mapping[str, Tensor]],
    targets: Sequence[str],
    labels: Mapping[str, str],
    by: str,
) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    descended = _descended(gram)
    square_was = inner(gram.total(), gram.names, descended, descended)
    for rule, vectors in directions.items():
        square = sum(float(vectors[name] @ matrix @ vectors[name]) for name, matrix in gram.values.items())
        scale = math.sqrt(square_was / square) if square > 0 else 0.0
        along, lengths = sum(_products(gram, vectors, descended).values()), math.sqrt(max(0.0, square_was * square))
        for target in targets:
            sums: dict[str, float] = {}
            for name, product in _products(gram, vectors, target).items():
                label = labels.get(name, "total")
                sums[label] = sums.get(label, 0.0) - scale * product
            shared = {"rule": rule, "target": target, "cosine": along / lengths if lengths else math.nan}
            rows += [{"step": step, by: label, **shared, "effect": effect} for label, effect in sums.items()]
    return rows


def _products(gram: Gram, vectors: Mapping[str, Tensor], other: str) -> dict[str, float]:
    """⟨direction, other⟩ by tensor."""
    place = gram.names.index(other)
    return {name: float(vectors[name] @ matrix[:, place]) for name, matrix in gram.values.items()}


def simulated(path: StrPath, rules: Sequence[str]) -> pd.DataFrame:
    """`simulate` in a table, a rule a row.

    Columns ``rule``, a column a target with its effects summed over the measured steps (nats a token for a learning
    rate of 1; above 0: harm), and ``cosine``, the mean of each direction's cosine with what the run descended.
    """
    frame = simulate(path, rules)
    effects = frame.pivot_table("effect", "rule", "target", aggfunc="sum", sort=False)
    cosine = frame.groupby("rule", sort=False)["cosine"].mean()
    return effects.assign(cosine=cosine).reset_index().rename_axis(columns=None)
