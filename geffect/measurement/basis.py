"""The gradients that are back-propagated, reduced to inner products tensor by tensor, and standard errors of these."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from geffect.core.devices import Pairwise, matrices
from geffect.core.distributed import sum_gram
from geffect.core.gradients import NamedTensors
from geffect.core.gram import Gram, pairwise_products, upper_triangle
from geffect.core.layers import TiedWeights, split_by_use
from geffect.core.splits import TARGETS, role_of

Tensors = Mapping[str, Tensor | None]
Parts = Mapping[str, float]  # gradient of a basis → its coefficient


@dataclass(frozen=True)
class Combinations:
    """Gradients as linear combinations of a basis, by part of the model.

    Attributes:
        by_part: part of the model → gradient → its combination there; all parts name the same gradients.
        part_of: parameter → its part; empty where the model is one.
    """

    by_part: Mapping[str, Mapping[str, Parts]]
    part_of: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def everywhere(cls, combinations: Mapping[str, Parts]) -> "Combinations":
        """The same combinations in the whole model."""
        return cls({"": combinations})

    @property
    def names(self) -> tuple[str, ...]:
        """The gradients, in order."""
        return tuple(next(iter(self.by_part.values())))

    def part(self, parameter: str) -> str:
        """The part that a parameter belongs to."""
        return self.part_of[parameter] if self.part_of else ""

    def at(self, parameter: str) -> Mapping[str, Parts]:
        """Gradient → its combination at a parameter."""
        return self.by_part[self.part(parameter)]

    @property
    def sources(self) -> tuple[str, ...]:
        """What the combinations are made of."""
        return tuple(dict.fromkeys(s for part in self.by_part.values() for parts in part.values() for s in parts))

    def only(self, names: Iterable[str]) -> "Combinations":
        """The combinations of these names alone."""
        names = tuple(names)
        return Combinations({p: {name: each[name] for name in names} for p, each in self.by_part.items()}, self.part_of)

    def extend(self, names: Iterable[str]) -> "Combinations":
        """The same, and gradients that are of the basis themselves."""
        more = {name: {name: 1.0} for name in names}
        return Combinations({part: {**each, **more} for part, each in self.by_part.items()}, self.part_of)


class Basis:
    """Inner products of gradients that others are linear combinations of; a tied tensor's losses are split by use.

    ``losses`` are the names, or roles, of the gradients of losses.
    """

    def __init__(self, gradients: Sequence[str], tie: TiedWeights | None, losses: Collection[str] = TARGETS) -> None:
        self._gram, self.tie, self.losses = Gram(tuple(gradients)), tie, losses
        self.embed: Tensor | None = None
        self._waiting: dict[str, Pairwise] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The gradients' names, the order of every matrix."""
        return self._gram.names

    @property
    def gram(self) -> Gram:
        """The inner products of the tensors so far; a look at them moves those that are elsewhere to the host."""
        Basis.gather(self)
        return self._gram

    def add(self, name: str, tensors: Tensors, embeds: Tensors | None = None) -> None:
        """Reduce one tensor of every gradient, None for zeros.

        ``embeds`` are the tied tensor's parts as embedding, of the gradients that loss gradients are made of. The
        products stay on the tensors' device until they are looked at or gathered.
        """
        wholes = [tensors.get(each) for each in self.names]
        uses = [] if embeds is None else [embeds.get(each) for each in self.names]
        self._waiting[name] = pairwise_products([*uses, *wholes])

    @staticmethod
    def gather(*bases: "Basis") -> None:
        """Move the products of several bases to the host, by one copy a device for all of them."""
        waiting = [(basis, *item) for basis in bases for item in basis._waiting.items()]
        for (basis, name, _), matrix in zip(waiting, matrices([pairs for *_, pairs in waiting]), strict=True):
            size = len(basis.names)
            basis._gram.values[name] = matrix[-size:, -size:]
            if len(matrix) > size:
                basis.embed = matrix[:size, size:]
        for basis in bases:
            basis._waiting.clear()

    def sum_up(self, *, sharded: bool) -> None:
        """Add the inner products of all processes where they hold shards; once, before `combine`."""
        self._gram = sum_gram(self.gram, sharded=sharded)

    def combine(self, combinations: Combinations, order: Sequence[str]) -> Gram:
        """The Gram of linear combinations of the basis, the parameters in this order (backward visits them in another).

        The tied tensor stands in it three times (see `geffect.core.layers.split_by_use`).
        """
        combined, gram = dict[str, Tensor](), self.gram
        for part, parts in combinations.by_part.items():
            members = {name: gram.values[name] for name in order if combinations.part(name) == part}
            combined |= Gram(self.names, members).combine(parts).values
        values: dict[str, Tensor] = {}
        for name in order:
            if self.tie is None or self.embed is None or name != self.tie.name:
                values[name] = combined[name]
                continue
            embed = Gram(self.names, {"": self.embed}).combine(combinations.at(name)).values[""]
            of_targets = [bool({each, role_of(each)} & {*self.losses}) for each in combinations.names]
            uses = split_by_use(combined[name], embed, of_targets)
            values |= zip(self.tie.uses, uses, strict=True)
        return Gram(combinations.names, values)


