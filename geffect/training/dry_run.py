"""What a run will do, and what memory it will take, told before a weight is loaded."""

from typing import Any

import psutil
import torch

from geffect.config import FinetuneConfig, LocalizeConfig, TrainConfig, UnlearnConfig
from geffect.core.forward import IGNORE_INDEX
from geffect.core.layers import decoder_blocks, unwrap
from geffect.core.splits import TARGETS, role_of, split_names
from geffect.data.checks import warn_shared
from geffect.data.domains import balanced_sizes
from geffect.data.encode import EncodedExample
from geffect.io.system import rank_and_size
from geffect.measurement.passes import plan_passes
from geffect.models.load import DTYPES, add_lora
from geffect.models.scoring import check_trainable
from geffect.objectives.base import Objective
from geffect.record.writer import batch_arithmetic, refuse_existing
from geffect.rectifiers.base import Rectifier
from geffect.training.hf_arguments import training_arguments
from geffect.training.setup import answers_of, check_shards, encode, localized_rows, outlined, read_set, roles

OPTIMIZER_ROWS = {"sgd": 0, "adagrad": 1, "rmsprop": 1, "adafactor": 0}  # tensors of the parameters' size; else 2
ACTIVATION_FLOATS = 34  # kept for the backward pass a token, block and hidden unit: the usual count without scores
LOGIT_COPIES = 3  # logits, their gradient, and a cast or a reference's
PROCESS = 500_000_000  # bytes of a process that has imported torch, transformers and peft


def plan(config: TrainConfig, *, resume: bool = False) -> dict[str, str]:
    """Check a configuration and say what it asks for.

    Args:
        config: of ``fit`` or ``unlearn``.
        resume: the run directory is there already.

    Returns:
        Lines by name: model, sets, batch arithmetic, passes a step, memory.
    """
    if not resume:
        refuse_existing(config.out)
    methods = {}
    if isinstance(config, UnlearnConfig):
        check_shards(config)
        answers_of(config)
        methods = {
            "objective": config.objective.text,
            "rectifier": config.rectifier.text,
            "a step": passes(config.objective, config.rectifier.rule, config.diagnose_every),
        }
    loaded = outlined(config, config.model)
    model = loaded.model
    if config.lora:
        model = add_lora(model, config.lora, config.seed)
    check_trainable(model)
    sets = {spec: read_set(config, spec) for spec in specs(config)}
    if isinstance(config, UnlearnConfig):
        warn_shared({role: sets[spec] for role, spec in roles(config)})
    encoded = {spec: encode(config, loaded, rows) for spec, rows in sets.items()}
    free = psutil.virtual_memory().available / 1e9
    training_arguments(config, arithmetic(config, encoded)["steps"])
    return {
        "model": f"{config.model}, {counted(model)}, {config.dtype}",
        **{name: f"{spec}: {tokens_of(encoded[spec])}" for name, spec in roles(config)},
        **methods,
        "batches": arithmetic(config, encoded)["sentence"],
        "memory": f"about {memory_gb(config, model, encoded):.1f} GB; {free:.1f} GB are free",
        "out": str(config.out),
    }


def plan_localization(config: LocalizeConfig) -> dict[str, str]:
    """Check a localization's configuration and say what it asks for.

    Args:
        config: of ``localize``.

    Returns:
        Lines by name: model, sets, passes, memory.
    """
    refuse_existing(config.out)
    loaded = outlined(config, config.model)
    model = loaded.model
    check_trainable(model)
    encoded = localized_rows(config, loaded)
    free = psutil.virtual_memory().available / 1e9
    count = sum(map(len, encoded.values()))
    each = f"{config.draws} draws at once" if config.labels != "true" else "true labels"
    return {
        "model": f"{config.model}, {counted(model)}, {config.dtype}",
        **{name: tokens_of(rows) for name, rows in encoded.items()},
        "passes": f"{count} forward {count} backward, an example each ({each})",
        "memory": f"about {localization_gb(config, model, encoded):.1f} GB; {free:.1f} GB are free",
        "out": str(config.out),
    }


def localization_gb(config: LocalizeConfig, model: Any, encoded: dict[str, list[EncodedExample]]) -> float:
    """A rough estimate of the peak: weights, a mean gradient a split if any, scores, one example's activations."""
    size, wide = torch.empty((), dtype=DTYPES[config.dtype]).element_size(), 8 if config.dtype == "float64" else 4
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = sum(p.numel() for p in model.parameters()) * size
    held = 0 if config.masks_only else len(encoded)
    rows = max(held, config.importance == "zscore") + (config.importance != "zscore")
    return float(PROCESS + weights + trained * wide * rows + activations_bytes(model, encoded, 1, size)) / 1e9


def specs(config: TrainConfig) -> list[str]:
    """The sets a configuration names, each once."""
    return list(dict.fromkeys(spec for _, spec in roles(config)))


