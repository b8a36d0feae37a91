"""Which forward and backward passes a step takes, and the gradients they leave in their buffers."""

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from geffect.core.distributed import assign_items, num_processes, rank, sum_gradients, sum_over_processes
from geffect.core.forward import Outputs, add_positions
from geffect.core.gradients import GradientBuffer, NamedTensors, Visit
from geffect.core.splits import EXAMPLES, domain_of, of_domain, role_of, split_names
from geffect.measurement.basis import add
from geffect.measurement.measurement import Batch, Measurement
from geffect.measurement.update import exchanged
from geffect.objectives.base import Counts, Objective, mean_nll
from geffect.rectifiers.base import Rectifier
from geffect.rectifiers.elementwise import Elementwise

SIDE = "forget side"  # the objective's terms on forget sets, apart from its other terms
RETAIN_SIDE = "retain side"  # its terms on retain and general sets, apart where each side has a mask


@dataclass(frozen=True)
class PassPlan:
    """Which gradients of a window are back-propagated, which follow from others, and which have buffers of their own.

    Attributes:
        factor: c where a forget gradient is its side of the objective's divided by c; None where it has its own pass.
        retain_weight: w, the weight of the retain gradient in the objective's, where that is not back-propagated.
        runs_forget: the losses on forget sets are back-propagated, besides the objective.
        runs_retain: the losses on retain sets are.
        retain_terms: the objective has terms on retain sets that are back-propagated.
        splits_forget: forget gradients are taken before anything else is added to the objective's.
        splits_sides: each forget set's side of the objective has a buffer of its own.
        splits_retain: the objective's terms on retain and general sets have one.
    """

    factor: float | None
    retain_weight: float
    runs_forget: bool
    runs_retain: bool
    retain_terms: bool
    splits_forget: bool
    splits_sides: bool
    splits_retain: bool


def plan_passes(
    objective: Objective,
    rectifier: Rectifier,
    *,
    measure: bool,
    free: bool = True,
    keep_dropout: bool = False,
    frozen: bool = False,
    num_domains: int = 1,
) -> PassPlan:
    """The fewest passes that supply the objective's gradient and those that are measured or that the rectifier reads.

    The keywords are those of `Measurement` and `Passes`; ``frozen``: the two sides are masked apart.
    """
    read = {role_of(name) for name in rectifier.gradients}
    reads_retain = bool(rectifier.memories) or (isinstance(rectifier, Elementwise) and not rectifier.by_domain)
    factor = objective.forget_multiple if free and not keep_dropout else None
    weight = 0.0 if keep_dropout else objective.retain_multiple
    terms = any(keep_dropout or term.multiple_of_loss is None for _, term in objective.on("retain"))
    followed = bool(objective.stateful_multiples("retain")) and not keep_dropout  # a weight of 0 may rise again
    beside = terms or bool(objective.on("alternative") or objective.on("general"))
    sides = rectifier.by_domain or (bool(factor) and (beside or num_domains > 1))
    forget = measure or "forget" in read
    return PassPlan(
        factor=factor,
        retain_weight=weight,
        runs_forget=forget and not factor,
        runs_retain=measure or "retain" in read or reads_retain or weight != 0 or followed,
        retain_terms=terms,
        splits_forget=forget and (not factor or sides or weight != 0),
        splits_sides=sides,
        splits_retain=frozen,
    )


