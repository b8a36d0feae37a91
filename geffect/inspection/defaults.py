"""An inspection whose blanks are filled from the run it looks at."""

import logging
from pathlib import Path
from typing import Any

from geffect.config import InspectConfig, UnlearnConfig
from geffect.errors import GeffectError
from geffect.objectives.base import Objective
from geffect.record.reader import check_format, read_config
from geffect.record.schema import CONFIG
from geffect.training.run import where_it_is

LOGGER = logging.getLogger(__name__)
PROMPTS = ("template_date", "system_prompt", "chat_template", "tokenizer")
FROM_RUN = (
    "forget",
    "retain",
    "heldout",
    "general",
    "data_dir",
    "question_column",
    "answer_column",
    "text_column",
    "max_length",
    *PROMPTS,
    "lora",
    "seed",
    "batch_size",
)


def completed(config: InspectConfig) -> InspectConfig:
    """What is not given is taken from the configuration of the run that is inspected, if it is one of geffect unlearn.

    Args:
        config: as given.

    Returns:
        The same with sets and objectives; ``start`` may still be None.

    Raises:
        GeffectError: a set is still missing, or the run is one over several domains.
    """
    found = _of_run(config.checkpoints)
    given = config.model_fields_set
    filled: dict[str, Any] = {name: found[name] for name in FROM_RUN if name in found and name not in given}
    filled |= {
        new: found[old]
        for new, old in (("start", "model"), ("objective", "objective"))
        if old in found and new not in given
    }
    if "start" in filled:
        filled["start"] = where_it_is(filled["start"], (found.get("reference") or {}).get("path"))
    if "objective" not in given and "objective" not in found:
        filled["objective"] = ["ga"]
    _warn_of_other_prompts(config, found)
    whole = InspectConfig.read(None, **(config.model_dump(exclude_unset=True) | filled))
    for name in ("forget", "retain"):
        if getattr(whole, name) is None:
            remedy = "Name domains' sets one by one" if found.get("domain") else "Add it as a flag"
            raise GeffectError(f"--{name} has no value", remedy=remedy)
    return whole


def _warn_of_other_prompts(config: InspectConfig, found: dict[str, Any]) -> None:
    for name in (name for name in PROMPTS if found and name in config.model_fields_set):
        here = config.model_dump(mode="json")[name]
        if here != found.get(name):
            flag = f"--{name.replace('_', '-')}"
            LOGGER.warning("the run had %s %s, this inspection has %s", flag, found.get(name), here)


def recorded_start(config: InspectConfig) -> str | None:
    """The hash of the weights that the run which is inspected began with, where its start is the one named."""
    found = _of_run(config.checkpoints)
    reference = found.get("reference") or {}
    return reference.get("sha256") if config.start in (found.get("model"), reference.get("path")) else None


def _of_run(checkpoints: list[str]) -> dict[str, Any]:
    """The configuration of the run a single path names; nothing where it is no run of geffect unlearn."""
    file = Path(checkpoints[0]).expanduser() / CONFIG
    if len(checkpoints) > 1 or not file.is_file():
        return {}
    check_format(file.parent)
    read_config(file.parent)  # what cannot be read is no configuration of another command
    try:
        run = UnlearnConfig.read(file, trust_remote_code=False)  # whoever made the run does not speak for this command
    except GeffectError:
        return {}
    return run.model_dump(mode="json", exclude_none=True)


def as_run(config: InspectConfig, objective: Objective) -> UnlearnConfig:
    """The inspection as what a run of one objective would be given, for everything that reads runs.

    Args:
        config: completed.
        objective: one of its objectives.

    Returns:
        A configuration; it is never run.
    """
    names = (*FROM_RUN, "dtype", "overlap", "mode")
    shared = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    return UnlearnConfig.read(
        None, **shared, model=config.start or config.checkpoints[0], objective=objective, steps=1, out=config.out
    )
