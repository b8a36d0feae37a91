"""Which examples a step has: pure functions of (seed, epoch, position), never of a global random state."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from torch.utils.data import Dataset, Sampler

from geffect.core.splits import domain_of, domains, of_role, role_of, split_name, split_names
from geffect.data.encode import EncodedExample

Step = dict[str, EncodedExample]
STREAMS = {"retain": 1, "general": 3}  # 2 draws refusals, 4 random labels


def permutation(num_examples: int, seed: int, epoch: int, place: int = 0, lap: int = 0) -> list[int]:
    """The order of the forget examples in an epoch; every domain (``place``) and every further lap has its own."""
    further = [lap, 0, place] if place or lap else []
    return [int(i) for i in np.random.default_rng([seed, epoch, *further]).permutation(num_examples)]


def draw_partner(num_examples: int, seed: int, epoch: int, index: int, stream: int = 1, place: int = 0) -> int:
    """The example of another set drawn, uniformly, for a forget example; each set draws from its own stream."""
    further = [place] if place else []
    return int(np.random.default_rng([seed, epoch, index, stream, *further]).integers(num_examples))


class PairedDataset(Dataset[Step]):
    """Examples of several sets that meet in a step, indexed by one position a set."""

    def __init__(self, sets: Mapping[str, Sequence[EncodedExample]]) -> None:
        self.sets = dict(sets)

    def __len__(self) -> int:
        return max(map(len, of_role(self.sets, "forget")))

    def __getitem__(self, positions: tuple[int, ...]) -> Step:
        """Set → its example."""
        return {name: examples[i] for (name, examples), i in zip(self.sets.items(), positions, strict=True)}


class PairedSampler(Sampler[tuple[int, ...]]):
    """An epoch of forget examples, each with an example of every other set; ``set_epoch`` chooses which.

    With forget example i come a retain and a general example, drawn uniformly, and the alternative of example i: where
    there are more alternatives than forget examples, every epoch has its own. With several domains, each step has one
    forget example and one retain example of each; a domain with fewer forget examples repeats them. ``sizes`` maps each
    set, ``forget`` or ``forget/DOMAIN`` among them, to its number of examples.
    """

    def __init__(self, sizes: Mapping[str, int], seed: int) -> None:
        self.sizes, self.seed, self.epoch = dict(sizes), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return max(of_role(self.sizes, "forget"))

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        orders = [self._order(place, self.sizes[name]) for place, name in enumerate(split_names("forget", self.sizes))]
        for indices in zip(*orders, strict=True):
            forget = dict(zip(domains(self.sizes), indices, strict=True))
            yield tuple(self._position(name, size, forget) for name, size in self.sizes.items())

    def _order(self, place: int, size: int) -> list[int]:
        """The forget examples of the domain at ``place``, repeated up to the length of the largest."""
        laps = range(-(-len(self) // size))
        indices = [index for lap in laps for index in permutation(size, self.seed, self.epoch, place, lap)]
        return indices[: len(self)]

    def _position(self, name: str, size: int, forget: Mapping[str, int]) -> int:
        """Which example of a set goes beside the forget example of each domain."""
        role, domain = role_of(name), domain_of(name)
        place = list(forget).index(domain) if domain in forget else 0
        index = list(forget.values())[place]
        if role == "forget":
            return index
        if role == "alternative":
            return (self.epoch * self.sizes[split_name("forget", domain)] + index) % size
        return draw_partner(size, self.seed, self.epoch, index, STREAMS[role], place)


class ShuffledSampler(Sampler[int]):
    """An epoch's order, a function of seed and epoch alone."""

    def __init__(self, num_examples: int, seed: int) -> None:
        self.num_examples, self.seed, self.epoch = num_examples, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_examples

    def __iter__(self) -> Iterator[int]:
        yield from permutation(self.num_examples, self.seed, self.epoch)
