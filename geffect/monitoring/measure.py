"""One look at a host's step: the gradient it is about to descend against the gradients of two risks."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from geffect.core.distributed import assign_items, is_sharded, sum_gradients, sum_over_processes
from geffect.core.forward import forward
from geffect.core.gradients import GradientBuffer, NamedTensors
from geffect.core.gram import Gram
from geffect.core.host_state import HostState
from geffect.core.layers import TiedWeights
from geffect.measurement.basis import Basis, Combinations, added
from geffect.measurement.measurement import Batch
from geffect.models.scoring import Likelihood, example_scores
from geffect.objectives.base import Counts, risk

GRADIENT, UPDATE = "applied_gradient", "update"


def risk_rows(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    batches: Mapping[str, Sequence[Batch]],
    tie: TiedWeights | None,
    untouched: HostState,
) -> tuple[dict[str, NamedTensors], dict[str, Likelihood]]:
    """∇R of every set, R its token-mean NLL, and how well the model knows it.

    The model is left as found (`geffect.core.host_state`), and hooks on its parameters do not run. Under DDP the
    wrapper is bypassed, so that no all-reduce is triggered.

    Args:
        model: wrapped or not.
        parameters: what a row covers.
        batches: set → its rows, the same in every process; each takes its share.
        tie: the tied tensor, split by use.
        untouched: of the model.

    Returns:
        Set → its row, added up over processes; set → its scores.
    """
    device = next(iter(parameters.values())).device
    alias = {tie.head_name: tie.alias} if tie else {}
    window = GradientBuffer(dict(parameters) | alias)
    sizes = {name: sum(len(each["index"]) for each in own) for name, own in batches.items()}
    scores = {name: torch.zeros(size, 3, dtype=torch.float64) for name, size in sizes.items()}
    counts = {name: Counts.of(own) for name, own in batches.items()}
    with untouched.preserve(), torch.enable_grad(), tie.untied() if tie else contextlib.nullcontext():
        for name, own in batches.items():
            for batch, weight in assign_items(own):
                outputs = forward(bare(model), {key: tensor.to(device) for key, tensor in batch.items()})
                window.add(name, weight * risk(outputs, counts[name]))
                if weight:
                    scores[name][batch["index"]] = example_scores(outputs)
    rows = sum_gradients(window.rows, window.parameters)
    return rows, {name: Likelihood.from_examples(sum_over_processes(each)) for name, each in scores.items()}


def gram_of(rows: Mapping[str, NamedTensors], parameters: Mapping[str, nn.Parameter], tie: TiedWeights | None) -> Gram:
    """All inner products of rows, per parameter; those of a tied tensor's risk gradients are split by use.

    Args:
        rows: row → parameter name → this process's part of it; ``forget`` and ``retain`` with the tied tensor's two
            parts apart.
        parameters: what rows cover.
        tie: the tied tensor.

    Returns:
        The Gram, the same in every process.
    """
    basis = Basis(tuple(rows), tie)
    for name in parameters:
        embeds = {row: tensors.get(name) for row, tensors in rows.items()}
        if tie is None or name != tie.name:
            basis.add(name, embeds)
        else:
            basis.add(name, {row: added(embeds[row], rows[row].get(tie.head_name)) for row in rows}, embeds)
    basis.sum_up(sharded=is_sharded(parameters))
    return basis.combine(Combinations.everywhere({row: {row: 1.0} for row in rows}), list(parameters))


def bare(model: nn.Module) -> Any:
    """The model without DDP's wrapper; an adapter, a compiled model and shards run as they are."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