def add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """a + b, where None is zero; no operand is changed."""
    if a is None or b is None:
        return b if a is None else a
    return torch.add(a, b)


def held(tensor: Tensor | None, place: torch.device | None, *, copy: bool = False) -> Tensor | None:
    """A tensor on the device where it is held (None: its own); ``copy``: never the same memory."""
    if tensor is None:
        return None
    return tensor.to(place or tensor.device, copy=copy)


# gradients by name, and the tied tensor's parts as embedding
Shares = tuple[Mapping[str, NamedTensors], Mapping[str, Tensor | None] | None]


@dataclass
class StandardErrors:
    """Inner products of B micro-batches against their window's.

    Attributes:
        gradients: the M gradients' names.
        linearized: label → ``[B, M, M]``: e_b = ⟨f_b, O⟩ + ⟨F, o_b⟩ − ⟨F, O⟩ with f_b, o_b gradients of a
            micro-batch and F, O their means over the window. The mean of e_b is ⟨F, O⟩ and, to first order, std(e_b)/√B
            its standard error.
        halves: label → ``[M, M]``: the mean of ⟨gradient i of one half, j of the other⟩ over all
            halvings of the window. Its expectation is that of the true gradients; ‖ĝ‖² itself is too large by the
            gradient's variance.
    """

    gradients: tuple[str, ...]
    linearized: dict[str, Tensor]
    halves: dict[str, Tensor]

    def to_record(self) -> dict[str, object]:
        """The names, the labels, and the upper triangles of every label's matrices."""
        linearized, halves = (list(map(upper_triangle, part.values())) for part in (self.linearized, self.halves))
        labels = list(self.halves)
        return {"gradients": list(self.gradients), "labels": labels, "linearized": linearized, "halves": halves}


def standard_errors(
    window: Shares,
    micro_batches: Iterable[Shares],
    named: Mapping[str, Mapping[str, float]],
    parameters: Mapping[str, nn.Parameter],
    labels: Mapping[str, str],
    tie: TiedWeights | None,
) -> StandardErrors:
    """The standard errors of ``named`` combinations of the window's gradients, from each micro-batch's share of them.

    ``labels`` says under what a parameter's numbers are summed: under itself where it is missing.
    """
    basis = list(dict.fromkeys(source for parts in named.values() for source in parts))
    doubled = {
        f"{name}/{part}": {f"{source}/{part}": c for source, c in parts.items()}
        for part in ("all", "one")
        for name, parts in named.items()
    }
    linearized: dict[str, list[Tensor]] = {}
    inside: dict[str, Tensor] = {}
    whole: dict[str, Tensor] = {}
    size = len(named)
    for shares in micro_batches:
        products = _products(basis, window, shares, parameters, tie)
        gram = products.combine(Combinations.everywhere(doubled), list(parameters))
        for label, both in gram.by({name: labels.get(name, name) for name in gram.values}).items():
            whole[label], one = both[:size, :size], both[size:, :size]
            linearized.setdefault(label, []).append(one + one.T)
            inside[label] = inside.get(label, torch.zeros(())) + both[size:, size:]
        del shares  # or it would hold these gradients while the next micro-batch's are made
    count = len(next(iter(linearized.values())))
    return StandardErrors(
        tuple(named),
        {label: torch.stack(each) * count - whole[label] for label, each in linearized.items()},
        {label: (whole[label] - inside[label]) * count / (count - 1) for label in whole},
    )


def _products(
    basis: Sequence[str],
    window: Shares,
    shares: Shares,
    parameters: Mapping[str, nn.Parameter],
    tie: TiedWeights | None,
) -> Basis:
    products = Basis([f"{source}/{part}" for part in ("all", "one") for source in basis], tie)
    both = {"all": window, "one": shares}
    for name, place in ((name, parameter.device) for name, parameter in parameters.items()):
        tensors, embeds = dict[str, Tensor | None](), dict[str, Tensor | None]()
        for part, (gradients, embedding) in both.items():
            tensors |= {f"{each}/{part}": held(gradients.get(each, {}).get(name), place) for each in basis}
            embeds |= {f"{each}/{part}": held((embedding or {}).get(each), place) for each in basis}
        products.add(name, tensors, embeds if tie is not None and name == tie.name else None)
    return products
