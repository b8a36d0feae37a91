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
    """Accumulates the rows of a window and leaves the rectified gradient in ``.grad``.

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

    def begin(self, forget: Counts, retain: Counts, *, measure: bool) -> None:
        """Open a window.

        Args:
            forget: what the whole window holds of the forget set.
            retain: the same of the retain set.
            measure: compute the Gram of all rows, not only what the update needs.
        """
        self.counts, self.measure = {"forget": forget, "retain": retain}, measure
        self.window, self.sums = Window(self.parameters), dict[str, Tensor]()
        free = self.free_rows and self.objective.forget_multiple is not None
        self.own_forget_row = measure and not free
        self.own_retain_row = measure or self.rectifier.memory is not None or self.objective.retain_multiple != 0
        own = {"forget": self.own_forget_row, "retain": measure}
        memory = [self.rectifier.memory] if self.rectifier.memory else []
        self.basis = Gram(("objective", *(row for row, computed in own.items() if computed), *memory))

    def micro_batch(self, forget: Batch, retain: Batch, *, last: bool) -> Tensor:
        """Back-propagate one micro-batch.

        Args:
            forget: collated forget rows.
            retain: as many retain rows.
            last: it closes the window, so the retain row may stream.

        Returns:
            The objective's share of this micro-batch, detached.
        """
        outputs = self.forward(forget)
        objective, forget_risk = (
            self.objective.forget_loss(outputs, self.counts["forget"]),
            risk(outputs, self.counts["forget"]),
        )
        weights = self.objective.forget_weights(outputs).sum() / self.counts["forget"].token
        self.window.add("objective", objective, retain_graph=self.own_forget_row)
        if self.own_forget_row:
            self.window.add("forget", forget_risk)
        del outputs
        share = objective.detach()
        if self.own_retain_row:
            retain_risk = risk(self.forward(retain), self.counts["retain"])
            self._retain(retain_risk, last=last)
            self._sum("risk_retain", retain_risk)
            share = share + self.objective.retain_multiple * retain_risk.detach()
        self._sum("loss_objective", share)
        self._sum("risk_forget", forget_risk)
        self._sum("weight_mean", weights)
        return share

    def finish(self) -> Measured:
        """Close the window: rectify, hand the gradient back, and report.

        Returns:
            What to record.

        Raises:
            FloatingPointError: a raw loss is not finite; no parameter has moved.
        """
        scalars = {name: float(value) for name, value in self.sums.items()}
        broken = [name for name, value in scalars.items() if not math.isfinite(value)]
        if broken:
            raise FloatingPointError(f"{broken[0]} = {scalars[broken[0]]}")
        rectified = self._rectified()
        row = self.window.rows.pop("objective")
        for key, tensor in self.state.items():
            add_scaled(row, key, tensor, rectified[str(self.rectifier.memory)])
        for key, parameter in self.parameters.items():
            parameter.grad = row.get(key)
        if not self.measure:
            return Measured(scalars, None)
        self.basis.values = {name: self.basis.values[name] for name in self.parameters}  # not in backward's order
        gram = self.basis.combine(self._named(rectified))
        total = gram.total()
        norms = {f"norm_{name}": norm(total, gram.rows, name) for name in gram.rows}
        return Measured(scalars | norms, gram)

    def _retain(self, loss: Tensor, *, last: bool) -> None:
        if last:
            self.window.stream("retain", loss, self._visit)
        else:
            self.window.add("retain", loss)

    def _visit(self, name: str, retain: Tensor | None) -> None:
        """Everything that must see this tensor of the retain row before it is freed."""
        row = self.window.rows["objective"]
        add_scaled(row, name, retain, self.objective.retain_multiple)
        memory = self.rectifier.update(self.state, name, retain)
        tensors = {"objective": row.get(name), "retain": retain, self.rectifier.memory: memory}
        if self.own_forget_row:
            tensors["forget"] = self.window.rows["forget"].pop(name, None)
        if len(self.basis.rows) > 1:
            self.basis.values[name] = inner_products([tensors[each] for each in self.basis.rows])
        add_scaled(row, name, retain, self.rectifier.add_retain)

    def _rectified(self) -> dict[str, float]:
        memory, rows = self.rectifier.memory, self.basis.rows
        if memory is None:
            return self.rectifier.coefficients(0.0, 0.0, 0.0)
        total = self.basis.total()
        pairs = (("objective", "objective"), ("objective", memory), (memory, memory))
        return self.rectifier.coefficients(*(inner(total, rows, a, b) for a, b in pairs))

    def _named(self, rectified: dict[str, float]) -> dict[str, dict[str, float]]:
        """Every recorded row as a combination of the basis."""
        c, w = self.objective.forget_multiple, self.objective.retain_multiple
        forget = {"forget": 1.0} if self.own_forget_row or c is None else {"objective": 1 / c, "retain": -w / c}
        named = {"objective": {"objective": 1.0}, "forget": forget, "retain": {"retain": 1.0}}
        if self.rectifier.memory is None:
            return named
        return named | {
            self.rectifier.memory: {self.rectifier.memory: 1.0},
            "rectified": rectified | {"retain": self.rectifier.add_retain},
        }

    def _sum(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums.get(name, value.new_zeros(())) + value.detach()
