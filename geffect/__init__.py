"""Gradient diagnostics for language-model unlearning.

Importing this package imports nothing else; each name below brings its room along when it is first used.
"""

from importlib import import_module
from typing import Any

_NAMES = {
    "EvaluateConfig": "geffect.config",
    "FinetuneConfig": "geffect.config",
    "InspectConfig": "geffect.config",
    "Callback": "geffect.monitoring.callback",
    "LocalizeConfig": "geffect.config",
    "ReportConfig": "geffect.config",
    "UnlearnConfig": "geffect.config",
    "Gram": "geffect.core.gram",
    "Run": "geffect.reports.run",
    "evaluate": "geffect.api",
    "finetune": "geffect.api",
    "inspect": "geffect.api",
    "localize": "geffect.api",
    "report": "geffect.api",
    "unlearn": "geffect.api",
    "load_model": "geffect.api",
    "plan": "geffect.api",
    "compare": "geffect.reports.matched",
    "summarize": "geffect.reports.compare",
    "plot": "geffect.reports.compare",
    "collate": "geffect.data.encode",
    "encode_set": "geffect.data.encode",
    "load_set": "geffect.data.load",
    "layout": "geffect.core.layers",
    "inner_products": "geffect.core.gram",
    "make_objective": "geffect.objectives.registry",
    "make_freezing": "geffect.rectifiers.registry",
    "make_rectifier": "geffect.rectifiers.registry",
    "capture": "geffect.core.gradients",
    "token_effects": "geffect.core.token_effects",
    "watch": "geffect.monitoring.loop",
    "g_effect": "geffect.core.effects",
    "r_squared": "geffect.core.effects",
    "removed_g_effect": "geffect.core.effects",
    "read": "geffect.record.frames",
    "read_evaluation": "geffect.evaluation.results",
    "read_prediction": "geffect.record.frames",
    "read_localization": "geffect.localization.storage",
    "read_points": "geffect.record.frames",
    "read_published": "geffect.record.frames",
    "read_standard_errors": "geffect.record.frames",
    "read_overlap": "geffect.record.frames",
    "read_steps": "geffect.record.frames",
    "read_tokens": "geffect.record.frames",
}
__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'geffect' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return __all__
