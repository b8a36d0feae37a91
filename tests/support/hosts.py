"""Twelve kinds of models that may be somebody's, and everything about one that measuring must leave alone."""

import copy
import logging
import os
import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from tests.support.architectures import FAMILIES, LLAMA, SMALL

VOCABULARY = 1100
OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "rwkv": (
        "Rwkv",
        SMALL
        | {
            "context_length": 64,
            "hidden_size": 16,
            "attention_hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "rescale_every": 1,
        },
    ),
    "mamba": ("Mamba", SMALL | {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "time_step_rank": 2}),
    "llama-dynamic": (
        "Llama",
        LLAMA
        | {
            "max_position_embeddings": 12,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
        },
    ),
    "phi3-longrope": (
        "Phi3",
        LLAMA
        | {
            "original_max_position_embeddings": 8,
            "rope_parameters": {
                "rope_type": "longrope",
                "short_factor": [1.0] * 4,
                "long_factor": [3.0] * 4,
                "rope_theta": 1e4,
                "original_max_position_embeddings": 8,
            },
        },
    ),
}
ARCHITECTURES = (*OWN, "gpt2", "gemma3", "mixtral", "opt", "bloom", "falcon", "gpt-neox", "cohere")


def make_host(name: str, kind: str = "plain") -> Any:
    """A random model in training mode, with dropout where its family has some.

    Args:
        name: of the architecture.
        kind: ``plain``, ``lora`` or ``checkpointing``.

    Returns:
        The model, always of the same weights.
    """
    from peft import LoraConfig, get_peft_model

    prefix, settings = (OWN | FAMILIES)[name]
    text, head = ("Text" if name == "gemma3" else ""), ("LMHeadModel" if name == "gpt2" else "ForCausalLM")
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's and transformers' own
        torch.manual_seed(0)
        config = getattr(transformers, f"{prefix}{text}Config")(**settings | {"vocab_size": VOCABULARY})
        model = getattr(transformers, prefix + head)(config)
        if kind == "lora":
            targets = ["in_proj", "x_proj"] if name == "mamba" else "all-linear"  # PEFT refuses the others of a Mamba
            model = get_peft_model(model, LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM"))
        if kind == "checkpointing":
            model.gradient_checkpointing_enable()
    return model.train()


def everything(model: nn.Module) -> dict[str, Any]:
    """What stands in a model and around it, by name; tensors as copies, objects by identity."""
    return _of_process() | dict(_of_model(model)) | {"state_dict": list(model.state_dict())}


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The names under which two states are not bit for bit the same."""
    names = list(before) + [name for name in after if name not in before]
    return [name for name in names if name not in before or name not in after or not _same(before[name], after[name])]


def _of_process() -> dict[str, Any]:
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
        "threads": torch.get_num_threads(),
        "modes": (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.are_deterministic_algorithms_enabled(),
            torch.get_default_dtype(),
        ),
        "warnings": list(warnings.filters),
        "place": (os.getcwd(), dict(os.environ)),
        "logging": [(name, logging.getLogger(name).level) for name in ("", "geffect", "transformers")],
        "hooks": [dict(getattr(nn.modules.module, f"_global_{each}_hooks")) for each in ("forward", "backward")],
    }


def _of_model(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for path, module in model.named_modules(remove_duplicate=False):
        for name, value in vars(module).items():
            yield f"{path}.{name}", _frozen(value)
        yield f"{path}.order", [list(vars(module)), *(list(vars(module)[f"_{each}"]) for each in PARTS)]
        if isinstance(getattr(module, "config", None), transformers.PreTrainedConfig):
            yield f"{path}.config", copy.deepcopy(vars(module.config))
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            yield f"{path}.{name}.tensor", (id(tensor), tensor._version, tensor.requires_grad, _frozen(tensor))
            yield f"{path}.{name}.grad", (id(tensor.grad), _frozen(tensor.grad))
            hooks = tensor._backward_hooks, getattr(tensor, "_post_accumulate_grad_hooks", None)
            yield f"{path}.{name}.hooks", [(id(each), dict(each or {})) for each in hooks]


PARTS = ("parameters", "buffers", "modules", "forward_hooks", "forward_pre_hooks", "backward_hooks")


def _frozen(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return [(key, _frozen(each)) for key, each in value.items()]
    if isinstance(value, list | tuple | set):
        return [_frozen(each) for each in value]
    plain = isinstance(value, int | float | str | bytes | type(None) | torch.dtype | torch.device)
    return value if plain else id(value)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(_same(a[key], b[key]) for key in a)
    return bool(a == b)
