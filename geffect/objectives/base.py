"""A weighted sum of terms, and which of its gradients come for free."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from geffect.core.distributed import sum_over_processes
from geffect.core.forward import FROM_REFERENCE, FROM_START, IGNORE_INDEX, Outputs
from geffect.core.registry import Configurable
from geffect.core.splits import role_of

SETS = ("forget", "alternative", "general", "retain")  # in the order of passes: the retain gradient streams
State = Mapping[str, float]  # of a term, between steps


class Term(Configurable, ABC):
    """One named loss over one set's batch: a frozen dataclass, and a pure function of `Outputs`.

    A subclass overrides by a class variable, a field or a property what differs, and writes `loss`. One with a state,
    such as a dual variable, also writes `init_state`, `multiplier` and `update_state`. One that changes another term
    is a `Wrapper`.
    """

    @property
    def on(self) -> str:
        """The set it runs on, one of `SETS`."""
        return "forget"

    @property
    def unit(self) -> str:
        """What the loss is a sum of, hence what it is divided by (see `Counts`)."""
        return "token"

    @property
    def needs(self) -> frozenset[str]:
        """Fields of `Outputs` beyond logits and labels, or labelings."""
        return frozenset()

    @property
    def multiple_of_loss(self) -> float | None:
        """c where the loss is c times its set's loss (mean NLL), so that its gradient is too; else None."""
        return None

    @property
    def rho(self) -> float | None:
        """How far up the weights are moved before its gradient is taken (`geffect.measurement.ascent`); None: not."""
        return None

    def weights(self, outputs: Outputs) -> Tensor | None:
        """``[B, T]`` weights w_i on ∇log p_i of the set's own labels (ascent side); None without such a form."""
        return None

    @abstractmethod
    def loss(self, outputs: Outputs) -> Tensor:
        """The loss summed over the batch's units."""

    def init_state(self) -> State:
        """What the term carries from one optimizer step to the next; empty without a state."""
        return {}

    def multiplier(self, state: State) -> float:
        """The factor on the term's weight in this step."""
        return 1.0

    def update_state(self, state: State, losses: Mapping[str, float]) -> State:
        """The state after an optimizer step, from the losses it computed (``loss_objective``, ``loss_retain``, …).

        ``losses["term"]`` is the term's own loss over the whole step, before its weight and its multiplier.
        """
        return state

    @property
    def has_state(self) -> bool:
        """Whether it carries anything from step to step."""
        return bool(self.init_state())

    @property
    def innermost(self) -> "Term":
        """The term itself, or what it wraps."""
        return self


@dataclass(frozen=True)
class Wrapper(Term):
    """A term that changes another one, written ``NAME(TERM, parameter=value)``; it overrides what differs.

    Attributes:
        term: the other term.
    """

    term: Term

    @property
    def on(self) -> str:
        """The set that the term runs on."""
        return self.term.on

    @property
    def unit(self) -> str:
        """What the term's loss is a sum of."""
        return self.term.unit

    @property
    def needs(self) -> frozenset[str]:
        """What the term needs."""
        return self.term.needs

    @property
    def multiple_of_loss(self) -> float | None:
        """As of the term."""
        return self.term.multiple_of_loss

    @property
    def innermost(self) -> Term:
        """The term within, itself unwrapped."""
        return self.term.innermost

    def weights(self, outputs: Outputs) -> Tensor | None:
        """As of the term."""
        return self.term.weights(outputs)

    def loss(self, outputs: Outputs) -> Tensor:
        """As of the term."""
        return self.term.loss(outputs)


