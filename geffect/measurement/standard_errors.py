"""Standard errors of a window's inner products over its micro-batches."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from geffect.core.gradients import NamedTensors
from geffect.core.gram import Gram, upper_triangle
from geffect.core.layers import TiedWeights
from geffect.measurement.basis import Basis, Combinations

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

    def to_record(self) -> dict[str, Any]:
        """The names, the labels, and the upper triangles of every label's matrices."""
        linearized, halves = (list(map(upper_triangle, part.values())) for part in (self.linearized, self.halves))
        names = {"gradients": list(self.gradients), "labels": list(self.halves)}
        return names | {"linearized": linearized, "halves": halves}


def standard_errors(
    window: Shares,
    micro_batches: Iterable[Shares],
    named: Mapping[str, Mapping[str, float]],
    order: Sequence[str],
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
        gram = _products(basis, window, shares, order, tie).combine(Combinations.everywhere(doubled), order)
        for label, both in Gram(gram.names, gram.values).by({n: labels.get(n, n) for n in gram.values}).items():
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
    basis: Sequence[str], window: Shares, shares: Shares, order: Sequence[str], tie: TiedWeights | None
) -> Basis:
    products = Basis([f"{source}/{part}" for part in ("all", "one") for source in basis], tie)
    both = {"all": window, "one": shares}
    for name in order:
        tensors, embeds = dict[str, Tensor | None](), dict[str, Tensor | None]()
        for part, (gradients, embedding) in both.items():
            tensors |= {f"{source}/{part}": gradients.get(source, {}).get(name) for source in basis}
            embeds |= {f"{source}/{part}": (embedding or {}).get(source) for source in basis}
        products.add(name, tensors, embeds if tie is not None and name == tie.name else None)
    return products
