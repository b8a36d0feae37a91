"""What the optimizer made of a gradient, and what a rectifier makes of that."""

from collections.abc import Mapping

import torch
from torch import Tensor

from geffect.core.distributed import local_part, sum_gram
from geffect.core.gradients import NamedTensors
from geffect.core.gram import Gram, inner_products, norm
from geffect.measurement.basis import Basis, Combinations
from geffect.measurement.measurement import Measured, Measurement
from geffect.measurement.topk import Masks
from geffect.rectifiers.base import InnerProducts


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
            measured.parts["overlap"] = self.masks.overlap(named, list(self.run.parameters), self.run.tie)
        if self.run.prediction is not None:
            measured.parts["prediction"] = self.run.prediction.close()
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
