"""How far a window's inner products would stray on other micro-batches."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from geffect.core.gradients import NamedTensors
from geffect.core.gram import Gram, upper_triangle
from geffect.core.layers import TiedWeights
from geffect.measurement.basis import Basis, Combinations

Shares = tuple[
    Mapping[str, NamedTensors], Mapping[str, Tensor | None] | None
]  # rows; the tied tensor's embedding parts


@dataclass
class StandardErrors:
    """Inner products of B micro-batches against their window's.

    Attributes:
        rows: the M rows' names.
        linearized: label → ``[B, M, M]``: e_b = ⟨f_b, O⟩ + ⟨F, o_b⟩ − ⟨F, O⟩ with f_b, o_b a micro-batch's rows and
            F, O their means over the window. Their mean is ⟨F, O⟩ and, to first order, std(e_b)/√B its standard error.
        halves: label → ``[M, M]``: the mean of ⟨row_i over one half, row_j over the other⟩ over all ways to halve the
            window. Its expectation is that of the true gradients; ‖ĝ‖² itself is too large by the gradient's variance.
    """

    rows: tuple[str, ...]
    linearized: dict[str, Tensor]
    halves: dict[str, Tensor]

    def to_record(self) -> dict[str, Any]:
        """The names, the labels, and the upper triangles of every label's matrices."""
        linearized, halves = (list(map(upper_triangle, part.values())) for part in (self.linearized, self.halves))
        names = {"gradients": list(self.rows), "labels": list(self.halves)}
        return names | {"linearized": linearized, "halves": halves}


def spread(
    window: Shares,
    micro_batches: Iterable[Shares],
    named: Mapping[str, Mapping[str, float]],
    order: Sequence[str],
    labels: Mapping[str, str],
    tie: TiedWeights | None,
) -> StandardErrors:
    """Compare the rows of each micro-batch with those of the window.

    Args:
        window: the basis rows, sums of the micro-batches'.
        micro_batches: each one's share of these, one at a time.
        named: every recorded row as a combination of the basis rows.
        order: the parameters.
        labels: parameter → what its numbers are summed under (itself where it is missing).
        tie: the tied tensor.

    Returns:
        The spread.
    """
    basis = list(dict.fromkeys(row for parts in named.values() for row in parts))
    doubled = {
        f"{row}/{part}": {f"{each}/{part}": c for each, c in parts.items()}
        for part in ("all", "one")
        for row, parts in named.items()
    }
    linearized: dict[str, list[Tensor]] = {}
    inside: dict[str, Tensor] = {}
    whole: dict[str, Tensor] = {}
    size = len(named)
    for shares in micro_batches:
        gram = _products(basis, window, shares, order, tie).combine(Combinations.everywhere(doubled), order)
        for label, both in Gram(gram.rows, gram.values).by({n: labels.get(n, n) for n in gram.values}).items():
            whole[label], one = both[:size, :size], both[size:, :size]
            linearized.setdefault(label, []).append(one + one.T)
            inside[label] = inside.get(label, torch.zeros(())) + both[size:, size:]
        del shares  # or it would hold these rows while the next micro-batch's are made
    count = len(next(iter(linearized.values())))
    return StandardErrors(
        tuple(named),
        {label: torch.stack(each) * count - whole[label] for label, each in linearized.items()},
        {label: (whole[label] - inside[label]) * count / (count - 1) for label in whole},
    )


def _products(
    basis: Sequence[str], window: Shares, shares: Shares, order: Sequence[str], tie: TiedWeights | None
) -> Basis:
    found = Basis([f"{row}/{part}" for part in ("all", "one") for row in basis], tie)
    both = {"all": window, "one": shares}
    for name in order:
        tensors = {f"{row}/{part}": rows.get(row, {}).get(name) for part, (rows, _) in both.items() for row in basis}
        embeds = {f"{row}/{part}": (parts or {}).get(row) for part, (_, parts) in both.items() for row in basis}
        found.add(name, tensors, embeds if tie is not None and name == tie.name else None)
    return found
