"""One pass over every split's examples: masks of the most important entries, overlaps, and mean gradients."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from geffect.core.gradients import NamedTensors, add_scaled
from geffect.core.gram import Gram, inner_products
from geffect.core.masks import PackedMasks
from geffect.core.splits import role_of
from geffect.core.topk import Overlap, empty_masks, intersections, pack, top_masks
from geffect.localization.importance import Importance

if TYPE_CHECKING:
    pass
from geffect.core.masks import Localization

Losses = Iterable[Callable[[], Tensor]]


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
            found.masks[share][split] = empty_masks(scorer.reached)
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


def _overlap(splits: Mapping[str, PackedMasks], share: float, names: Sequence[str]) -> Overlap:
    return Overlap(tuple(splits), share, {n: intersections([masks.get(n) for masks in splits.values()]) for n in names})


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
