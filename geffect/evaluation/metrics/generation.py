"""What a model says: greedy continuations of prompts, in batches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

import torch
from torch import nn

from geffect.core.forward import IGNORE_INDEX
from geffect.data.encode import EncodedExample, pad_id_of, turn_end
from geffect.models.scoring import in_evaluation_mode


def prompt_of(row: EncodedExample) -> list[int]:
    """The tokens of a row before its first labeled one."""
    start = next((i for i, label in enumerate(row.labels) if label != IGNORE_INDEX), len(row.input_ids))
    return row.input_ids[:start]


def end_ids(model: nn.Module, tokenizer: Any) -> set[int]:
    """Every token that ends an answer, each place naming none, one or several.

    Args:
        model: its ``generation_config`` and ``config`` are read, the text decoder's too.
        tokenizer: its end of sequence, and what its chat template closes an answer with.

    Returns:
        The union.
    """
    config: Any = getattr(model, "config", None)
    decoder = config.get_text_config() if hasattr(config, "get_text_config") else None
    places = (tokenizer, getattr(model, "generation_config", None), config, decoder)
    named = [turn_end(tokenizer), *(getattr(place, "eos_token_id", None) for place in places)]
    lists = [torch.as_tensor(each).flatten().tolist() for each in named if each is not None]
    return {int(each) for ids in lists for each in ids}


def generate(
    model: nn.Module, tokenizer: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int = 200, batch_size: int = 16
) -> list[list[int]]:
    """Continue prompts greedily; the model is left in the mode it was in.

    Batches are padded on the left and masked there, so that a prompt's continuation does not depend on the others'.
    Each token is the most likely one: penalties, forced or banned tokens and least lengths in the model's generation
    settings do not apply.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        prompts: token ids.
        max_new_tokens: at most; a token of `end_ids` ends one before.
        batch_size: prompts at a time, those of similar length together.

    Returns:
        The new tokens of each, in the prompts' order, without the end.
    """
    from transformers import GenerationConfig

    ends, pad = end_ids(model, tokenizer), pad_id_of(tokenizer)
    greedy = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad, eos_token_id=sorted(ends) or None
    )
    device, found = next(model.parameters()).device, dict[int, list[int]]()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    with in_evaluation_mode(model), _own_settings_aside(model), torch.no_grad():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            width = max(len(prompts[i]) for i in chosen)
            ids = torch.tensor([[pad] * (width - len(prompts[i])) + list(prompts[i]) for i in chosen], device=device)
            mask = torch.tensor(
                [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in chosen], device=device
            )
            said = model.generate(inputs=ids, attention_mask=mask, generation_config=greedy)  # type: ignore[operator]
            for i, tokens in zip(chosen, said[:, width:].tolist(), strict=True):
                found[i] = list(takewhile(lambda token: token not in ends, tokens))
    return [found[i] for i in range(len(prompts))]


@contextmanager
def _own_settings_aside(model: nn.Module) -> Iterator[None]:
    """Set the model's generation settings aside: ``generate`` takes from them what its own leave unset."""
    from transformers import GenerationConfig

    own = [
        (module, vars(module)["generation_config"]) for module in model.modules() if "generation_config" in vars(module)
    ]
    for module, _ in own:
        module.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for module, settings in own:
            module.generation_config = settings
