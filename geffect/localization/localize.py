"""One pass over every split's examples: masks of the most important entries, overlaps, and mean gradients."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from geffect.core.effects import cosine
from geffect.core.gradients import NamedTensors, add_scaled
from geffect.core.gram import Gram, inner_products
from geffect.core.splits import TARGETS, of_role, role_of
from geffect.core.topk import Overlap, count, empty, overlaps, pack, top_masks
from geffect.errors import GeffectError
from geffect.localization.importance import Importance
from geffect.localization.selection import Masks

if TYPE_CHECKING:
    import pandas as pd

Losses = Iterable[Callable[[], Tensor]]


@dataclass(repr=False)
class Localization:
    """What localizing leaves behind.

    Attributes:
        masks: share → split → parameter → packed mask; empty ones are missing.
        overlaps: share → the overlaps of the splits' masks.
        gram: inner products of the splits' mean gradients.
        magnitudes: split → parameter → mean |ḡ| over its entries; ``forget`` is that of all domains' examples.
        examples: split → N.
    """

    masks: dict[float, dict[str, Masks]]
    overlaps: dict[float, Overlap] = field(default_factory=dict)
    gram: Gram = field(default_factory=lambda: Gram(()))
    magnitudes: dict[str, dict[str, float]] = field(default_factory=dict)
    examples: dict[str, int] = field(default_factory=dict)

    def at(self, share: float) -> dict[str, Masks]:
        """The masks of a share.

        Args:
            share: of each tensor's entries.

        Returns:
            Split → parameter → packed mask.

        Raises:
            GeffectError: they were not made.
        """
        if share not in self.masks:
            have = ", ".join(f"{each:g}" for each in self.masks)
            remedy = f"localize with --share {share:g} too"
            raise GeffectError(f"masks of the largest {share:g} of each tensor", f"those of {have}", remedy)
        return self.masks[share]

    def cosines(self) -> dict[str, float]:
        """Parameter → cosine of all domains' forget and retain mean gradients, weighed by examples; 0 of a zero one.

        Returns:
            The cosines.

        Raises:
            GeffectError: the mean gradients were left out.
        """
        if not self.gram.rows:
            raise GeffectError("mean gradients beside the masks", "masks alone", "localize without --masks-only")
        total = {role: sum(of_role(self.examples, role)) for role in TARGETS}
        weights = {
            role: {each: n / total[role] for each, n in self.examples.items() if role_of(each) == role}
            for role in TARGETS
        }
        pooled = self.gram.combine(weights)
        found = {name: cosine(g, pooled.rows, *TARGETS) for name, g in pooled.values.items()}
        return {name: 0.0 if math.isnan(value) else value for name, value in found.items()}

    def to_frame(self) -> "pd.DataFrame":
        """A line a split: its examples, and how many entries each share's masks hold.

        Returns:
            Columns ``examples`` and ``top 10 %``, say, indexed by split.
        """
        import pandas as pd

        sizes = {
            f"top {100 * share:g} %": {split: sum(map(count, masks.values())) for split, masks in splits.items()}
            for share, splits in self.masks.items()
        }
        return pd.DataFrame({"examples": self.examples} | sizes).rename_axis("split")

    def __repr__(self) -> str:
        return f"Localization({', '.join(self.examples)}; shares {', '.join(f'{each:g}' for each in self.masks)})"

    def _repr_html_(self) -> str:
        return f"<p>entries in the masks of each split</p>{self.to_frame().to_html()}"


def localize(
    parameters: Mapping[str, nn.Parameter],
    losses: Mapping[str, Losses],
    shares: Sequence[float] = (0.1, 0.2),
    importance: str = "mean_abs",
    *,
    masks_only: bool = False,
) -> Localization:
    """Find where each split's knowledge lies.

    Args:
        parameters: the tensors, by canonical name.
        losses: split → a function an example that returns its loss, a scalar with a graph.
        shares: of each tensor's entries in a mask, in (0, 1].
        importance: see `Importance`.
        masks_only: hold no mean gradient a split: less time and memory, and no Gram, magnitudes or `region`.

    Returns:
        The localization.

    Raises:
        GeffectError: a share is not in (0, 1], the importance is unknown, or a gradient is not finite.

    >>> weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    >>> one = localize({"w": weight}, {"forget": [lambda: (weight * torch.tensor([0.0, 5.0, -1.0, 2.0])).sum()]}, [0.5])
    >>> one.masks[0.5]["forget"]["w"].tolist(), one.magnitudes["forget"]["w"]
    ([80], 2.0)
    """
    found = Localization({share: {} for share in shares})
    means: dict[str, NamedTensors] = {}
    for split, examples in losses.items():
        scorer = Importance(parameters, importance, signed=not masks_only)
        for loss in examples:
            scorer.add(loss())
        found.examples[split], kept = scorer.examples, scorer.means()
        for share in shares:
            found.masks[share][split] = empty(scorer.reached)
        for name in scorer.reached:
            _mask(found, split, name, scorer.take(name))
        if not masks_only:
            means[split] = kept
    names = list(parameters)
    found.overlaps = {share: _overlap(masks, share, names) for share, masks in found.masks.items()}
    if means:
        found.gram = Gram(tuple(means), {n: inner_products([row.get(n) for row in means.values()]) for n in names})
        found.magnitudes = _magnitudes(found.examples, means, names)
    return found


def _mask(found: Localization, split: str, name: str, score: Tensor) -> None:
    for splits, mask in zip(found.masks.values(), top_masks(score, list(found.masks)), strict=True):
        if mask.numpy().any():  # ends at the first; torch's own looks at all
            splits[split][name].copy_(pack(mask))
        else:
            del splits[split][name]


def _overlap(splits: Mapping[str, Masks], share: float, names: Sequence[str]) -> Overlap:
    return Overlap(tuple(splits), share, {n: overlaps([masks.get(n) for masks in splits.values()]) for n in names})


def _magnitudes(
    examples: Mapping[str, int], means: Mapping[str, NamedTensors], names: Sequence[str]
) -> dict[str, dict[str, float]]:
    found = {split: {n: _mean_abs(row.get(n)) for n in names} for split, row in means.items()}
    forget = [split for split in means if role_of(split) == "forget"]
    total = sum(examples[split] for split in forget)
    pooled = {}
    for name in names:
        row: NamedTensors = {}
        for split in forget:
            add_scaled(row, name, means[split].get(name), examples[split] / total)
        pooled[name] = _mean_abs(row.get(name))
    return found | {"forget": pooled}


def _mean_abs(tensor: Tensor | None) -> float:
    if tensor is None:
        return 0.0
    lines = tensor.abs().sum(-1)  # short enough for float32; a float64 norm of the whole takes three times as long
    return float(lines.sum(dtype=torch.float64)) / tensor.numel()
