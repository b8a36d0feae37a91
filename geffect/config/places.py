"""Models, sets, runs and files that a configuration names: whether they are there, before torch is imported."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from geffect.config import DoctorConfig, EvaluateConfig, LocalizeConfig, TrainConfig
from geffect.config.schema import MODEL_FIELDS, SET_FIELDS, Schema
from geffect.core.lots import planted_lot
from geffect.data.domains import Domain, bare_or_named
from geffect.data.load import check_set
from geffect.errors import GeffectError, missing_path
from geffect.models.names import check_model
from geffect.record.reader import check_directories, check_localization, check_unfinished
from geffect.record.replacement import refuse_taken

MASKS = "Name a file such as masks/share-0.1.safetensors of geffect localize, or random:SEED:SHARE"


def check_places(draft: Schema, *, resume: bool = False) -> None:
    """Raise where a configuration names a model, set, run or file that is not there; the first such is named.

    The configuration may be a draft (`Schema.draft`). A resumed run's model may have moved, and is not looked for. What
    needs a network is left to the verb.
    """
    named = {name: getattr(draft, name) for name in draft.model_fields_set}  # a default may need what is not there
    with contextlib.suppress(OSError, RuntimeError):  # a path that the system refuses: the verb says so
        for name in () if resume else MODEL_FIELDS:
            if isinstance(spec := named.get(name), str):
                check_model(spec)
        for name in SET_FIELDS:
            for spec in _sets(name, named.get(name)):
                check_set(spec, getattr(draft, "data_dir", None))
        if masks := named.get("masks"):
            check_localization(masks)
        for name in ("only_mask", "truth"):
            if (file := named.get(name)) and planted_lot(file) is None and not Path(file).expanduser().exists():
                raise GeffectError(f"{file} is no file of masks", remedy=missing_path(file, MASKS))
        if named.get("suite") == "tofu" and "split" in named:
            check_set(f"tofu:{named['split']}_perturbed", draft.data_dir)  # type: ignore[attr-defined]
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
        elif setting in ("set", "target") and isinstance(value, list):
            yield from filter(None, [each.partition("=")[2]])
        else:
            yield bare_or_named(each)[1] if setting in ("set", "train") else each
