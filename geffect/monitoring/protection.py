"""Protected targets: a training's own gradient, rectified so that its steps do not raise their loss."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from geffect.core.distributed import as_shard, assign_items, is_sharded, local_part, sum_gradients
from geffect.core.gradients import GradientBuffer, NamedTensors
from geffect.core.gram import Gram, cosine, norm
from geffect.core.layers import by_scope
from geffect.core.model_state import ModelState
from geffect.data.encode import EncodedExample, collate
from geffect.errors import GeffectError, shorten
from geffect.measurement.basis import Basis
from geffect.measurement.measurement import Batch
from geffect.measurement.update import Coefficients, RectifierStep, correction, sums_by_part, take_off
from geffect.monitoring.targets import Target, bare_outputs, is_among
from geffect.objectives.base import Counts, mean_nll
from geffect.rectifiers.base import Memories, Rectifier
from geffect.rectifiers.elementwise import Elementwise
from geffect.rectifiers.registry import make_rectification

PROTECTED = "retain"  # what a rule calls the gradient of the protected targets' loss
DEFAULT = "gru"
ORDER_SEED = 0  # of the order in which their examples are drawn


def make_rule(text: str | None, protect: object, targets: Mapping[str, object]) -> Rectifier | None:
    """The rule that a text names (None: `DEFAULT`) for protected targets; None where none is protected.

    Raises:
        GeffectError: one of them is no target, nothing is protected, or the rule needs another gradient.
    """
    if isinstance(protect, str) or not isinstance(protect, Sequence):
        raise GeffectError(f"protect is {shorten(protect)}, no list of targets", remedy=f"Write protect={[*targets]}")
    for name in (each for each in protect if not is_among(each, targets)):
        message = f"protect names {shorten(name)}, which is no target"
        raise GeffectError(message, remedy=f"Choose among {', '.join(targets)}")
    if not protect:
        if text is not None:
            message = f"rectifier={text!r} has no target to protect"
            raise GeffectError(message, remedy=f"Name them, such as protect={[*targets][:1]}")
        return None
    asked = make_rectification(text or DEFAULT)
    others = sorted(set(asked.rule.gradients) - {"objective", PROTECTED, *asked.rule.memories})
    foreign = {
        "masks of a localization": asked.freezing is not None,
        "the optimizer's second moments": asked.rule.metric == "adam",
        "the objectives of several domains": asked.rule.by_domain,
        " and ".join(others) or "no protected gradient": bool(others) or not asked.rule.rectifies,
    }
    if any(foreign.values()):
        what = next(each for each, reads in foreign.items() if reads)
        message = f"{asked.text!r} reads {what}, where there are the training's gradient and the protected one"
        raise GeffectError(message, remedy="Write rectifier='gru', or a rule that reads objective and retain")
    return asked.rule


def make_protection(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    targets: Mapping[str, Target],
    rule: Rectifier,
    state: ModelState,
    batch_size: int,
    pad_id: int,
) -> "Protection":
    """The protection of targets, whose examples are drawn in batches in an order of their own, all of each in turn."""
    batches = {name: _shuffled(target.whole, batch_size, pad_id) for name, target in targets.items()}
    return Protection(model, parameters, batches, rule, state)


def _shuffled(examples: Sequence[EncodedExample], size: int, pad_id: int) -> list[Batch]:
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(ORDER_SEED)).tolist()
    mixed = [examples[i] for i in order]
    return [collate(mixed[i : i + size], pad_id) for i in range(0, len(mixed), size)]


@dataclass
class Protection:
    """Rectifies the gradients in ``.grad``.

    At step t the loss of the protected targets is the token-mean NLL over batch t of each, without dropout, and the
    next ones in turn at later steps. A rule such as GRU (arXiv 2503.09117) combines its gradient, or the average of
    those of the past steps, with the training's own.

    Attributes:
        model: the model.
        parameters: what a gradient covers.
        batches: protected target → its examples.
        rectifier: the rule.
        model_state: puts the model back after a pass.
        state: the rule's own, kept between steps.
        numbers: of the last step: ``cosine`` of the training's gradient with what the rule compares it to, below 0
            where they conflict, and ``removed``: ‖rectified − gradient‖ / ‖gradient‖.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]
    batches: Mapping[str, Sequence[Batch]]
    rectifier: Rectifier
    model_state: ModelState
    state: Memories = field(init=False)
    numbers: dict[str, float] = field(default_factory=dict, init=False)
    preconditioner: None = None  # a monitor need not have the optimizer
    conflicts: list[bool] = field(default_factory=list, init=False)  # of the steps since `told`

    def __post_init__(self) -> None:
        self.state = self.rectifier.init()

    @property
    def sharded(self) -> bool:
        """The parameters lie in parts over processes."""
        return is_sharded(self.parameters)

    @functools.cached_property
    def parts(self) -> dict[str, str]:
        """Parameter → the part of the model whose inner products are read together; empty: one part."""
        if self.rectifier.scope == "model":
            return {}
        if self.rectifier.scope in ("layer", "group"):
            return by_scope(self.model, self.rectifier.scope)
        return {name: name for name in self.parameters}

    @torch.no_grad()
    def rectify(self, step: int) -> None:
        """Replace what lies in ``.grad``, of all processes, at a step; a parameter without one may receive one."""
        protected = self._gradient(step)
        objective = {n: local_part(p.grad) for n, p in self.parameters.items() if p.grad is not None}
        if isinstance(self.rectifier, Elementwise):
            rectified = self._replace(self.rectifier, objective, protected)
        else:
            rectified = self._combine(objective, protected)
        for name, parameter in self.parameters.items():
            tensor = rectified.get(name)
            if self.rectifier.add_retain and name in protected:
                share = protected[name] * self.rectifier.add_retain
                tensor = share if tensor is None else tensor.add_(share)
            if parameter.grad is None and tensor is not None:
                parameter.grad = as_shard(tensor.to(parameter.dtype), parameter)

    def _combine(self, objective: NamedTensors, protected: NamedTensors) -> NamedTensors:
        """The combination that the rule chooses, in place of the objective's gradient."""
        memories = self.rectifier.memories
        rectifying = RectifierStep(self, {each: {each: 1.0} for each in ("objective", PROTECTED, *memories)})
        for name in self.parameters:
            self.rectifier.update(self.state, name, protected.get(name))
            kept = {memory: self.state[memory].get(name) for memory in memories}
            rectifying.add(name, {"objective": objective.get(name), PROTECTED: protected.get(name), **kept})
        rectifying.products.sum_up(sharded=self.sharded)
        coefficients = rectifying.coefficients()
        self._note(rectifying.products.gram, self._change(rectifying, coefficients), rectifying.numbers)
        return rectifying.combine(objective, coefficients)

    def _replace(self, rule: Elementwise, objective: NamedTensors, protected: NamedTensors) -> NamedTensors:
        """What an elementwise rule makes of the objective's gradient, in its place."""
        products = Basis(("objective", PROTECTED, "rectified"), None)
        for name in self.parameters:
            ours, theirs = objective.get(name), protected.get(name)
            rectified = rule.rectify(ours, theirs)
            products.add(name, {"objective": ours, PROTECTED: theirs, "rectified": rectified})
            if rectified is not None:
                objective[name] = rectified if ours is None else ours.copy_(rectified)
        products.sum_up(sharded=self.sharded)
        total = products.gram.total()
        self._note(products.gram, float(total[0, 0] + total[2, 2] - 2 * total[0, 2]), {})
        return objective

    def correct(self, before: Mapping[str, Tensor]) -> None:
        """Once the optimizer has stepped from the weights ``before``: take off θ what the rule corrects."""
        corrected, _ = correction(self, before)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                take_off(self, corrected.get(name, {}), name, local_part(parameter.detach()))

    def told(self) -> dict[str, float]:
        """`numbers`, and ``conflicts``: the share of the steps since the last call whose cosine was below 0.

        They are named as in a record, ``protection_cosine`` and so on.
        """
        share = sum(self.conflicts) / max(1, len(self.conflicts))
        self.conflicts.clear()
        return {f"protection_{name}": each for name, each in (*self.numbers.items(), ("conflicts", share))}

    def _gradient(self, step: int) -> NamedTensors:
        """The gradient of this step's protected loss; every process runs its share of the batches."""
        drawn = [each[step % len(each)] for each in self.batches.values()]
        counts, buffer = Counts.of(drawn), GradientBuffer(self.parameters)
        with self.model_state.preserve(), torch.enable_grad():
            for batch, weight in assign_items(drawn):
                buffer.add(PROTECTED, weight * mean_nll(bare_outputs(self.model, batch), counts))
        return {n: local_part(t) for n, t in sum_gradients(buffer.gradients, self.parameters)[PROTECTED].items()}

    def _change(self, rectifying: RectifierStep, coefficients: Coefficients) -> float:
        """‖rectified − gradient‖², by the coefficients of either."""
        names, square = rectifying.sources, 0.0
        for part, matrix in sums_by_part(rectifying.products.gram, self.parts).items():
            change = [coefficients[part][each] - (each == "objective") for each in names]
            square += float(torch.tensor(change, dtype=torch.float64) @ matrix @ torch.tensor(change).double())
        return square

    def _note(self, products: Gram, change: float, numbers: Mapping[str, float]) -> None:
        """The last step's `numbers`; ``change`` is ‖rectified − gradient‖²."""
        total, names = products.total(), products.names
        length = norm(total, names, "objective")
        against = cosine(total, names, "objective", next(each for each in names if each != "objective"))
        removed = math.sqrt(max(0.0, change)) / length if length else 0.0
        self.numbers = {"cosine": against, "removed": removed, **numbers}
        self.conflicts.append(against < 0)
