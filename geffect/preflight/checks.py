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
DIVIDE = (
    "choose --batch-size × --grad-accum-steps that divides the set, or expect this step to be noisier than the others"
)
ROUNDED = "gradients pass through rounded weights: compare a few with those of the full model"
APART = "leave them out of one set: an example cannot be both forgotten and retained, nor trained on and held out"
LOOK = "see them with geffect preview"
TEMPLATE = "edit the tokenizer's chat template so that it writes {{ bos_token }} once"
CUT = "raise --max-length if examples were cut; otherwise this tokenizer ends texts with another token"


def examine(start: TrainingSetup[UnlearnConfig]) -> Iterator[Finding]:
    """Run every check on a run before it begins, cheap ones first."""
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
    """Compare the plan's estimate with the free memory; loaded weights count as free, since the estimate has them."""
    needed = start.memory_gb
    loaded = sum(p.numel() * p.element_size() for p in start.loaded.model.parameters())
    free = (psutil.virtual_memory().available + loaded) / 1e9
    numbers = f"about {needed:.1f} GB needed, {free:.1f} GB free"
    return Finding("memory", "bad", numbers, SMALLER) if needed > free else Finding("memory", "good", numbers)


def batches(start: TrainingSetup[UnlearnConfig]) -> Finding:
    """Whether every step of an epoch has the same number of examples."""
    numbers = start.batches()
    left = int(numbers["examples"]) % int(numbers["examples_a_step"])
    sentence = str(numbers["sentence"])
    if left:
        return Finding("batches", "warning", f"{sentence}; an epoch's last step has {left} examples", DIVIDE)
    return Finding("batches", "good", sentence)


def weights(config: UnlearnConfig, model: Any) -> Finding:
    """Whether gradients reach the weights, and steps change them."""
    total, trained = (sum(p.numel() for p in model.parameters() if p.requires_grad or every) / 1e6 for every in (1, 0))
    dtypes = ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()}))
    state = f"{trained:.2f} M of {total:.2f} M trained, {dtypes}"
    try:
        check_trainable(model)
    except GeffectError as error:
        return Finding("weights", "bad", f"{state}; {error.message}", error.remedy)
    if is_quantized(model):
        return Finding("weights", "warning", f"{state}; the base is quantized", ROUNDED)
    if config.dtype == "bfloat16" and config.learning_rate < VANISHES:
        lost = f"{state}; steps of {config.learning_rate:g} vanish in bfloat16's rounding"
        return Finding("weights", "warning", lost, FLOAT32)
    return Finding("weights", "good", state)


def tie(model: Any) -> Finding:
    """Whether embedding and head are one tensor, and how its gradients are treated."""
    tied_weights = find_tied_weights(model)
    if tied_weights is not None:
        return Finding(
            "tie", "good", f"{tied_weights.name} is embedding and head: its gradients on targets are split by use"
        )
    embed, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = getattr(head, "weight", None) is getattr(embed, "weight", ())
    return Finding("tie", "good", "embedding and head are one tensor, not trained" if tied else "none")


def shared(sets: Mapping[str, ExampleSet]) -> Iterator[Finding]:
    """Examples that two sets share: a finding for each pair of sets, one where there are none."""
    pairs = list(shared_examples(sets))
    if not pairs:
        yield Finding("shared", "good", f"no example is in two of {', '.join(sets)}")
    for each in pairs:
        yield Finding(f"shared, {each.one} and {each.other}", "warning", str(each), APART)


def masks(name: str, rows: Sequence[EncodedExample]) -> Finding:
    """The share of tokens that carry loss; an example whose only such token is its end has an empty answer."""
    labeled = [sum(label != IGNORE_INDEX for label in row.labels) for row in rows]
    share = sum(labeled) / sum(len(row.labels) for row in rows)
    state = f"{share:.0%} of its tokens carry loss; examples have {min(labeled)} to {max(labeled)} such tokens"
    poor = [str(row.index) for row, count in zip(rows, labeled, strict=True) if count < 2]
    if poor:
        return Finding(f"masks, {name}", "warning", f"{state}; only one in examples {', '.join(poor[:5])}", LOOK)
    return Finding(f"masks, {name}", "good", state)


def ends(name: str, rows: Sequence[EncodedExample], tokenizer: Any) -> Finding:
    """Whether examples begin with one beginning-of-sequence token, as plain texts do, and end with a learned end."""
    title, bos, end = f"ends, {name}", tokenizer.bos_token_id, turn_end(tokenizer)
    puts = bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
    for wrong, what in (
        (sum(row.input_ids[0] != bos for row in rows) if puts else 0, "without"),
        (sum(row.input_ids[:2] == [bos, bos] for row in rows) if bos is not None else 0, "twice with"),
    ):
        if wrong:
            state = (
                f"{wrong} of {len(rows)} examples begin {what} {tokenizer.bos_token}, with which plain texts begin once"
            )
            return Finding(title, "bad", state, TEMPLATE)
    unended, token = sum(row.labels[-1] != end for row in rows), tokenizer.decode([end]) if end is not None else None
    if unended:
        return Finding(title, "warning", f"{unended} of {len(rows)} examples do not end with {token}", CUT)
    return Finding(title, "good", f"examples begin as plain texts do and end with a learned {token}")


def known(name: str, rows: Sequence[EncodedExample], model: Any, pad_id: int) -> Finding:
    """Whether the start knows a set: token accuracy, and loss in nats a token."""
    scores = compute_likelihood(model, rows, pad_id, 8)
    state = f"token accuracy {scores.accuracy:.3f}, loss {scores.loss:.3g} nats a token"
    if scores.accuracy >= KNOWN:
        return Finding(f"knows {name}", "good", state)
    lost, remedy = f"{state}: this model does not know the set", "train it first: geffect finetune --train SET"
    return Finding(f"knows {name}", "bad" if role_of(name) == "forget" else "warning", lost, remedy)
