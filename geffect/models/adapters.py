"""Checks of an adapter's file against its configuration and its base; PEFT itself skips what does not match."""

import json
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from geffect.core.architectures import CausalLM
from geffect.errors import GeffectError
from geffect.io.readers import read_json
from geffect.models.checkpoints import check_loading_info, stored_shapes

LOGGER = logging.getLogger(__name__)
FILE = "adapter_model.safetensors"
RESTORE = "Restore the adapter's files, or name the base they were trained on in its adapter_config.json"
SHARED = ("vblora_vector_bank", ".tinylora_v.")  # stored once, and listed in every layer
SECONDS = 5.0  # limit for matching an adapter's patterns with all of a model's names
MATCH = "import json, re, sys; p, n = json.load(sys.stdin); [re.match(rf'(.*\\.)?({x})$', y) for x in p for y in n]"


def check_patterns(config: Any, names: Sequence[str]) -> None:
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


def _patterns(config: Any, key: str) -> list[str]:
    value = getattr(config, key, None) or []
    return [value] if isinstance(value, str) else [str(each) for each in value]


def resize_vocabulary(base: CausalLM, source: Path) -> None:
    """Resize a base's embedding and head to those that an adapter stores whole; all values come from its file."""
    shapes = stored_shapes([source / FILE])
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
        raise GeffectError(f"{source / FILE} does not have embedding and head of one new size: {each}", remedy=remedy)
    size = next(iter(changed.values()))
    LOGGER.info("the adapter brings a vocabulary of %d tokens; its base has %d", size, max(sizes.values()))
    base.resize_token_embeddings(size, mean_resizing=False)


def check_adapter(model: Any, source: Path) -> None:
    """Raise unless an adapter's file holds exactly the tensors of its model, which is and stays on the meta device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is copied to the meta device
        try:
            result = model.load_adapter(str(source), "default", is_trainable=True)
        except KeyError as error:
            info = {"missing_keys": [str(error.args[0])], "unexpected_keys": [], "mismatched_keys": []}
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise GeffectError(f"The adapter in {source} does not fit its base: {lines[-1]}", remedy=RESTORE) from error
        else:
            missing = [name for name in result.missing_keys if not any(part in name for part in SHARED)]
            info = {"missing_keys": missing, "unexpected_keys": result.unexpected_keys, "mismatched_keys": []}
    check_loading_info(str(source), info, RESTORE)
    for key, unmatched in _unmatched(model).items():
        LOGGER.warning("%s of the adapter in %s match no layer of its base: %s", key, source, ", ".join(unmatched))


def _unmatched(model: Any) -> dict[str, list[str]]:
    """Setting → names in an adapter's configuration that match no module."""
    config, names = model.peft_config["default"], [name for name, _ in model.get_base_model().named_modules()]
    unmatched = {}
    for key in ("target_modules", "modules_to_save"):
        value = getattr(config, key, None)
        suffixes = [] if value is None or isinstance(value, str) else value
        unmatched[key] = [suffix for suffix in suffixes if not _is_suffix(suffix, names)]
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = getattr(config, key, None) or {}
        unmatched[key] = [x for x in patterns if not any(re.match(rf"(.*\.)?({x})$", name) for name in names)]
    return {key: sorted(value) for key, value in unmatched.items() if value}


def _is_suffix(suffix: str, names: Iterable[str]) -> bool:
    return any(name == suffix or name.endswith(f".{suffix}") for name in names)
