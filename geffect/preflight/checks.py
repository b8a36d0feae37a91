"""Checks of a run before it begins: each finding says what was measured and what to do."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psutil

from geffect.config import UnlearnConfig
from geffect.core.forward import IGNORE_INDEX
from geffect.core.layers import find_tied_weights
from geffect.core.splits import TARGETS, role_of, split_names
from geffect.data.checks import shared_examples
from geffect.data.encode import EncodedExample, collate, pad_id_of, turn_end
from geffect.data.load import ExampleSet
from geffect.errors import GeffectError
from geffect.models.scoring import check_trainable, compute_likelihood
from geffect.preflight.numerics import FLOAT32, Finding, derivative, determinism, is_quantized, precision
from geffect.training.setup import VANISHES, TrainingSetup
from geffect.training.unlearn import KNOWN

SMALLER = "lower --batch-size, add --gradient-checkpointing, or train an adapter with --lora 8"
DIVIDE = "let --batch-size × --grad-accum-steps divide the set, or mind that this step is noisier than the others"
ROUNDED = "gradients pass through rounded weights: compare a few with those of the full model"
APART = "leave them out of one set: an example cannot be both forgotten and retained, nor trained on and held out"
LOOK = "see them with geffect preview"
TEMPLATE = "edit the tokenizer's chat template so that it writes {{ bos_token }} once"
CUT = "raise --max-length if rows were cut; else this tokenizer's end is another token"


def examine(start: TrainingSetup[UnlearnConfig]) -> Iterator[Finding]:
    """Run every check on a run that has not begun, cheap ones first."""
    config, model, tokenizer = start.config, start.loaded.model, start.loaded.tokenizer
    yield memory(start)
    yield batches(start)
    yield weights(config, model)
    yield tie(model)
    yield from shared(start.sets)
    for name, rows in start.encoded.items():
        yield masks(name, rows)
        yield ends(name, rows, tokenizer)
    for name, rows in start.encoded.items():
        yield known(name, rows, model, pad_id_of(tokenizer))
    if any(p.requires_grad for p in model.parameters()):
        probe = {
            role: collate(start.encoded[split_names(role, start.encoded)[0]][: config.batch_size], pad_id_of(tokenizer))
            for role in TARGETS
        }
        yield determinism(model, probe)
        yield derivative(model, probe)
        yield from precision(config, model, probe)


def memory(start: TrainingSetup[UnlearnConfig]) -> Finding:
    """The plan's estimate against what is free (the loaded weights count as free: the estimate holds them)."""
    needed = start.memory_gb
    loaded = sum(p.numel() * p.element_size() for p in start.loaded.model.parameters())
    free = (psutil.virtual_memory().available + loaded) / 1e9
    found = f"about {needed:.1f} GB needed, {free:.1f} GB free"
    return Finding("memory", "bad", found, SMALLER) if needed > free else Finding("memory", "good", found)


def batches(start: TrainingSetup[UnlearnConfig]) -> Finding:
    """Whether every step of an epoch has as many rows."""
    numbers = start.batches()
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
    except GeffectError as error:
        return Finding("weights", "bad", f"{found}; {error.message}", error.remedy)
    if is_quantized(model):
        return Finding("weights", "warning", f"{found}; the base is quantized", ROUNDED)
    if config.dtype == "bfloat16" and config.learning_rate < VANISHES:
        lost = f"{found}; steps of {config.learning_rate:g} vanish in bfloat16's rounding"
        return Finding("weights", "warning", lost, FLOAT32)
    return Finding("weights", "good", found)


def tie(model: Any) -> Finding:
    """Whether embedding and head are one tensor, and what becomes of its inner products."""
    found = find_tied_weights(model)
    if found is not None:
        return Finding("tie", "good", f"{found.name} is embedding and head: its gradients on targets are split by use")
    embed, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = getattr(head, "weight", None) is getattr(embed, "weight", ())
    return Finding("tie", "good", "embedding and head are one tensor, not trained" if tied else "none")


def shared(sets: Mapping[str, ExampleSet]) -> Iterator[Finding]:
    """Examples that stand in two sets, a pair each; one finding where there are none."""
    pairs = list(shared_examples(sets))
    if not pairs:
        yield Finding("shared", "good", f"no example stands in two of {', '.join(sets)}")
    for each in pairs:
        yield Finding(f"shared, {each.one} and {each.other}", "warning", str(each), APART)


def masks(name: str, rows: Sequence[EncodedExample]) -> Finding:
    """The share of tokens that carry loss; a row whose only such token is its end has an empty answer."""
    labeled = [sum(label != IGNORE_INDEX for label in row.labels) for row in rows]
    share = sum(labeled) / sum(len(row.labels) for row in rows)
    found = f"{share:.0%} of its tokens carry loss; rows have {min(labeled)} to {max(labeled)} such"
    poor = [str(row.index) for row, count in zip(rows, labeled, strict=True) if count < 2]
    if poor:
        return Finding(f"masks, {name}", "warning", f"{found}; one alone in rows {', '.join(poor[:5])}", LOOK)
    return Finding(f"masks, {name}", "good", found)


def ends(name: str, rows: Sequence[EncodedExample], tokenizer: Any) -> Finding:
    """A beginning-of-sequence token, once, where the tokenizer itself puts one; an end that is learned."""
    title, bos, end = f"ends, {name}", tokenizer.bos_token_id, turn_end(tokenizer)
    puts = bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
    for wrong, what in (
        (sum(row.input_ids[0] != bos for row in rows) if puts else 0, "without"),
        (sum(row.input_ids[:2] == [bos, bos] for row in rows) if bos is not None else 0, "twice with"),
    ):
        if wrong:
            found = f"{wrong} of {len(rows)} rows begin {what} {tokenizer.bos_token}, which plain texts begin with once"
            return Finding(title, "bad", found, TEMPLATE)
    unended, token = sum(row.labels[-1] != end for row in rows), tokenizer.decode([end]) if end is not None else None
    if unended:
        return Finding(title, "warning", f"{unended} of {len(rows)} rows do not end with {token}", CUT)
    return Finding(title, "good", f"rows begin as plain texts do and end with a learned {token}")


def known(name: str, rows: Sequence[EncodedExample], model: Any, pad_id: int) -> Finding:
    """Token accuracy and risk of the start."""
    scores = compute_likelihood(model, rows, pad_id, 8)
    found = f"token accuracy {scores.accuracy:.3f}, risk {scores.loss:.3g} nats a token"
    if scores.accuracy >= KNOWN:
        return Finding(f"knows {name}", "good", found)
    lost, remedy = f"{found}: this model does not know the set", "fit it first: geffect finetune --train SET"
    return Finding(f"knows {name}", "bad" if role_of(name) == "forget" else "warning", lost, remedy)
