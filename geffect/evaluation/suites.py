"""Suites: the sets of an evaluation, the metrics of each example, and the numbers derived from several sets."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

from geffect.config import EvaluateConfig
from geffect.core.groups import GROUPS
from geffect.core.splits import domain_of, role_of, split_name
from geffect.data.domains import named_set
from geffect.errors import GeffectError, unknown_name
from geffect.evaluation import scores
from geffect.evaluation.metrics import METRICS
from geffect.evaluation.success import harmonic_success

LOGGER = logging.getLogger(__name__)
Means = Mapping[tuple[str, str], float]  # (set, metric) → mean over its examples
Values = Mapping[tuple[str, str], Sequence[float]]  # (set, metric) → one an example

RETAIN = ("probability", "rouge_l_recall", "retain_truth", "extraction_strength")
CHOICES = ("probability_normalized", "rouge_l_recall", "retain_truth")
FORGET = (
    *("probability", "rouge_l_recall", "forget_truth", "truth_ratio_geometric", "log_truth_ratio_geometric"),
    *("extraction_strength", "exact_memorization"),
)
SUCCESS = ("accuracy", "perplexity", "loss")
UTILITY = ("probability", "probability_normalized", "rouge_l_recall", "retain_truth")
ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus")
MEMORIZED = ("extraction_strength", "exact_memorization", "paraphrase_probability", "log_truth_ratio_geometric")
SIDES = ("forget", "holdout")  # of a membership attack: seen, and never seen


@dataclass(frozen=True)
class Part:
    """One set of an evaluation.

    Attributes:
        name: what it stands for (``forget``, ``retain``, …).
        spec: the set, as `geffect.data.load.load_set` takes it.
        metrics: names of registered metrics.
        shots: the set whose examples precede the questions of `knowmem`, in place of ``--shots``.
    """

    name: str
    spec: str
    metrics: tuple[str, ...]
    shots: str = ""


Parts = Callable[[EvaluateConfig], list[Part]]
Totals = Callable[[Means], Mapping[str, object]]
Compute = Callable[[Values, Values | None], float | Mapping[str, float]]


@dataclass(frozen=True)
class Suite:
    """A registered suite; its fields are the arguments of `register_suite`, and ``parts`` what that decorates."""

    name: str
    parts: Parts
    totals: Totals | None = None
    comparisons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Derived:
    """A registered number of several sets; its fields are the arguments of `register_derived`, and the function."""

    name: str
    needs: Mapping[str, tuple[str, ...]]  # set → metrics
    compute: Compute
    compares: bool = False
    needs_reference: bool = False


SUITES: dict[str, Suite] = {}
DERIVED: dict[str, Derived] = {}


def register_suite(
    name: str, *, totals: Totals | None = None, comparisons: Sequence[str] = ()
) -> Callable[[Parts], Parts]:
    """Make a suite known by a name, for ``geffect evaluate --suite NAME``; decorates a function of a configuration.

    Args:
        name: of the suite.
        totals: means by (set, metric) → numbers of several sets, by name.
        comparisons: names of derived numbers that are computed, those that need a reference where there is one.

    Raises:
        GeffectError: the name is taken.
    """
    if name in SUITES:
        raise GeffectError(f"There is a suite {name!r} already", remedy="Choose another name")

    def register(parts: Parts) -> Parts:
        SUITES[name] = Suite(name, parts, totals, tuple(comparisons))
        return parts

    return register


def register_derived(
    name: str,
    metrics: Sequence[str] | Mapping[str, Sequence[str]],
    sets: Sequence[str] = (),
    *,
    compares: bool = False,
    needs_reference: bool = False,
) -> Callable[[Compute], Compute]:
    """Make a number of several sets known by a name, for ``geffect evaluate --metric NAME``.

    Decorates a function of this evaluation's values and the reference's (or None) that returns a number, or several by
    name.

    Args:
        name: of the number.
        metrics: those it is computed from, on each of the sets; or, by the name of a set, those of that set.
        sets: names of sets, such as ``forget`` and ``holdout``.
        compares: whether it uses the reference, where there is one.
        needs_reference: whether it is refused without one.

    Raises:
        GeffectError: the name is taken.
    """
    if name in DERIVED or name in METRICS:
        raise GeffectError(f"There is a metric {name!r} already", remedy="Choose another name")

    def register(compute: Compute) -> Compute:
        compared = compares or needs_reference
        needs = metrics if isinstance(metrics, Mapping) else dict.fromkeys(sets, metrics)
        by_set = {each: tuple(names) for each, names in needs.items()}
        DERIVED[name] = Derived(name, by_set, compute, compared, needs_reference)
        return compute

    return register


def _utility(means: Means, *, sets: Sequence[str]) -> dict[str, float]:
    """`model_utility` over the sets to retain."""
    numbers = [value for (name, metric), value in means.items() if name in sets and metric in UTILITY]
    return {"model_utility": scores.model_utility(numbers)}


def _domain_success(means: Means) -> dict[str, dict[str, float]]:
    """US, RS and HS of each domain, in %."""
    totals = {}
    for name in (each for each, metric in means if role_of(each) == "forget" and metric == "accuracy"):
        domain = domain_of(name)
        unlearn = 100 * (1 - means[name, "accuracy"])
        retention = 100 * means[split_name("retain", domain), "accuracy"]
        totals[domain] = {"US": unlearn, "RS": retention, "HS": harmonic_success(unlearn, retention)}
    return totals


@register_suite("builtin", totals=partial(_utility, sets=["heldout"]), comparisons=["forget_quality"])
def _builtin(config: EvaluateConfig) -> list[Part]:
    """The built-in fictional authors: what to forget, to retain, and a heldout set."""
    metrics = {"forget": FORGET, "retain": RETAIN, "heldout": RETAIN}
    return [Part(name, f"builtin:authors/{name}", names) for name, names in metrics.items()]


@register_suite(
    "tofu", totals=partial(_utility, sets=["retain", "real_authors", "world_facts"]), comparisons=["forget_quality"]
)
def _tofu(config: EvaluateConfig) -> list[Part]:
    """TOFU (arXiv 2401.06121): a forget split, the retain set, real authors and world facts."""
    metrics = {"retain": RETAIN, "real_authors": CHOICES, "world_facts": CHOICES}
    forget = Part("forget", f"tofu:{config.split}_perturbed", FORGET)
    return [forget, *(Part(name, f"tofu:{name}_perturbed", names) for name, names in metrics.items())]


@register_suite("knowundo", totals=_domain_success)
def _knowundo(config: EvaluateConfig) -> list[Part]:
    """KnowUnDo (arXiv 2407.01920): both validation sets of each domain."""
    validation = [domain.part("val") or domain for domain in config.domain]
    return [
        Part(split_name(role, domain.name), spec, SUCCESS)
        for domain in validation
        for role, spec in (("forget", domain.unlearn), ("retain", domain.retention))
    ]


@register_suite("muse", comparisons=["privleak"])
def _muse(config: EvaluateConfig) -> list[Part]:
    """MUSE (arXiv 2407.06460): VerbMem and KnowMem of the forget set, KnowMem of the retain set, and PrivLeak."""
    home = f"muse:{config.corpus}"
    knowledge = [
        Part(f"knowmem_{role}", f"{home}/knowmem/{role}_qa", ("knowmem",), f"{home}/knowmem/{role}_qa_icl")
        for role in ("forget", "retain")
    ]
    texts = [Part(name, f"{home}/privleak/{name}", ("min_k",)) for name in SIDES]
    return [Part("verbmem", f"{home}/verbmem/forget", ("verbmem",)), *knowledge, *texts]


@register_suite("wmdp")
def _wmdp(config: EvaluateConfig) -> list[Part]:
    """WMDP (arXiv 2403.03218): accuracy on the four choices of wmdp-bio, wmdp-cyber and MMLU."""
    on_hub = {"wmdp-bio": "cais/wmdp/wmdp-bio", "wmdp-cyber": "cais/wmdp/wmdp-cyber", "mmlu": "cais/mmlu/all"}
    return [
        Part(name, f"wmdp:{name}" if config.data_dir else f"hub:{place}/test", ("choice_accuracy",))
        for name, place in on_hub.items()
    ]


@register_derived("forget_quality", ["log_truth_ratio_geometric"], ["forget"], needs_reference=True)
def _quality(values: Values, reference: Values | None) -> float:
    """TOFU's forget quality: the p-value of a Kolmogorov–Smirnov test of truth ratios against the reference."""
    key = ("forget", "log_truth_ratio_geometric")
    return scores.forget_quality(values[key], (reference or {})[key])


