"""Which rows meet in a step: pure functions of (seed, epoch, row index), never of a global random state."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Dataset, Sampler

from geffect.data.encode import Encoded

Pair = tuple[Encoded, Encoded]


def shuffled(num_rows: int, seed: int, epoch: int) -> list[int]:
    """The order of the forget rows in an epoch, each once."""
    return [int(i) for i in np.random.default_rng([seed, epoch]).permutation(num_rows)]


def partner(num_retain: int, seed: int, epoch: int, row: int) -> int:
    """The retain row drawn, uniformly, to go beside a forget row."""
    return int(np.random.default_rng([seed, epoch, row, 1]).integers(num_retain))


class Pairs(Dataset[Pair]):
    """Forget rows with a retain row each; indexed by (forget row, retain row)."""

    def __init__(self, forget: list[Encoded], retain: list[Encoded]) -> None:
        self.forget, self.retain = forget, retain

    def __len__(self) -> int:
        return len(self.forget)

    def __getitem__(self, pair: tuple[int, int]) -> Pair:
        """The two rows."""
        return self.forget[pair[0]], self.retain[pair[1]]


class PairSampler(Sampler[tuple[int, int]]):
    """An epoch of pairs; ``set_epoch`` chooses which."""

    def __init__(self, num_forget: int, num_retain: int, seed: int) -> None:
        self.num_forget, self.num_retain, self.seed, self.epoch = num_forget, num_retain, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_forget

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for row in shuffled(self.num_forget, self.seed, self.epoch):
            yield row, partner(self.num_retain, self.seed, self.epoch, row)


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
