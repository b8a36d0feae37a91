"""Gradient diagnostics for language-model unlearning.

Importing this package imports nothing else; each name below brings its room along when it is first used.
"""

from importlib import import_module
from typing import Any

_NAMES = {
    "EvaluateConfig": "geffect.config",
    "FitConfig": "geffect.config",
    "InspectConfig": "geffect.config",
    "GEffectCallback": "geffect.watching",
    "LocaliseConfig": "geffect.config",
    "ReportConfig": "geffect.config",
    "UnlearnConfig": "geffect.config",
    "Gram": "geffect.gram",
    "Run": "geffect.views",
    "evaluate": "geffect.api",
    "fit": "geffect.api",
    "inspect": "geffect.api",
    "localise": "geffect.api",
    "report": "geffect.api",
    "unlearn": "geffect.api",
    "load_model": "geffect.api",
    "plan": "geffect.api",
    "align": "geffect.alignment",
    "compare": "geffect.comparison",
    "figures": "geffect.comparison",
    "collate": "geffect.data",
    "encode_set": "geffect.data",
    "load_set": "geffect.data",
    "layout": "geffect.groups",
    "inner_products": "geffect.gram",
    "make_objective": "geffect.objectives",
    "make_freezing": "geffect.rectify",
    "make_rectifier": "geffect.rectify",
    "capture": "geffect.rows",
    "token_effects": "geffect.tokens",
    "watch": "geffect.watching",
    "g_effect": "geffect.effects",
    "r_squared": "geffect.effects",
    "removed_g_effect": "geffect.effects",
    "read": "geffect.record",
    "read_evaluation": "geffect.evaluation",
    "read_ledger": "geffect.record",
    "read_localisation": "geffect.record",
    "read_points": "geffect.record",
    "read_published": "geffect.record",
    "read_standard_errors": "geffect.record",
    "read_support": "geffect.record",
    "read_steps": "geffect.record",
    "read_tokens": "geffect.record",
}
__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'geffect' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return __all__
