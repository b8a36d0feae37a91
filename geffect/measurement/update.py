"""The update: what a rectifier makes of the objective's gradient, and what the optimizer makes of that.

`PredictionCheck` compares two approximations of a loss's change in one step with the measured R(θ_{t+1}) − R(θ_t):
−lr·⟨∇R, gradient⟩, true for plain SGD and the published one (arXiv 2502.19301), and −⟨∇R, applied⟩ with what the
optimizer made of the gradient. All are taken on the same fixed probe examples, so that they add up over a run to
R(θ_T) − R(θ_0).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from geffect.core.distributed import is_sharded, local_part, sum_gram, sum_over_processes
from geffect.core.forward import Outputs
from geffect.core.gradients import GradientBuffer, NamedTensors, add_scaled
from geffect.core.gram import Gram, inner_products, norm
from geffect.errors import GeffectError
from geffect.measurement.basis import Basis, Combinations, Parts
from geffect.measurement.measurement import Measured, Measurement
from geffect.measurement.topk import Masks
from geffect.objectives.base import Counts, mean_nll
from geffect.rectifiers.base import InnerProducts

Coefficients = Mapping[str, Parts]  # part of the model → gradient of the basis → coefficient in the rectified one


class RectifierStep:
    """The gradients that a rectifier reads, reduced tensor by tensor, then combined as it says.

    The inner products are of its own, so that measuring changes no bit of an update.

    Args:
        run: what the steps share.
        named: gradient → its combination of the step's basis, of all that the step computes.

    Attributes:
        sources: the gradients of the basis that the rectifier reads, in combinations or themselves.
        products: their inner products.

    Raises:
        GeffectError: it reads a gradient that the step does not compute.
    """

    def __init__(self, run: Measurement, named: Mapping[str, Parts]) -> None:
        self.run, self.rule = run, run.rectifier
        unknown = [name for name in self.rule.gradients if name not in named]
        if unknown:
            remedy = f"Choose among {', '.join(named)}"
            raise GeffectError(f"{self.rule} reads a gradient {unknown[0]!r}, which this run has not", remedy=remedy)
        self.read = {name: named[name] for name in self.rule.gradients}
        self.sources = tuple(dict.fromkeys(source for parts in self.read.values() for source in parts))
        self.products = Basis(self.sources, None)
        self._stored = {each: NamedTensors() for each in self.sources if each not in ("objective", self.rule.memory)}

    def add(self, name: str, tensors: Mapping[str, Tensor | None]) -> None:
        """Reduce one tensor of every source, and hold what is combined with the objective's gradient later."""
        if self.sources:
            self.products.add(name, tensors)
        for source, stored in self._stored.items():
            add_scaled(stored, name, tensors[source], 1.0)

    def coefficients(self) -> Coefficients:
        """The rectified gradient as a combination of the sources, by part of the model.

        Raises:
            GeffectError: the rectifier combines what it does not read.
        """
        if not self.sources:
            return {"": {"objective": 1.0}}
        part_of = self.run.parts
        gram = self.products.combine(Combinations.everywhere(self.read), list(self.run.parameters))
        totals = gram.by(part_of) if part_of else {"": gram.total()}
        return {part: self._of_part(InnerProducts(gram.names, total)) for part, total in totals.items()}

    def _of_part(self, gram: InnerProducts) -> dict[str, float]:
        coefficients = dict.fromkeys(self.sources, 0.0)
        for name, coefficient in self.rule.coefficients(gram).items():
            if name not in self.read:
                remedy = f"Choose among its gradients ({', '.join(self.read)}), or name it there"
                raise GeffectError(f"{self.rule} combines {name!r}, which it does not read", remedy=remedy)
            for source, scale in self.read[name].items():
                coefficients[source] += coefficient * scale
        if self.rule.add_retain and coefficients["objective"] != 1:
            remedy = "Let its coefficients name retain instead"
            raise GeffectError(f"{self.rule} scales the objective's gradient and has add_retain", remedy=remedy)
        return coefficients

    def combine(self, objective: NamedTensors, coefficients: Coefficients) -> NamedTensors:
        """The rectified gradient, in place of the objective's: a parameter that is missing is zero."""
        part_of = self.run.parts
        for name in self.run.parameters:
            for source, coefficient in coefficients[part_of.get(name, "")].items():
                if source != "objective":
                    stored = self.run.state if source == self.rule.memory else self._stored[source]
                    add_scaled(objective, name, stored.get(name), coefficient)
                elif coefficient != 1 and name in objective:
                    objective[name].mul_(coefficient)
        return objective


