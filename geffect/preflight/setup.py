"""Of a run's set-up: memory, batches, weights, ties."""

from typing import Any

import psutil

from geffect.config import UnlearnConfig
from geffect.core.tied import find_tie
from geffect.models.reference import check_trainable
from geffect.preflight.finding import Finding
from geffect.training.dry_run import arithmetic, memory_gb
from geffect.training.setup import VANISHES, Start, roles

SMALLER = "lower --batch-size, add --gradient-checkpointing, or train an adapter with --lora 8"
DIVIDE = "let --batch-size × --grad-accum-steps divide the set, or mind that this step is noisier than the others"
ROUNDED = "gradients pass through rounded weights: compare a few with those of the full model"
FLOAT32 = "use --dtype float32, with --autocast bfloat16 for speed"


def memory(config: UnlearnConfig, start: Start) -> Finding:
    """The plan's estimate against what is free (the loaded weights count as free: the estimate holds them)."""
    needed = memory_gb(config, start.loaded.model, start.encoded)
    loaded = sum(p.numel() * p.element_size() for p in start.loaded.model.parameters())
    free = (psutil.virtual_memory().available + loaded) / 1e9
    found = f"about {needed:.1f} GB needed, {free:.1f} GB free"
    return Finding("memory", "bad", found, SMALLER) if needed > free else Finding("memory", "good", found)


def batches(config: UnlearnConfig, start: Start) -> Finding:
    """Whether every step of an epoch has as many rows."""
    numbers = arithmetic(config, {spec: start.encoded[name] for name, spec in roles(config)})
    left = int(numbers["examples"]) % int(numbers["examples_a_step"])
    found = str(numbers["sentence"])
    if left:
        return Finding("batches", "warning", f"{found}; an epoch's last step has {left} rows", DIVIDE)
    return Finding("batches", "good", found)


def weights(config: UnlearnConfig, model: Any) -> Finding:
    """Whether gradients reach them, and steps move them."""
    whole, trained = (sum(p.numel() for p in model.parameters() if p.requires_grad or every) / 1e6 for every in (1, 0))
    dtypes = ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()}))
    found = f"{trained:.2f} M of {whole:.2f} M trained, {dtypes}"
    try:
        check_trainable(model)
    except ValueError as error:
        reason, remedy = str(error).partition("found ")[2].split("; ")
        return Finding("weights", "bad", f"{found}; {reason}", remedy)
    if is_quantized(model):
        return Finding("weights", "warning", f"{found}; the base is quantized", ROUNDED)
    if config.dtype == "bfloat16" and config.learning_rate < VANISHES:
        lost = f"{found}; steps of {config.learning_rate:g} vanish in bfloat16's rounding"
        return Finding("weights", "warning", lost, FLOAT32)
    return Finding("weights", "good", found)


def is_quantized(model: Any) -> bool:
    """Whether its weights, or those under its adapter, are quantized."""
    return bool(getattr(model, "is_quantized", False))


def tie(model: Any) -> Finding:
    """Whether embedding and head are one tensor, and what becomes of its inner products."""
    found = find_tie(model)
    if found is not None:
        return Finding("tie", "good", f"{found.name} is embedding and head: told apart by use on the risk rows")
    embed, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = getattr(head, "weight", None) is getattr(embed, "weight", ())
    return Finding("tie", "good", "embedding and head are one tensor, not trained" if tied else "none")
