"""Which forward and backward passes a step takes, and the rows they leave in their buffers."""

import contextlib
import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from geffect.core.distributed import num_processes, sum_gradients, sum_over_processes
from geffect.core.forward import Outputs
from geffect.core.gradients import GradientBuffer, Visit
from geffect.core.splits import domain_of, of_domain, role_of, split_names
from geffect.measurement.basis import added
from geffect.measurement.measurement import Batch, Measurement
from geffect.objectives.base import Counts, risk

SIDE = "forget side"  # the objective's terms on forget sets, apart from what else is back-propagated into its row
KEPT = "retain side"  # its terms on retain and general sets, apart where the two sides are frozen apart


class Passes:
    """The fewest passes that supply the objective's row and, where measured, those of the risks.

    Args:
        run: what the steps share.
        counts: set → what the whole window of micro-batches holds of it (`geffect.objectives.base.window_counts`).
        measure: the rows of the risks are wanted.

    Attributes:
        forget: the forget splits, one a domain.
        retain: the retain splits; the last of them streams.
        shares: split → share of its role's labeled tokens: the role's risk is the mean weighed by it.
        c: a forget risk is its side of the objective's row divided by c; None where it has a pass of its own.
        w: the weight of the retain row in the objective's.
        own_forget_row: the forget risks are back-propagated.
        own_retain_row: the retain risks are back-propagated.
        forget_row: the forget rows must be told from the objective's before something is added to that.
        window: the buffers.
        sums: losses and weights so far.
    """

    def __init__(self, run: Measurement, counts: Mapping[str, Counts], *, measure: bool) -> None:
        objective, dropout = run.objective, run.keep_dropout
        self.run, self.counts = run, counts
        self.forget, self.retain = split_names("forget", counts), split_names("retain", counts)
        self.shares = {name: counts[name].token / counts[role_of(name)].token for name in self.forget + self.retain}
        self.c = objective.forget_multiple if run.free_rows and not dropout else None
        self.w = 0.0 if dropout else objective.retain_multiple
        self.retain_terms = any(dropout or term.multiple_of_risk is None for _, term in objective.on("retain"))
        beside = self.retain_terms or bool(objective.on("alternative") or objective.on("general"))
        self._apart = bool(self.c) and (beside or len(self.forget) > 1)
        self._kept = KEPT if run.frozen else "objective"
        self.own_forget_row = measure and not self.c
        self.own_retain_row = measure or run.rectifier.memory is not None or self.w != 0
        self.forget_row = self.own_forget_row or (measure and (self._apart or self.w != 0))
        self.window, self.sums = GradientBuffer(run.differentiated), dict[str, Tensor]()
        self.streamed = False

    def side(self, forget: str) -> str:
        """The buffer of the objective's terms on a forget split."""
        return f"{SIDE} {forget}" if self._apart else "objective"

    def forget_side(self, own: Mapping[str, Tensor | None]) -> Tensor | None:
        """One tensor of what the objective descends on forget sets, and of what else was put into its row."""
        sides = [own[self.side(each)] for each in self.forget] if self._apart else []
        return functools.reduce(added, sides, own["objective"])

    @property
    def buffers(self) -> tuple[str, ...]:
        """The names of all buffers."""
        return ("objective", KEPT, *(f"{SIDE} {each}" for each in self.forget), *self.forget, *self.retain)

    def run_all(self, batches: Mapping[str, Batch], visit: Visit | None) -> Tensor:
        """Back-propagate one micro-batch.

        Args:
            batches: set → collated rows; of a window over sets of different sizes, some may be missing.
            visit: where given, it closes the window: the last retain row streams through it.

        Returns:
            The objective's share of this micro-batch, detached.
        """
        with self.run.tie.untied() if self.run.tie else contextlib.nullcontext():
            shares = []
            for forget in (each for each in self.forget if each in batches):
                own = of_domain(batches, domain_of(forget))
                shares += [self._forget(forget, own), self._beside("alternative", own, "objective")]
            shares.append(self._beside("general", batches, self._kept))
            for retain in (each for each in self.retain if each in batches):
                closes = visit if retain == self.retain[-1] else None
                shares.append(self._retain(retain, of_domain(batches, domain_of(retain)), closes))
        found = [each for each in shares if each is not None]
        total = torch.stack(found).sum() if found else torch.zeros(())
        self._sum("loss_objective", total)
        return total

    def gather(self) -> None:
        """Add up what all processes back-propagated of the window, rows and sums alike."""
        if num_processes() == 1:
            return
        self.window.rows = sum_gradients(self.window.rows, self.run.differentiated)
        values = sum_over_processes(
            torch.stack([torch.as_tensor(value, dtype=torch.float64) for value in self.sums.values()])
        )
        self.sums = dict(zip(self.sums, values, strict=True))

    def _forget(self, name: str, batches: Mapping[str, Batch]) -> Tensor | None:
        outputs, loss, shared = None, None, not self.run.keep_dropout
        if self.run.objective.on("forget"):
            again = self.own_forget_row and shared
            outputs, loss = self._descend("forget", batches, self.side(name), retain_graph=again)
            self._weigh(outputs)
        if self.own_forget_row and (outputs is None or not shared):
            outputs = self.run.risk_outputs(batches["forget"])
        elif not shared:
            return loss
        if outputs is not None:
            forget_risk = self._risk(name, outputs)
            if self.own_forget_row:
                self.window.add(name, forget_risk)
        return loss

    def _beside(self, name: str, batches: Mapping[str, Batch], row: str) -> Tensor | None:
        """The objective's terms on a set whose risk is not measured."""
        return self._descend(name, batches, row)[1] if self.run.objective.on(name) and name in batches else None

    def _retain(self, name: str, batches: Mapping[str, Batch], visit: Visit | None) -> Tensor | None:
        outputs, loss, shared = None, None, not self.run.keep_dropout
        if self.retain_terms:
            again = self.own_retain_row and shared
            outputs, loss = self._descend("retain", batches, self._kept, besides_risk=shared, retain_graph=again)
        if not self.own_retain_row:
            return loss
        if outputs is None or not shared:
            outputs = self.run.risk_outputs(batches["retain"])
        retain_risk = self._risk(name, outputs)
        self._complete(name, retain_risk, visit)
        share = self.w * self.shares[name] * retain_risk.detach()
        return share if loss is None else loss + share

    def _risk(self, name: str, outputs: Outputs) -> Tensor:
        """A split's risk; where there are several of its role, that of the role sums up too."""
        found, role = risk(outputs, self.counts[name]), role_of(name)
        self._sum(f"loss_{name}", found)
        if role != name:
            self._sum(f"loss_{role}", self.shares[name] * found)
        return found

    def _complete(self, row: str, loss: Tensor, visit: Visit | None) -> None:
        if visit is None:
            return self.window.add(row, loss)
        self.streamed = True
        return self.window.stream(row, loss, visit)

    def _descend(
        self,
        name: str,
        batches: Mapping[str, Batch],
        row: str,
        *,
        besides_risk: bool = False,
        retain_graph: bool = False,
    ) -> tuple[Outputs, Tensor]:
        """Back-propagate the objective's terms on one set; its outputs and the loss, detached."""
        outputs = self.run.outputs(name, batches, dropout=self.run.keep_dropout)
        loss = self.run.objective.loss(name, outputs, self.counts, besides_risk=besides_risk)
        self.window.add(row, loss, retain_graph=retain_graph, merged=self._merged(row))
        return outputs, loss.detach()

    def _merged(self, row: str) -> Mapping[str, str]:
        """Of a row that no risk is read from, both uses of a tied tensor lie in one: a second costs as much again."""
        tie = self.run.tie
        risks = (*self.forget, *self.retain, *(self.side(each) for each in self.forget if self.c))
        return {} if tie is None or row in risks else {tie.head_name: tie.name}

    def _weigh(self, outputs: Outputs) -> None:
        weights = self.run.objective.forget_weights(outputs)
        if weights is not None:
            self._sum("weight_mean", weights.sum() / self.counts["forget"].token)

    def _sum(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value.detach()
