"""Where a series of checkpoints lies, in order, and whether all of it can be read."""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geffect.errors import GeffectError
from geffect.io.readers import read_json
from geffect.models.builtin import is_built_in
from geffect.models.checkpoints import checkpoint_shapes, checkpoint_step, checkpoints_below
from geffect.models.load import base_of_adapter, resolve

LOGGER = logging.getLogger(__name__)
SKIP = "restore it, or leave such out with --skip-broken"
PASSING = {"base_model_name_or_path", "inference_mode", "revision", "peft_version"}  # of an adapter's configuration


@dataclass(frozen=True)
class Place:
    """One checkpoint.

    Attributes:
        step: N of ``checkpoint-N``, or its place in the list given.
        spec: a directory or a hub id.
    """

    step: int
    spec: str


def places(given: Sequence[str]) -> list[Place]:
    """What the paths of a series stand for.

    Args:
        given: directories that hold checkpoints, or models, adapters and hub revisions one by one.

    Returns:
        The checkpoints by step. Steps are the numbers of their names where all have one, else places from 1.

    Raises:
        GeffectError: a directory holds none, or two have the same step.
    """
    specs = [spec for each in given for spec in _expanded(each)]
    numbers = [checkpoint_step(Path(spec)) for spec in specs]
    named = all(number is not None for number in numbers)
    found = [
        Place(int(number or 0) if named else i, spec)
        for i, (number, spec) in enumerate(zip(numbers, specs, strict=True), 1)
    ]
    found.sort(key=lambda place: place.step)
    for one, other in itertools.pairwise(found):
        if one.step == other.step:
            raise GeffectError(
                "checkpoints of one series",
                f"step {one.step} twice: {one.spec} and {other.spec}",
                "inspect one series at a time",
            )
    return found


def _expanded(given: str) -> list[str]:
    path = Path(given).expanduser()
    if path.is_dir():
        below = checkpoints_below(path)
        if below:
            return [str(each) for each in below]
        if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise GeffectError(
                f"checkpoint-N directories, a model or an adapter in {given}",
                "none of them",
                "name a run made with --save-every, or a Trainer's output directory",
            )
    return [given]


def readable(series: Sequence[Place], *, skip_broken: bool) -> list[Place]:
    """The checkpoints of a series that can be read, once all of them are seen to be of one architecture.

    Args:
        series: the checkpoints.
        skip_broken: leave out what cannot be read, and say which.

    Returns:
        Those that can.

    Raises:
        GeffectError: one cannot be read (unless skipped), none can, or one is of another architecture.
    """
    found: list[tuple[Place, Any]] = []
    for place in series:
        try:
            found.append((place, _architecture(place.spec)))
        except GeffectError as error:
            if not skip_broken:
                raise
            LOGGER.warning("left out: %s", error)
    if not found:
        raise GeffectError("a checkpoint that can be read", "none", "restore them")
    (first, expected), *others = found
    for place, architecture in others:
        if (difference := _difference(expected, architecture)) is not None:
            wanted, got = difference
            raise GeffectError(
                f"checkpoints of one architecture, {wanted} in {first.spec}",
                f"{got} in {place.spec}",
                "inspect them apart",
            )
    return [place for place, _ in found]


def _architecture(spec: str) -> Any:
    """(adapter's configuration and base, or nothing; tensor → shape); None for what is built in or lies on a hub."""
    source = spec if is_built_in(spec) else resolve(spec)
    if not isinstance(source, Path):
        return None
    adapter = base_of_adapter(source)
    shapes = checkpoint_shapes(source, SKIP)
    return (None if adapter is None else _method(source, adapter)), shapes


def _method(source: Path, base: str) -> dict[str, Any]:
    """How an adapter works: its configuration, and the base that it names."""
    config = read_json(source / "adapter_config.json")
    kept = {key: value for key, value in config.items() if key not in PASSING}
    return {key: sorted(value) if isinstance(value, list) else value for key, value in kept.items()} | {"base": base}


def _difference(one: Any, other: Any) -> tuple[str, str] | None:
    """The first way in which two architectures differ; None where they do not, or cannot be told."""
    if one is None or other is None:
        return None
    (method, shapes), (its_method, its_shapes) = one, other
    if (method is None) != (its_method is None):
        names = {True: "full weights", False: "an adapter"}
        return names[method is None], names[its_method is None]
    for key in {**(method or {}), **(its_method or {})}:
        if method.get(key) != its_method.get(key):
            return f"an adapter with {key} {method.get(key)}", str(its_method.get(key))
    for name in {**shapes, **its_shapes}:
        if shapes.get(name) != its_shapes.get(name):
            return f"{name} of shape {shapes.get(name)}", str(its_shapes.get(name))
    return None
