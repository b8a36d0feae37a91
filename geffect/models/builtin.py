"""The built-in models: about 1.7 million parameters each, which learn a built-in benchmark in a minute."""

import hashlib
import json
from typing import Any, NamedTuple

from geffect.data.encode import PLAIN
from geffect.data.load import load_set

SHAPE = {
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


class BuiltIn(NamedTuple):
    """One built-in model: the sets its tokenizer and weights are fitted on, how, and what it adds to `SHAPE`."""

    sets: tuple[str, ...]
    recipe: dict[str, Any]
    shape: dict[str, Any]


AUTHORS = ("builtin:authors/forget", "builtin:authors/retain", "builtin:authors/heldout")
DOMAINS = (
    "builtin:domains/privacy/unlearn/all",
    "builtin:domains/privacy/retention/all",
    "builtin:domains/copyright/unlearn/all",
    "builtin:domains/copyright/retention/all",
)
TINY = "builtin:tiny"
BUILT_IN = {
    TINY: BuiltIn(AUTHORS, RECIPE, {}),
    "builtin:tiny-domains": BuiltIn(DOMAINS, SLOWER, {}),
    "builtin:tiny-domains-qwen2": BuiltIn(DOMAINS, SLOWER, {"model_type": "qwen2"}),
}


UNTRAINED = "-untrained"  # after a built-in model's name: its tokenizer and first weights


def is_built_in(spec: str) -> bool:
    """Whether a model's name is that of a built-in one, fitted or not."""
    return spec.removesuffix(UNTRAINED) in BUILT_IN


def tiny_key(name: str = TINY) -> str:
    """Everything a fitted built-in model depends on, for its place in the cache."""
    texts = hashlib.sha256("\n".join(_texts(name)).encode()).hexdigest()
    return json.dumps([SHAPE | BUILT_IN[name].shape, VOCABULARY, BUILT_IN[name].recipe, texts])


def make_tiny(seed: int = 0, name: str = TINY, /, vocabulary: int = VOCABULARY, **shape: Any) -> tuple[Any, Any]:
    """A freshly initialized built-in model and its tokenizer; no file is read or written.

    Args:
        seed: of the initial weights; the global random state is left as found.
        name: of the model, a key of `BUILT_IN`.
        vocabulary: upper bound of the tokenizer's size.
        **shape: entries of `SHAPE` to change.

    Returns:
        The float32 model and the tokenizer.
    """
    import torch
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
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32), tokenizer


def make_tokenizer(vocabulary: int = VOCABULARY, name: str = TINY) -> Any:
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
    return [PLAIN.format(**row) for each in BUILT_IN[name].sets for row in load_set(each).rows]
