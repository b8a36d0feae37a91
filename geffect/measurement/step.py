"""One optimiser step: its rows are combined, reduced, rectified and handed back, tensor by tensor."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from geffect.effects import norm
from geffect.gram import Gram, inner_products
from geffect.measurement.applied import Applied
from geffect.measurement.basis import Basis, added
from geffect.measurement.masks import Masks
from geffect.measurement.passes import SIDE, Passes
from geffect.measurement.run import Batch, Measured, Measurement
from geffect.measurement.spread import Shares, Spread, spread
from geffect.objectives import Counts
from geffect.rectify import NoRectifier
from geffect.rows import NamedTensors, add_scaled

Tensors = dict[str, Tensor | None]


class Step:
    """`micro_batch` for each, then `finish`, which leaves the rectified gradient in ``.grad``, then `after`.

    Args:
        run: what the steps share.
        counts: set → what the whole window of micro-batches holds of it.
        measure: compute the Gram of all rows, not only what the update needs.
    """

    def __init__(self, run: Measurement, counts: Mapping[str, Counts], *, measure: bool) -> None:
        memory, self.passes = run.rectifier.memory, Passes(run, counts, measure=measure)
        self.run, self.measure = run, measure
        own = {"forget": self.passes.forget_row, "retain": measure, memory: memory is not None}
        self.basis = Basis(("objective", *(str(row) for row, computed in own.items() if computed)), run.tie)
        self.conflict = Gram(("objective", str(memory)))  # of its own, so that measuring changes no bit of the update
        self.masks = Masks(run.support) if measure and run.support else None
        self.kept: dict[str, NamedTensors] | None = {} if measure and run.keep else None
        self.kept_embeds: Tensors | None = None
        self.batches: list[Mapping[str, Batch]] = []
        self.applied: Applied | None = None
        self._tied = Tensors()  # the tied tensor's two parts arrive apart

    def micro_batch(self, batches: Mapping[str, Batch], *, last: bool) -> Tensor:
        """Back-propagate one micro-batch.

        Args:
            batches: set → collated rows.
            last: it closes the window, so the retain row may stream.

        Returns:
            The objective's share of this micro-batch, detached.
        """
        if self.measure and self.run.standard_errors:
            self.batches.append(batches)
        return self.passes.run_all(batches, self._visit if last else None)

    def finish(self) -> Measured:
        """Close the window: rectify, hand the gradient back, and report.

        Returns:
            What to record.

        Raises:
            FloatingPointError: a raw loss or a row is not finite; no gradient was handed back.
        """
        scalars = {name: float(value) for name, value in self.passes.sums.items()}
        refuse_broken(scalars)
        for name in () if self.passes.streamed else self.run.differentiated:
            self._visit(name, None)
        refuse_broken(self._norms())
        named = self._named(self._rectified())
        self._hand_back(named)
        if self.kept is not None or self.run.rectifier.corrects:
            self.applied = Applied(self.run, self.basis, named, self.kept, self.kept_embeds, self.masks)
        return self._report(scalars, named) if self.measure else Measured(scalars)

    def after(self, learning_rates: Mapping[str, float]) -> Measured | None:
        """What the optimiser made of the gradient, once it has stepped and before the learning rate moves.

        Args:
            learning_rates: of every parameter.

        Returns:
            The numbers with the rows ``update`` and ``applied``; None where they are not measured.
        """
        return self.applied.close(learning_rates) if self.applied else None

    def row(self, name: str) -> NamedTensors:
        """One recorded row itself, where rows are kept: parameter name → tensor."""
        if name == "rectified":
            return {key: p.grad for key, p in self.run.parameters.items() if p.grad is not None}
        (source, scale), kept = next(iter(self._named({})[name].items())), self.kept or {}
        tensors = self.run.state if source == self.run.rectifier.memory else kept.get(source, {})
        return {key: tensor if scale == 1 else tensor * scale for key, tensor in tensors.items()}

    def _report(self, scalars: Mapping[str, float], named: Mapping[str, Mapping[str, float]]) -> Measured:
        gram = self.basis.named(named, list(self.run.parameters))
        found = Measured(dict(scalars) | norms(gram), gram)
        if self.masks is not None:
            found.support = self.masks.support(named, list(self.run.parameters), self.run.tie)
        if len(self.batches) > 1:  # an epoch's last window may hold one, which says nothing of their spread
            found.spread = self._spread()
        return found

    def _spread(self) -> Spread:
        """The micro-batches are gone through again, so that one row of them is held at a time."""
        run = self.run
        alone = replace(run, rectifier=NoRectifier(), ledger=None, support=0.0, standard_errors=False, keep=True)

        def shares() -> Iterator[Shares]:
            for batch in self.batches:
                step = Step(alone, self.passes.counts, measure=True)
                step.micro_batch(batch, last=True)
                yield step.kept or {}, step.kept_embeds

        named = {row: parts for row, parts in self._named({}).items() if row in ("objective", "forget", "retain")}
        window = (self.kept or {}, self.kept_embeds)
        return spread(window, shares(), named, list(run.parameters), run.labels, run.tie)

    def _visit(self, name: str, retain: Tensor | None) -> None:
        """Everything that must see this tensor of the retain row before it is freed."""
        tie = self.run.tie
        if tie is None or name not in (tie.name, tie.head_name):
            return self._settle(name, self._taken(name) | {"retain": retain}, None)
        self._tied[name] = retain
        if len(self._tied) < 2:
            return None
        embed, head = (self._taken(each) | {"retain": self._tied.pop(each)} for each in (tie.name, tie.head_name))
        return self._settle(tie.name, {row: added(embed[row], head[row]) for row in embed}, embed)

    def _taken(self, name: str) -> Tensors:
        """One tensor of every row the passes left, taken out of its buffer."""
        return {row: self.passes.window.rows.get(row, {}).pop(name, None) for row in ("objective", SIDE, "forget")}

    def _settle(self, name: str, own: Tensors, embed: Tensors | None) -> None:
        """One whole tensor of every row: combine, reduce, and leave the objective's in its row."""
        run, retain = self.run, own["retain"]
        tensors = self._risks(own)
        row = self.passes.window.rows.setdefault("objective", {})
        objective = own["objective"] if own[SIDE] is None else added(own["objective"], own[SIDE])
        if objective is not None:
            row[name] = objective
        add_scaled(row, name, retain, self.passes.w)
        tensors["objective"] = row.get(name)
        tensors[str(run.rectifier.memory)] = run.rectifier.update(run.state, name, retain)
        embeds = None if embed is None else self._risks(embed)
        if run.rectifier.memory is not None:
            self.conflict.values[name] = inner_products([tensors[row] for row in self.conflict.rows])
        if self.measure:
            self.basis.add(name, tensors, embeds)
        self._keep(name, tensors, embeds)
        add_scaled(row, name, retain, run.rectifier.add_retain)

    def _risks(self, own: Tensors) -> Tensors:
        """What of one tensor belongs to the risks, directly or, as the objective's, times a constant."""
        passes = self.passes
        side = own[passes.side]
        free = side / passes.c if passes.c and passes.forget_row and side is not None else None
        forget = own["forget"] if passes.own_forget_row else free
        return {"retain": own["retain"], "forget": forget, "objective": None if passes.forget_row else side}

    def _keep(self, name: str, tensors: Tensors, embeds: Tensors | None) -> None:
        """Hold what is needed once the row has been rectified, clipped and stepped with."""
        if self.masks is not None:
            self.masks.add(name, {row: tensors[row] for row in self.basis.rows})
        if self.kept is None:
            return
        self.kept_embeds = embeds if embeds is not None else self.kept_embeds
        for row in (each for each in self.basis.rows if each != self.run.rectifier.memory):
            tensor = tensors[row]
            if tensor is not None:  # the objective's is rectified and clipped in place
                self.kept.setdefault(row, {})[name] = tensor.clone() if row == "objective" else tensor

    def _norms(self) -> dict[str, float]:
        """‖row‖ of what was back-propagated: not finite where one of its entries is not."""
        found = norms(self.basis.gram) | norms(self.conflict)
        if not self.measure and not self.conflict.values:
            row = self.passes.window.rows.get("objective", {})
            found["norm_objective"] = float(torch.nn.utils.get_total_norm(row.values()))
        return found

    def _rectified(self) -> dict[str, float]:
        """The rectified row as a combination of the basis."""
        in_order = [self.conflict.values[name] for name in self.run.parameters if name in self.conflict.values]
        total = sum(in_order, torch.zeros(2, 2, dtype=torch.float64))
        return self.run.rectifier.coefficients(float(total[0, 0]), float(total[0, 1]), float(total[1, 1]))

    def _hand_back(self, named: Mapping[str, Mapping[str, float]]) -> None:
        row = self.passes.window.rows.pop("objective", {})
        for name, tensor in self.run.state.items():
            add_scaled(row, name, tensor, named["rectified"].get(str(self.run.rectifier.memory), 0.0))
        for name, parameter in self.run.parameters.items():
            parameter.grad = row.get(name)
            if self.masks is not None and "rectified" in named:
                self.masks.add(name, {"rectified": parameter.grad})

    def _named(self, rectified: dict[str, float]) -> dict[str, dict[str, float]]:
        """Every recorded row as a combination of the basis."""
        c, memory = self.passes.c, self.run.rectifier.memory
        forget = {"forget": 1.0} if self.passes.forget_row or not c else {"objective": 1 / c}
        named = {"objective": {"objective": 1.0}, "forget": forget, "retain": {"retain": 1.0}}
        if memory is None:
            return named
        return named | {memory: {memory: 1.0}, "rectified": rectified | {"retain": self.run.rectifier.add_retain}}


def refuse_broken(numbers: Mapping[str, float]) -> None:
    """Raise where a number is not finite; it is named.

    Raises:
        FloatingPointError: the first such.
    """
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise FloatingPointError(f"{name} = {value}")


def norms(gram: Gram) -> dict[str, float]:
    """‖row‖ over the whole model, by name."""
    total = gram.total()
    return {f"norm_{name}": norm(total, gram.rows, name) for name in gram.rows}
