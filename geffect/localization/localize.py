"""One pass over every split's examples: masks of the most important entries, overlaps, and mean gradients."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from geffect.core.gradients import GradientBuffer, NamedTensors, add_scaled
from geffect.core.gram import Gram, inner_products
from geffect.core.masks import Localization, Overlap, PackedMasks, empty_masks, intersections, pack, top_masks
from geffect.core.splits import role_of
from geffect.errors import GeffectError

IMPORTANCES = ("mean_abs", "mean_square", "zscore")
FLAT = 1e-12  # a standard deviation below it ranks nothing
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


class Importance:
    """Gradients g_i of a set's N examples, folded into two sums; never more than one tensor of one of them is held.

    - ``mean_abs``: (1/N) Σ |g_i|, the average gradient magnitude of arXiv 2504.12681, Eq. 3. Its square, which Eq. 4
      ranks by, has the same order.
    - ``mean_square``: (1/N) Σ g_i².
    - ``zscore``: |z| of the signed mean, z = (ḡ − mean ḡ)/std ḡ over a tensor (the paper's official code). Where the
      examples' gradients cancel it is small, and the other two are not.

    Args:
        parameters: the tensors, by canonical name.
        mode: one of `IMPORTANCES`.
        signed: sum g_i too where the mode does not need it.

    Raises:
        GeffectError: the mode is unknown.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], mode: str = "mean_abs", *, signed: bool = True) -> None:
        if mode not in IMPORTANCES:
            raise GeffectError(f"There is no importance {mode!r}", remedy=f"Choose one of {', '.join(IMPORTANCES)}")
        self.parameters, self.mode, self.examples = dict(parameters), mode, 0
        self.sums = _zeros(self.parameters) if signed or mode == "zscore" else {}
        self.sizes = _zeros(self.parameters) if mode != "zscore" else {}
        self._reached: set[str] = set()

    def add(self, loss: Tensor) -> None:
        """Back-propagate one example's loss.

        Args:
            loss: a scalar with a graph.
        """
        GradientBuffer(self.parameters).stream("example", loss, self._fold)
        self.examples += 1

    def _fold(self, name: str, gradient: Tensor | None) -> None:
        if gradient is None:
            return
        gradient = gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32))
        self._reached.add(name)
        if self.sums:
            self.sums[name].add_(gradient)
        if self.mode == "mean_abs":
            self.sizes[name].add_(gradient.abs_())  # the gradient itself is freed with this call
        elif self.mode == "mean_square":
            self.sizes[name].addcmul_(gradient, gradient)

    def means(self) -> NamedTensors:
        """The signed mean ḡ, taken out of the sums in place; a tensor that no loss reached is missing."""
        return {name: self.sums[name].div_(self.examples) for name in self.reached if self.sums}

    @property
    def reached(self) -> dict[str, int]:
        """Tensor that a loss reached → entries."""
        return {name: parameter.numel() for name, parameter in self.parameters.items() if name in self._reached}

    def take(self, name: str) -> Tensor:
        """The importance of one tensor's entries, up to a factor: what ranks them. Its magnitudes are let go.

        Args:
            name: the parameter.

        Returns:
            Non-negative, of the tensor's shape.
        """
        return scores(self.sums[name]) if self.mode == "zscore" else self.sizes.pop(name)


def _zeros(parameters: Mapping[str, nn.Parameter]) -> NamedTensors:
    return {n: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for n, p in parameters.items()}


def scores(mean: Tensor) -> Tensor:
    """|z| · std = |ḡ − mean ḡ| of one tensor: the order of |z|.

    Args:
        mean: ḡ.

    Returns:
        Of its shape; zeros where std ḡ < 1e-12.

    >>> scores(torch.tensor([1.0, 2.0, 6.0])).tolist()
    [2.0, 1.0, 3.0]
    """
    centered = mean - mean.mean()
    return centered.abs() if float(centered.square().mean().sqrt()) >= FLAT else torch.zeros_like(mean)
