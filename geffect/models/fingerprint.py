"""What decides a model's numbers beside its weights: its configuration, an adapter's, and the code that reads them."""

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import geffect
from geffect.models.load import Loaded, adapter_of

CODE = ("data", "metrics", "models", "objectives", "preparation.py", "probes.py", "tokens.py")  # of kept results
LIBRARIES = ("torch", "transformers", "tokenizers", "peft")
ELSEWHERE = {
    "_name_or_path",
    "transformers_version",
    "base_model_name_or_path",
    "peft_version",
    "revision",
    "inference_mode",
}


def fingerprint(loaded: Loaded) -> str | None:
    """The hash of all that decides what a model computes and generates; None where its weights have no hash.

    Args:
        loaded: the model, before an adapter is merged into it.

    Returns:
        A hash over weights, configuration, adapter's configuration, generation settings, code that came with it,
        kind of device, and the versions of the libraries and of the code here that compute.
    """
    if loaded.sha256 is None:
        return None
    model = loaded.model
    parts = [
        loaded.sha256,
        _plain(model.config),
        getattr(model.config, "_attn_implementation", None),
        _plain(getattr(model, "generation_config", None)),
        {name: _plain(each) for name, each in getattr(model, "peft_config", {}).items()},
        _sha256([file for home in _homes(Path(loaded.source)) for file in sorted(home.glob("*.py"))]),
        {name: library_version(name) for name in LIBRARIES},
        _own_code(),
        str(next(model.parameters()).device.type),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _homes(source: Path) -> list[Path]:
    """A model's directory, and that of the base under an adapter."""
    base = adapter_of(source)
    return [source] if base is None else [source, *_homes(Path(base))]


def _own_code() -> str:
    home = Path(geffect.__file__).parent
    return _sha256([
        file
        for name in CODE
        for file in sorted((home / name).rglob("*.py") if (home / name).is_dir() else [home / name])
    ])


def _sha256(files: Sequence[Path]) -> str:
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def library_version(name: str) -> str | None:
    """The version of an installed package; None where it is absent."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _plain(config: Any) -> Any:
    """A configuration as JSON, without the paths and versions that decide nothing; sets in order."""
    content = config.to_dict() if hasattr(config, "to_dict") else config
    if isinstance(content, dict):
        return {str(key): _plain(value) for key, value in content.items() if key not in ELSEWHERE}
    if isinstance(content, set | frozenset):
        return sorted(map(str, content))
    return [_plain(each) for each in content] if isinstance(content, list | tuple) else content
