"""What a model says: greedy continuations of prompts, in batches."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from geffect.data import Encoded, pad_id_of
from geffect.metrics.likelihood import evaluating
from geffect.objectives import IGNORE_INDEX


def prompt_of(row: Encoded) -> list[int]:
    """The tokens of a row before its first labelled one."""
    start = next((i for i, label in enumerate(row.labels) if label != IGNORE_INDEX), len(row.input_ids))
    return row.input_ids[:start]


def generate(
    model: nn.Module, tokenizer: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int = 200, batch_size: int = 16
) -> list[list[int]]:
    """Continue prompts greedily; the model is left in the mode it was in.

    Batches are padded on the left and masked there, so that a prompt's continuation does not depend on the others'.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        prompts: token ids.
        max_new_tokens: at most; an end-of-sequence token ends one before.
        batch_size: prompts at a time, those of similar length together.

    Returns:
        The new tokens of each, in the prompts' order, without the end.
    """
    from transformers import GenerationConfig

    eos, pad = tokenizer.eos_token_id, pad_id_of(tokenizer)
    greedy = GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad, eos_token_id=eos)
    device, found = next(model.parameters()).device, dict[int, list[int]]()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    with evaluating(model), torch.no_grad():
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            width = max(len(prompts[i]) for i in chosen)
            ids = torch.tensor([[pad] * (width - len(prompts[i])) + list(prompts[i]) for i in chosen], device=device)
            mask = torch.tensor(
                [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in chosen], device=device
            )
            said = model.generate(inputs=ids, attention_mask=mask, generation_config=greedy)  # type: ignore[operator]
            for i, tokens in zip(chosen, said[:, width:].tolist(), strict=True):
                found[i] = tokens[: tokens.index(eos)] if eos in tokens else tokens
    return [found[i] for i in range(len(prompts))]
