"""Which forward and backward passes a step takes, and the rows they leave in their buffers."""

import contextlib
from collections.abc import Mapping

import torch
from torch import Tensor

from geffect.measurement.run import Batch, Measurement
from geffect.objectives import Counts, Outputs, risk
from geffect.rows import Visit, Window

SIDE = "forget side"  # the objective's forget terms, kept apart from what else is back-propagated into its row


class Passes:
    """The fewest passes that supply the objective's row and, where measured, those of the two risks.

    Args:
        run: what the steps share.
        counts: set → what the whole window of micro-batches holds of it.
        measure: the rows of both risks are wanted.

    Attributes:
        c: the forget risk is its share of the objective's row divided by c; None where it has a pass of its own.
        w: the weight of the retain row in the objective's.
        side: the buffer of the objective's forget terms.
        own_forget_row: the forget risk is back-propagated.
        own_retain_row: the retain risk is back-propagated.
        forget_row: the forget row must be told from the objective's before something is added to that.
        window: the buffers.
        sums: losses and weights so far.
    """

    def __init__(self, run: Measurement, counts: Mapping[str, Counts], *, measure: bool) -> None:
        objective, dropout = run.objective, run.keep_dropout
        self.run, self.counts = run, counts
        self.c = objective.forget_multiple if run.free_rows and not dropout else None
        self.w = 0.0 if dropout else objective.retain_multiple
        self.retain_terms = any(dropout or term.multiple_of_risk is None for _, term in objective.on("retain"))
        beside = self.retain_terms or bool(objective.on("alternative") or objective.on("general"))
        self.side = SIDE if self.c and beside else "objective"
        self.own_forget_row = measure and not self.c
        self.own_retain_row = measure or run.rectifier.memory is not None or self.w != 0
        self.forget_row = self.own_forget_row or (measure and (beside or self.w != 0))
        self.window, self.sums = Window(run.differentiated), dict[str, Tensor]()
        self.streamed = False

    def run_all(self, batches: Mapping[str, Batch], visit: Visit | None) -> Tensor:
        """Back-propagate one micro-batch.

        Args:
            batches: set → collated rows.
            visit: where given, it closes the window: the retain row streams through it.

        Returns:
            The objective's share of this micro-batch, detached.
        """
        with self.run.tie.untied() if self.run.tie else contextlib.nullcontext():
            shares = [self._forget(batches), self._beside("alternative", batches), self._beside("general", batches)]
            shares += [self._retain(batches, visit)]
        total = torch.stack([each for each in shares if each is not None]).sum()
        self._sum("loss_objective", total)
        return total

    def _forget(self, batches: Mapping[str, Batch]) -> Tensor | None:
        outputs, loss, shared = None, None, not self.run.keep_dropout
        if self.run.objective.on("forget"):
            outputs, loss = self._descend("forget", batches, self.side, retain_graph=self.own_forget_row and shared)
            self._weigh(outputs)
        if self.own_forget_row and (outputs is None or not shared):
            outputs = self.run.risk_outputs(batches["forget"])
        elif not shared:
            return loss
        if outputs is not None:
            forget_risk = risk(outputs, self.counts["forget"])
            self._sum("risk_forget", forget_risk)
            if self.own_forget_row:
                self.window.add("forget", forget_risk)
        return loss

    def _beside(self, name: str, batches: Mapping[str, Batch]) -> Tensor | None:
        """The objective's terms on a set whose risk is not measured."""
        return self._descend(name, batches, "objective")[1] if self.run.objective.on(name) else None

    def _retain(self, batches: Mapping[str, Batch], visit: Visit | None) -> Tensor | None:
        outputs, loss, shared = None, None, not self.run.keep_dropout
        if self.retain_terms:
            again = self.own_retain_row and shared
            outputs, loss = self._descend("retain", batches, "objective", besides_risk=shared, retain_graph=again)
        if not self.own_retain_row:
            return loss
        if outputs is None or not shared:
            outputs = self.run.risk_outputs(batches["retain"])
        retain_risk = risk(outputs, self.counts["retain"])
        self._sum("risk_retain", retain_risk)
        self._complete("retain", retain_risk, visit)
        share = self.w * retain_risk.detach()
        return share if loss is None else loss + share

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
        self.window.add(row, loss, retain_graph=retain_graph)
        return outputs, loss.detach()

    def _weigh(self, outputs: Outputs) -> None:
        weights = self.run.objective.forget_weights(outputs)
        if weights is not None:
            self._sum("weight_mean", weights.sum() / self.counts["forget"].token)

    def _sum(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums.get(name, value.new_zeros(())) + value.detach()
