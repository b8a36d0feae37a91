"""Model and checkpoint directories: their order, their checksums, and checks of their files against one another.

transformers silently skips surplus weights and draws missing ones at random; here both are refused.
"""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from geffect.errors import GeffectError
from geffect.io.readers import read_json
from geffect.models.cache import file_sha256
from geffect.record.writer import write

Shapes = dict[str, tuple[int, ...]]  # tensor → shape
NAME = re.compile(r"checkpoint-([0-9]{1,9})")  # ASCII digits alone: \d matches those of every script
CHECKSUMS = "checksums.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
JSON_FILES = ("config.json", "adapter_config.json", "generation_config.json", "tokenizer_config.json", INDEX)
LAYERS = re.compile(r"(num|n)_(\w+_)?(layers?|blocks|experts)|(encoder|decoder)_layers")  # each is built in a loop
BLOCKS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")  # a model has at least one
MAX_LAYERS = 2048  # such a model takes seconds to outline; no known one has more than a few hundred
MIN_BITS = 2  # of a parameter in a file, however it is quantized
RESTORE = "Restore its weight files, or the config.json they belong to"
REMEDY = "Restore it, or move this checkpoint away to resume from the one before"


def checkpoint_step(folder: Path) -> int | None:
    """N of a directory ``checkpoint-N``; None of another."""
    match = NAME.fullmatch(folder.name)
    return int(match[1]) if match else None


def checkpoints(run: Path) -> list[Path]:
    """The directories ``checkpoints/checkpoint-N`` of a run, by N; none where it has none."""
    return checkpoints_below(run / "checkpoints") if (run / "checkpoints").is_dir() else []


def checkpoints_below(folder: Path) -> list[Path]:
    """The directories ``checkpoint-N`` right below one, or below its ``checkpoints``, by N; raise if two have one N."""
    by_step: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if (step := checkpoint_step(path)) is None or not path.is_dir():
            continue
        if step in by_step:
            both = f"{by_step[step].name} and {path.name}"
            raise GeffectError(f"Two checkpoints in {folder} are of step {step}: {both}", remedy="Move one away")
        by_step[step] = path
    return [by_step[step] for step in sorted(by_step)] or checkpoints(folder)


def named_checkpoints(run: str) -> list[tuple[str, str]]:
    """(``checkpoint-N``, its path) of every checkpoint of a run directory, by N; one at least."""
    folders = checkpoints(Path(run).expanduser())
    if not folders:
        remedy = "Name a run of geffect unlearn --save-every, or omit --checkpoints"
        raise GeffectError(f"There are no checkpoints in {run}", remedy=remedy)
    return [(folder.name, str(folder)) for folder in folders]


def write_checksums(directory: Path, files: Iterable[Path] | None = None) -> None:
    """Write ``checksums.json``, the hashes of files in a directory or below; by default of all files right in it."""
    paths = files if files is not None else (file for file in directory.iterdir() if file.is_file())
    sums = {file.relative_to(directory).as_posix(): file_sha256(file) for file in sorted(paths)}
    write(directory / CHECKSUMS, json.dumps(sums, indent=1) + "\n")


def check_checksums(directory: Path, pattern: str = "*", remedy: str = REMEDY) -> None:
    """Raise where a file whose path matches is missing or has changed: a flipped bit would load without an error."""
    sums = read_checksums(directory, remedy)
    for name in (each for each in sums if Path(each).match(pattern)):
        file = directory / name
        if not file.is_file() or file_sha256(file) != sums[name]:
            state = "has changed" if file.is_file() else "is missing"
            message = f"{name} in {directory} {state} since it was written (sha256 {sums[name][:12]})"
            raise GeffectError(message, remedy=remedy)


def read_checksums(directory: Path, remedy: str = REMEDY) -> dict[str, str]:
    """File, by its path from the directory → hash, as `write_checksums` wrote them."""
    try:
        sums = {str(name): str(value) for name, value in read_json(directory / CHECKSUMS).items()}
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise GeffectError(
            f"The checksums in {directory / CHECKSUMS} cannot be read: {reason}", remedy=remedy
        ) from error
    for name in sums:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise GeffectError(f"{CHECKSUMS} in {directory} names a file elsewhere: {name!r}", remedy=remedy)
    return sums


@contextlib.contextmanager
def read_errors(what: str, remedy: str) -> Iterator[None]:
    """Report any exception that a broken file causes as one error; each kind of file has its own exceptions."""
    try:
        yield
    except GeffectError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise GeffectError(f"The {what} cannot be read: {reason}", remedy=remedy) from error


