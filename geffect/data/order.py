"""Which rows meet in a step: pure functions of (seed, epoch, row index), never of a global random state."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch.utils.data import Dataset, Sampler

from geffect.data.encode import Encoded

Rows = dict[str, Encoded]
STREAMS = {"retain": 1, "general": 3}  # 2 draws refusals, 4 random labels


def shuffled(num_rows: int, seed: int, epoch: int) -> list[int]:
    """The order of the forget rows in an epoch, each once."""
    return [int(i) for i in np.random.default_rng([seed, epoch]).permutation(num_rows)]


def partner(num_rows: int, seed: int, epoch: int, row: int, stream: int = 1) -> int:
    """The row of another set drawn, uniformly, to go beside a forget row; each set draws from a stream of its own."""
    return int(np.random.default_rng([seed, epoch, row, stream]).integers(num_rows))


class Together(Dataset[Rows]):
    """Rows of several sets that meet in a step; indexed by one position a set."""

    def __init__(self, sets: Mapping[str, Sequence[Encoded]]) -> None:
        self.sets = dict(sets)

    def __len__(self) -> int:
        return len(self.sets["forget"])

    def __getitem__(self, positions: tuple[int, ...]) -> Rows:
        """Set → its row."""
        return {name: rows[i] for (name, rows), i in zip(self.sets.items(), positions, strict=True)}


class Meetings(Sampler[tuple[int, ...]]):
    """An epoch of forget rows, each with a row of every other set; ``set_epoch`` chooses which.

    Beside forget row i go a retain row and a general row, each drawn uniformly, and the alternative of row i: where
    there are more alternatives than forget rows, every epoch has its own.

    Args:
        sizes: set → number of rows, ``forget`` among them.
        seed: of the draws.
    """

    def __init__(self, sizes: Mapping[str, int], seed: int) -> None:
        self.sizes, self.seed, self.epoch = dict(sizes), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.sizes["forget"]

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        for row in shuffled(self.sizes["forget"], self.seed, self.epoch):
            yield tuple(self._position(name, size, row) for name, size in self.sizes.items())

    def _position(self, name: str, size: int, row: int) -> int:
        if name == "forget":
            return row
        if name == "alternative":
            return (self.epoch * self.sizes["forget"] + row) % size
        return partner(size, self.seed, self.epoch, row, STREAMS[name])


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
