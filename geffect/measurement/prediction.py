"""Predicted against measured: how much of a loss's change its first-order approximation explains.

Two approximations of one step: −lr·⟨∇R, gradient⟩, true for plain SGD and the published one (arXiv 2502.19301), and
−⟨∇R, applied⟩ with what the optimizer made of the gradient. Both, and the measured change R(θ_{t+1}) − R(θ_t), are
taken on the same fixed probe examples, so that they also add up over a run to R(θ_T) − R(θ_0).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from geffect.core.distributed import is_sharded, local_part, sum_over_processes
from geffect.core.forward import Outputs
from geffect.core.gradients import GradientBuffer, NamedTensors
from geffect.core.gram import inner_products
from geffect.objectives.base import Counts, mean_nll

Batch = dict[str, Tensor]


class PredictionCheck:
    """`open` before a step, `add` for every tensor, `close` after it.

    Args:
        parameters: by name.
        forward: runs the model over a batch, without dropout.
        probe: set → its fixed batches.
    """

    def __init__(
        self, parameters: Mapping[str, Any], forward: Callable[[Batch], Outputs], probe: Mapping[str, Sequence[Batch]]
    ) -> None:
        self.parameters, self.forward, self.probe = parameters, forward, probe
        self.counts = {name: Counts.of(batches) for name, batches in probe.items()}
        self.gradients: dict[str, NamedTensors] = {}
        self.entries: dict[str, dict[str, float]] = {}

    def open(self) -> None:
        """Compute the loss and gradient of every probe at θ_t."""
        window = GradientBuffer(self.parameters)
        for name, batches in self.probe.items():
            before = 0.0
            for batch in batches:
                share = mean_nll(self.forward(batch), self.counts[name])
                before += float(share.detach())
                window.add(name, share)
            self.entries[name] = {"before": before, "gradient": 0.0, "update": 0.0}
        self.gradients = {name: {k: local_part(t) for k, t in each.items()} for name, each in window.gradients.items()}

    def add(self, name: str, gradient: Tensor | None, applied: Tensor, learning_rate: float) -> None:
        """Add one tensor's share of both predictions: ``gradient`` is the optimizer's input, ``applied`` is −Δθ."""
        for probe, tensors in self.gradients.items():
            products = inner_products([tensors.pop(name, None), gradient, applied])[0]
            self.entries[probe]["gradient"] -= learning_rate * float(products[1])
            self.entries[probe]["update"] -= float(products[2])

    @torch.no_grad()
    def close(self) -> dict[str, dict[str, float]]:
        """Probe → loss ``before`` and ``after`` (nats a token), its change by ``gradient`` and by ``update``."""
        if is_sharded(self.parameters):  # each process has added up its own part of every tensor
            self._sum_up()
        for name, batches in self.probe.items():
            shares = [float(mean_nll(self.forward(batch), self.counts[name])) for batch in batches]
            self.entries[name]["after"] = sum(shares)
        return self.entries

    def _sum_up(self) -> None:
        kinds = ("gradient", "update")
        parts = [[entry[kind] for kind in kinds] for entry in self.entries.values()]
        for entry, sums in zip(
            self.entries.values(), sum_over_processes(torch.tensor(parts, dtype=torch.float64)).tolist(), strict=True
        ):
            entry |= dict(zip(kinds, sums, strict=True))
