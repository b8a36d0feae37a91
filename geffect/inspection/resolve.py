"""Discover and validate a series of checkpoints, and fill unset options from the run they come from."""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geffect.config import InspectConfig, UnlearnConfig
from geffect.config.schema import flag_name
from geffect.errors import GeffectError
from geffect.io.readers import read_json
from geffect.models.builtin import is_built_in
from geffect.models.checkpoints import Shapes, checkpoint_shapes, checkpoint_step, checkpoints_below
from geffect.models.load import base_of_adapter, resolve
from geffect.objectives.base import Objective
from geffect.record.reader import check_format, read_config
from geffect.record.schema import CONFIG
from geffect.training.run import locate_model

LOGGER = logging.getLogger(__name__)
SKIP = "restore it, or leave such out with --skip-broken"
PASSING = {"base_model_name_or_path", "inference_mode", "revision", "peft_version"}  # of an adapter's configuration
PROMPTS = ("template_date", "system_prompt", "chat_template", "tokenizer")
FROM_RUN = (
    *("forget", "retain", "heldout", "general", "target"),
    *("data_dir", "question_column", "answer_column", "text_column", "max_length"),
    *PROMPTS,
    *("lora", "seed", "batch_size"),
)
Architecture = tuple[dict[str, Any] | None, Shapes]  # an adapter's configuration with its base; tensor → shape


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint.

    Attributes:
        step: N of ``checkpoint-N``, or its position in the list.
        spec: a directory or a hub id.
    """

    step: int
    spec: str


def find_checkpoints(paths: Sequence[str]) -> list[Checkpoint]:
    """Find the checkpoints in directories, or take models, adapters and hub revisions one by one; sorted by step.

    A step is the number in a checkpoint's name where all have one, else its position from 1. A directory without a
    checkpoint and two checkpoints of the same step are refused.
    """
    specs = [spec for path in paths for spec in _expand(path)]
    numbers = [checkpoint_step(Path(spec)) for spec in specs]
    numbered = all(number is not None for number in numbers)
    series = [
        Checkpoint(int(number or 0) if numbered else i, spec)
        for i, (number, spec) in enumerate(zip(numbers, specs, strict=True), 1)
    ]
    series.sort(key=lambda place: place.step)
    for one, other in itertools.pairwise(series):
        if one.step == other.step:
            message = f"Two checkpoints are of step {one.step}: {one.spec} and {other.spec}"
            raise GeffectError(message, remedy="Inspect one series at a time")
    return series


def _expand(spec: str) -> list[str]:
    path = Path(spec).expanduser()
    if path.is_dir():
        below = checkpoints_below(path)
        if below:
            return [str(each) for each in below]
        if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
            message = f"{spec} has no checkpoint-N directories, and is no model or adapter"
            raise GeffectError(message, remedy="Name a run made with --save-every, or a Trainer's output directory")
    return [spec]


def check_readable(series: Sequence[Checkpoint], *, skip_broken: bool) -> list[Checkpoint]:
    """The checkpoints that can be read; another architecture than the first one's is refused.

    A checkpoint that cannot be read is refused, or with ``skip_broken`` left out with a warning.
    """
    readable: list[tuple[Checkpoint, Architecture | None]] = []
    for place in series:
        try:
            readable.append((place, _architecture(place.spec)))
        except GeffectError as error:
            if not skip_broken:
                raise
            LOGGER.warning("left out: %s", error)
    if not readable:
        raise GeffectError("No checkpoint can be read", remedy="Restore them")
    (first, expected), *others = readable
    for place, architecture in others:
        if (difference := _difference(expected, architecture)) is not None:
            wanted, got = difference
            message = f"The checkpoints have several architectures: {wanted} in {first.spec}, and {got} in {place.spec}"
            raise GeffectError(message, remedy="Inspect them apart")
    return [place for place, _ in readable]


def _architecture(spec: str) -> Architecture | None:
    """The architecture in a directory; None for a built-in model or one on a hub."""
    source = spec if is_built_in(spec) else resolve(spec)
    if not isinstance(source, Path):
        return None
    adapter = base_of_adapter(source)
    shapes = checkpoint_shapes(source, SKIP)
    return (None if adapter is None else _adapter_config(source, adapter)), shapes


def _adapter_config(source: Path, base: str) -> dict[str, Any]:
    """An adapter's configuration with the name of its base, without what differs between equal adapters."""
    config = read_json(source / "adapter_config.json")
    lasting = {key: value for key, value in config.items() if key not in PASSING} | {"base": base}
    return {key: sorted(value) if isinstance(value, list) else value for key, value in lasting.items()}


def _difference(one: Architecture | None, other: Architecture | None) -> tuple[str, str] | None:
    """The first difference of two architectures; None where there is none or one of them is not known."""
    if one is None or other is None:
        return None
    (method, shapes), (its_method, its_shapes) = one, other
    if (method is None) != (its_method is None):
        names = {True: "full weights", False: "an adapter"}
        return names[method is None], names[its_method is None]
    method, its_method = method or {}, its_method or {}
    for key in method | its_method:
        if method.get(key) != its_method.get(key):
            return f"an adapter with {key} {method.get(key)}", str(its_method.get(key))
    for name in shapes | its_shapes:
        if shapes.get(name) != its_shapes.get(name):
            return f"{name} of shape {shapes.get(name)}", str(its_shapes.get(name))
    return None


def complete(config: InspectConfig) -> InspectConfig:
    """Fill unset options from the configuration of the inspected run, if it is one of geffect unlearn.

    ``start`` may still be None afterwards. A missing forget or retain set is refused.
    """
    recorded = _of_run(config.checkpoints)
    sources = {name: name for name in (*FROM_RUN, "objective")} | {"start": "model"}
    unset = {name: source for name, source in sources.items() if name not in config.model_fields_set}
    filled = {name: recorded[source] for name, source in unset.items() if source in recorded}
    if "start" in filled:
        filled["start"] = locate_model(filled["start"], (recorded.get("reference") or {}).get("path"))
    if "objective" in unset:
        filled.setdefault("objective", ["ga"])
    _warn_of_other_prompts(config, recorded)
    completed = InspectConfig.read(None, **(config.model_dump(exclude_unset=True) | filled))
    for name in ("forget", "retain"):
        if getattr(completed, name) is None:
            remedy = "Name domains' sets one by one" if recorded.get("domain") else "Add it as a flag"
            raise GeffectError(f"--{name} has no value", remedy=remedy)
    return completed


def _warn_of_other_prompts(config: InspectConfig, recorded: dict[str, Any]) -> None:
    for name in (name for name in PROMPTS if recorded and name in config.model_fields_set):
        here = config.model_dump(mode="json")[name]
        if here != recorded.get(name):
            LOGGER.warning("the run had %s %s, this inspection has %s", flag_name(name), recorded.get(name), here)


def recorded_start(config: InspectConfig) -> str | None:
    """The hash of the inspected run's first weights; None where ``start`` names another model, or it is no run."""
    recorded = _of_run(config.checkpoints)
    reference = recorded.get("reference") or {}
    return reference.get("sha256") if config.start in (recorded.get("model"), reference.get("path")) else None


def _of_run(checkpoints: list[str]) -> dict[str, Any]:
    """The configuration of the run of geffect unlearn that a single path names; empty where it names none."""
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
    """The configuration of a run that matches an inspection of one objective; it is never run."""
    names = (*FROM_RUN, "device", "deterministic", "dtype", "overlap", "mode")
    shared = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    return UnlearnConfig.read(
        None, **shared, model=config.start or config.checkpoints[0], objective=objective, steps=1, out=config.out
    )
