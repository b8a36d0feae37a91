"""A model directory's files against one another: what transformers would pass over, or draw at random, is refused."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from geffect.errors import GeffectError
from geffect.io.readers import read_json

Shapes = dict[str, tuple[int, ...]]
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
READ = ("config.json", "adapter_config.json", "generation_config.json", "tokenizer_config.json", INDEX)
LAYERS = re.compile(r"(num|n)_(\w+_)?(layers?|blocks|experts)|(encoder|decoder)_layers")  # each is built in a loop
BLOCKS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")  # of which a model has one at least
MOST_LAYERS = 2048  # a model of so many takes seconds to outline; none that is known has more than a few hundred
FEWEST_BITS = 2  # a parameter takes in a file, however it is quantized
RESTORE = "restore its weight files, or the config.json they belong to"


def check_directory(directory: Path) -> None:
    """Raise where a directory's JSON files have a key twice, or its weights do not lie as their index says.

    Args:
        directory: of a model or an adapter.

    Raises:
        GeffectError: a file of weights is missing, surplus or elsewhere; it is named.
        ValueError: a JSON file cannot be read; it is named.
    """
    for file in sorted(each for name in READ for each in directory.glob(name)):
        try:
            content = read_json(file)
        except (OSError, ValueError, RecursionError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{reason} in {file.name}") from error  # told as whatever else a reader may raise
        if file.name == INDEX:
            _check_index(file, content)
    _check_surplus(directory)


def _check_index(index: Path, content: Any) -> None:
    """Every file that is named lies in the directory itself."""
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(each, str) for each in places.values()):
        raise GeffectError(f"a weight_map of tensors to files in {index}", "none", RESTORE)
    for name in sorted(set(places.values())):
        if Path(name).name != name or "\\" in name:
            raise GeffectError(f"weight files of {index.parent} itself in {INDEX}", repr(name), RESTORE)
        if not (index.parent / name).is_file():
            raise GeffectError(f"{name} in {index.parent}, which {INDEX} names", "none", RESTORE)
        elsewhere = {each for each, place in places.items() if place == name} - set(
            stored_shapes([index.parent / name])
        )
        if elsewhere:
            raise GeffectError(f"{min(elsewhere)} in {name}, where {INDEX} has it", "none", RESTORE)


def _check_surplus(directory: Path) -> None:
    """Every file of weights that lies here is read: transformers prefers a single one, else those of the index."""
    index = directory / INDEX
    named = set(read_json(index)["weight_map"].values()) if index.is_file() else {SINGLE}
    if surplus := sorted({each.name for each in directory.glob("*") if WEIGHTS.fullmatch(each.name)} - named):
        told = f"those that {INDEX} names" if index.is_file() else SINGLE
        raise GeffectError(
            f"no weight files in {directory} but {told}",
            surplus[0],
            f"restore {INDEX} or the files that belong to it, and remove the others",
        )


def check_config(source: str, content: Mapping[str, Any]) -> None:
    """Raise where a configuration has a number of layers that no model has: it would be built before anything fails.

    Args:
        source: of the configuration, for the error.
        content: of ``config.json``.

    Raises:
        GeffectError: the number is named.
    """
    for key, value in content.items():
        if isinstance(value, Mapping):
            check_config(source, value)
        elif LAYERS.fullmatch(str(key)) and isinstance(value, int | float) and not isinstance(value, bool):
            least = int(key in BLOCKS)
            if not least <= value <= MOST_LAYERS:
                raise GeffectError(
                    f"{key} from {least} to {MOST_LAYERS} in the config.json of {source}",
                    f"{value}",
                    "restore the file",
                )


def check_size(directory: Path, parameters: int) -> None:
    """Raise where a configuration describes far more parameters than the files hold: they would fill the memory first.

    Args:
        directory: of the model.
        parameters: that its configuration describes.

    Raises:
        GeffectError: the files are far too small.
    """
    held = sum(file.stat().st_size for file in directory.glob("*.safetensors"))
    if held and held * 8 < parameters * FEWEST_BITS:
        raise GeffectError(
            f"all weights of the model in {directory}, {parameters} as its config.json says",
            f"files of {held} bytes",
            RESTORE,
        )


def check_loaded(source: str, info: Mapping[str, Any], remedy: str = RESTORE) -> None:
    """Raise unless a model's weights were exactly those of its files; transformers draws or leaves out the others.

    Args:
        source: of the model, for the error.
        info: what ``from_pretrained(output_loading_info=True)`` tells; keys known to be harmless are not in it.
        remedy: what to do.

    Raises:
        GeffectError: the first tensor that is missing, surplus or of another shape.
    """
    if missing := sorted(info["missing_keys"]):
        raise GeffectError(f"all weights of the model in {source}", f"no {_several(missing)}", remedy)
    if surplus := sorted(info["unexpected_keys"]):
        expected = f"weights of the model in {source} alone"
        raise GeffectError(expected, f"{_several(surplus)}, which its configuration has no place for", remedy)
    for name, stored, wanted in sorted(info["mismatched_keys"], key=str):
        expected = f"all weights of the model in {source}, {name} of shape {tuple(wanted)}"
        raise GeffectError(expected, f"shape {tuple(stored)}", remedy)
    for error in info.get("error_msgs") or ():
        raise GeffectError(f"a readable model at {source}", str(error).strip().partition("\n")[0], remedy)


def _several(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def stored_shapes(files: Iterable[Path]) -> Shapes:
    """Every tensor's shape, from the files' headers.

    Args:
        files: safetensors.

    Returns:
        Tensor → shape.
    """
    found: Shapes = {}
    for file in files:
        with safe_open(file, "pt") as tensors:
            found |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    return found
