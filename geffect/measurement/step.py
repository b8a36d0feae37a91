"""One optimizer step: its gradients are combined, reduced, rectified and handed back, tensor by tensor."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from geffect.core.devices import to_host
from geffect.core.distributed import as_shard, local_part, num_processes, sum_over_processes
from geffect.core.gradients import NamedTensors, add_scaled
from geffect.core.masks import GradientMask
from geffect.core.splits import TARGETS, role_of
from geffect.measurement.ascent import ascended
from geffect.measurement.basis import Basis, Combinations, Shares, StandardErrors, add, held, standard_errors
from geffect.measurement.filter import StepFilter
from geffect.measurement.measurement import Batch, Measured, Measurement
from geffect.measurement.passes import RETAIN_SIDE, Passes
from geffect.measurement.topk import Masks
from geffect.measurement.update import Applied, Coefficients, RectifierStep
from geffect.objectives.base import Counts
from geffect.rectifiers.elementwise import Elementwise

Tensors = dict[str, Tensor | None]
RECTIFIED = "rectified"
MASKED, MASKED_RETAIN = "masked", "masked_retain"  # what is left of two gradients once entries are frozen


class Step:
    """`micro_batch` for each, then `finish`, which leaves the rectified gradient in ``.grad``, then `after`.

    Args:
        run: what the steps share.
        counts: set → what the whole window of micro-batches holds of it.
        measure: compute the Gram of all gradients, not only what the update needs.
    """

    def __init__(self, run: Measurement, counts: Mapping[str, Counts], *, measure: bool) -> None:
        self.run, self.measure, self.rule = run, measure, run.rectifier
        self.passes = passes = Passes(run, counts, measure=measure)
        read = {role_of(name) for name in self.rule.gradients}
        forget = passes.forget if passes.plan.splits_forget else ()
        retain = passes.retain if measure or "retain" in read else ()
        masked = (MASKED, *((MASKED_RETAIN,) if self.rule.add_retain else ())) if run.frozen else ()
        entries = (RECTIFIED,) if isinstance(self.rule, Elementwise) else ()
        alone = (*self.rule.memories, *passes.examples)
        names = ("objective", *forget, *retain, *alone, *masked, *passes.targets, *entries)
        self.basis = Basis(names, run.tie, run.losses)
        self.descends = MASKED if run.frozen else "objective"
        self.rectifier = RectifierStep(run, self._parts_by_name())
        self.masks = Masks(run.overlap, sharded=run.sharded) if measure and run.overlap else None
        self.kept: dict[str, NamedTensors] | None = {} if measure and run.keep else None
        self.kept_embeds: Tensors | None = None
        self.parts: list[list[Mapping[str, Batch]]] = []  # of the window, for standard errors: its micro-batches
        self.retained: dict[str, list[Batch]] = {name: [] for name in passes.retain}  # of the window, to be filtered by
        self.applied: Applied | None = None
        self._tied = Tensors()  # the tied tensor's two parts arrive apart

    def ascend(self, window: Iterable[Mapping[str, Batch]]) -> None:
        """The first of two rounds over the window's micro-batches, where the objective asks for it (``sam``)."""
        if self.passes.objective.rho is not None:
            self.passes.ascended = ascended(self.run, self.passes.objective, self.passes.counts, window)

    def micro_batch(self, batches: Mapping[str, Batch], *, last: bool, part: int | None = None) -> Tensor:
        """Back-propagate one micro-batch; the objective's share of it, detached.

        The ``last`` one closes the window, so the retain gradient may stream. ``part`` is that of the window which the
        micro-batch belongs to for standard errors; one of its own by default.
        """
        if self.measure and self.run.standard_errors:
            self._note(batches, part)
        if self.run.max_rise is not None:
            for name in (each for each in self.passes.retain if each in batches):
                self.retained[name].append(batches[name])
        streams = last and num_processes() == 1  # of several, each gradient is added up before anything is made of it
        return self.passes.run_all(batches, self._visit if streams else None)

    def finish(self) -> Measured:
        """Close the window: rectify, hand the gradient back, and report what to record.

        Raises:
            FloatingPointError: a raw loss or a gradient is not finite; no gradient was handed back.
        """
        self.passes.gather()
        sums = self.passes.sums
        scalars = dict(zip(sums, map(float, to_host(list(sums.values()))), strict=True))
        refuse_broken(scalars)
        for name in () if self.passes.streamed else self.run.differentiated:
            self._visit(name, None)
        Basis.gather(self.basis, self.rectifier.products)
        self.basis.sum_up(sharded=self.run.sharded)
        self.rectifier.products.sum_up(sharded=self.run.sharded)
        refuse_broken(self._norms())
        rectified = self.rectifier.coefficients()
        self._hand_back(rectified)
        named = self._combinations(rectified)
        scalars |= self.run.objective.multipliers(self.run.term_states)
        measured = self._report(scalars, named) if self.measure else Measured(scalars)
        self.passes.ascended = None
        corrects = self.rule.corrects or self.run.frozen is not None or self.run.max_rise is not None
        if self.run.updates and (self.kept is not None or corrects):
            shares = None if self.kept is None else (self.kept, self.kept_embeds)
            self.applied = Applied(self.run, named, self.basis.names, shares, self.masks, self._filter())  # copies θ
        self.run.term_states = self.run.objective.update_states(self.run.term_states, scalars)
        return measured

    def _filter(self) -> StepFilter | None:
        if self.run.max_rise is None:
            return None
        return StepFilter(self.run, self.retained, self.passes.counts, self.passes.shares)

    def after(self, learning_rates: Mapping[str, float]) -> Measured | None:
        """Measure what the optimizer made of the gradient, once it has stepped and before the learning rate moves.

        The numbers have the gradients ``update`` and ``applied``; None where they are not measured.
        """
        return self.applied.close(learning_rates) if self.applied else None

    def gradient(self, name: str) -> NamedTensors:
        """A recorded gradient, where gradients are kept: parameter → tensor (of shards, this process's part)."""
        if name == RECTIFIED:
            return {key: local_part(p.grad) for key, p in self.run.parameters.items() if p.grad is not None}
        parts, gradient = self._parts_by_name()[name], NamedTensors()
        for source, scale in parts.items():
            tensors = self.run.state[source] if source in self.run.state else (self.kept or {}).get(source, {})
            if len(parts) == 1 and scale == 1:
                return dict(tensors)
            for key, tensor in tensors.items():
                add_scaled(gradient, key, tensor, scale)
        return gradient

    def _report(self, scalars: Mapping[str, float], named: Combinations) -> Measured:
        gram = self.basis.combine(named, list(self.run.parameters))
        measured = Measured(dict(scalars) | gram.norms() | self.rectifier.numbers, gram)
        if self.masks is not None:
            measured.parts["overlap"] = self.masks.overlap(named, list(self.run.parameters), self.run.tie)
        if len(self.parts) > 1:  # an epoch's last window may hold one, which has no standard error
            measured.parts["standard_errors"] = self._standard_errors()
        return measured

    def _note(self, batches: Mapping[str, Batch], part: int | None) -> None:
        if part is None or part == len(self.parts):
            self.parts.append([])
        self.parts[-1].append(batches)

    def _standard_errors(self) -> StandardErrors:
        """Run the micro-batches again, so that the gradients of one are held at a time."""
        run, alone = self.run, self.run.alone()

        def shares() -> Iterator[Shares]:
            for part in self.parts:
                step = Step(alone, self.passes.counts, measure=True)
                step.passes.ascended = self.passes.ascended
                for batches in part:
                    step.micro_batch(batches, last=batches is part[-1])
                yield step.kept or {}, step.kept_embeds

        named = {
            each: parts for each, parts in self._parts_by_name().items() if role_of(each) in ("objective", *TARGETS)
        }
        window = (self.kept or {}, self.kept_embeds)
        return standard_errors(window, shares(), named, run.parameters, run.labels, run.tie)

    def _visit(self, name: str, streamed: Tensor | None) -> None:
        """Everything that must see this tensor of the last retain gradient before it is freed."""
        tie = self.run.tie
        if tie is None or name not in (tie.name, tie.head_name):
            return self._settle(name, self._pop(name, streamed), None)
        self._tied[name] = streamed
        if len(self._tied) < 2:
            return None
        embed, head = (self._pop(each, self._tied.pop(each)) for each in (tie.name, tie.head_name))
        return self._settle(tie.name, {each: _onto(head[each], embed[each]) for each in embed}, embed)

    def _pop(self, name: str, streamed: Tensor | None) -> Tensors:
        """One tensor of every gradient the passes left, taken out of its buffer."""
        passes = self.passes
        tensors = {each: passes.window.gradients.get(each, {}).pop(name, None) for each in passes.buffers}
        return tensors if streamed is None else tensors | {passes.retain[-1]: streamed}

    def _settle(self, name: str, buffers: Tensors, embed: Tensors | None) -> None:
        """Combine and reduce one tensor of every gradient; what is descended is left in the objective's buffer."""
        run, passes = self.run, self.passes
        tensors, embeds = self._losses(buffers), None if embed is None else self._losses(embed)
        gradient, retain = passes.window.gradients.setdefault("objective", {}), self._pool(passes.retain, buffers)
        forget, other = passes.forget_side(buffers), self._sides(buffers) if self.rule.by_domain else None
        if run.frozen is None:
            if forget is not None:
                gradient[name] = forget
            add_scaled(gradient, name, retain, passes.plan.retain_weight)
            tensors["objective"] = gradient.get(name)
        else:
            tensors |= self._mask(run.frozen, name, forget, buffers[RETAIN_SIDE], retain)
            retain = tensors[MASKED_RETAIN]
            if (masked := tensors[MASKED]) is not None:
                gradient[name] = masked
        self.rule.update(run.state, name, retain)
        tensors |= {memory: run.state[memory].get(name) for memory in self.rule.memories}
        if isinstance(self.rule, Elementwise):
            tensors[RECTIFIED] = self.rule.rectify(gradient.get(name), other if self.rule.by_domain else retain)
        self.rectifier.add(name, {**tensors, "objective": gradient.get(name)})
        if self.measure:
            self.basis.add(name, tensors, embeds)
        self._keep(name, tensors, embeds)
        if (rectified := tensors.get(RECTIFIED)) is not None:
            gradient[name] = rectified
        add_scaled(gradient, name, retain, self.rule.add_retain)

    def _losses(self, buffers: Tensors) -> Tensors:
        """One tensor of the loss gradients, back-propagated or a multiple of the objective's."""
        passes = self.passes
        losses: Tensors = {each: buffers[each] for each in (*passes.retain, *passes.targets, *passes.examples)}
        for forget in passes.forget:
            side, c = buffers[passes.side(forget)], (passes.plan.factor or 0.0) * passes.shares[forget]
            free = side / c if c and passes.plan.splits_forget and side is not None else None
            losses[forget] = buffers[forget] if passes.plan.runs_forget else free
        return losses | {"objective": None if passes.plan.splits_forget else buffers["objective"]}

    def _pool(self, splits: Sequence[str], tensors: Tensors) -> Tensor | None:
        """One tensor of a role's gradient over all its domains."""
        if len(splits) == 1:
            return tensors[splits[0]]
        gradient = NamedTensors()
        for each in splits:
            add_scaled(gradient, "", tensors[each], self.passes.shares[each])
        return gradient.get("")

    def _sides(self, buffers: Tensors) -> Tensor | None:
        """One tensor of the objective's mean loss on each domain's forget set, ``[E, …]``."""
        passes = self.passes
        sides = {each: buffers[passes.side(each)] for each in passes.forget}
        known = next((side for side in sides.values() if side is not None), None)
        if known is None:
            return None
        wholes = ((torch.zeros_like(known) if s is None else s) / passes.shares[each] for each, s in sides.items())
        return torch.stack([*wholes])

    def _mask(
        self, frozen: GradientMask, name: str, forget: Tensor | None, terms: Tensor | None, retain: Tensor | None
    ) -> Tensors:
        """What freezing leaves of one tensor of either side and of the retain gradient; and the objective's, whole."""
        side = NamedTensors() if terms is None else {name: terms}
        add_scaled(side, name, retain, self.passes.plan.retain_weight)
        free = frozen.apply("forget", name, forget), frozen.apply("retain", name, side.get(name))
        whole = add(forget, side.get(name)) if self.measure else None
        return {"objective": whole, MASKED: add(*free), MASKED_RETAIN: frozen.apply("retain", name, retain)}

    def _keep(self, name: str, tensors: Tensors, embeds: Tensors | None) -> None:
        """Hold what is needed once the gradient has been rectified, clipped and stepped with."""
        if self.masks is not None:
            splits = {"forget": self.passes.forget, "retain": self.passes.retain}
            pooled = {role: self._pool(each, tensors) for role, each in splits.items() if len(each) > 1}
            self.masks.add(name, {each: tensors[each] for each in self.basis.names} | pooled)
        if self.kept is None:
            return
        if embeds is not None:
            self.kept_embeds = {each: held(embeds[each], self.run.keep_on) for each in embeds}
        for each in (each for each in self.basis.names if each not in self.rule.memories):
            changes = each in ("objective", MASKED, RECTIFIED)  # what is descended is rectified and clipped in place
            tensor = held(tensors[each], self.run.keep_on, copy=changes)
            if tensor is not None:
                self.kept.setdefault(each, {})[name] = tensor

    def _norms(self) -> dict[str, float]:
        """‖gradient‖ of what was back-propagated: not finite where one of its entries is not."""
        norms = self.basis.gram.norms()
        if self.rectifier.sources:  # without a rectifier there are none, and norms of zero say nothing
            return norms | self.rectifier.products.gram.norms()
        if not self.measure:
            gradient = self.passes.window.gradients.get("objective", {})
            square = torch.nn.utils.get_total_norm(gradient.values()).double() ** 2
            norms["norm_objective"] = math.sqrt(float(sum_over_processes(square) if self.run.sharded else square))
        return norms

    def _hand_back(self, rectified: Coefficients) -> None:
        gradient = self.rectifier.combine(self.passes.window.gradients.pop("objective", {}), rectified)
        for name, parameter in self.run.parameters.items():
            parameter.grad = as_shard(gradient.get(name), parameter)
            if self.masks is not None and self._rectifies:
                self.masks.add(name, {RECTIFIED: gradient.get(name)})

    @property
    def _rectifies(self) -> bool:
        """Whether the rectified gradient is known at the step's end only."""
        return (bool(self.rule.gradients) or self.run.frozen is not None) and RECTIFIED not in self.basis.names

    def _combinations(self, rectified: Coefficients) -> Combinations:
        """Every recorded gradient as a combination of the basis."""
        named = self._parts_by_name()
        if not self._rectifies:
            return Combinations.everywhere(named)
        by_part = {part: named | {RECTIFIED: self._rectified_parts(each)} for part, each in rectified.items()}
        return Combinations(by_part, self.run.parts)

    def _parts_by_name(self) -> dict[str, dict[str, float]]:
        """Every recorded gradient but the rectified one as a combination of the basis."""
        passes, plan = self.passes, self.passes.plan
        c = None if plan.splits_forget else plan.factor
        each = {name: {"objective": 1 / c} if c else {name: 1.0} for name in passes.forget}
        each |= {name: {name: 1.0} for name in passes.retain}
        forget = {"objective": 1 / c} if c else {name: passes.shares[name] for name in passes.forget}
        retain = {name: passes.shares[name] for name in passes.retain}
        named = each | {"objective": {"objective": 1.0}, "forget": forget, "retain": retain}
        order = dict.fromkeys(("objective", "forget", "retain", *each))
        others = (MASKED, *self.rule.memories, *passes.examples, *passes.targets, RECTIFIED)
        return {name: named[name] for name in order} | {n: {n: 1.0} for n in others if n in self.basis.names}

    def _rectified_parts(self, rectified: Mapping[str, float]) -> dict[str, float]:
        """A rectifier's combination in terms of the basis, and the retain gradient added to it."""
        extra, passes = self.rule.add_retain, self.passes
        parts = {self.descends if source == "objective" else source: c for source, c in rectified.items()}
        if self.run.frozen is not None:
            return parts | {MASKED_RETAIN: extra}
        return parts | {name: parts.get(name, 0.0) + extra * passes.shares[name] for name in passes.retain}


def _onto(ours: Tensor | None, other: Tensor | None) -> Tensor | None:
    """As `add`, in place; the first must not be shared."""
    return add(ours, other) if ours is None or other is None else ours.add_(other)


def refuse_broken(numbers: Mapping[str, float]) -> None:
    """Raise a FloatingPointError that names the first number that is not finite."""
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise FloatingPointError(f"{name} = {value}")