def _auc(values: Values, metric: str) -> float:
    return scores.auc(*(values[side, metric] for side in SIDES))


def _make_auc(metric: str) -> Compute:
    def compute(values: Values, reference: Values | None) -> float:
        return _auc(values, metric)

    compute.__doc__ = f"AUC of {metric} between the forget set and a holdout: 1 where the forget set looks trained on."
    return compute


def _make_difference(metric: str) -> Compute:
    def compute(values: Values, reference: Values | None) -> float:
        return scores.relative_difference(_auc(values, metric), _auc(reference or {}, metric))

    compute.__doc__ = f"100 · (AUC − AUC_ref)/AUC_ref, in %, of the AUC of {metric} and the reference's."
    return compute


@register_derived("privleak", ["min_k"], SIDES, compares=True)
def _privleak(values: Values, reference: Values | None) -> float:
    """MUSE's PrivLeak, of the AUC of Min-K %, against the reference's AUC or 0.5."""
    return scores.privleak(_auc(values, "min_k"), 0.5 if reference is None else _auc(reference, "min_k"))


@register_derived("auc_reference", ["loss"], SIDES, needs_reference=True)
def _reference_auc(values: Values, reference: Values | None) -> float:
    """AUC of the loss minus the reference's, between the forget set and a holdout."""
    sides = []
    for side in SIDES:
        both = values[side, "loss"], (reference or {})[side, "loss"]
        sides.append([ours - theirs for ours, theirs in zip(*both, strict=True)])
    return scores.auc(*sides)


