"""Passes, steps and memory of a run, from its configuration, its model's outline and its encoded sets."""

from typing import Any

import torch

from geffect.config import FinetuneConfig, LocalizeConfig, TrainConfig, UnlearnConfig
from geffect.core.forward import IGNORE_INDEX
from geffect.core.layers import decoder_blocks, unwrap
from geffect.data.encode import EncodedExample
from geffect.io.system import rank_and_size
from geffect.measurement.passes import plan_passes
from geffect.models.load import DTYPES
from geffect.objectives.base import Objective
from geffect.rectifiers.base import Rectifier

OPTIMIZER_ROWS = {"sgd": 0, "adagrad": 1, "rmsprop": 1, "adafactor": 0}  # tensors of the parameters' size; else 2
ACTIVATION_FLOATS = 34  # kept for the backward pass a token, block and hidden unit: the usual count without scores
LOGIT_COPIES = 3  # logits, their gradient, and a cast or a reference's
PROCESS = 500_000_000  # bytes of a process that has imported torch, transformers and peft


def localization_gb(config: LocalizeConfig, model: Any, encoded: dict[str, list[EncodedExample]]) -> float:
    """GB (10⁹ bytes) at the peak, roughly: weights, mean gradients if any, scores, one example's activations."""
    size, wide = torch.empty((), dtype=DTYPES[config.dtype]).element_size(), 8 if config.dtype == "float64" else 4
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = sum(p.numel() for p in model.parameters()) * size
    held = 0 if config.masks_only else len(encoded)
    rows = max(held, config.importance == "zscore") + (config.importance != "zscore")
    return float(PROCESS + weights + trained * wide * rows + activations_bytes(model, encoded, 1, size)) / 1e9


def num_finetune_steps(config: TrainConfig, rows: int) -> int:
    """Optimizer steps of a fine-tuning on so many examples, at most."""
    if isinstance(config, FinetuneConfig) and config.steps:
        return config.steps
    epochs = config.epochs if isinstance(config, FinetuneConfig) else 1
    micro_batches = -(-rows // config.batch_size)
    return epochs * -(-micro_batches // config.grad_accum_steps)


def passes(objective: Objective, rectifier: Rectifier, diagnose_every: int) -> str:
    """Forward and backward passes of a step with and without diagnosis, as a sentence.

    >>> from geffect.objectives.registry import make_objective
    >>> from geffect.rectifiers.registry import make_rectifier
    >>> passes(make_objective("ga"), make_rectifier("none"), 5)
    'forget 1 forward 1 backward; every 5 steps: forget 1 forward 1 backward, retain 1 forward 1 backward'
    """

    def taken(*, measure: bool) -> str:
        plan = plan_passes(objective, rectifier, measure=measure)
        backwards = {
            "forget": bool(objective.on("forget")) + plan.runs_forget,
            "alternative": int(bool(objective.on("alternative"))),
            "general": int(bool(objective.on("general"))),
            "retain": plan.retain_terms + plan.runs_retain,
        }
        return ", ".join(f"{name} 1 forward {count} backward" for name, count in backwards.items() if count)

    measured = taken(measure=True)
    return measured if diagnose_every == 1 else f"{taken(measure=False)}; every {diagnose_every} steps: {measured}"


def memory_gb(config: TrainConfig, model: Any, encoded: dict[str, list[EncodedExample]]) -> float:
    """GB (10⁹ bytes) of a process at its peak, roughly, for a model's outline.

    It counts weights, gradients, optimizer, and the activations and logits of one micro-batch. Shards are parts of a
    model that every process has loaded whole.
    """
    size = torch.empty((), dtype=DTYPES[config.dtype]).element_size()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rows = 1 + OPTIMIZER_ROWS.get(config.optimizer, 2) + _extra_rows(config)
    weights = sum(p.numel() for p in model.parameters()) * size
    held = weights + trainable * size * rows
    if isinstance(config, UnlearnConfig) and config.shard:
        around = weights - sum(p.numel() for p in decoder_blocks(unwrap(model))[1].parameters()) * size
        copied = config.objective.needs_reference and not config.lora
        held = max(
            weights * (1 + copied), held // rank_and_size()[1] + 2 * around
        )  # these and their gradients are whole
    return float(PROCESS + held + activations_bytes(model, encoded, config.batch_size, size)) / 1e9


def activations_bytes(model: Any, encoded: dict[str, list[EncodedExample]], batch_size: int, size: int) -> int:
    """Bytes of a micro-batch's activations and logits, of the set that takes the most; ``size`` is a number's bytes."""
    shape = model.config.get_text_config()
    tokens = max(min(batch_size, len(each)) * max(len(row.input_ids) for row in each) for each in encoded.values())
    activations = tokens * shape.hidden_size * shape.num_hidden_layers * ACTIVATION_FLOATS * size
    labeled = max(
        min(batch_size, len(each)) * max(sum(label != IGNORE_INDEX for label in row.labels) for row in each)
        for each in encoded.values()
    )
    return int(activations + labeled * shape.vocab_size * 4 * LOGIT_COPIES)


def _extra_rows(config: TrainConfig) -> int:
    """Tensors of the parameters' size held beside the objective's gradient."""
    if not isinstance(config, UnlearnConfig):
        return 0
    objective, rectifier = config.objective, config.rectifier.rule
    own = objective.forget_multiple is None
    streamed = config.grad_accum_steps == rank_and_size()[1] == 1
    keeps = bool(config.prediction or config.save_gradients or config.standard_errors)
    freezing = config.rectifier.freezing is not None
    copies = keeps or rectifier.corrects or freezing  # θ before the optimizer's step
    domains = 2 * max(0, len(config.domain) - 1)  # a row a split
    copied = objective.needs_reference and not config.lora
    probes = 2 * bool(config.prediction) + 2 * config.standard_errors + 3 * (config.mode == "paper")
    read = len({*rectifier.gradients, rectifier.memory} - {"objective", None})  # until they are combined, or longer
    return own + read + (not streamed) + (3 + freezing) * keeps + copies + copied + probes + domains


def parameter_counts(model: Any) -> str:
    """How many parameters a model has, and how many of them are trained."""
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"{total / 1e6:.2f} M parameters, {trainable / 1e6:.2f} M trained"


def token_counts(rows: list[EncodedExample]) -> str:
    """How many rows and tokens a set has."""
    lengths = [len(row.input_ids) for row in rows]
    labeled = sum(len(row.input_ids) - row.labels.count(-100) for row in rows)
    cut = sum(row.cut > 0 for row in rows)
    shortened = f", {cut} cut at --max-length" if cut else ""
    return f"{len(rows)} rows, {sum(lengths)} tokens ({labeled} carry loss), longest {max(lengths)}{shortened}"
