"""Model and checkpoint directories: their order, their checksums, and checks of their files against one another.

transformers silently skips surplus weights and draws missing ones at random, and PEFT skips what of an adapter does not
match; here all of these are refused.
"""

import contextlib
import json
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from geffect.core.architectures import CausalLM
from geffect.errors import GeffectError
from geffect.io.readers import JSON, read_json
from geffect.models.cache import file_sha256
from geffect.record.writer import write

if TYPE_CHECKING:
    from peft import PeftConfig

LOGGER = logging.getLogger(__name__)
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
ADAPTER_FILE = "adapter_model.safetensors"
RESTORE_ADAPTER = "Restore the adapter's files, or name the base they were trained on in its adapter_config.json"
SHARED = ("vblora_vector_bank", ".tinylora_v.")  # stored once, and listed in every layer
SECONDS = 5.0  # limit for matching an adapter's patterns with all of a model's names
MATCH = "import json, re, sys; p, n = json.load(sys.stdin); [re.match(rf'(.*\\.)?({x})$', y) for x in p for y in n]"
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
        message = f"The checksums in {directory / CHECKSUMS} cannot be read: {reason}"
        raise GeffectError(message, remedy=remedy) from error
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


def _check_index(index: Path, content: JSON) -> None:
    """Every file that is named lies in the directory itself, with the tensors that the index says."""
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise GeffectError(f"{index} has no weight_map of tensors to files", remedy=RESTORE)
    for name in sorted(set(places.values())):
        if Path(name).name != name or "\\" in name:
            raise GeffectError(f"{INDEX} names a weight file outside {index.parent}: {name!r}", remedy=RESTORE)
        if not (index.parent / name).is_file():
            raise GeffectError(f"{name} is missing in {index.parent}, and {INDEX} names it", remedy=RESTORE)
        tensors = {tensor for tensor, place in places.items() if place == name}
        if absent := tensors.difference(stored_shapes([index.parent / name])):
            raise GeffectError(f"{min(absent)} is not in {name}, where {INDEX} has it", remedy=RESTORE)


def _check_surplus(directory: Path) -> None:
    """Every file of weights that lies here is read: transformers prefers a single one, else those of the index."""
    index = directory / INDEX
    expected = set(read_json(index)["weight_map"].values()) if index.is_file() else {SINGLE}
    if surplus := sorted({file.name for file in directory.glob("*") if WEIGHTS.fullmatch(file.name)} - expected):
        source = f"those that {INDEX} names" if index.is_file() else SINGLE
        remedy = f"Restore {INDEX} or the files that belong to it, and remove the others"
        raise GeffectError(f"{surplus[0]} in {directory} would not be read, only {source}", remedy=remedy)


def check_config(source: str, content: Mapping[str, JSON]) -> None:
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
        described = f"The config.json of {directory} describes {parameters} parameters"
        raise GeffectError(f"{described}, but its weight files have {size} bytes", remedy=RESTORE)


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


def check_patterns(config: "PeftConfig", names: Sequence[str]) -> None:
    """Raise where a pattern of an adapter's configuration does not compile or, so that PEFT hangs, matches slowly."""
    for key in ["target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern"]:
        patterns = _patterns(config, key)
        if not any(re.escape(each) != each.replace(".", r"\.") for each in patterns):
            continue  # plain names
        command = [sys.executable, "-I", "-S", "-c", MATCH]
        content = json.dumps([patterns, list(names)])
        try:
            subprocess.run(command, input=content, text=True, timeout=SECONDS, check=True, capture_output=True)
        except subprocess.TimeoutExpired as error:
            message = f"{key} in adapter_config.json is not matched within {SECONDS:g} seconds: {patterns[0]!r}"
            raise GeffectError(message, remedy="Name the modules in a list") from error
        except subprocess.CalledProcessError as error:
            reason = error.stderr.strip().rpartition("\n")[2]
            raise GeffectError(f"{key} in adapter_config.json is no pattern: {reason}", remedy="Correct it") from error


def _patterns(config: "PeftConfig", key: str) -> list[str]:
    value = getattr(config, key, None) or []
    return [value] if isinstance(value, str) else [str(each) for each in value]


def resize_vocabulary(base: CausalLM, source: Path) -> None:
    """Resize a base's embedding and head to those that an adapter stores whole; all values come from its file."""
    shapes = stored_shapes([source / ADAPTER_FILE])
    ends = {id(each): each for each in (base.get_input_embeddings(), base.get_output_embeddings()) if each is not None}
    modules: dict[str, Any] = {name: module for name, module in base.named_modules() if id(module) in ends}
    saved = {name: shapes.get(f"base_model.model.{name}.weight", (0,))[0] for name in modules}
    sizes = {name: int(module.weight.shape[0]) for name, module in modules.items()}
    changed = {name: size for name, size in saved.items() if size and size != sizes[name]}
    if not changed:
        return
    copies = read_json(source / "adapter_config.json").get("modules_to_save")  # never tied
    tied = len({id(module.weight) for module in modules.values()}) == 1 and not copies
    if len(set(changed.values())) > 1 or not (tied or len(changed) == len(modules)):
        each = ", ".join(f"{name} of {size or 'no'} tokens" for name, size in saved.items())
        remedy = "Save embedding and head with the adapter: save_pretrained(save_embedding_layers=True)"
        message = f"{source / ADAPTER_FILE} does not have embedding and head of one new size: {each}"
        raise GeffectError(message, remedy=remedy)
    size = next(iter(changed.values()))
    LOGGER.info("the adapter brings a vocabulary of %d tokens; its base has %d", size, max(sizes.values()))
    base.resize_token_embeddings(size, mean_resizing=False)


def check_adapter(model: CausalLM, source: Path) -> None:
    """Raise unless an adapter's file holds exactly the tensors of its model, which is and stays on the meta device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is copied to the meta device
        try:
            result = model.load_adapter(str(source), "default", is_trainable=True)
        except KeyError as error:
            info = {"missing_keys": [str(error.args[0])], "unexpected_keys": [], "mismatched_keys": []}
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            message = f"The adapter in {source} does not fit its base: {lines[-1]}"
            raise GeffectError(message, remedy=RESTORE_ADAPTER) from error
        else:
            missing = [name for name in result.missing_keys if not any(part in name for part in SHARED)]
            info = {"missing_keys": missing, "unexpected_keys": result.unexpected_keys, "mismatched_keys": []}
    check_loading_info(str(source), info, RESTORE_ADAPTER)
    for key, unmatched in _unmatched(model).items():
        LOGGER.warning("%s of the adapter in %s match no layer of its base: %s", key, source, ", ".join(unmatched))


def _unmatched(model: CausalLM) -> dict[str, list[str]]:
    """Setting → names in an adapter's configuration that match no module."""
    config, names = model.peft_config["default"], [name for name, _ in model.get_base_model().named_modules()]
    unmatched = {}
    for key in ("target_modules", "modules_to_save"):
        value = getattr(config, key, None)
        suffixes = [] if value is None or isinstance(value, str) else value
        unmatched[key] = [x for x in suffixes if not any(f".{name}".endswith(f".{x}") for name in names)]
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = getattr(config, key, None) or {}
        unmatched[key] = [x for x in patterns if not any(re.match(rf"(.*\.)?({x})$", name) for name in names)]
    return {key: sorted(value) for key, value in unmatched.items() if value}