@dataclass(frozen=True)
class Counts:
    """What a whole accumulation window holds of one set; every loss of the window is divided by it.

    Attributes:
        token: labeled tokens.
        example: examples.
        position: all positions, prompts and padding included (only variants of published code divide by it).
        labeled: labeling → tokens it labels.
    """

    token: int
    example: int
    position: int = 0
    labeled: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, batches: Sequence[Mapping[str, Tensor]]) -> "Counts":
        """Count the collated batches of a window; index 0 is never labeled, so shifting loses none."""
        labels = [batch["labels"] for batch in batches]
        others = [name for name in (batches[0] if batches else ()) if name.endswith("_labels")]
        labeled = {name: sum(_count_labels(batch[name]) for batch in batches) for name in others}
        sizes = sum(len(each) for each in labels), sum(each.numel() for each in labels)
        return cls(sum(map(_count_labels, labels)), *sizes, labeled)

    def over_processes(self) -> "Counts":
        """The same over all processes, each of which holds other batches of the window."""
        counts = torch.tensor([self.token, self.example, self.position, *self.labeled.values()], dtype=torch.float64)
        token, example, position, *labeled = (int(each) for each in sum_over_processes(counts).tolist())
        return Counts(token, example, position, dict(zip(self.labeled, labeled, strict=True)))

    def per(self, unit: str) -> int:
        """The count of ``unit``: ``token``, ``example``, ``position``, or the name of a labeling."""
        return self.labeled[unit] if unit in self.labeled else int(getattr(self, unit))


def window_counts(micro_batches: Sequence[Mapping[str, Mapping[str, Tensor]]]) -> dict[str, Counts]:
    """Set or role → the counts of a window of micro-batches (set → collated batch), over all domains of a role."""
    by_name: dict[str, list[Mapping[str, Tensor]]] = {}
    for batches in micro_batches:
        for name, batch in batches.items():
            for key in dict.fromkeys((role_of(name), name)):
                by_name.setdefault(key, []).append(batch)
    return {name: Counts.of(batches) for name, batches in by_name.items()}


def _count_labels(labels: Tensor) -> int:
    return int((labels[:, 1:] != IGNORE_INDEX).sum())


