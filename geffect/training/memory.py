"""The memory that a verb takes at its peak, by what it is held for, estimated from a model's outline and its sets.

Letters: N parameters, T of them trained, h hidden size, m width of the MLP, k width of keys. Parts are those of the
moment at which they are largest together: the backward pass of a step, or its end.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from geffect.config import EvaluateConfig, InspectConfig, LocalizeConfig, TrainConfig, UnlearnConfig
from geffect.core.architectures import CausalLM
from geffect.core.devices import find_device
from geffect.core.forward import ALL_LOGITS, IGNORE_INDEX
from geffect.core.head import logits_at_once
from geffect.core.layers import decoder_blocks, unwrap
from geffect.core.splits import TARGETS
from geffect.data.encode import EncodedExample
from geffect.io.system import free_memory, rank_and_size
from geffect.measurement.passes import plan_passes
from geffect.models.load import DTYPES
from geffect.rectifiers.elementwise import Elementwise

Encoded = Mapping[str, Sequence[EncodedExample]]
OPTIMIZER_COPIES = {"sgd": 0, "adagrad": 1, "rmsprop": 1, "adafactor": 0}  # tensors of the parameters' size; else 2
PROCESS = 600_000_000  # bytes of a process that has imported torch, transformers and peft, and made a Trainer
FLOAT32 = 4  # bytes of a number
SCORE_COPIES = 5  # arrays of an example's logits that its scores are made of, in float32: `geffect.evaluation.view`


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of one process at its peak, by what they are held for.

    Attributes:
        process: the interpreter and its libraries, in the machine's memory.
        weights: the model.
        gradients: what is back-propagated and handed to the optimizer.
        optimizer: its averages, and what it computes with.
        kept: gradients and weights held for the prediction check, standard errors, saved gradients and frozen entries.
        host: of these, what ``--keep-on cpu`` holds in the machine's memory.
        rectifier: a rectifier's memory, and gradients that it combines later.
        reference: a frozen copy of the start, or the other models of an evaluation.
        masks: frozen entries, and the masks of a localization.
        activations: of one micro-batch, held for its backward pass.
        logits: of one micro-batch, at the positions that carry loss.
    """

    process: int = 0
    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    kept: int = 0
    host: int = 0
    rectifier: int = 0
    reference: int = 0
    masks: int = 0
    activations: int = 0
    logits: int = 0

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(self.parts().values())

    @property
    def gb(self) -> float:
        """The total in GB of 10⁹ bytes."""
        return self.total / 1e9

    def parts(self) -> dict[str, int]:
        """Part → bytes, of those that are not zero."""
        return {each.name: size for each in fields(self) if (size := getattr(self, each.name))}

    def on(self, device: torch.device) -> "MemoryEstimate":
        """What of it a device holds: all on the CPU; no process on an accelerator, and not what the host holds."""
        if device.type == "cpu":
            return self
        parts = self.parts()
        return MemoryEstimate(**{name: size for name, size in parts.items() if name not in ("process", "host")})


@dataclass(frozen=True)
class Sizes:
    """What a model's outline says of its size.

    Attributes:
        number: bytes of a number in the weights' dtype.
        weights: bytes of all weights.
        trained: bytes of the trained ones, which is that of a gradient.
        entries: the number of trained entries.
        largest: bytes of the largest trained tensor.
    """

    number: int
    weights: int
    trained: int
    entries: int
    largest: int

    @classmethod
    def of(cls, model: nn.Module, dtype: str) -> "Sizes":
        """The sizes of a model in a dtype; on a bfloat16 base an adapter stays in float32."""
        number = torch.empty((), dtype=DTYPES[dtype]).element_size()
        trained = [p.numel() for p in model.parameters() if p.requires_grad]
        total = sum(p.numel() for p in model.parameters())
        wide = max(number, FLOAT32) if sum(trained) < total and hasattr(model, "peft_config") else number
        weights = number * (total - sum(trained)) + wide * sum(trained)
        return cls(number, weights, wide * sum(trained), sum(trained), wide * max(trained, default=0))


