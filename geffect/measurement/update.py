"""The update: what a rectifier makes of the objective's gradient, and what the optimizer makes of that.

`PredictionCheck` compares two approximations of a loss's change in one step with the measured R(θ_{t+1}) − R(θ_t):
−lr·⟨∇R, gradient⟩, true for plain SGD and the published one (arXiv 2502.19301), and −⟨∇R, applied⟩ with what the
optimizer made of the gradient. All are taken on the same fixed probe examples, so that they add up over a run to
R(θ_T) − R(θ_0).
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from geffect.core.devices import Pairwise, matrices, to_host
from geffect.core.distributed import is_sharded, local_part, sum_gram, sum_over_processes
from geffect.core.forward import Outputs
from geffect.core.gradients import GradientBuffer, NamedTensors, add_scaled
from geffect.core.gram import Gram, pairwise_products
from geffect.core.masks import GradientMask
from geffect.core.splits import TARGETS
from geffect.errors import GeffectError
from geffect.measurement.basis import Basis, Combinations, Parts, Shares, held
from geffect.measurement.filter import StepFilter
from geffect.measurement.measurement import Batch, Measured, Measurement
from geffect.measurement.metric import Preconditioner, divided
from geffect.measurement.topk import Masks
from geffect.objectives.base import Counts, mean_nll
from geffect.rectifiers.base import InnerProducts, Memories, Rectifier

Coefficients = Mapping[str, Parts]  # part of the model → gradient of the basis → coefficient in the rectified one


class Rectified(Protocol):
    """What a rectifier's steps share: parameters, its state, and parameter → the part of the model it reads."""

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]: ...  # noqa: D102
    @property
    def rectifier(self) -> Rectifier: ...  # noqa: D102
    @property
    def state(self) -> Memories: ...  # noqa: D102
    @property
    def parts(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def sharded(self) -> bool: ...  # noqa: D102
    @property
    def preconditioner(self) -> Preconditioner | None: ...  # noqa: D102


class RectifierStep:
    """The gradients that a rectifier reads, reduced tensor by tensor, then combined as it says.

    The inner products are of its own, so that measuring changes no bit of an update. ``named`` has every gradient that
    the step computes, as a combination of its basis; a rectifier that reads another one is refused.

    Attributes:
        sources: the gradients of the basis that the rectifier reads, in combinations or themselves.
        products: their inner products.
        numbers: what the rectifier records of its choice.
    """

    def __init__(self, run: Rectified, named: Mapping[str, Parts]) -> None:
        self.run, self.rule = run, run.rectifier
        unknown = [name for name in self.rule.gradients if name not in named]
        if unknown:
            remedy = f"Choose among {', '.join(named)}"
            raise GeffectError(f"{self.rule} reads a gradient {unknown[0]!r}, which this run has not", remedy=remedy)
        self.read = {name: named[name] for name in self.rule.gradients}
        self.sources = tuple(dict.fromkeys(source for parts in self.read.values() for source in parts))
        self.products = Basis(self.sources, None)
        self._stored = {each: NamedTensors() for each in self.sources if each not in ("objective", *self.rule.memories)}
        self.numbers: dict[str, float] = {}

    def add(self, name: str, tensors: Mapping[str, Tensor | None]) -> None:
        """Reduce one tensor of every source, and hold what is combined with the objective's gradient later."""
        if self.sources:
            root = metric_root(self.run, name)
            self.products.add(name, {source: divided(tensors.get(source), root) for source in self.sources})
        for source, stored in self._stored.items():
            add_scaled(stored, name, tensors[source], 1.0)

    def coefficients(self) -> Coefficients:
        """The rectified gradient as a combination of the sources, by part of the model; refuse what is not read."""
        if not self.sources:
            return {"": {"objective": 1.0}}
        gram = self.products.combine(Combinations.everywhere(self.read), list(self.run.parameters))
        totals = sums_by_part(gram, self.run.parts)
        return {part: self._of_part(InnerProducts(gram.names, total)) for part, total in totals.items()}

    def _of_part(self, gram: InnerProducts) -> dict[str, float]:
        coefficients, chosen = dict.fromkeys(self.sources, 0.0), self.rule.coefficients(gram)
        self.numbers = largest(self.numbers, self.rule.numbers(gram, chosen))
        for name, coefficient in chosen.items():
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
                    stored = self.run.state[source] if source in self.run.state else self._stored[source]
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
        named: every recorded gradient as a combination of the step's basis.
        basis: the gradients of that.
        shares: these gradients before rectification (`Shares`); None where only a correction is wanted.
        masks: overlaps so far.
        step_filter: halves an update that harms too much; before anything else is made of it.
    """

    def __init__(
        self,
        run: Measurement,
        named: Combinations,
        basis: Sequence[str],
        shares: Shares | None,
        masks: Masks | None,
        step_filter: StepFilter | None = None,
    ) -> None:
        self.run, self.named, self.basis, self.shares, self.masks = run, named, basis, shares, masks
        self.step_filter = step_filter
        self.before = snapshot(run.parameters, run.keep_on)
        if run.prediction is not None and shares is not None:
            run.prediction.open()

    @torch.no_grad()
    def close(self, learning_rates: Mapping[str, float]) -> Measured | None:
        """Filter and correct θ, then measure; None where only a correction was wanted.

        ``learning_rates`` are those of every parameter in this step.
        """
        run, updates = self.run, ("update", "applied")
        filtered = self.step_filter.close(self.before) if self.step_filter else {}
        corrected, numbers = correction(run, self.before, run.frozen)
        basis = Basis((*self.basis, *updates), run.tie, run.losses)
        adam = AdamProducts(run, self.named) if run.adam_products else None
        for name, parameter in ((n, local_part(p.detach())) for n, p in run.parameters.items()):
            before = self.before.pop(name).to(parameter.device)
            update = moved(before, parameter)
            if run.frozen is not None:
                run.frozen.put_back(name, parameter, before)
            take_off(run, corrected.get(name, {}), name, parameter)
            if self.shares is not None:
                applied = moved(before, parameter)
                updates_of = {"update": update, "applied": applied}
                self._measure(basis, name, self.shares, updates_of, learning_rates[name], adam)
        if self.shares is None:
            return Measured(filtered) if filtered else None
        basis.sum_up(sharded=run.sharded)
        named = self.named.extend(updates)
        gram = basis.combine(named, list(run.parameters))
        norms = gram.norms()
        measured = Measured({f"norm_{name}": norms[f"norm_{name}"] for name in updates} | numbers | filtered, gram)
        if self.masks is not None:
            measured.parts["overlap"] = self.masks.overlap(named, list(run.parameters), run.tie)
        if run.prediction is not None:
            measured.parts["prediction"] = run.prediction.close()
        if adam is not None:
            measured.parts["adam_gram"] = adam.close()
        return measured

    def _measure(
        self,
        basis: Basis,
        name: str,
        shares: Shares,
        updates: dict[str, Tensor],
        rate: float,
        adam: "AdamProducts | None",
    ) -> None:
        run, (stored, embeds) = self.run, shares
        gradients: dict[str, NamedTensors] = {each: stored.get(each, {}) for each in self.basis} | run.state
        place = run.parameters[name].device
        tensors = {each: held(gradient.get(name), place) for each, gradient in gradients.items()}
        embeds = {each: held(tensor, place) for each, tensor in (embeds or {}).items()}
        uses = embeds if run.tie is not None and name == run.tie.name else None
        basis.add(name, tensors | updates, uses)
        if adam is not None:
            adam.add(name, tensors, updates["applied"], uses)
        if self.masks is not None:
            self.masks.add(name, updates)
        if run.prediction is not None:
            gradient = run.parameters[name].grad
            received = None if gradient is None else local_part(gradient)
            run.prediction.add(name, received, updates["applied"], rate)


class AdamProducts:
    """The inner products of the price (`geffect.core.price`) in the metric M of the step that was just applied.

    Gradients are divided by √M and −Δθ is multiplied by it: products of two gradients are those with M⁻¹, ‖−Δθ‖² that
    with M, and ⟨gradient, −Δθ⟩, what the step does to a loss, is the plain one.

    Args:
        run: what the steps share; its preconditioner is asked once the optimizer has stepped.
        named: every recorded gradient as a combination of the step's basis.
    """

    def __init__(self, run: Measurement, named: Combinations) -> None:
        if run.preconditioner is None:
            raise ValueError("no optimizer is given, whose metric is asked for")
        self.run, self.preconditioner = run, run.preconditioner
        self.named = named.only(TARGETS).extend(["applied"])
        self.basis = Basis(self.named.sources, run.tie, run.losses)

    def add(
        self,
        name: str,
        tensors: Mapping[str, Tensor | None],
        applied: Tensor,
        embeds: Mapping[str, Tensor | None] | None,
    ) -> None:
        """Reduce one tensor of the gradients and of −Δθ; ``embeds`` are the tied tensor's parts as embedding."""
        root = root_of(self.preconditioner, name)
        scaled, uses = (
            None if part is None else {each: divided(part.get(each), root) for each in self.basis.names}
            for part in (tensors, embeds)
        )
        self.basis.add(name, {**(scaled or {}), "applied": applied if root is None else applied * root}, uses)

    def close(self) -> Gram:
        """The Gram of ``forget``, ``retain`` and ``applied``."""
        self.basis.sum_up(sharded=self.run.sharded)
        return self.basis.combine(self.named, list(self.run.parameters))


def correction(
    run: Rectified, before: Mapping[str, Tensor], frozen: GradientMask | None = None
) -> tuple[Mapping[str, Parts], dict[str, float]]:
    """Parameter → memory → how much of it is taken off θ, so that the update no longer conflicts with the memories.

    ``before`` are the weights before the update. Entries that are ``frozen`` are about to be put back, and count as
    still. The second of the pair are the rectifier's numbers, named ``update_NAME``.
    """
    rule = run.rectifier
    if not rule.corrects:
        return {}, {}
    products: dict[str, Pairwise] = {}
    for name, parameter in run.parameters.items():
        update = moved(before[name].to(parameter.device), parameter)
        still = None if frozen is None else frozen.never(name, update.device)
        if still is not None:
            update.masked_fill_(still, 0)
        root = metric_root(run, name)
        memories = [divided(run.state[memory].get(name), root) for memory in rule.memories]
        products[name] = pairwise_products([update if root is None else update * root, *memories])
    values = dict(zip(products, matrices(list(products.values())), strict=True))
    gram = sum_gram(Gram(("update", *rule.memories), values), sharded=run.sharded)
    by_part: dict[str, Parts] = {}
    numbers: dict[str, float] = {}
    part_of = run.parts
    for part, total in sums_by_part(gram, part_of).items():
        of_part = InnerProducts(gram.names, total)
        by_part[part] = rule.correction(of_part)
        numbers = largest(numbers, rule.numbers(of_part, by_part[part]))
    corrected = {name: by_part[part_of.get(name, "")] for name in run.parameters}
    return corrected, {f"update_{name}": value for name, value in numbers.items()}


def take_off(run: Rectified, parts: Parts, name: str, parameter: Tensor) -> None:
    """Take these parts of the memories, divided by the rule's metric, off one tensor of θ, in place."""
    for memory, scale in parts.items():
        if scale and (kept := run.state[memory].get(name)) is not None:
            diagonal = run.preconditioner(name) if run.rectifier.metric == "adam" and run.preconditioner else None
            taken = kept if diagonal is None else kept / diagonal
            parameter.sub_(taken.to(parameter.dtype), alpha=scale)


def metric_root(run: Rectified, name: str) -> Tensor | None:
    """√M of one tensor in the rule's metric; None: ones. Of vectors divided by it, products are those with M⁻¹."""
    if run.rectifier.metric != "adam" or run.preconditioner is None:
        return None
    return root_of(run.preconditioner, name)


def root_of(preconditioner: Preconditioner, name: str) -> Tensor | None:
    """√M of one tensor; None: ones."""
    diagonal = preconditioner(name)
    return None if diagonal is None else diagonal.sqrt_()


def sums_by_part(gram: Gram, part_of: Mapping[str, str]) -> dict[str, Tensor]:
    """Part of the model → its inner products; one part without a name where ``part_of`` is empty."""
    return gram.by(part_of) if part_of else {"": gram.total()}


def largest(numbers: Mapping[str, float], others: Mapping[str, float]) -> dict[str, float]:
    """The larger of two numbers of each name."""
    return {**numbers, **{name: max(value, numbers.get(name, value)) for name, value in others.items()}}


def snapshot(parameters: Mapping[str, nn.Parameter], place: torch.device | None = None) -> NamedTensors:
    """A copy of this process's part of every parameter, on a device (None: its own)."""
    parts = {name: local_part(parameter.detach()) for name, parameter in parameters.items()}
    return {name: part.to(place or part.device, copy=True) for name, part in parts.items()}


def moved(before: Tensor, parameter: Tensor) -> Tensor:
    """−Δθ = θ_before − θ of one tensor (of a shard, this process's part), in float32 or better."""
    after = local_part(parameter.detach())
    wide = torch.promote_types(after.dtype, torch.float32)
    return before.to(wide) - after.to(wide)


@contextlib.contextmanager
@torch.no_grad()
def exchanged(parameters: Mapping[str, nn.Parameter], held: NamedTensors) -> Iterator[None]:
    """Put held weights into parameters until the end, and theirs in the place of these; both are back after, all bits.

    An interruption may come amid the exchange: the weights of a tensor are in ``moving`` then, and put back as well.
    """
    parts = {name: local_part(parameter.detach()) for name, parameter in parameters.items()}
    moving, moved_out = NamedTensors(), list[str]()
    try:
        for name, part in parts.items():
            moving[name] = part.clone()
            part.copy_(held[name])
            held[name].copy_(moving[name])
            moved_out.append(name)
            del moving[name]
        yield
    finally:
        for name in moved_out:
            away = parts[name].clone()
            parts[name].copy_(held[name])
            held[name].copy_(away)
        for name, theirs in moving.items():
            parts[name].copy_(theirs)


class PredictionCheck:
    """`open` before a step, `add` for every tensor, `close` after it.

    ``forward`` runs the model over a batch, without dropout; ``probe`` maps a set to its fixed batches; gradients are
    held on the device ``keep_on`` (None: their own).
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        forward: Callable[[Batch], Outputs],
        probe: Mapping[str, Sequence[Batch]],
        keep_on: torch.device | None = None,
    ) -> None:
        self.parameters, self.forward, self.probe, self.keep_on = parameters, forward, probe, keep_on
        self.counts = {name: Counts.of(batches) for name, batches in probe.items()}
        self.gradients: dict[str, NamedTensors] = {}
        self._before: dict[str, list[Tensor]] = {}
        self._products: dict[str, list[tuple[float, Pairwise]]] = {}  # probe → learning rate and products, by tensor

    def open(self) -> None:
        """Compute the loss and gradient of every probe at θ_t."""
        window = GradientBuffer(self.parameters)
        for name, batches in self.probe.items():
            self._before[name], self._products[name] = [], []
            for batch in batches:
                share = mean_nll(self.forward(batch), self.counts[name])
                self._before[name].append(share.detach())
                window.add(name, share)
            parts = {key: local_part(tensor) for key, tensor in window.gradients.pop(name, {}).items()}
            self.gradients[name] = {key: part.to(self.keep_on or part.device) for key, part in parts.items()}

    def add(self, name: str, gradient: Tensor | None, applied: Tensor, learning_rate: float) -> None:
        """Add one tensor's share of both predictions: ``gradient`` is the optimizer's input, ``applied`` is −Δθ."""
        for probe, tensors in self.gradients.items():
            products = pairwise_products([held(tensors.pop(name, None), applied.device), gradient, applied])
            self._products[probe].append((learning_rate, products))

    @torch.no_grad()
    def close(self) -> dict[str, dict[str, float]]:
        """Probe → loss ``before`` and ``after`` (nats a token), its change by ``gradient`` and by ``update``."""
        after = {
            name: [mean_nll(self.forward(batch), self.counts[name]) for batch in batches]
            for name, batches in self.probe.items()
        }
        shares = [share for name in self.probe for share in (*self._before[name], *after[name])]
        losses, entries = iter(map(float, to_host(shares))), self._changes()
        for name, entry in entries.items():
            before, now = (sum(itertools.islice(losses, len(each[name]))) for each in (self._before, after))
            entries[name] = {"before": before, **entry, "after": now}
        return entries

    def _changes(self) -> dict[str, dict[str, float]]:
        """Probe → both predictions of its loss's change."""
        waiting = iter(matrices([pairs for each in self._products.values() for _, pairs in each]))
        changes = {}
        for name, products in self._products.items():
            by_gradient = by_update = 0.0
            for (rate, _), matrix in zip(products, itertools.islice(waiting, len(products)), strict=True):
                by_gradient -= rate * float(matrix[0, 1])
                by_update -= float(matrix[0, 2])
            changes[name] = [by_gradient, by_update]
        if is_sharded(self.parameters):  # each process has added up its own part of every tensor
            changes = {
                name: sum_over_processes(torch.tensor(parts, dtype=torch.float64)).tolist()
                for name, parts in changes.items()
            }
        return {name: dict(zip(("gradient", "update"), parts, strict=True)) for name, parts in changes.items()}
