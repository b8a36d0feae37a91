"""Controls of a localization: random masks of the same sizes, and entries known to hold what was learned.

Where a training changed the entries of a known mask alone (``geffect finetune --only-mask``), a localizer can be judged
by how many of them it finds (the idea of arXiv 2607.02513). Masks are taken tensor by tensor, and so are these numbers.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from geffect.core.devices import to_host
from geffect.core.masks import (
    Localization,
    PackedMasks,
    intersections,
    jaccard,
    make_generator,
    mask_count,
    pack,
    shuffled,
    unpack,
)
from geffect.io.readers import JSON

Counts = Counter[tuple[str, str, str]]  # (split, localizer, size) → entries
PLANTED = "planted"  # of sizes: as many of each tensor's entries as were planted there


def wins(score: Tensor, planted: Tensor) -> tuple[int, int]:
    """Twice the pairs of a planted and another entry in which the planted one scores more (ties once), and the pairs.

    Exact: ranks are counted by bisection among the other entries, where the tensor lies. The AUC is wins / (2 · pairs).

    >>> wins(torch.tensor([3.0, 1.0, 1.0, 0.0]), torch.tensor([True, True, False, False]))
    (7, 4)
    """
    flat, mask = score.reshape(-1), planted.reshape(-1)
    others = flat[~mask].sort().values
    below = sum(torch.searchsorted(others, flat[mask], right=right).sum() for right in (False, True))
    return int(below), int(mask.sum()) * len(others)


def largest(score: Tensor, count: int) -> Tensor:
    """The mask of so many entries of largest score, ties going to the lowest index; zeros are in none."""
    order = score.reshape(-1).sort(descending=True, stable=True).indices[:count]
    mask = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
    mask[order] = score.reshape(-1)[order] > 0
    return mask.view(score.shape)


class Recovery:
    """How many planted entries each localizer finds, added up tensor by tensor.

    - AUC: the probability that a planted entry is more important than another entry of the same tensor, ties half;
      exact, and 0.5 of what knows nothing.
    - precision and recall: of the masks of each share, and of masks that have as many entries of each tensor as were
      planted there, where both are the same unless importances are zero.

    Args:
        planted: parameter → packed mask; missing: empty.
        numels: parameter → entries, of all parameters.
    """

    def __init__(self, planted: PackedMasks, numels: Mapping[str, int]) -> None:
        self.planted, self.numels = planted, dict(numels)
        self.hits, self.chosen = Counts(), Counts()
        self.won, self.seen = Counter[tuple[str, str]](), dict[tuple[str, str], set[str]]()

    def add(self, split: str, localizer: str, name: str, score: Tensor, masks: Mapping[float, Tensor]) -> None:
        """Count one tensor of a split: its importance, and share → packed mask, on the host."""
        truth = self.planted.get(name, torch.zeros(-(-score.numel() // 8), dtype=torch.uint8))
        planted = unpack(truth.to(score.device), score.shape)
        (same,) = to_host([pack(largest(score, int(planted.sum())))])
        for size, mask in {PLANTED: same, **{f"{share:g}": mask for share, mask in masks.items()}}.items():
            self.hits[split, localizer, size] += mask_count(mask & truth)
            self.chosen[split, localizer, size] += mask_count(mask)
        self.won[split, localizer] += wins(score, planted)[0]
        self.seen.setdefault((split, localizer), set()).add(name)

    def rows(self) -> list[dict[str, JSON]]:
        """A row a split, localizer and size: ``precision``, ``recall`` and ``auc``; None where it is not defined."""
        sizes = {name: mask_count(mask) for name, mask in self.planted.items()}
        total = sum(sizes.values())
        pairs = {name: sizes.get(name, 0) * (numel - sizes.get(name, 0)) for name, numel in self.numels.items()}
        rows: list[dict[str, JSON]] = []
        for split, localizer, size in self.chosen:
            key = split, localizer
            tied = sum(each for name, each in pairs.items() if name not in self.seen[key])  # no gradient: all are equal
            hits, chosen, possible = self.hits[*key, size], self.chosen[*key, size], 2 * sum(pairs.values())
            rows.append({
                "split": split,
                "localizer": localizer,
                "size": size,
                "precision": hits / chosen if chosen else None,
                "recall": hits / total if total else None,
                "auc": (self.won[key] + tied) / possible if possible else None,
            })
        return rows


def add_random(
    recovery: Recovery, localization: Localization, parameters: Mapping[str, Tensor], seeds: Sequence[int]
) -> None:
    """Count random importance, and random masks of a localization's sizes, beside it; a localizer a seed."""
    for seed, name in itertools.product(seeds, parameters):
        for split in localization.examples:
            score = random_importance(parameters[name], f"{seed} {split} {name}")
            masks = {
                share: mask
                for share in localization.masks
                if (mask := random_mask(localization, share, split, name, parameters[name], seed)) is not None
            }
            recovery.add(split, f"random:{seed}", name, score, masks)


def random_mask(
    localization: Localization, share: float, split: str, name: str, like: Tensor, seed: int
) -> Tensor | None:
    """A packed mask of one tensor drawn by lot, as large as the localization's; None where that is empty."""
    mask = localization.masks[share][split].get(name)
    return None if mask is None else pack(shuffled(unpack(mask, like.shape), f"{seed} {split} {name}"))


def random_importance(like: Tensor, lot: str) -> Tensor:
    """Uniform numbers of a tensor's shape: the same on every device."""
    return torch.rand(like.shape, generator=make_generator(lot)).to(like.device)


def random_overlaps(
    localization: Localization, parameters: Mapping[str, Tensor], seeds: Sequence[int]
) -> list[dict[str, JSON]]:
    """The Jaccard indices of random masks as large as a localization's: a row a share, pair of splits and seed."""
    splits, rows = list(localization.examples), list[dict[str, JSON]]()
    for share, seed in itertools.product(localization.masks, seeds):
        counts = torch.zeros(len(splits), len(splits), dtype=torch.int64)
        for name, parameter in parameters.items():
            counts += intersections([random_mask(localization, share, s, name, parameter, seed) for s in splits])
        index = jaccard(counts)
        for i, j in itertools.combinations(range(len(splits)), 2):
            row = {"share": share, "gradient": splits[i], "other": splits[j], "seed": seed}
            rows.append(row | {"jaccard": float(index[i, j]) if index[i, j].isfinite() else None})
    return rows
