"""One optimiser step: losses → rows → Gram → rectified gradient, and the numbers to record of it.

The *basis* are the rows that must be back-propagated; every other row is a linear combination of them, and so are its
inner products. Where GA's forget risk is −1 times its objective, one backward pass gives both.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from geffect.effects import inner, norm
from geffect.gram import Gram, inner_products
from geffect.objectives import Counts, Objective, Outputs, risk
from geffect.rectify import Rectifier
from geffect.rows import NamedTensors, Window, add_scaled

Batch = dict[str, Tensor]


@dataclass
class Measured:
    """What one optimiser step leaves behind.

    Attributes:
        scalars: ``loss_objective``, ``risk_forget``, ``risk_retain``, ``weight_mean`` (labelled tokens only) and the
            norms; a risk that no pass computed is missing.
        gram: the inner products of the named rows; None where the step was not measured.
    """

    scalars: dict[str, float]
    gram: Gram | None


@dataclass
class Measurement:
    """What every step of a run shares.

    Attributes:
        parameters: what a row covers, by canonical name.
        forward: runs the model over a collated batch.
        objective: what is descended.
        rectifier: what the objective's row becomes.
        free_rows: take the forget row by algebra where the objective allows it; False back-propagates it apart.
        state: the rectifier's own, kept between steps.
    """

    parameters: Mapping[str, nn.Parameter]
    forward: Callable[[Batch], Outputs]
    objective: Objective
    rectifier: Rectifier
    free_rows: bool = True
    state: NamedTensors = field(init=False)

    def __post_init__(self) -> None:
        self.state = self.rectifier.init()

    def begin(self, forget: Counts, retain: Counts, *, measure: bool) -> "Step":
        """Open a step.

        Args:
            forget: what its whole window of micro-batches holds of the forget set.
            retain: the same of the retain set.
            measure: compute the Gram of all rows, not only what the update needs.

        Returns:
            The step, waiting for its micro-batches.
        """
        return Step(self, forget, retain, measure)


class Step:
    """One optimiser step: `micro_batch` for each, then `finish`, which leaves the rectified gradient in ``.grad``.

    Args:
        run: what the steps share.
        forget: the window's counts of the forget set.
        retain: the same of the retain set.
        measure: compute the Gram of all rows.
    """

    def __init__(self, run: Measurement, forget: Counts, retain: Counts, measure: bool) -> None:
        self.run, self.forget, self.retain, self.measure = run, forget, retain, measure
        free = run.free_rows and run.objective.forget_multiple is not None
        self.own_forget_row = measure and not free
        self.own_retain_row = measure or run.rectifier.memory is not None or run.objective.retain_multiple != 0
        # where a retain part is added to the objective, the forget row is kept from before: afterwards it would cancel
        self.forget_aside = measure and free and run.objective.retain_multiple != 0
        kept = self.own_forget_row or self.forget_aside
        own = {"forget": kept, "retain": measure, run.rectifier.memory: run.rectifier.memory is not None}
        self.basis = Gram(("objective", *(str(row) for row, computed in own.items() if computed)))
        self.window, self.sums = Window(run.parameters), dict[str, Tensor]()

    def micro_batch(self, forget: Batch, retain: Batch, *, last: bool) -> Tensor:
        """Back-propagate one micro-batch.

        Args:
            forget: collated forget rows.
            retain: as many retain rows.
            last: it closes the window, so the retain row may stream.

        Returns:
            The objective's share of this micro-batch, detached.
        """
        share = self._forget_side(forget)
        if self.own_retain_row:
            share = share + self.run.objective.retain_multiple * self._retain_side(retain, last=last)
        self._sum("loss_objective", share)
        return share

    def finish(self) -> Measured:
        """Close the window: rectify, hand the gradient back, and report.

        Returns:
            What to record.

        Raises:
            FloatingPointError: a raw loss is not finite; no gradient was handed back.
        """
        scalars = {name: float(value) for name, value in self.sums.items()}
        broken = [name for name, value in scalars.items() if not math.isfinite(value)]
        if broken:
            raise FloatingPointError(f"{broken[0]} = {scalars[broken[0]]}")
        rectified = self._rectified()
        self._hand_back(rectified)
        if not self.measure:
            return Measured(scalars, None)
        in_order = {name: self.basis.values[name] for name in self.run.parameters}  # backward visits them in another
        gram = Gram(self.basis.rows, in_order).combine(self._named(rectified))
        total = gram.total()
        return Measured(scalars | {f"norm_{name}": norm(total, gram.rows, name) for name in gram.rows}, gram)

    def _forget_side(self, batch: Batch) -> Tensor:
        outputs = self.run.forward(batch)
        objective, forget_risk = self.run.objective.forget_loss(outputs, self.forget), risk(outputs, self.forget)
        self._sum("risk_forget", forget_risk)
        self._sum("weight_mean", self.run.objective.forget_weights(outputs).sum() / self.forget.token)
        self.window.add("objective", objective, retain_graph=self.own_forget_row)
        if self.own_forget_row:
            self.window.add("forget", forget_risk)
        return objective.detach()

    def _retain_side(self, batch: Batch, *, last: bool) -> Tensor:
        retain_risk = risk(self.run.forward(batch), self.retain)
        self._sum("risk_retain", retain_risk)
        if last:
            self.window.stream("retain", retain_risk, self._visit)
        else:
            self.window.add("retain", retain_risk)
        return retain_risk.detach()

    def _visit(self, name: str, retain: Tensor | None) -> None:
        """Everything that must see this tensor of the retain row before it is freed."""
        run, row = self.run, self.window.rows["objective"]
        tensors: dict[str | None, Tensor | None] = {"retain": retain, "forget": self._forget_row(name)}
        add_scaled(row, name, retain, run.objective.retain_multiple)
        tensors |= {"objective": row.get(name), run.rectifier.memory: run.rectifier.update(run.state, name, retain)}
        if len(self.basis.rows) > 1:
            self.basis.values[name] = inner_products([tensors[each] for each in self.basis.rows])
        add_scaled(row, name, retain, run.rectifier.add_retain)

    def _forget_row(self, name: str) -> Tensor | None:
        """This tensor of the forget row where it is part of the basis."""
        if self.own_forget_row:
            return self.window.rows["forget"].pop(name, None)
        side, c = self.window.rows["objective"].get(name), self.run.objective.forget_multiple
        return side / c if self.forget_aside and side is not None and c is not None else None

    def _rectified(self) -> dict[str, float]:
        """The rectified row as a combination of the basis."""
        memory, rows = self.run.rectifier.memory, self.basis.rows
        if memory is None:
            return self.run.rectifier.coefficients(0.0, 0.0, 0.0)
        total = self.basis.total()
        pairs = (("objective", "objective"), ("objective", memory), (memory, memory))
        return self.run.rectifier.coefficients(*(inner(total, rows, a, b) for a, b in pairs))

    def _hand_back(self, rectified: dict[str, float]) -> None:
        row = self.window.rows.pop("objective")
        for name, tensor in self.run.state.items():
            add_scaled(row, name, tensor, rectified[str(self.run.rectifier.memory)])
        for name, parameter in self.run.parameters.items():
            parameter.grad = row.get(name)

    def _named(self, rectified: dict[str, float]) -> dict[str, dict[str, float]]:
        """Every recorded row as a combination of the basis."""
        c = self.run.objective.forget_multiple
        forget = {"forget": 1.0} if "forget" in self.basis.rows or c is None else {"objective": 1 / c}
        named = {"objective": {"objective": 1.0}, "forget": forget, "retain": {"retain": 1.0}}
        memory = self.run.rectifier.memory
        if memory is None:
            return named
        return named | {memory: {memory: 1.0}, "rectified": rectified | {"retain": self.run.rectifier.add_retain}}

    def _sum(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums.get(name, value.new_zeros(())) + value.detach()
