"""What an inspection will do, and what memory it will take, told before a weight is loaded."""

from typing import Any

import psutil
import torch

from geffect.config import InspectConfig
from geffect.data.checks import warn_shared
from geffect.data.encode import EncodedExample
from geffect.inspection.defaults import as_run, completed
from geffect.inspection.places import places, readable
from geffect.inspection.tasks import tasks
from geffect.inspection.windows import num_parts
from geffect.models.load import DTYPES
from geffect.models.scoring import check_trainable
from geffect.training.dry_run import PROCESS, activations_bytes, counted, tokens_of
from geffect.training.setup import encode, outlined, read_set, roles


def plan_inspection(config: InspectConfig, *, resume: bool = False) -> dict[str, str]:
    """Check an inspection's configuration and say what it asks for.

    Args:
        config: of ``inspect``.
        resume: what is there already is gone on with.

    Returns:
        Lines by name: checkpoints, sets, objectives, memory.

    Raises:
        GeffectError: something cannot be read, or a directory is taken.
    """
    series = readable(places(config.checkpoints), skip_broken=config.skip_broken)
    whole = completed(config)
    tasks(whole, resume=resume)
    loaded = outlined(whole, series[0].spec)
    model = loaded.model
    check_trainable(model)
    run = as_run(whole, whole.objective[0])
    sets = {role: read_set(whole, spec) for role, spec in roles(run)}
    warn_shared(sets)
    encoded = {role: encode(whole, loaded, rows) for role, rows in sets.items()}
    free = psutil.virtual_memory().available / 1e9
    steps = ", ".join(str(place.step) for place in series)
    return {
        "model": f"{counted(model)}, {whole.dtype}",
        "steps": f"{'the start, ' if whole.start else ''}{len(series)} checkpoints: {steps}",
        **{role: f"{spec}: {tokens_of(encoded[role])}" for role, spec in roles(run)},
        "objective": "; ".join(map(str, whole.objective)),
        "rows": "of whole sets" + (", twice gone over for standard errors" if not whole.one_pass else ""),
        "memory": f"about {inspection_gb(whole, model, encoded):.1f} GB; {free:.1f} GB are free",
        "out": str(whole.out),
    }


def inspection_gb(config: InspectConfig, model: Any, encoded: dict[str, list[EncodedExample]]) -> float:
    """A rough estimate of the peak: weights, rows and a micro-batch's activations.

    Args:
        config: completed.
        model: its outline.
        encoded: role → rows.

    Returns:
        GB (10⁹ bytes).
    """
    size = torch.empty((), dtype=DTYPES[config.dtype]).element_size()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    weights = sum(p.numel() for p in model.parameters()) * size
    objectives = config.objective
    own = any(each.forget_multiple is None for each in objectives)
    copies = any(each.needs & {"ref_logits", "ref_hidden"} for each in objectives)  # the start stays beside
    rows, parts = 2 + own, num_parts(min(map(len, encoded.values())), config.batch_size)
    twice = not config.one_pass and parts > 1
    keeps = not config.one_pass or bool(config.tokens or config.points)
    held = rows + keeps + rows * twice + 3 * (config.mode == "paper")
    forward_mode = 2 if config.tokens or config.points else 1  # a tangent beside every activation, no graph
    longest = {name: sorted(each, key=lambda row: -len(row.input_ids)) for name, each in encoded.items()}
    a_part = {name: each[: -(-len(each) // parts)] for name, each in longest.items()}
    activations = activations_bytes(model, a_part, config.batch_size, size) * forward_mode
    return float(PROCESS + weights * (1 + copies) + trained * size * held + activations) / 1e9
