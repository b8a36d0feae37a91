"""The finite-step filter (after arXiv 2511.17100): a step that raises the measured retain loss too much is halved."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from geffect.core.distributed import local_part, sum_over_processes
from geffect.measurement.measurement import Batch, Measurement
from geffect.objectives.base import Counts, mean_nll

HALVINGS = 6  # at most: 1/64 of a step is taken whatever it does


class StepFilter:
    """Keeps the largest s in {1, 1/2, …, 1/64} whose step s·Δθ raises the retain loss by at most ``run.max_rise``.

    The loss is the token-mean NLL of the retain examples that met in this very step, measured before it and after each
    try without dropout. What a rectifier guarantees to first order holds for small steps; this holds for the step that
    is taken, and costs a forward pass over these examples before it and one a try.

    Args:
        run: what the steps share.
        batches: retain split → its examples of the window, in batches.
        counts: retain split → what the window, of all processes, holds of it.
        shares: retain split → its share of the role's labeled tokens.
    """

    def __init__(
        self,
        run: Measurement,
        batches: Mapping[str, Sequence[Batch]],
        counts: Mapping[str, Counts],
        shares: Mapping[str, float],
    ) -> None:
        self.run, self.batches, self.counts, self.shares = run, batches, counts, shares
        self.before = self._loss()

    @torch.no_grad()
    def close(self, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """Halve the step from ``weights`` while it must be; ``step_scale`` is s, ``step_rise`` in nats a token."""
        scale, rise = 1.0, self._loss() - self.before
        for _ in range(HALVINGS):
            if rise <= (self.run.max_rise or 0.0):  # not so where it is not finite
                break
            for name, parameter in self.run.parameters.items():
                after = local_part(parameter.detach())
                after.lerp_(weights[name].to(after.device), 0.5)
            scale, rise = scale / 2, self._loss() - self.before
        return {"step_scale": scale, "step_rise": rise}

    @torch.no_grad()
    def _loss(self) -> float:
        total = torch.zeros((), dtype=torch.float64)
        for name, batches in self.batches.items():
            for batch in batches:
                outputs = self.run.forward(batch, frozenset(), dropout=False)
                total += self.shares[name] * mean_nll(outputs, self.counts[name]).double().cpu()
        return float(sum_over_processes(total))