@dataclass(frozen=True)
class Objective:
    """What a method descends: Σ weight · term.

    Attributes:
        text: as the user wrote it.
        terms: (weight, term) in the order written; at least one runs on the forget set or its alternative answers.
    """

    text: str
    terms: tuple[tuple[float, Term], ...]

    def __str__(self) -> str:
        return self.text

    @property
    def needs(self) -> frozenset[str]:
        """The union of what the terms need."""
        return self.needs_on(*SETS)

    @property
    def needs_reference(self) -> bool:
        """Whether a step takes a pass of the frozen reference."""
        return bool(self.needs & FROM_REFERENCE)

    @property
    def needs_start(self) -> bool:
        """Whether anything of the model that the run starts from is needed: its token NLLs, or its passes."""
        return bool(self.needs & FROM_START)

    def needs_on(self, *sets: str) -> frozenset[str]:
        """What the terms on these sets need."""
        return frozenset[str]().union(*(term.needs for _, term in self.terms if term.on in sets))

    @property
    def sets(self) -> frozenset[str]:
        """The sets whose batches a step must supply for the objective alone."""
        return frozenset(term.on for _, term in self.terms) | (self.needs & {"alternative"})

    @property
    def answers(self) -> tuple[str, ...]:
        """The sets of refusals that terms name; an empty name is the built-in set."""
        terms = (term.innermost for _, term in self.terms)
        return tuple(dict.fromkeys(term.answers for term in terms if hasattr(term, "answers")))

    def init_states(self) -> list[State]:
        """Each term's state before the first step, in order."""
        return [term.init_state() for _, term in self.terms]

    def at(self, states: Sequence[State]) -> "Objective":
        """The objective of one step: each weight times its term's `Term.multiplier`."""
        scaled = zip(self.terms, states, strict=True)
        return replace(self, terms=tuple((weight * term.multiplier(state), term) for (weight, term), state in scaled))

    def update_states(self, states: Sequence[State], losses: Mapping[str, float]) -> list[State]:
        """Each term's state after a step with these losses, those of `stateful_losses` among them."""
        found = []
        for place, ((_, term), state) in enumerate(zip(self.terms, states, strict=True), 1):
            own = {"term": losses[f"term_{place}"]} if term.has_state else {}
            found.append(term.update_state(state, {**losses, **own}))
        return found

    def multipliers(self, states: Sequence[State]) -> dict[str, float]:
        """``multiplier_K`` of each term with a state, K its place in the sum from 1."""
        places = enumerate(zip(self.terms, states, strict=True), 1)
        return {f"multiplier_{k}": term.multiplier(state) for k, ((_, term), state) in places if term.has_state}

    @torch.no_grad()
    def stateful_losses(
        self, name: str, outputs: Outputs, counts: Mapping[str, Counts], *, besides_loss: bool = False
    ) -> dict[str, Tensor]:
        """``term_K`` of each term with a state on one set: its share of its loss, before weight and multiplier."""
        places = [(k, term) for k, (_, term) in enumerate(self.terms, 1) if term.on == name and term.has_state]
        terms = [(k, term) for k, term in places if not (besides_loss and term.multiple_of_loss is not None)]
        return {f"term_{k}": term.loss(outputs) / self._count(term, counts) for k, term in terms}

    def stateful_multiples(self, name: str) -> dict[str, float]:
        """``term_K`` of each term with a state that is a multiple of one set's loss: that multiple."""
        places = [(k, term) for k, (_, term) in enumerate(self.terms, 1) if term.on == name and term.has_state]
        return {f"term_{k}": term.multiple_of_loss for k, term in places if term.multiple_of_loss is not None}

    def on(self, name: str) -> list[tuple[float, Term]]:
        """The terms that run on one set."""
        return [(weight, term) for weight, term in self.terms if term.on == name]

    @property
    def forget_multiple(self) -> float | None:
        """c where the terms on the forget set are together c times its loss (mean NLL); else None."""
        multiples = [term.multiple_of_loss for _, term in self.on("forget")]
        if any(multiple is None for multiple in multiples):
            return None
        c = sum(w * (m or 0.0) for (w, _), m in zip(self.on("forget"), multiples, strict=True))
        return c or None

    @property
    def rho(self) -> float | None:
        """How far up the weights are moved for the term on the forget set; None where no term asks for it."""
        return next((term.rho for _, term in self.terms if term.rho is not None), None)

    @property
    def retain_multiple(self) -> float:
        """w where the terms on the retain set contain w times its loss (0 where none does)."""
        return sum(weight * (term.multiple_of_loss or 0.0) for weight, term in self.on("retain"))

    def loss(self, name: str, outputs: Outputs, counts: Mapping[str, Counts], *, besides_loss: bool = False) -> Tensor:
        """The loss of one set's terms, a scalar: each term's sum divided by the window's count of its unit.

        ``besides_loss`` leaves out the terms that are multiples of the set's mean NLL.
        """
        terms = [(w, t) for w, t in self.on(name) if not (besides_loss and t.multiple_of_loss is not None)]
        losses = [w * term.loss(outputs) / self._count(term, counts) for w, term in terms]
        return sum(losses[1:], losses[0])

    def _count(self, term: Term, counts: Mapping[str, Counts]) -> int:
        if term.unit != "pooled":
            return counts[term.on].per(term.unit)
        pooled = {each.on for _, each in self.terms if each.unit == "pooled"}
        return sum(counts[name].token for name in pooled)

    def forget_weights(self, outputs: Outputs) -> Tensor | None:
        """``[B, T]`` the forget terms' weights on ∇log p_i, undivided; no graph; None without such a form."""
        weights = [(w, term.weights(outputs)) for w, term in self.on("forget")]
        known = [w * each for w, each in weights if each is not None]
        return sum(known[1:], known[0]).detach() if known and len(known) == len(weights) else None


def mean_nll(outputs: Outputs, counts: Counts) -> Tensor:
    """R = (1/N) Σ_i −log p_i: the token-mean NLL, this batch's share of the window's N labeled tokens."""
    return outputs.nll.sum() / counts.token