def activation_bytes(model: CausalLM, tokens: int, number: int, *, checkpointing: bool = False) -> int:
    """Bytes that a forward pass over so many tokens holds for the backward pass, and what that adds at a time.

    Read off a Llama's block with scaled dot-product attention: of each norm its input and its normalized input (in
    float32) and its output; queries, keys, values and what attention makes of them; four arrays of the MLP's width.
    """
    shape = model.config.get_text_config()
    hidden, layers = shape.hidden_size, shape.num_hidden_layers
    inner = getattr(shape, "intermediate_size", None) or getattr(shape, "ffn_dim", None) or 4 * hidden
    norm = hidden * (FLOAT32 + 2 * number)
    block = 2 * norm + number * (2 * hidden + 2 * key_width(shape) + 4 * inner)
    backward = number * (3 * inner + 3 * hidden)
    held = layers * hidden * number + block if checkpointing else layers * block
    return int(tokens * (held + norm + backward))


def key_width(shape: Any) -> int:
    """The width of a token's keys, and of its values, in a block, by the configuration of a model's text part."""
    heads = getattr(shape, "num_attention_heads", 0) or 1
    hidden = getattr(shape, "hidden_size", 0) or 1
    key_heads = getattr(shape, "num_key_value_heads", 0) or heads
    return int(max(1, key_heads * (getattr(shape, "head_dim", 0) or hidden // heads)))


def micro_batch(encoded: Encoded, batch_size: int) -> tuple[int, int]:
    """Tokens, padding included, and labeled tokens of a micro-batch, of the set that has the most of each."""

    def largest(count: Callable[[EncodedExample], int]) -> int:
        return max(min(batch_size, len(examples)) * max(map(count, examples)) for examples in encoded.values())

    labeled = largest(lambda example: len(example.labels) - example.labels.count(IGNORE_INDEX))
    return largest(lambda example: len(example.input_ids)), labeled


def training_memory(config: TrainConfig, model: CausalLM, encoded: Encoded) -> MemoryEstimate:
    """What unlearning or fine-tuning takes, for a model's outline; shards are parts of a model loaded whole."""
    sizes = Sizes.of(model, config.dtype)
    tokens, labeled = micro_batch(encoded, config.batch_size)
    activations = activation_bytes(model, tokens, sizes.number, checkpointing=config.gradient_checkpointing)
    activations += sizes.weights // 2 if config.autocasts and sizes.number == FLOAT32 else 0  # their casts
    everywhere = isinstance(config, UnlearnConfig) and ALL_LOGITS in config.objective.needs
    positions = tokens if everywhere else labeled
    logits = _logits(model, positions, sizes.number, 2)  # and their gradient
    if isinstance(config, UnlearnConfig) and config.objective.needs_reference:
        logits += positions * model.config.get_text_config().vocab_size * sizes.number
    averages = OPTIMIZER_COPIES.get(config.optimizer, 2) * sizes.trained + 2 * sizes.largest
    confined = {"kept": sizes.trained, "masks": sizes.entries // 8} if getattr(config, "only_mask", None) else {}
    steps = _moments(config, sizes, activations, logits) if isinstance(config, UnlearnConfig) else [confined]
    moments = [
        {"gradients": sizes.trained, "activations": activations, "logits": logits, "weights": sizes.weights} | each
        for each in steps
    ]
    host = max(each.pop("host", 0) for each in moments)
    largest = max(moments, key=lambda parts: sum(parts.values()))
    estimate = MemoryEstimate(process=PROCESS, optimizer=averages, host=host, **largest)
    return _shard(estimate, config, model, sizes) if isinstance(config, UnlearnConfig) and config.shard else estimate


def _moments(config: UnlearnConfig, sizes: Sizes, activations: int, logits: int) -> list[dict[str, int]]:
    """The parts of an unlearning step in its last backward pass, at its end, and where it goes over its parts again."""
    objective, rule, one = config.objective, config.rectifier.rule, sizes.trained
    freezing = config.rectifier.freezing is not None
    domains = max(1, len(config.domain))
    plan = plan_passes(
        objective, rule, measure=True, keep_dropout=config.keep_dropout, frozen=freezing, num_domains=domains
    )
    separate = domains * (plan.runs_forget + plan.splits_sides)  # buffers of forget losses and of the objective's side
    streams = config.grad_accum_steps == rank_and_size()[1] == 1  # the last retain gradient is freed as it arrives
    beside = int(plan.splits_retain and (plan.retain_terms or bool(objective.on("general"))))
    entrywise = isinstance(rule, Elementwise)  # a copy of what it made of the gradient
    derived = plan.factor is not None and not plan.splits_forget  # a multiple of the objective's gradient
    beside_it = {*rule.gradients} - {"objective", *rule.memories, *(["forget"] if derived else ())}
    combined = sum(domains if name in TARGETS else 1 for name in beside_it)
    targets = len(config.target)
    diagnosed = config.prediction or config.save_gradients or config.standard_errors or config.adam_metric
    keeps = bool(targets or diagnosed)
    held = {
        "rectifier": one * (combined + len(rule.memories)),
        "reference": (sizes.weights if objective.needs_reference and not config.lora else 0),
        "masks": 3 * sizes.entries // 8 * freezing,  # a bit an entry
    }
    filters = config.max_rise is not None
    before = one * (
        keeps or rule.corrects or freezing or filters
    )  # θ, from the end of a step until the optimizer has moved it
    masked = (1 + bool(rule.add_retain)) * freezing
    stored = one * keeps * (1 + targets + domains * (1 + plan.splits_forget) + masked + entrywise + rule.examples)
    averages = 3 * one * (config.mode == "paper")
    moved = objective.rho is not None  # the weights at which the forget term is differentiated
    backward = {"gradients": one * (targets + separate + beside + domains + (not streams) + moved), "kept": averages}
    nothing = {"activations": 0, "logits": 0}
    end = {"gradients": one, "kept": stored + before + averages, **nothing}
    probed = {
        "gradients": one,
        "kept": stored + before + averages + (2 + targets) * one * bool(config.prediction),
        **({} if config.prediction else nothing),
    }
    again = {
        "gradients": one * (1 + config.standard_errors * (1 + separate + moved)),
        "kept": stored + averages + one * config.standard_errors * (1 + separate),
        **({} if config.standard_errors else nothing),
    }
    moments = [held | each for each in (backward, end, probed, again)]
    if config.keep_on == "device":
        return moments
    return [each | {"kept": averages, "host": each["kept"] - averages} for each in moments]


def _shard(estimate: MemoryEstimate, config: UnlearnConfig, model: CausalLM, sizes: Sizes) -> MemoryEstimate:
    """A process's part of an estimate; what lies around the blocks is whole, and so are its gradients."""
    size = rank_and_size()[1]
    around = sizes.weights - sum(p.numel() for p in decoder_blocks(unwrap(model))[1].parameters()) * sizes.number
    sharded = ("weights", "gradients", "optimizer", "kept", "host", "rectifier", "reference", "masks")
    parts = {name: bytes_ // size if name in sharded else bytes_ for name, bytes_ in estimate.parts().items()}
    parts["weights"] += around
    parts["gradients"] += around
    if find_device(config.device).type == "cpu":  # each process loads the whole there, and an accelerator gets parts
        whole = sizes.weights * (1 + (config.objective.needs_reference and not config.lora))
        shards = sum(parts[name] for name in sharded if name in parts)
        parts["weights"] += max(0, whole - shards)
    return MemoryEstimate(**parts)


def localization_memory(config: LocalizeConfig, model: CausalLM, encoded: Encoded) -> MemoryEstimate:
    """What a localization takes: weights, sums of gradients and of their magnitudes, masks, one example."""
    sizes = Sizes.of(model, config.dtype)
    wide = sizes.entries * max(sizes.number, FLOAT32)
    paired = config.importance in ("ratio", "wagle")
    means = 0 if config.masks_only and not paired else len(encoded)
    signed = paired or config.importance in ("zscore", "random")
    copies = max(means, config.importance == "zscore") + (not signed)
    tokens, labeled = micro_batch(encoded, config.draws if config.labels == "corrupted" else 1)
    draws = 1 if config.labels != "random" else config.draws  # each has a gradient of the same logits
    return MemoryEstimate(
        process=PROCESS,
        weights=sizes.weights,
        gradients=wide * copies + 3 * sizes.largest,
        masks=sizes.entries // 8 * len(config.share) * len(encoded),
        activations=activation_bytes(model, tokens, sizes.number),
        logits=_logits(model, labeled, sizes.number, 1 + draws),
    )


def inspection_memory(config: InspectConfig, model: CausalLM, encoded: Encoded, num_parts: int) -> MemoryEstimate:
    """What an inspection takes whose sets are measured in so many parts: weights, gradients, one micro-batch."""
    sizes = Sizes.of(model, config.dtype)
    references = any(each.needs_reference for each in config.objective)  # the start stays beside
    gradients = 2 + len(config.target) + any(each.forget_multiple is None for each in config.objective)
    singly = bool(config.tokens or config.points)
    kept = (not config.one_pass or singly) + gradients * (not config.one_pass and num_parts > 1)
    longest = {name: sorted(each, key=lambda example: -len(example.input_ids)) for name, each in encoded.items()}
    a_part = {name: each[: -(-len(each) // num_parts)] for name, each in longest.items()}
    tokens, labeled = micro_batch(a_part, config.batch_size)
    whole = labeled * model.config.get_text_config().vocab_size * sizes.number  # neither is computed in chunks
    return MemoryEstimate(
        process=PROCESS,
        weights=sizes.weights,
        gradients=sizes.trained * gradients,
        kept=sizes.trained * (kept + 3 * (config.mode == "paper")),
        reference=sizes.weights * references,
        activations=activation_bytes(model, tokens, sizes.number) * (1 + singly),  # a tangent beside each, no graph
        logits=_logits(model, labeled, sizes.number, 2) + whole * (references + singly),
    )


def evaluation_memory(
    config: EvaluateConfig, model: CausalLM, encoded: Encoded, *, batch_size: int, prompts: int = 0, cache: int = 0
) -> MemoryEstimate:
    """What an evaluation takes: weights, the logits of a batch, and keys and values where answers are written.

    Answers to so many ``prompts`` are written at a time, or to fewer, whose keys and values take ``cache`` bytes.
    """
    sizes = Sizes.of(model, config.dtype)
    shape = model.config.get_text_config()
    tokens, labeled = micro_batch(encoded, batch_size)
    length, longest = micro_batch(encoded, 1)
    written = 2 * shape.num_hidden_layers * key_width(shape) * prompts * (length + config.max_new_tokens) * sizes.number
    one_block = activation_bytes(model, tokens, sizes.number) // (shape.num_hidden_layers + 1)
    relearn = (
        4 * sizes.weights if config.relearn_steps else 0
    )  # a fine-tuning of a copy: weights, gradient, two averages
    return MemoryEstimate(
        process=PROCESS,
        weights=sizes.weights,
        gradients=relearn,
        reference=sizes.weights
        * (
            2 * bool(config.calibrate)
            + (config.rounded or bool(config.quantize))
            + bool(config.start)
            + bool(config.retrained)
        ),
        activations=one_block + min(written, cache),
        logits=_logits(model, labeled, sizes.number, 1, graph=False)
        + SCORE_COPIES * longest * shape.vocab_size * sizes.number,
    )


def _logits(model: CausalLM, positions: int, number: int, copies: int, *, graph: bool = True) -> int:
    """Bytes of so many copies of the logits that a pass over labeled positions holds at a time."""
    return logits_at_once(model, positions, graph=graph) * number * copies


def available_bytes(device: torch.device) -> int:
    """Bytes of a device's memory that can be taken now: the machine's where the device is the CPU or shares it."""
    if device.type != "cuda":
        return free_memory()
    free: int = torch.cuda.mem_get_info(device)[0]
    return free
