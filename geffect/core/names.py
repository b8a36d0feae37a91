"""The names that geffect itself registers, so that a misspelled one is refused before torch is imported."""

import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from geffect.core.registry import parse
from geffect.errors import unknown_name


class Names(NamedTuple):
    """The built-in names of one registry.

    Attributes:
        kind: of what they name, with its article.
        module: defines the registry; once it is imported, others may have added to it, and it judges a name itself.
        names: every built-in name.
        read: a setting → the names in it.
    """

    kind: str
    module: str
    names: tuple[str, ...]
    read: Callable[[str], Iterable[str]]


def _terms(text: str) -> list[str]:
    return [call.name for call in parse(text)] if text else []


OBJECTIVES = Names(
    "an objective",
    "geffect.objectives.registry",
    tuple([
        "adversarial",
        "dpo",
        "ga",
        "gd",
        "kl",
        "npo",
        "po",
        "random",
        "rmu",
        "rr",
        "satimp",
        "simnpo",
        "tnpo",
        "wga",
        "wtnpo",
    ]),
    _terms,
)
RECTIFIERS = Names("a rectifier", "geffect.rectifiers.registry", ("grail", "gru", "memflex", "none"), _terms)
STOP_RULES = Names("a stop rule", "geffect.stopping", ("accuracy", "collapse", "forget_loss", "knee"), _terms)
SUITES = Names("a suite", "geffect.evaluation.suites", ("builtin", "tofu", "knowundo"), lambda text: [text])
METRICS = Names(
    "a metric",
    "geffect.evaluation.metrics",
    (
        *("loss", "perplexity", "mean_perplexity", "accuracy", "probability", "probability_normalized"),
        *("exact_memorization", "extraction_strength", "extraction_strength_floored", "extraction_strength_generated"),
        *("rouge_l_recall", "rouge_l_f1", "truth_ratio", "truth_ratio_geometric", "log_truth_ratio_geometric"),
        *("forget_truth", "retain_truth", "verbmem", "knowmem", "min_k", "min_k_plus_plus", "zlib"),
        *("forget_quality", "privleak", "auc_reference", "auc_loss", "auc_zlib", "auc_min_k", "auc_min_k_plus_plus"),
    ),
    lambda text: [text],
)
OF_SETTING = {
    "objective": OBJECTIVES,
    "points": OBJECTIVES,
    "rectifier": RECTIFIERS,
    "stop": STOP_RULES,
    "suite": SUITES,
    "metric": METRICS,
}


def check_names(setting: str, value: Any) -> None:
    """Raise where a setting of a configuration names what no registry can have; other settings pass."""
    registry = OF_SETTING.get(setting)
    if registry is None or registry.module in sys.modules:
        return
    for text in [value] if isinstance(value, str) else value if isinstance(value, list) else []:
        for name in registry.read(text) if isinstance(text, str) else ():
            if name not in registry.names:
                raise unknown_name(registry.kind, name, registry.names)
