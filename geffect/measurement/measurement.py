"""What every step of a run shares."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from geffect.core.distributed import is_sharded
from geffect.core.forward import Outputs
from geffect.core.gram import Gram
from geffect.core.layers import TiedWeights
from geffect.core.masks import GradientMask
from geffect.core.splits import TARGETS
from geffect.errors import GeffectError
from geffect.measurement.metric import Preconditioner
from geffect.objectives.base import Objective, State
from geffect.rectifiers.base import Memories, Rectifier

if TYPE_CHECKING:
    from geffect.measurement.update import PredictionCheck

Batch = dict[str, Tensor]


class Forward(Protocol):
    """Runs the model over a batch and supplies what is needed."""

    def __call__(self, batch: Batch, needs: frozenset[str], *, dropout: bool) -> Outputs:
        """The outputs; ``dropout`` asks for the model as it is trained where dropout is kept."""


@dataclass
class Measured:
    """What one optimizer step leaves behind.

    Attributes:
        scalars: ``loss_objective``, ``loss_forget``, ``loss_retain``, ``weight_mean`` (labeled tokens only) and the
            norms; a loss that no pass computed is missing.
        gram: the inner products of the named gradients; None where the step was not measured.
        parts: what else was measured, under its name in the record: ``overlap``, ``prediction``, ``standard_errors``,
            ``adam_gram``.
    """

    scalars: dict[str, float]
    gram: Gram | None = None
    parts: dict[str, Any] = field(default_factory=dict)

    def line(self) -> dict[str, Any]:
        """What goes into a record: the scalars, and whatever else was measured under its name."""
        return self.scalars | ({"gram": self.gram} if self.gram is not None else {}) | self.parts


@dataclass
class Measurement:
    """What every step of a run shares.

    Attributes:
        parameters: what a gradient covers, by canonical name.
        forward: runs the model over a collated batch.
        objective: what is descended.
        rectifier: what the objective's gradient becomes.
        free: derive the forget gradient from the objective's where that is a multiple; False back-propagates it.
        keep_dropout: the objective sees dropout, the losses do not: then no pass is shared and no gradient derived.
        tie: the tied tensor, whose loss gradients are split by use.
        overlap: share of the largest entries in a gradient's mask; 0 makes none.
        keep: hold the gradients until the optimizer has stepped, and measure its update.
        keep_on: the device on which these, and the weights before the step, are held; None: each on its own.
        updates: an optimizer steps after each step; False measures gradients alone.
        prediction: the probe whose losses' change is predicted and measured; implies ``keep``.
        standard_errors: go over the window's micro-batches again, for standard errors; implies ``keep``.
        labels: parameter → what standard errors are summed under (itself where it is missing).
        frozen: the entries that updates leave alone; the gradients are masked before they are projected.
        state: the rectifier's own, kept between steps.
        layers: parameter → layer, or layer group, for a rectifier of that scope.
        preconditioner: parameter → the diagonal of the optimizer's metric, for a rectifier that projects in it.
        adam_products: measure the inner products of the price in that metric, too; implies ``keep``.
        max_rise: the largest rise of the retain loss by one step (nats a token); a larger one is halved
            (`geffect.measurement.filter`). None: no step is looked at.
        targets: name → the batches of a further set, whose loss's gradient is measured beside the others; it is held
            through the step, and so is what is needed to measure the update's effect on it.
        term_states: of the objective's terms, kept between steps.
        sharded: the parameters lie in parts over processes; gradients and state hold this process's part.
    """

    parameters: Mapping[str, nn.Parameter]
    forward: Forward
    objective: Objective
    rectifier: Rectifier
    free: bool = True
    keep_dropout: bool = False
    tie: TiedWeights | None = None
    overlap: float = 0.0
    keep: bool = False
    keep_on: torch.device | None = None
    updates: bool = True
    prediction: "PredictionCheck | None" = None
    standard_errors: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    frozen: GradientMask | None = None
    layers: Mapping[str, str] = field(default_factory=dict)
    preconditioner: Preconditioner | None = None
    adam_products: bool = False
    targets: Mapping[str, Sequence[Batch]] = field(default_factory=dict)
    max_rise: float | None = None
    state: Memories = field(init=False)
    term_states: list[State] = field(init=False)
    sharded: bool = field(init=False)

    def __post_init__(self) -> None:
        if self.rectifier.scope in ("layer", "group") and not self.layers:
            raise ValueError(
                f"{self.rectifier} reads inner products by {self.rectifier.scope}, and no layers are given"
            )
        if self.rectifier.metric == "adam" and self.preconditioner is None:
            message = f"{self.rectifier} reads the optimizer's second moments, and no optimizer is given"
            raise GeffectError(message, remedy="Choose a rectifier without metric=adam")
        self.state, self.sharded = self.rectifier.init(), is_sharded(self.parameters)
        self.term_states = self.objective.init_states()
        effects = bool(self.targets) and self.updates
        self.keep |= effects or self.prediction is not None or self.standard_errors or self.adam_products

    def alone(self, **changes: Any) -> "Measurement":
        """The same gradients, held and left as they are: no update, rectifier, frozen entries or other diagnostics."""
        plain: dict[str, Any] = {"prediction": None, "overlap": 0.0, "standard_errors": False, "frozen": None}
        plain |= {"targets": {}, "max_rise": None, "adam_products": False}
        measurement = replace(self, rectifier=Rectifier(), keep=True, updates=False, **(plain | changes))
        measurement.term_states = self.term_states
        return measurement

    @property
    def losses(self) -> tuple[str, ...]:
        """The names, or roles, of all gradients of losses."""
        return (*TARGETS, *self.targets)

    @property
    def parts(self) -> dict[str, str]:
        """Parameter → the part of the model whose inner products the rectifier reads together; empty: one part."""
        names = {name: name for name in self.parameters}
        by_scope = {"model": {}, "group": self.layers, "layer": self.layers, "parameter": names}
        return dict(by_scope[self.rectifier.scope])

    @property
    def differentiated(self) -> dict[str, nn.Parameter]:
        """The parameters a backward pass reaches, the tied one's stand-in among them."""
        return dict(self.parameters) | ({self.tie.head_name: self.tie.alias} if self.tie else {})

    def outputs(self, name: str, batches: Mapping[str, Batch], *, dropout: bool) -> Outputs:
        """One set's forward pass, with whatever the objective's terms on it need."""
        needs = self.objective.needs_on(name)
        outputs = self.forward(batches[name], needs, dropout=dropout)
        if "alternative" not in needs:
            return outputs
        other = self.forward(batches["alternative"], needs & {"ref_nll"}, dropout=dropout)
        return replace(outputs, alternative=other)
