"""Models, sets, runs and files that a configuration names: whether they are there, before torch is imported."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from geffect.config import DoctorConfig, EvaluateConfig, LocalizeConfig, TrainConfig
from geffect.config.schema import Schema
from geffect.data.domains import Domain
from geffect.data.load import check_set
from geffect.errors import GeffectError, missing_path
from geffect.models.names import check_model
from geffect.record.reader import check_directories, check_localization, check_unfinished
from geffect.record.replacement import refuse_taken

MODELS = ("model", "start", "retrained", "calibrate")
SETS = ("forget", "retain", "heldout", "general", "data", "shots", "train", "set", "domain", "validation")


def check_places(draft: Schema, *, resume: bool = False) -> None:
    """Raise where a configuration names a model, set, run or file that is not there; the first such is named.

    The configuration may be a draft (`Schema.draft`). A resumed run's model may have moved, and is not looked for. What
    needs a network is left to the verb.
    """
    named = {name: getattr(draft, name) for name in draft.model_fields_set}  # a default may need what is not there
    with contextlib.suppress(OSError, RuntimeError):  # a path that the system refuses: the verb says so
        for name in () if resume else MODELS:
            if spec := named.get(name):
                check_model(spec)
        for name in SETS:
            for spec in _sets(name, named.get(name)):
                check_set(spec, getattr(draft, "data_dir", None))
        if masks := named.get("masks"):
            check_localization(masks)
        if isinstance(reference := named.get("reference"), Path) and not reference.is_dir():
            remedy = missing_path(reference, "Name a directory of geffect evaluate")
            raise GeffectError(f"There is no evaluation in {reference}", remedy=remedy)
        if isinstance(paths := named.get("checkpoints"), list):
            for path in paths:
                check_model(path)
        check_directories(named.get("runs", ()))
        if isinstance(draft, TrainConfig | LocalizeConfig | EvaluateConfig) and not isinstance(draft, DoctorConfig):
            check_unfinished(draft.out, draft) if resume else refuse_taken(draft.out, overwrite=draft.overwrite)


def _sets(setting: str, value: Any) -> Iterator[str]:
    """The sets that a setting names."""
    for each in value if isinstance(value, list) else [value] if value else []:
        if isinstance(each, Domain):
            yield from (each.unlearn, each.retention)
        elif setting != "set":
            yield each
        elif "=" in each:
            yield each.partition("=")[2]