for _metric in (*ATTACKS, "gradient_norm", *(f"gradient_norm_{group}" for group in GROUPS)):
    register_derived(f"auc_{_metric}", [_metric], SIDES)(_make_auc(_metric))
    register_derived(f"rel_diff_{_metric}", [_metric], SIDES, needs_reference=True)(_make_difference(_metric))


@register_derived(
    "unlearning_score", {"forget": (*MEMORIZED, *ATTACKS), "holdout": ATTACKS, "retain": RETAIN[:3]}, compares=True
)
def _unlearning_score(values: Values, reference: Values | None) -> dict[str, float]:
    """Memorization, privacy and utility, each in [0, 1], and their harmonic mean (after arXiv 2506.12618)."""
    parts = {
        "memorization": _forgotten(values),
        "privacy": math.nan
        if reference is None
        else scores.privacy(*([_auc(each, a) for a in ATTACKS] for each in (values, reference))),
        "utility": _retained(values),
    }
    if bad := [name for name, value in parts.items() if not value > 0]:
        LOGGER.warning(
            "unlearning_score is NaN: its %s is %s", bad[0], "missing or NaN" if math.isnan(parts[bad[0]]) else "0"
        )
        return parts | {"harmonic_mean": math.nan}
    return parts | {"harmonic_mean": scores.harmonic_mean(list(parts.values()))}


def _forgotten(values: Values) -> float:
    """The harmonic mean of 1 − m over four measures m of what is memorized, each a mean over the forget set.

    They are extraction strength, exact memorization, the paraphrased answer's P and its share P(right)/(P(right) +
    P(wrong)) = 1/(1 + TR), TR with the geometric mean of the wrong answers.
    """
    *plain, ratios = (values["forget", name] for name in MEMORIZED)
    shares = [1 / (1 + scores.exponential(ratio)) for ratio in ratios]
    return scores.harmonic_mean([1 - _mean(each) for each in (*plain, shares)])


def _mean(values: Sequence[float]) -> float:
    """The mean of those that are not NaN; NaN of none."""
    present = [each for each in values if not math.isnan(each)]
    return fmean(present) if present else math.nan


def _retained(values: Values) -> float:
    """The model utility over all sets but the forget set and the holdout."""
    means = [_mean(each) for (name, metric), each in values.items() if name not in SIDES and metric in UTILITY]
    return scores.harmonic_mean(means)


