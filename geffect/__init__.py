"""Gradient diagnostics for language-model training and unlearning.

Importing this package imports nothing else; a name below loads its module when it is first used.
"""

import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from geffect.api import Evaluation as Evaluation
    from geffect.api import LocalizationRun as LocalizationRun
    from geffect.api import doctor as doctor
    from geffect.api import evaluate as evaluate
    from geffect.api import finetune as finetune
    from geffect.api import inspect as inspect
    from geffect.api import load_model as load_model
    from geffect.api import localize as localize
    from geffect.api import plan as plan
    from geffect.api import preview as preview
    from geffect.api import report as report
    from geffect.api import unlearn as unlearn
    from geffect.config import DoctorConfig as DoctorConfig
    from geffect.config import EvaluateConfig as EvaluateConfig
    from geffect.config import FinetuneConfig as FinetuneConfig
    from geffect.config import InspectConfig as InspectConfig
    from geffect.config import LocalizeConfig as LocalizeConfig
    from geffect.config import PreviewConfig as PreviewConfig
    from geffect.config import ReportConfig as ReportConfig
    from geffect.config import UnlearnConfig as UnlearnConfig
    from geffect.core.effects import g_effect as g_effect
    from geffect.core.effects import r_squared as r_squared
    from geffect.core.effects import removed_g_effect as removed_g_effect
    from geffect.core.gradients import capture_gradients as capture_gradients
    from geffect.core.gram import Gram as Gram
    from geffect.core.gram import inner_products as inner_products
    from geffect.core.layers import layout as layout
    from geffect.core.token_effects import token_effects as token_effects
    from geffect.data.encode import collate as collate
    from geffect.data.encode import encode_set as encode_set
    from geffect.data.load import load_set as load_set
    from geffect.errors import GeffectError as GeffectError
    from geffect.evaluation.metrics import register_metric as register_metric
    from geffect.evaluation.results import read_evaluation as read_evaluation
    from geffect.evaluation.suites import Part as Part
    from geffect.evaluation.suites import register_derived as register_derived
    from geffect.evaluation.suites import register_suite as register_suite
    from geffect.evaluation.view import View as View
    from geffect.localization.storage import read_localization as read_localization
    from geffect.monitoring.callback import Callback as Callback
    from geffect.monitoring.lightning import LightningCallback as LightningCallback
    from geffect.monitoring.monitor import monitor as monitor
    from geffect.objectives.base import Objective as Objective
    from geffect.objectives.base import Term as Term
    from geffect.objectives.registry import make_objective as make_objective
    from geffect.objectives.registry import register_objective as register_objective
    from geffect.record.frames import read as read
    from geffect.record.frames import read_cosines as read_cosines
    from geffect.record.frames import read_effects as read_effects
    from geffect.record.frames import read_overlap as read_overlap
    from geffect.record.frames import read_points as read_points
    from geffect.record.frames import read_prediction as read_prediction
    from geffect.record.frames import read_published as read_published
    from geffect.record.frames import read_standard_errors as read_standard_errors
    from geffect.record.frames import read_steps as read_steps
    from geffect.record.frames import read_tokens as read_tokens
    from geffect.rectifiers.base import Freezing as Freezing
    from geffect.rectifiers.base import InnerProducts as InnerProducts
    from geffect.rectifiers.base import Rectifier as Rectifier
    from geffect.rectifiers.registry import make_freezing as make_freezing
    from geffect.rectifiers.registry import make_rectifier as make_rectifier
    from geffect.rectifiers.registry import register_rectifier as register_rectifier
    from geffect.reports.compare import compare as compare
    from geffect.reports.compare import summarize as summarize
    from geffect.reports.limits import check as check
    from geffect.reports.plots.registry import register_plot as register_plot
    from geffect.reports.plots.style import PLOT_STYLE as PLOT_STYLE
    from geffect.reports.price import price as price
    from geffect.reports.run import Run as Run
    from geffect.reports.run import plot as plot
    from geffect.reports.simulation import simulate as simulate
    from geffect.stopping import Rule as Rule
    from geffect.stopping import register_stop_rule as register_stop_rule

    watch = monitor  # the earlier name still works

_MODULES = {
    "geffect.api": "Evaluation LocalizationRun doctor evaluate finetune inspect load_model localize plan preview "
    "report unlearn",
    "geffect.config": "DoctorConfig EvaluateConfig FinetuneConfig InspectConfig "
    "LocalizeConfig PreviewConfig ReportConfig UnlearnConfig",
    "geffect.core.gradients": "capture_gradients",
    "geffect.core.effects": "g_effect r_squared removed_g_effect",
    "geffect.core.gram": "Gram inner_products",
    "geffect.core.layers": "layout",
    "geffect.core.token_effects": "token_effects",
    "geffect.data.encode": "collate encode_set",
    "geffect.data.load": "load_set",
    "geffect.errors": "GeffectError",
    "geffect.evaluation.metrics": "register_metric",
    "geffect.evaluation.results": "read_evaluation",
    "geffect.evaluation.suites": "Part register_derived register_suite",
    "geffect.evaluation.view": "View",
    "geffect.localization.storage": "read_localization",
    "geffect.monitoring.callback": "Callback",
    "geffect.monitoring.lightning": "LightningCallback",
    "geffect.monitoring.monitor": "monitor",
    "geffect.objectives.base": "Objective Term",
    "geffect.objectives.registry": "make_objective register_objective",
    "geffect.record.frames": "read read_cosines read_effects read_overlap read_points read_prediction "
    "read_published read_standard_errors read_steps read_tokens",
    "geffect.rectifiers.base": "Freezing InnerProducts Rectifier",
    "geffect.rectifiers.registry": "make_freezing make_rectifier register_rectifier",
    "geffect.reports.compare": "compare summarize",
    "geffect.reports.plots.registry": "register_plot",
    "geffect.reports.plots.style": "PLOT_STYLE",
    "geffect.reports.limits": "check",
    "geffect.reports.price": "price",
    "geffect.reports.run": "Run plot",
    "geffect.reports.simulation": "simulate",
    "geffect.stopping": "Rule register_stop_rule",
}
_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}
_EARLIER = {"watch": "monitor"}  # a name that still works → the one that is documented
__all__ = sorted(_HOME)


if not TYPE_CHECKING:  # so that a misspelled name is an error to a type checker

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            return import_module("importlib.metadata").version("geffect")
        name = _EARLIER.get(name, name)
        if name not in _HOME:
            raise AttributeError(f"module 'geffect' has no attribute {name!r}; it has {', '.join(__all__)}")
        if "ipykernel" in sys.modules and "tqdm.auto" not in sys.modules:
            with warnings.catch_warnings():  # that a notebook has no widgets; no bar is drawn there
                warnings.filterwarnings("ignore", "IProgress not found")
                import_module("tqdm.auto")
        return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