class Passes:
    """The passes of one window, by its plan.

    ``counts`` is what the whole window of micro-batches holds of a set (`geffect.objectives.base.window_counts`);
    ``measure``: the gradients of the forget and retain losses are wanted.

    Attributes:
        forget: the forget splits, one a domain.
        retain: the retain splits; the last of them streams.
        targets: further sets whose losses' gradients are wanted.
        shares: split → share of its role's labeled tokens: the role's loss is the mean weighed by it.
        window: the buffers.
        sums: losses and weights so far.
        examples: the gradients of single retain examples that the rectifier reads.
        ascended: the weights at which the forget term is differentiated (`geffect.measurement.ascent`).
    """

    def __init__(self, run: Measurement, counts: Mapping[str, Counts], *, measure: bool) -> None:
        self.run, self.counts, self.objective = run, counts, run.objective.at(run.term_states)
        self.forget, self.retain = split_names("forget", counts), split_names("retain", counts)
        self.shares = {name: counts[name].token / counts[role_of(name)].token for name in self.forget + self.retain}
        self.plan = plan_passes(
            self.objective,
            run.rectifier,
            measure=measure,
            free=run.free,
            keep_dropout=run.keep_dropout,
            frozen=run.frozen is not None,
            num_domains=len(self.forget),
        )
        self.targets = tuple(run.targets) if measure else ()
        self._waiting = [*self.targets]
        self._retain_side = RETAIN_SIDE if self.plan.splits_retain else "objective"
        self.window, self.sums = GradientBuffer(run.differentiated), dict[str, Tensor]()
        self.examples = EXAMPLES[: run.rectifier.examples]
        self.window.gradients |= {name: {} for name in self.examples}
        self.ascended: NamedTensors | None = None
        self.streamed = False
        self._ordinal = 0  # of the next retain example, over all processes

    def side(self, forget: str) -> str:
        """The buffer of the objective's terms on a forget split."""
        return f"{SIDE} {forget}" if self.plan.splits_sides else "objective"

    def forget_side(self, tensors: Mapping[str, Tensor | None]) -> Tensor | None:
        """One tensor of what the objective descends on forget sets, and of whatever else shares its buffer."""
        sides = [tensors[self.side(each)] for each in self.forget] if self.plan.splits_sides else []
        return functools.reduce(add, sides, tensors["objective"])

    @property
    def buffers(self) -> tuple[str, ...]:
        """The names of all buffers."""
        sides = (f"{SIDE} {each}" for each in self.forget)
        return ("objective", RETAIN_SIDE, *sides, *self.forget, *self.retain, *self.targets, *self.examples)

    def run_all(self, batches: Mapping[str, Batch], visit: Visit | None) -> Tensor:
        """Back-propagate one micro-batch; the objective's share of it, detached.

        Of a window over sets of different sizes, some sets may be missing. With ``visit`` the micro-batch closes the
        window, and the last retain gradient streams through it.
        """
        with self.run.tie.untied() if self.run.tie else contextlib.nullcontext():
            self._run_targets()
            shares = []
            for forget in (each for each in self.forget if each in batches):
                of_its = of_domain(batches, domain_of(forget))
                shares += [self._forget(forget, of_its), self._beside("alternative", of_its, "objective")]
            shares.append(self._beside("general", batches, self._retain_side))
            self._run_examples(batches)
            for retain in (each for each in self.retain if each in batches):
                closes = visit if retain == self.retain[-1] else None
                shares.append(self._retain(retain, of_domain(batches, domain_of(retain)), closes))
        losses = [share for share in shares if share is not None]
        total = torch.stack(losses).sum() if losses else torch.zeros(())
        self._sum("loss_objective", total)
        return total

    def _run_targets(self) -> None:
        """Back-propagate every target's loss, once a window; each process runs its share of the batches."""
        for name in self._waiting:
            counts = Counts.of(self.run.targets[name])
            for batch, weight in assign_items(self.run.targets[name]):
                outputs = self.run.forward(batch, frozenset(), dropout=False)
                self.window.add(name, weight * mean_nll(outputs, counts))
        self._waiting.clear()

    def _run_examples(self, batches: Mapping[str, Batch]) -> None:
        """Back-propagate single retain examples' shares of the retain loss, in turn into so many buffers."""
        rows = [
            (batches[name], i) for name in self.retain if name in batches for i in range(len(batches[name]["labels"]))
        ]
        for place, (batch, i) in enumerate(rows if self.examples else (), self._ordinal + rank() * len(rows)):
            row = add_positions({key: tensor[i : i + 1] for key, tensor in batch.items() if key != "positions"})
            outputs = self.run.forward(row, frozenset(), dropout=False)
            self.window.add(self.examples[place % len(self.examples)], mean_nll(outputs, self.counts["retain"]))
        self._ordinal += num_processes() * len(rows)

    def gather(self) -> None:
        """Add up the gradients and sums of all processes."""
        if num_processes() == 1:
            return
        self.window.gradients = sum_gradients(self.window.gradients, self.run.differentiated)
        sums = torch.stack([torch.as_tensor(value, dtype=torch.float64) for value in self.sums.values()])
        self.sums = dict(zip(self.sums, sum_over_processes(sums), strict=True))

    def _forget(self, name: str, batches: Mapping[str, Batch]) -> Tensor | None:
        moved = self.objective.rho is not None
        outputs, loss, shared = None, None, not (self.run.keep_dropout or moved)
        if self.objective.on("forget"):
            again = self.plan.runs_forget and shared
            with self._ascended() if moved else contextlib.nullcontext():
                outputs, loss = self._descend("forget", batches, self.side(name), retain_graph=again)
            weights = self.objective.forget_weights(outputs)
            if weights is not None:
                self._sum("weight_mean", weights.sum() / self.counts["forget"].token)
        if self.plan.runs_forget and (outputs is None or not shared):
            outputs = self.run.forward(batches["forget"], frozenset(), dropout=False)
        elif not shared:
            return loss
        if outputs is not None:
            forget_loss = self._loss(name, outputs)
            if self.plan.runs_forget:
                self.window.add(name, forget_loss)
        return loss

    def _ascended(self) -> contextlib.AbstractContextManager[None]:
        """While this lasts, the weights are those at which the forget term is differentiated."""
        if self.ascended is None:
            raise RuntimeError("Step.ascend comes before the micro-batches of an objective with sam")
        return exchanged({name: self.run.parameters[name] for name in self.ascended}, self.ascended)

    def _beside(self, name: str, batches: Mapping[str, Batch], gradient: str) -> Tensor | None:
        """The objective's terms on a set whose loss is not measured."""
        return self._descend(name, batches, gradient)[1] if self.objective.on(name) and name in batches else None

    def _retain(self, name: str, batches: Mapping[str, Batch], visit: Visit | None) -> Tensor | None:
        outputs, loss, shared = None, None, not self.run.keep_dropout
        if self.plan.retain_terms:
            again = self.plan.runs_retain and shared
            outputs, loss = self._descend("retain", batches, self._retain_side, besides_loss=shared, retain_graph=again)
        if not self.plan.runs_retain:
            return loss
        if outputs is None or not shared:
            outputs = self.run.forward(batches["retain"], frozenset(), dropout=False)
        retain_loss = self._loss(name, outputs)
        for term, multiple in self.objective.stateful_multiples("retain").items() if shared else ():
            self._sum(term, multiple * self.shares[name] * retain_loss)
        if visit is None:
            self.window.add(name, retain_loss)
        else:
            self.streamed = True
            self.window.stream(name, retain_loss, visit)
        share = self.plan.retain_weight * self.shares[name] * retain_loss.detach()
        return share if loss is None else loss + share

    def _loss(self, name: str, outputs: Outputs) -> Tensor:
        """A split's loss; where there are several of its role, that of the role sums up too."""
        loss, role = mean_nll(outputs, self.counts[name]), role_of(name)
        self._sum(f"loss_{name}", loss)
        if role != name:
            self._sum(f"loss_{role}", self.shares[name] * loss)
        return loss

    def _descend(
        self,
        name: str,
        batches: Mapping[str, Batch],
        gradient: str,
        *,
        besides_loss: bool = False,
        retain_graph: bool = False,
    ) -> tuple[Outputs, Tensor]:
        """Back-propagate the objective's terms on one set; its outputs and the loss, detached."""
        outputs = self.run.outputs(name, batches, dropout=self.run.keep_dropout)
        loss = self.objective.loss(name, outputs, self.counts, besides_loss=besides_loss)
        for term, share in self.objective.stateful_losses(
            name, outputs, self.counts, besides_loss=besides_loss
        ).items():
            self._sum(term, share)
        self.window.add(gradient, loss, retain_graph=retain_graph, merged=self._merged(gradient))
        return outputs, loss.detach()

    def _merged(self, gradient: str) -> Mapping[str, str]:
        """Both uses of a tied tensor share a buffer, unless a loss gradient is read from it: a second costs as much."""
        tie = self.run.tie
        losses = (*self.forget, *self.retain, *(self.side(each) for each in self.forget if self.plan.factor))
        return {} if tie is None or gradient in losses else {tie.head_name: tie.name}

    def _sum(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value.detach()
