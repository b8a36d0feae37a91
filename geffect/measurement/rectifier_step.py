"""What a rectifier reads of one step, and what it makes of the objective's gradient."""

from collections.abc import Mapping

from torch import Tensor

from geffect.core.gradients import NamedTensors, add_scaled
from geffect.errors import GeffectError
from geffect.measurement.basis import Basis, Combinations, Parts
from geffect.measurement.measurement import Measurement
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