def arithmetic(config: TrainConfig, encoded: dict[str, list[EncodedExample]]) -> dict[str, Any]:
    """The batch arithmetic of a configuration, whose steps are counted in forget rows or, fitting, in all rows."""
    if isinstance(config, UnlearnConfig):
        sizes = {name: len(encoded[spec]) for name, spec in roles(config) if role_of(name) in TARGETS}
        used = balanced_sizes(config, sizes)
        rows, steps = max(used[name] for name in split_names("forget", used)), config.steps
    else:
        rows = sum(map(len, encoded.values()))
        steps = num_fit_steps(config, rows)
    return batch_arithmetic(rows, config.batch_size, config.grad_accum_steps, steps, rank_and_size()[1])


def num_fit_steps(config: TrainConfig, rows: int) -> int:
    """Optimizer steps of a fit at most."""
    if isinstance(config, FinetuneConfig) and config.steps:
        return config.steps
    epochs = config.epochs if isinstance(config, FinetuneConfig) else 1
    micro_batches = -(-rows // config.batch_size)
    return epochs * -(-micro_batches // config.grad_accum_steps)


def passes(objective: Objective, rectifier: Rectifier, diagnose_every: int) -> str:
    """Forward and backward passes of a step with and without diagnosis.

    Args:
        objective: what is descended.
        rectifier: what its row becomes.
        diagnose_every: steps between two diagnoses.

    Returns:
        A sentence.

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
    """A rough estimate of a process's peak: weights, rows, optimizer, activations and logits of one micro-batch.

    Shards are parts of a model that every process has loaded whole.

    Args:
        config: the run.
        model: its outline.
        encoded: its sets.

    Returns:
        GB (10⁹ bytes).
    """
    size = torch.empty((), dtype=DTYPES[config.dtype]).element_size()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rows = 1 + OPTIMIZER_ROWS.get(config.optimizer, 2) + _extra_rows(config)
    weights = sum(p.numel() for p in model.parameters()) * size
    held = weights + trainable * size * rows
    if isinstance(config, UnlearnConfig) and config.shard:
        around = weights - sum(p.numel() for p in decoder_blocks(unwrap(model))[1].parameters()) * size
        copied = bool(config.objective.needs & {"ref_logits", "ref_hidden"}) and not config.lora
        held = max(
            weights * (1 + copied), held // rank_and_size()[1] + 2 * around
        )  # these and their gradients are whole
    return float(PROCESS + held + activations_bytes(model, encoded, config.batch_size, size)) / 1e9


def activations_bytes(model: Any, encoded: dict[str, list[EncodedExample]], batch_size: int, size: int) -> int:
    """Bytes of a micro-batch's activations and logits: of that set whose are the most, as others come after it.

    Args:
        model: its outline.
        encoded: the sets.
        batch_size: rows of a micro-batch at most.
        size: bytes of a number.

    Returns:
        The bytes.
    """
    shape = model.config.get_text_config()
    tokens = max(min(batch_size, len(each)) * max(len(row.input_ids) for row in each) for each in encoded.values())
    activations = tokens * shape.hidden_size * shape.num_hidden_layers * ACTIVATION_FLOATS * size
    labeled = max(
        min(batch_size, len(each)) * max(sum(label != IGNORE_INDEX for label in row.labels) for row in each)
        for each in encoded.values()
    )
    return int(activations + labeled * shape.vocab_size * 4 * LOGIT_COPIES)


def _extra_rows(config: TrainConfig) -> int:
    """Rows held beside the objective's."""
    if not isinstance(config, UnlearnConfig):
        return 0
    objective, rectifier = config.objective, config.rectifier.rule
    own = objective.forget_multiple is None
    streamed = config.grad_accum_steps == rank_and_size()[1] == 1
    keeps = bool(config.prediction or config.save_rows or config.standard_errors)
    freezing = config.rectifier.freezing is not None
    copies = keeps or rectifier.corrects or freezing  # θ before the optimizer's step
    domains = 2 * max(0, len(config.domain) - 1)  # a row a split
    copied = bool(objective.needs & {"ref_logits", "ref_hidden"}) and not config.lora
    probes = 2 * bool(config.prediction) + 2 * config.standard_errors + 3 * (config.mode == "paper")
    memory = rectifier.memory is not None
    return own + memory + (not streamed) + (3 + freezing) * keeps + copies + copied + probes + domains


def counted(model: Any) -> str:
    """How many parameters a model has, and how many of them are trained."""
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"{total / 1e6:.2f} M parameters, {trainable / 1e6:.2f} M trained"


def tokens_of(rows: list[EncodedExample]) -> str:
    """How many rows and tokens a set has."""
    lengths = [len(row.input_ids) for row in rows]
    labeled = sum(len(row.input_ids) - row.labels.count(-100) for row in rows)
    cut = sum(row.cut > 0 for row in rows)
    told = f", {cut} cut at --max-length" if cut else ""
    return f"{len(rows)} rows, {sum(lengths)} tokens ({labeled} carry loss), longest {max(lengths)}{told}"