def parts(config: EvaluateConfig) -> list[Part]:
    """The sets of a configuration: those of its suite, then those that ``--set`` names, each with its metrics."""
    derived = [DERIVED[name] for name in _asked(config) if name in DERIVED]
    plain = tuple(name for name in config.metric if name not in DERIVED)
    for name in plain:
        if name not in METRICS:
            raise unknown_name("a metric", name, [*METRICS, *DERIVED])
    if plain and not config.set:
        raise GeffectError(f"--metric {plain[0]} has no set", remedy="Add --set NAME=SET")
    suite = suite_of(config)
    by_name = {part.name: part for part in (suite.parts(config) if suite else ())}
    for name, spec in (named_set(text, "--set") for text in config.set):
        if name in by_name:
            raise GeffectError(f"Two sets are named {name!r}", remedy="Name each once")
        by_name[name] = Part(name, spec, plain)
    for number in derived:
        _add_metrics(by_name, number, config)
    _refuse_unused(config, suite, list(by_name.values()))
    if bare := [name for name, part in by_name.items() if not part.metrics]:
        raise GeffectError(f"--set {bare[0]} has no metric", remedy="Add --metric NAME")
    return list(by_name.values())


def suite_of(config: EvaluateConfig) -> Suite | None:
    """The suite that a configuration names; None without one."""
    if config.suite is not None and config.suite not in SUITES:
        raise unknown_name("a suite", config.suite, SUITES)
    return SUITES[config.suite] if config.suite is not None else None


def _refuse_unused(config: EvaluateConfig, suite: Suite | None, sets: Sequence[Part]) -> None:
    """Raise where a setting changes nothing, or models that a metric needs are missing."""
    models = {"--start": config.start, "--retrained": config.retrained}
    if any("uds" in part.metrics for part in sets):
        if lacking := [flag for flag, model in models.items() if model is None]:
            remedy = (
                "Add --start MODEL, that before unlearning, and --retrained MODEL, one that never saw the forget set"
            )
            raise GeffectError(f"uds needs {' and '.join(lacking)}", remedy=remedy)
    elif given := [flag for flag, model in models.items() if model is not None]:
        raise GeffectError(f"{given[0]} does nothing without uds", remedy=f"Add --metric uds, or omit {given[0]}")
    if config.shots is not None and not any("knowmem" in part.metrics and not part.shots for part in sets):
        raise GeffectError("--shots does nothing without knowmem", remedy="Add --metric knowmem, or omit --shots")
    comparing = [name for name, number in DERIVED.items() if number.compares]
    asked = {*_asked(config), *(suite.comparisons if suite else ())}
    if config.reference is not None and not set(comparing) & asked:
        remedy = "Add --metric forget_quality, privleak or one of auc_*, or omit --reference"
        raise GeffectError("--reference does nothing without a metric that compares two models", remedy=remedy)


def _add_metrics(by_name: dict[str, Part], number: Derived, config: EvaluateConfig) -> None:
    """Add the metrics that a derived number needs to each of its sets."""
    if number.needs_reference and config.reference is None:
        remedy = "Evaluate a model trained without the forget set alike, and name its directory with --reference"
        raise GeffectError(f"{number.name} needs a reference", remedy=remedy)
    for name, needed in number.needs.items():
        if name not in by_name:
            message = f"{number.name} needs a set named {name}, and there is {', '.join(by_name) or 'none'}"
            raise GeffectError(message, remedy=f"Add --set {name}=SET")
        metrics = dict.fromkeys([*by_name[name].metrics, *needed])
        by_name[name] = replace(by_name[name], metrics=tuple(metrics))


def _asked(config: EvaluateConfig) -> list[str]:
    """The names that ``--metric`` gives; with a reference, beside each ``auc_NAME`` its ``rel_diff_NAME``."""
    beside = [name.replace("auc_", "rel_diff_", 1) for name in config.metric if config.reference is not None]
    return list(dict.fromkeys([*config.metric, *(name for name in beside if name in DERIVED)]))


def compared(config: EvaluateConfig) -> list[Derived]:
    """The derived numbers of a configuration that use its reference, by name."""
    suite = suite_of(config)
    names = {*(suite.comparisons if suite else ()), *(name for name in _asked(config) if name in DERIVED)}
    return [DERIVED[name] for name in sorted(names) if DERIVED[name].compares]


def totals(config: EvaluateConfig, means: Means, values: Values, reference: Values | None) -> dict[str, Any]:
    """The numbers of several sets, by name; of the knowundo suite, US, RS and HS of each domain, in %."""
    suite = suite_of(config)
    numbers = dict(suite.totals(means)) if suite and suite.totals else {}
    of_suite = suite.comparisons if suite else ()
    names = [name for name in of_suite if reference is not None or not DERIVED[name].needs_reference]
    names += _asked(config)
    return numbers | {name: DERIVED[name].compute(values, reference) for name in names if name in DERIVED}
