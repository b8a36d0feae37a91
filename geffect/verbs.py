"""The verbs of `geffect` in Python: a configuration or its fields in, an object that others take as a path out."""

import os
from collections.abc import Callable, Iterator
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from geffect import api
from geffect.config import (
    DoctorConfig,
    EvaluateConfig,
    FinetuneConfig,
    InspectConfig,
    LocalizeConfig,
    PreviewConfig,
    ReportConfig,
    Schema,
    UnlearnConfig,
)
from geffect.evaluation.results import read_evaluation
from geffect.io.readers import read_json
from geffect.localization.storage import read_localization
from geffect.record.schema import METRICS
from geffect.reports.run import Run

if TYPE_CHECKING:
    import pandas as pd

    from geffect.core.masks import Localization
    from geffect.preflight.numerics import Finding
    from geffect.reports.page import Report

Fields = ParamSpec("Fields")
Config = TypeVar("Config", bound=Schema)
Result = TypeVar("Result")


class Verb(Generic[Fields, Config, Result]):
    """A verb: call it with a configuration, or with the fields of one by name.

    Args:
        schema: the configuration's class.
        run: carries it out.
    """

    def __init__(self, schema: Callable[Fields, Config], run: Callable[..., Result]) -> None:
        self.schema, self.run = schema, run
        update_wrapper(self, run)
        self.__doc__ = f"{run.__doc__}\n\nCall it with a configuration, or with its fields:\n\n{schema.__doc__}"

    @overload
    def __call__(self, config: Config, /, *, resume: bool = False) -> Result: ...
    @overload
    def __call__(self, *args: Fields.args, **fields: Fields.kwargs) -> Result: ...
    def __call__(self, *config: Any, **fields: Any) -> Result:
        """Carry out the verb; ``resume=True`` continues an unfinished run of ``unlearn``, ``finetune``, ``inspect``."""
        options = {"resume": True} if fields.pop("resume", False) else {}
        schema: Any = self.schema
        if config and fields:
            raise TypeError(f"A configuration is given alone: {', '.join(fields)} must be fields of it.")
        return self.run(*(config or [schema(**fields)]), **options)


class Evaluation(os.PathLike[str]):
    """An evaluation directory of `geffect.evaluate`; every function that takes a path takes it.

    Args:
        path: the directory.

    Attributes:
        path: the directory.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"geffect.Evaluation({str(self.path)!r})"

    def to_frame(self) -> "pd.DataFrame":
        """One number an example, metric and model, as `geffect.read_evaluation`."""
        return read_evaluation(self.path)

    @property
    def metrics(self) -> dict[str, Any]:
        """Means with intervals, and the numbers made of several sets: ``metrics.json``, by model."""
        content: dict[str, Any] = read_json(self.path / METRICS)["models"]
        return content


class LocalizationRun(Run):
    """A directory of `geffect.localize`: a `Run` that also reads its masks and magnitudes."""

    @property
    def localization(self) -> "Localization":
        """Masks, overlaps and mean magnitudes, as `geffect.read_localization`."""
        return read_localization(self.path)


def _unlearn(config: UnlearnConfig, *, resume: bool = False) -> Run:
    """Unlearn a set with an objective and a rectifier, recording the G-effect of every update."""
    return Run(api.unlearn(config, resume=resume))


def _finetune(config: FinetuneConfig, *, resume: bool = False) -> Run:
    """Descend the NLL of named sets (full weights or LoRA) and write a model directory with a record."""
    return Run(api.finetune(config, resume=resume))


def _localize(config: LocalizeConfig) -> LocalizationRun:
    """Find the weights where each domain's knowledge lies: top-k masks of every split, and their overlaps."""
    return LocalizationRun(api.localize(config))


def _inspect(config: InspectConfig, *, resume: bool = False) -> list[Run]:
    """Measure objectives at every checkpoint of a series, over whole sets and without training; a run an objective."""
    return [Run(path) for path in api.inspect(config, resume=resume)]


def _evaluate(config: EvaluateConfig) -> Evaluation:
    """Score a model, an adapter or a run's checkpoints on a suite, or on sets by named metrics."""
    return Evaluation(api.evaluate(config))


def _report(config: ReportConfig) -> "Report":
    """Write runs as one HTML page for any browser, offline: outcome, findings, figures, layers, worst examples."""
    return api.report(config)


def _doctor(config: DoctorConfig) -> "Iterator[Finding]":
    """Check a run before it begins: precision, determinism, masks, tied weights, what the model knows, memory."""
    return api.doctor(config)


def _preview(config: PreviewConfig) -> list[tuple[str, list[tuple[str, bool]]]]:
    """The first examples of a set as a model sees them: (title, [(token's text, carries loss)]) an example."""
    return api.preview(config)


unlearn = Verb(UnlearnConfig, _unlearn)
finetune = Verb(FinetuneConfig, _finetune)
localize = Verb(LocalizeConfig, _localize)
inspect = Verb(InspectConfig, _inspect)
evaluate = Verb(EvaluateConfig, _evaluate)
report = Verb(ReportConfig, _report)
doctor = Verb(DoctorConfig, _doctor)
preview = Verb(PreviewConfig, _preview)
