"""An adapter's file against its configuration and its base: PEFT passes over what is missing, surplus or unmatched."""

import json
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from geffect.errors import GeffectError
from geffect.models.stored import check_loaded, stored_shapes

LOGGER = logging.getLogger(__name__)
FILE = "adapter_model.safetensors"
RESTORE = "restore the adapter's files, or name the base they were trained on in its adapter_config.json"
LOADED_ONCE = ("vblora_vector_bank", ".tinylora_v.")  # kept in a place of their own, and shown in every layer
SECONDS = 5.0  # that an adapter's patterns may take to be matched with all of a model's names
MATCH = "import json, re, sys; p, n = json.load(sys.stdin); [re.match(rf'(.*\\.)?({x})$', y) for x in p for y in n]"


def check_patterns(config: Any, names: Sequence[str]) -> None:
    """Raise where a pattern of an adapter's configuration takes for ever to match: it would hang in PEFT.

    Args:
        config: the adapter's.
        names: of the base's modules.

    Raises:
        GeffectError: the patterns take longer than `SECONDS`, or one is none.
    """
    found = {
        key: _patterns(config, key)
        for key in ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern")
    }
    for key, patterns in found.items():
        if not any(re.escape(each) != each.replace(".", r"\.") for each in patterns):
            continue  # plain names
        command = [sys.executable, "-I", "-S", "-c", MATCH]
        try:
            subprocess.run(
                command,
                input=json.dumps([patterns, list(names)]),
                text=True,
                timeout=SECONDS,
                check=True,
                capture_output=True,
            )
        except subprocess.TimeoutExpired as error:
            raise GeffectError(
                f"a {key} that is matched within {SECONDS:g} seconds in adapter_config.json",
                repr(patterns[0]),
                "name the modules in a list",
            ) from error
        except subprocess.CalledProcessError as error:
            reason = error.stderr.strip().rpartition("\n")[2]
            raise GeffectError(f"patterns as {key} in adapter_config.json", reason, "correct it") from error


def _patterns(config: Any, key: str) -> list[str]:
    value = getattr(config, key, None) or []
    return [value] if isinstance(value, str) else [str(each) for each in value]


def grow_vocabulary(base: Any, source: Path) -> None:
    """Give a base as many embeddings as an adapter brings whole; all of their values come from its file.

    Args:
        base: the model; its embedding and head are resized in place.
        source: the adapter's directory.

    Raises:
        GeffectError: the file brings an embedding of another size, and no head.
    """
    shapes = stored_shapes([source / FILE])
    ends = {id(each): each for each in (base.get_input_embeddings(), base.get_output_embeddings()) if each is not None}
    names = {name: module for name, module in base.named_modules() if id(module) in ends}
    saved = {name: shapes.get(f"base_model.model.{name}.weight", (0,))[0] for name in names}
    sizes = {name: int(module.weight.shape[0]) for name, module in names.items()}
    changed = {name: size for name, size in saved.items() if size and size != sizes[name]}
    if not changed:
        return
    apart = json.loads((source / "adapter_config.json").read_bytes()).get("modules_to_save")  # copies, never tied
    tied = len({id(module.weight) for module in names.values()}) == 1 and not apart
    if len(set(changed.values())) > 1 or not (tied or len(changed) == len(names)):
        found = ", ".join(f"{name} of {size or 'no'} rows" for name, size in saved.items())
        remedy = "save embedding and head with the adapter: save_pretrained(save_embedding_layers=True)"
        raise GeffectError(f"embedding and head of one new size in {source / FILE}", found, remedy)
    size = next(iter(changed.values()))
    LOGGER.info("the adapter brings a vocabulary of %d tokens; its base has %d", size, max(sizes.values()))
    base.resize_token_embeddings(size, mean_resizing=False)


def check_adapter(model: Any, source: Path) -> None:
    """Raise unless an adapter's file holds exactly the tensors of its model.

    Args:
        model: the adapted model on the meta device; it stays there.
        source: the adapter's directory.

    Raises:
        GeffectError: the first tensor that is missing, surplus or of another shape.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is copied to the meta device
        try:
            result = model.load_adapter(str(source), "default", is_trainable=True)
        except KeyError as error:
            info = {"missing_keys": [str(error.args[0])], "unexpected_keys": [], "mismatched_keys": []}
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise GeffectError(f"an adapter of its base's shapes in {source}", lines[-1], RESTORE) from error
        else:
            missing = [name for name in result.missing_keys if not any(each in name for each in LOADED_ONCE)]
            info = {"missing_keys": missing, "unexpected_keys": result.unexpected_keys, "mismatched_keys": []}
    check_loaded(str(source), info, RESTORE)
    for key, unmatched in _unmatched(model).items():
        LOGGER.warning("%s of the adapter in %s match no layer of its base: %s", key, source, ", ".join(unmatched))


def _unmatched(model: Any) -> dict[str, list[str]]:
    """Names in an adapter's configuration that stand for no module: by setting."""
    config, names = model.peft_config["default"], [name for name, _ in model.get_base_model().named_modules()]
    plain = {key: _listed(config, key) for key in ("target_modules", "modules_to_save")}
    patterns = {key: list(getattr(config, key, None) or {}) for key in ("rank_pattern", "alpha_pattern")}
    found = {key: [each for each in value if not _ends_one(each, names)] for key, value in plain.items()}
    for key, value in patterns.items():
        found[key] = [each for each in value if not any(re.match(rf"(.*\.)?({each})$", name) for name in names)]
    return {key: sorted(value) for key, value in found.items() if value}


def _listed(config: Any, key: str) -> list[str]:
    value = getattr(config, key, None)
    return [] if value is None or isinstance(value, str) else list(value)


def _ends_one(suffix: str, names: Iterable[str]) -> bool:
    return any(name == suffix or name.endswith(f".{suffix}") for name in names)
