"""Which rows meet in a step: pure functions of (seed, epoch, row index), never of a global random state."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch.utils.data import Dataset, Sampler

from geffect.core.splits import domain_of, domains, of_role, role_of, split_name, split_names
from geffect.data.encode import EncodedExample

Rows = dict[str, EncodedExample]
STREAMS = {"retain": 1, "general": 3}  # 2 draws refusals, 4 random labels


def shuffled(num_rows: int, seed: int, epoch: int, place: int = 0, lap: int = 0) -> list[int]:
    """The order of the forget rows in an epoch, each once; every domain and every further lap has its own."""
    further = [lap, 0, place] if place or lap else []
    return [int(i) for i in np.random.default_rng([seed, epoch, *further]).permutation(num_rows)]


def partner(num_rows: int, seed: int, epoch: int, row: int, stream: int = 1, place: int = 0) -> int:
    """The row of another set drawn, uniformly, to go beside a forget row; each set draws from a stream of its own."""
    further = [place] if place else []
    return int(np.random.default_rng([seed, epoch, row, stream, *further]).integers(num_rows))


class PairedDataset(Dataset[Rows]):
    """Rows of several sets that meet in a step; indexed by one position a set."""

    def __init__(self, sets: Mapping[str, Sequence[EncodedExample]]) -> None:
        self.sets = dict(sets)

    def __len__(self) -> int:
        return max(map(len, of_role(self.sets, "forget")))

    def __getitem__(self, positions: tuple[int, ...]) -> Rows:
        """Set → its row."""
        return {name: rows[i] for (name, rows), i in zip(self.sets.items(), positions, strict=True)}


class PairedSampler(Sampler[tuple[int, ...]]):
    """An epoch of forget rows, each with a row of every other set; ``set_epoch`` chooses which.

    Beside forget row i go a retain row and a general row, each drawn uniformly, and the alternative of row i: where
    there are more alternatives than forget rows, every epoch has its own. Of several domains one forget row each meets,
    with a retain row of its domain; where a domain has fewer forget rows than another, they come round again.

    Args:
        sizes: set → number of rows, ``forget`` or ``forget/DOMAIN`` among them.
        seed: of the draws.
    """

    def __init__(self, sizes: Mapping[str, int], seed: int) -> None:
        self.sizes, self.seed, self.epoch = dict(sizes), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return max(of_role(self.sizes, "forget"))

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        orders = [self._order(place, self.sizes[name]) for place, name in enumerate(split_names("forget", self.sizes))]
        for rows in zip(*orders, strict=True):
            met = dict(zip(domains(self.sizes), rows, strict=True))
            yield tuple(self._position(name, size, met) for name, size in self.sizes.items())

    def _order(self, place: int, size: int) -> list[int]:
        """The forget rows of the domain in that place, as often round as the largest needs."""
        laps = range(-(-len(self) // size))
        rows = [row for lap in laps for row in shuffled(size, self.seed, self.epoch, place, lap)]
        return rows[: len(self)]

    def _position(self, name: str, size: int, met: Mapping[str, int]) -> int:
        role, place = role_of(name), max(0, list(met).index(domain_of(name)) if domain_of(name) in met else 0)
        row = list(met.values())[place]
        if role == "forget":
            return row
        if role == "alternative":
            return (self.epoch * self.sizes[split_name("forget", domain_of(name))] + row) % size
        return partner(size, self.seed, self.epoch, row, STREAMS[role], place)


class Shuffled(Sampler[int]):
    """An epoch's order, from seed and epoch alone."""

    def __init__(self, num_rows: int, seed: int) -> None:
        self.num_rows, self.seed, self.epoch = num_rows, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[int]:
        yield from shuffled(self.num_rows, self.seed, self.epoch)
