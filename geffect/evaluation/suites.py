"""What an evaluation looks at: sets, the metrics of each row, and the numbers made of several sets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from geffect.config import EvaluateConfig
from geffect.core.splits import domain_of, role_of, split_name
from geffect.errors import GeffectError
from geffect.evaluation.metrics.membership import auc, privleak
from geffect.evaluation.metrics.membership import reference as difference
from geffect.evaluation.metrics.success import harmonic_success
from geffect.evaluation.metrics.table import METRICS
from geffect.evaluation.metrics.truth import forget_quality, model_utility

Means = Mapping[tuple[str, str], float]  # (set, metric) → mean over its rows
Values = Mapping[tuple[str, str], Sequence[float]]  # (set, metric) → one a row

KEPT = ("probability", "rouge_l_recall", "retain_truth", "extraction_strength")
CHOICES = ("probability_normalized", "rouge_l_recall", "retain_truth")
FORGOTTEN = (
    "probability",
    "rouge_l_recall",
    "forget_truth",
    "truth_ratio_geometric",
    "log_truth_ratio_geometric",
    "extraction_strength",
    "exact_memorization",
)
SUCCESS = ("accuracy", "perplexity", "loss")
UTILITY = ("probability", "probability_normalized", "rouge_l_recall", "retain_truth")
ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus")


@dataclass(frozen=True)
class Part:
    """One set of an evaluation.

    Attributes:
        name: what it stands for.
        spec: the set, as `geffect.data.load.load_set` takes it.
        metrics: names of `METRICS`.
    """

    name: str
    spec: str
    metrics: tuple[str, ...]


def parts(config: EvaluateConfig) -> list[Part]:
    """The sets of a configuration: those of its suite, then those it names itself.

    Args:
        config: suite, metrics and sets.

    Returns:
        The parts.

    Raises:
        GeffectError: a metric is unknown, or metrics and sets do not come together.
    """
    derived = {name: DERIVED[name] for name in config.metric if name in DERIVED}
    plain = tuple(name for name in config.metric if name not in derived)
    for name in plain:
        if name not in METRICS:
            known = ", ".join([*METRICS, *DERIVED])
            raise GeffectError(f"a metric among {known}", repr(name), "choose one of these")
    if plain and not config.set:
        raise GeffectError(f"a --set to take {plain[0]} on", "none", "add --set NAME=SET")
    found = {each.name: each for each in _suite(config)}
    for name, spec in map(_named, config.set):
        if name in found:
            raise GeffectError("sets of different names", f"{name!r} twice", "name each once")
        found[name] = Part(name, spec, plain)
    for name, each in derived.items():
        _add_rows(found, name, each, config)
    _refuse_idle(config, list(found.values()))
    bare = [name for name, part in found.items() if not part.metrics]
    if bare or not (found or config.task):
        expected = "a suite, sets with metrics, or a task"
        remedy = "add --suite builtin, or --metric and --set, or --task"
        raise GeffectError(expected, f"no metric for --set {bare[0]}" if bare else "neither", remedy)
    return list(found.values())


def _refuse_idle(config: EvaluateConfig, found: Sequence[Part]) -> None:
    """What no metric looks at was named for one that is missing."""
    if config.shots is not None and not any("knowmem" in part.metrics for part in found):
        remedy = "add --metric knowmem, or leave --shots out"
        raise GeffectError("--metric knowmem beside --shots, which does nothing without it", "none", remedy)
    if config.reference is not None and config.suite not in REFERRED and not set(REFERRING) & set(config.metric):
        expected = f"--metric {' or '.join(REFERRING)} beside --reference, which does nothing without it"
        raise GeffectError(expected, "none", "add one of these, or leave --reference out")


def _add_rows(found: dict[str, Part], name: str, derived: "Derived", config: EvaluateConfig) -> None:
    """What a number made of several sets needs of each."""
    if derived.reference and config.reference is None:
        remedy = "evaluate a model fitted without the forget set in the same way, and name that with --reference"
        raise GeffectError(f"a reference for {name}", "none", remedy)
    for one in derived.sets:
        if one not in found:
            raise GeffectError(f"a set named {one} for {name}", ", ".join(found) or "none", f"add --set {one}=SET")
        metrics = dict.fromkeys([*found[one].metrics, *derived.rows])
        found[one] = replace(found[one], metrics=tuple(metrics))


def _named(text: str) -> tuple[str, str]:
    name, equals, spec = text.partition("=")
    if not (name and equals and spec):
        raise GeffectError("a set as NAME=SET", repr(text), "write forget=tofu:forget01, say")
    return name, spec


def _suite(config: EvaluateConfig) -> list[Part]:
    if config.suite == "builtin":
        return [
            Part("forget", "builtin:authors/forget", FORGOTTEN),
            *(Part(name, f"builtin:authors/{name}", KEPT) for name in ("retain", "heldout")),
        ]
    if config.suite == "tofu":
        forget = Part("forget", f"tofu:{config.split}_perturbed", FORGOTTEN)
        kinds = {"retain": KEPT, "real_authors": CHOICES, "world_facts": CHOICES}
        return [forget, *(Part(name, f"tofu:{name}_perturbed", each) for name, each in kinds.items())]
    if config.suite == "knowundo":
        validation = [domain.part("val") or domain for domain in config.domain]
        return [
            Part(split_name(role, each.name), spec, SUCCESS)
            for each in validation
            for role, spec in (("forget", each.unlearn), ("retain", each.retention))
        ]
    return []


@dataclass(frozen=True)
class Derived:
    """A number made of several sets, or of a set and another model's.

    Attributes:
        rows: the metrics of a row that it is made of.
        sets: the sets they are taken on.
        make: its value, of this evaluation's rows and, if any, the reference's.
        compares: whether it looks at the reference, where there is one.
        reference: whether it cannot do without a reference.
    """

    rows: tuple[str, ...]
    sets: tuple[str, ...]
    make: Callable[[Values, Values | None], float]
    compares: bool = False
    reference: bool = False


def _quality(values: Values, reference: Values | None) -> float:
    key = ("forget", "log_truth_ratio_geometric")
    return forget_quality(values[key], (reference or {})[key])


def _auc(name: str) -> Callable[[Values, Values | None], float]:
    return lambda values, _: auc(values["forget", name], values["holdout", name])


def _privleak(values: Values, reference: Values | None) -> float:
    return privleak(*(_auc("min_k")(each, None) for each in (values, reference) if each is not None))


def _reference_auc(values: Values, reference: Values | None) -> float:
    sides = []
    for side in ("forget", "holdout"):
        both = values[side, "loss"], (reference or {})[side, "loss"]
        sides.append([difference(*each) for each in zip(*both, strict=True)])
    return auc(*sides)


DERIVED: dict[str, Derived] = {
    "forget_quality": Derived(("log_truth_ratio_geometric",), ("forget",), _quality, compares=True, reference=True),
    "privleak": Derived(("min_k",), ("forget", "holdout"), _privleak, compares=True),
    "auc_reference": Derived(("loss",), ("forget", "holdout"), _reference_auc, compares=True, reference=True),
    **{f"auc_{name}": Derived((name,), ("forget", "holdout"), _auc(name)) for name in ATTACKS},
}


REFERRING = ("privleak", *(name for name, each in DERIVED.items() if each.reference))
REFERRED = ("builtin", "tofu")  # suites whose forget quality a reference brings


def totals(config: EvaluateConfig, means: Means, values: Values, reference: Values | None) -> dict[str, Any]:
    """The numbers made of several sets.

    Args:
        config: what is evaluated.
        means: (set, metric) → mean.
        values: (set, metric) → one a row.
        reference: the same of the reference's evaluation; None without one.

    Returns:
        Name → number; of the knowundo suite, US, RS and HS of each domain, in %.
    """
    found: dict[str, Any] = {}
    if config.suite in REFERRED:
        found["model_utility"] = model_utility([
            value for (name, kind), value in means.items() if name in _utility_sets(config) and kind in UTILITY
        ])
        if reference is not None:
            found["forget_quality"] = _quality(values, reference)
    if config.suite == "knowundo":
        for name in (each for each, kind in means if role_of(each) == "forget" and kind == "accuracy"):
            domain = domain_of(name)
            unlearn = 100 * (1 - means[name, "accuracy"])
            retention = 100 * means[split_name("retain", domain), "accuracy"]
            found[domain] = {"US": unlearn, "RS": retention, "HS": harmonic_success(unlearn, retention)}
    return found | {name: DERIVED[name].make(values, reference) for name in config.metric if name in DERIVED}


def _utility_sets(config: EvaluateConfig) -> tuple[str, ...]:
    return ("heldout",) if config.suite == "builtin" else ("retain", "real_authors", "world_facts")
