"""The rows that are back-propagated, reduced to inner products tensor by tensor."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from geffect.core.distributed import sum_gram
from geffect.core.gram import Gram, inner_products
from geffect.core.layers import BOTH, EMBED, HEAD, TiedWeights, split_by_use
from geffect.core.splits import TARGETS, role_of

Tensors = Mapping[str, Tensor | None]


class Basis:
    """Inner products of rows that others are linear combinations of.

    Args:
        rows: their names.
        tie: the tied tensor, whose risk gradients are split by use.
    """

    def __init__(self, rows: Sequence[str], tie: TiedWeights | None) -> None:
        self.gram, self.tie = Gram(tuple(rows)), tie
        self.embed: Tensor | None = None

    @property
    def rows(self) -> tuple[str, ...]:
        """The rows' names, the order of every matrix."""
        return self.gram.rows

    def add(self, name: str, tensors: Tensors, embeds: Tensors | None = None) -> None:
        """Reduce one tensor of every row.

        Args:
            name: the parameter.
            tensors: row → tensor, None for zeros.
            embeds: row → the tied tensor's part as embedding, for the rows that risks are made of.
        """
        wholes = [tensors.get(row) for row in self.rows]
        if embeds is None:
            self.gram.values[name] = inner_products(wholes)
            return
        both = inner_products([*(embeds.get(row) for row in self.rows), *wholes])
        size = len(wholes)
        self.gram.values[name], self.embed = both[size:, size:], both[:size, size:]

    def sum_up(self, *, sharded: bool) -> None:
        """Add up what all processes reduced; of whole rows nothing is left to add. Before `named`, and once."""
        self.gram = sum_gram(self.gram, sharded=sharded)

    def named(self, combinations: Mapping[str, Mapping[str, float]], order: Sequence[str]) -> Gram:
        """The Gram of every recorded row.

        Args:
            combinations: row → {row of this basis: coefficient}.
            order: the parameters' own order (backward visits them in another).

        Returns:
            The Gram; the tied tensor stands in it three times (see `geffect.core.layers.split_by_use`).
        """
        gram = Gram(self.rows, {name: self.gram.values[name] for name in order}).combine(combinations)
        if self.tie is None or self.embed is None:
            return gram
        embed = Gram(self.rows, {"": self.embed}).combine(combinations).values[""]
        parts = split_by_use(gram.values[self.tie.name], embed, [role_of(row) in TARGETS for row in gram.rows])
        values: dict[str, Tensor] = {}
        for name, value in gram.values.items():
            tied = dict(zip((name + EMBED, name + HEAD, name + BOTH), parts, strict=True))
            values |= tied if name == self.tie.name else {name: value}
        return Gram(gram.rows, values)


def added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """a + b, where None is zero; no operand is changed."""
    if a is None or b is None:
        return b if a is None else a
    return torch.add(a, b)