def check_directory(directory: Path) -> None:
    """Raise where a directory's JSON files cannot be read, or its weights are not where the index says.

    An unreadable JSON file is a ``ValueError``, which the caller reports as any reader's.
    """
    for file in sorted(path for name in JSON_FILES for path in directory.glob(name)):
        try:
            content = read_json(file)
        except (OSError, ValueError, RecursionError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{reason} in {file.name}") from error  # the caller reports it as any reader's
        if file.name == INDEX:
            _check_index(file, content)
    _check_surplus(directory)


def _check_index(index: Path, content: Any) -> None:
    """Every file that is named lies in the directory itself, with the tensors that the index says."""
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise GeffectError(f"{index} has no weight_map of tensors to files", remedy=RESTORE)
    for name in sorted(set(places.values())):
        if Path(name).name != name or "\\" in name:
            raise GeffectError(f"{INDEX} names a weight file outside {index.parent}: {name!r}", remedy=RESTORE)
        if not (index.parent / name).is_file():
            raise GeffectError(f"{name} is missing in {index.parent}, and {INDEX} names it", remedy=RESTORE)
        absent = {tensor for tensor, place in places.items() if place == name}.difference(
            stored_shapes([index.parent / name])
        )
        if absent:
            raise GeffectError(f"{min(absent)} is not in {name}, where {INDEX} has it", remedy=RESTORE)


def _check_surplus(directory: Path) -> None:
    """Every file of weights that lies here is read: transformers prefers a single one, else those of the index."""
    index = directory / INDEX
    expected = set(read_json(index)["weight_map"].values()) if index.is_file() else {SINGLE}
    if surplus := sorted({file.name for file in directory.glob("*") if WEIGHTS.fullmatch(file.name)} - expected):
        source = f"those that {INDEX} names" if index.is_file() else SINGLE
        remedy = f"Restore {INDEX} or the files that belong to it, and remove the others"
        raise GeffectError(f"{surplus[0]} in {directory} would not be read, only {source}", remedy=remedy)


def check_config(source: str, content: Mapping[str, Any]) -> None:
    """Raise where a ``config.json`` has an impossible number of layers, which would be built before anything fails."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            check_config(source, value)
        elif LAYERS.fullmatch(str(key)) and isinstance(value, int | float) and not isinstance(value, bool):
            least = int(key in BLOCKS)
            if not least <= value <= MAX_LAYERS:
                message = f"{key} in the config.json of {source} is {value}, not from {least} to {MAX_LAYERS}"
                raise GeffectError(message, remedy="Restore the file")


def check_size(directory: Path, parameters: int) -> None:
    """Raise where a configuration describes far more parameters than the files hold, before memory is filled."""
    size = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    if size and size * 8 < parameters * MIN_BITS:
        message = (
            f"The config.json of {directory} describes {parameters} parameters, but its weight files have {size} bytes"
        )
        raise GeffectError(message, remedy=RESTORE)


def check_loading_info(source: str, info: Mapping[str, Any], remedy: str = RESTORE) -> None:
    """Raise unless the result of ``from_pretrained(output_loading_info=True)`` is that every weight fits."""
    if missing := sorted(info["missing_keys"]):
        raise GeffectError(f"The model in {source} lacks the weights {_first(missing)}", remedy=remedy)
    if surplus := sorted(info["unexpected_keys"]):
        message = f"The model in {source} has the weights {_first(surplus)}, for which its configuration has no place"
        raise GeffectError(message, remedy=remedy)
    for name, stored, expected in sorted(info["mismatched_keys"], key=str):
        message = f"{name} in {source} has shape {tuple(stored)}, and its configuration says {tuple(expected)}"
        raise GeffectError(message, remedy=remedy)
    for error in info.get("error_msgs") or ():
        reason = str(error).strip().partition("\n")[0]
        raise GeffectError(f"The model at {source} cannot be read: {reason}", remedy=remedy)


def _first(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def stored_shapes(files: Iterable[Path]) -> Shapes:
    """Every tensor's shape, from the headers of safetensors files, which also tell whether a file is cut short."""
    shapes: Shapes = {}
    for file in files:
        with safe_open(file, "pt") as tensors:
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return shapes


def checkpoint_shapes(directory: Path, remedy: str) -> Shapes:
    """The shapes of a model's or an adapter's weights; raise where a file is missing or damaged."""
    files = sorted(directory.glob("*model*.safetensors"))
    if not files:
        raise GeffectError(f"There are no weights as safetensors in {directory}", remedy=remedy)
    with read_errors(f"weights in {directory}", remedy):
        for index in directory.glob("*.safetensors.index.json"):
            wanted = set(read_json(index)["weight_map"].values())
            if missing := wanted - {file.name for file in files}:
                raise OSError(f"{min(missing)} is missing")
        return stored_shapes(files)