class Applied:
    """The gradients ``update`` and ``applied``, both −Δθ: made before the optimizer steps, closed after it.

    ``update`` is what the optimizer did, ``applied`` what is left of it once frozen entries are put back and the
    rectifier has corrected θ; both hold the learning rate, momentum and weight decay, so ΔR ≈ −⟨∇R, applied⟩.

    Args:
        run: what the steps share.
        basis: the step's gradients.
        named: every recorded gradient as a combination of them.
        kept: the gradients themselves, before rectification; None where only a correction is wanted.
        embeds: gradient → the tied tensor's part as embedding.
        masks: overlaps so far.
    """

    def __init__(
        self,
        run: Measurement,
        basis: Basis,
        named: Combinations,
        kept: dict[str, NamedTensors] | None,
        embeds: Mapping[str, Tensor | None] | None,
        masks: Masks | None,
    ) -> None:
        self.run, self.basis, self.named, self.kept, self.embeds, self.masks = run, basis, named, kept, embeds, masks
        self.before = {name: local_part(parameter.detach()).clone() for name, parameter in run.parameters.items()}
        if run.prediction is not None and kept is not None:
            run.prediction.open()

    @torch.no_grad()
    def close(self, learning_rates: Mapping[str, float]) -> Measured | None:
        """Correct θ, then measure; None where only a correction was wanted.

        ``learning_rates`` are those of every parameter in this step.
        """
        scale, frozen = self._correction(), self.run.frozen
        names = ("update", "applied")
        basis = Basis((*self.basis.names, *names), self.run.tie)
        for name, parameter in ((n, local_part(p.detach())) for n, p in self.run.parameters.items()):
            update = self._moved(name)
            if frozen is not None:
                frozen.put_back(name, parameter, self.before[name])
            if scale and name in self.run.state:
                parameter.sub_(self.run.state[name].to(parameter.dtype), alpha=scale)
            if self.kept is not None:
                self._measure(basis, name, update, self._moved(name), learning_rates[name])
        if self.kept is None:
            return None
        basis.sum_up(sharded=self.run.sharded)
        named = self.named.extend(names)
        gram = basis.combine(named, list(self.run.parameters))
        measured = Measured({f"norm_{name}": norm(gram.total(), gram.names, name) for name in names}, gram)
        if self.masks is not None:
            measured.overlap = self.masks.overlap(named, list(self.run.parameters), self.run.tie)
        measured.prediction = self.run.prediction.close() if self.run.prediction is not None else None
        return measured

    def _moved(self, name: str, *, free: bool = False) -> Tensor:
        """θ_before − θ of one tensor, in float32 or better; ``free``: 0 where it is about to be put back."""
        parameter = local_part(self.run.parameters[name].detach())
        wide = torch.promote_types(parameter.dtype, torch.float32)
        moved = self.before[name].to(wide) - parameter.to(wide)
        still = self.run.frozen.still(name) if free and self.run.frozen else None
        return moved if still is None else moved.masked_fill_(still, 0)

    def _correction(self) -> float:
        """How much of the memory is taken off θ, so that the update no longer conflicts with it."""
        rectifier = self.run.rectifier
        if not rectifier.corrects:
            return 0.0
        gram = Gram(("update", str(rectifier.memory)))
        for name in self.run.parameters:
            gram.values[name] = inner_products([self._moved(name, free=True), self.run.state.get(name)])
        total = sum_gram(gram, sharded=self.run.sharded).total()
        return rectifier.correction(InnerProducts(gram.names, total))

    def _measure(self, basis: Basis, name: str, update: Tensor, applied: Tensor, lr: float) -> None:
        memory, stored = self.run.rectifier.memory, self.kept or {}
        gradients = {each: self.run.state if each == memory else stored.get(each, {}) for each in self.basis.names}
        tensors = {each: tensors.get(name) for each, tensors in gradients.items()}
        tied = self.run.tie is not None and name == self.run.tie.name
        basis.add(name, {**tensors, "update": update, "applied": applied}, self.embeds if tied else None)
        if self.masks is not None:
            self.masks.add(name, {"update": update, "applied": applied})
        if self.run.prediction is not None:
            gradient = self.run.parameters[name].grad
            self.run.prediction.add(name, None if gradient is None else local_part(gradient), applied, lr)


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
