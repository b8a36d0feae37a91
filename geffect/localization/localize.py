"""Localize knowledge in the entries of a model's weights.

One pass over every split's examples makes masks of the most important entries, their overlaps, and mean gradients.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from geffect.core.architectures import CausalLM, Tokenizer
from geffect.core.devices import to_host
from geffect.core.forward import IGNORE_INDEX, Outputs, forward
from geffect.core.gradients import GradientBuffer, NamedTensors, add_scaled
from geffect.core.gram import Gram
from geffect.core.masks import Localization, Overlap, empty_masks, intersections, pack, top_masks
from geffect.core.splits import TARGETS, domain_of, role_of, split_name
from geffect.data.encode import EncodedExample, collate, pad_id_of
from geffect.data.relabel import corrupt_answer, random_labels
from geffect.errors import GeffectError
from geffect.io.progress import Bar
from geffect.localization.truth import Recovery, random_importance
from geffect.models.load import Loaded

IMPORTANCES = ("mean_abs", "mean_square", "zscore")
PAIRED = ("ratio", "wagle")  # beside these: of the mean gradients of a domain's two splits
CONTROL = "random"  # and entries drawn by lot
FLAT = 1e-12  # a standard deviation below it ranks nothing
FLOOR = 1e-3  # of a tensor's root mean square, the least that ratio divides by
Losses = Iterable[Callable[[], Tensor]]


def localize(
    parameters: Mapping[str, nn.Parameter],
    losses: Mapping[str, Losses],
    shares: Sequence[float] = (0.1, 0.2),
    importance: str = "mean_abs",
    *,
    masks_only: bool = False,
    seed: int = 0,
    mu: float = 1.0,
    recovery: Recovery | None = None,
) -> Localization:
    """Localize each split's knowledge in the parameters.

    ``losses`` maps a split to functions, one an example, that return its loss, a scalar with a graph; masks hold the
    ``shares`` in (0, 1] of each tensor's entries that are most important (`Importance`). ``masks_only`` keeps no mean
    gradient a split: less time and memory, but no Gram and no magnitudes to choose a region by. ``seed`` is that of
    ``random`` importance, ``mu`` that of ``wagle``. A ``recovery`` counts what of known entries is found.

    >>> weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    >>> one = localize({"w": weight}, {"forget": [lambda: (weight * torch.tensor([0.0, 5.0, -1.0, 2.0])).sum()]}, [0.5])
    >>> one.masks[0.5]["forget"]["w"].tolist(), one.magnitudes["forget"]["w"]
    ([80], 2.0)
    """
    localization = Localization({share: {} for share in shares})
    means: dict[str, NamedTensors] = {}
    partners = _partners(losses, importance) if importance in PAIRED else {}
    for split, examples in losses.items():
        scorer = Importance(parameters, importance, signed=not masks_only, lot=f"{seed} {split}")
        for loss in examples:
            scorer.add(loss())
        localization.examples[split], split_means = scorer.examples, scorer.means()
        if not partners:
            _mask_split(localization, split, scorer.reached, scorer.pop, importance, recovery)
        if partners or not masks_only:
            means[split] = split_means
        del scorer, split_means  # else the next split would add up its gradients beside these
    for split, partner in partners.items():
        score = functools.partial(_paired, importance, parameters, means[split], means[partner], mu)
        reached = {name: mean.numel() for name, mean in means[split].items()}
        _mask_split(localization, split, reached, score, importance, recovery)
    names = list(parameters)
    for share, splits in localization.masks.items():
        counts = {name: intersections([masks.get(name) for masks in splits.values()]) for name in names}
        localization.overlaps[share] = Overlap(tuple(splits), share, counts)
    if not masks_only:
        localization.gram = Gram.reduce(tuple(means), names, means)
        sizes = {name: parameter.numel() for name, parameter in parameters.items()}
        localization.magnitudes = _magnitudes(localization.examples, means, sizes)
    return localization


def _partners(splits: Iterable[str], importance: str) -> dict[str, str]:
    """Split → the other one of its domain, whose mean gradient the importance reads beside its own."""
    others = {"forget": "retain", "retain": "forget"}
    partners = {split: split_name(others.get(role_of(split), ""), domain_of(split)) for split in splits}
    for split in (split for split, partner in partners.items() if partner not in partners):
        missing = partners[split] or " and ".join(TARGETS)
        message = f"The importance {importance} of {split} needs the mean gradient of {missing}, which is no split here"
        raise GeffectError(message, remedy="Localize both of a domain's splits, or choose mean_abs")
    return partners


def _paired(
    importance: str,
    parameters: Mapping[str, nn.Parameter],
    own: NamedTensors,
    other: NamedTensors,
    mu: float,
    name: str,
) -> Tensor:
    gradient = own[name]
    beside = other[name] if name in other else torch.zeros_like(gradient)  # no loss reached it
    return ratio(gradient, beside) if importance == "ratio" else wagle(parameters[name], gradient, beside, mu)


def ratio(own: Tensor, other: Tensor) -> Tensor:
    """|own| / |other|, where |other| counts as 0.001 of its root mean square over the tensor at least.

    Where all of ``other`` is zero, it is |own|: the order of the own gradient alone.

    >>> ratio(torch.tensor([2.0, 3.0]), torch.tensor([-4.0, 1.0])).tolist()
    [0.5, 3.0]
    """
    floor = FLOOR * other.square().mean().sqrt()
    return own.abs() / other.abs().clamp(min=floor if float(floor) else torch.ones_like(floor))


def wagle(parameter: Tensor, own: Tensor, other: Tensor, mu: float) -> Tensor:
    """|(θ − other/μ) · own|: WAGLE's first-order effect of removing an entry (arXiv 2410.17509).

    μ > 0 stands for the curvature of the retain loss: the smaller, the more the other split's gradient counts.

    >>> wagle(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 3.0]), torch.tensor([0.0, 1.0]), mu=0.25).tolist()
    [3.0, 6.0]
    """
    if not mu > 0:
        raise GeffectError(f"wagle's mu is {mu:g}", remedy="Choose a number above 0, such as 1")
    return (parameter.detach().to(own.dtype) - other / mu).mul_(own).abs_()


def _mask_split(
    localization: Localization,
    split: str,
    reached: Mapping[str, int],
    score: Callable[[str], Tensor],
    importance: str,
    recovery: Recovery | None,
) -> None:
    """Add a split's masks, a tensor at a time."""
    for masks in localization.masks.values():
        masks[split] = empty_masks(reached)
    for name in reached:
        scored = score(name)
        packed = _mask(localization, split, name, scored)
        if recovery is not None:
            recovery.add(split, importance, name, scored, dict(zip(localization.masks, packed, strict=True)))


def _mask(localization: Localization, split: str, name: str, score: Tensor) -> list[Tensor]:
    packed = to_host([pack(mask) for mask in top_masks(score, list(localization.masks))])
    for splits, bits in zip(localization.masks.values(), packed, strict=True):
        if bits.numpy().any():
            splits[split][name].copy_(bits)
        else:
            del splits[split][name]
    return packed


def _magnitudes(
    examples: Mapping[str, int], means: Mapping[str, NamedTensors], sizes: Mapping[str, int]
) -> dict[str, dict[str, float]]:
    names = list(sizes)
    sums = {split: {n: _sum_abs(mean.get(n)) for n in names} for split, mean in means.items()}
    forget = [split for split in means if role_of(split) == "forget"]
    total = sum(examples[split] for split in forget)
    sums["forget"] = {}
    for name in names:
        mean: NamedTensors = {}
        for split in forget:
            add_scaled(mean, name, means[split].get(name), examples[split] / total)
        sums["forget"][name] = _sum_abs(mean.get(name))
    numbers = map(float, to_host([sum_abs for each in sums.values() for sum_abs in each.values()]))
    return {split: {name: next(numbers) / sizes[name] for name in each} for split, each in sums.items()}


def _sum_abs(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        return torch.zeros((), dtype=torch.float64)
    lines = tensor.abs().sum(-1)  # short enough for float32; a float64 norm of the whole takes three times as long
    return lines.sum(dtype=torch.float64)


class Importance:
    """The importance of every entry to a set: its N examples' gradients g_i folded into two sums, a tensor at a time.

    - ``mean_abs``: (1/N) Σ |g_i|, the average gradient magnitude of arXiv 2504.12681, Eq. 3. Its square, which Eq. 4
      ranks by, has the same order.
    - ``mean_square``: (1/N) Σ g_i².
    - ``zscore``: |z| of the signed mean, z = (ḡ − mean ḡ)/std ḡ over a tensor (the paper's official code). Where the
      examples' gradients cancel it is small, and the other two are not.
    - ``ratio`` and ``wagle``: of the signed means of this set and of the other one of its domain (`ratio`, `wagle`),
      which are made of `means` once both sets are through.
    - ``random``: drawn uniformly, by the ``lot`` and the tensor's name alone. It says nothing of the examples: masks of
      it are the control that a localization has to beat (arXiv 2505.16252).

    ``signed`` sums g_i too where the mode does not need it.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], mode: str = "mean_abs", *, signed: bool = True, lot: str = ""
    ) -> None:
        if mode not in (*IMPORTANCES, *PAIRED, CONTROL):
            remedy = f"Choose one of {', '.join((*IMPORTANCES, *PAIRED, CONTROL))}"
            raise GeffectError(f"There is no importance {mode!r}", remedy=remedy)
        self.parameters, self.mode, self.examples, self.lot = dict(parameters), mode, 0, lot
        self.unsized = mode in ("zscore", *PAIRED, CONTROL)  # sums the gradients themselves alone
        self.signed = signed or mode in ("zscore", *PAIRED)
        self.sums, self.sizes = NamedTensors(), NamedTensors()
        self._reached: set[str] = set()

    def add(self, loss: Tensor) -> None:
        """Back-propagate one example's loss, a scalar with a graph."""
        GradientBuffer(self.parameters).stream("example", loss, self._fold)
        self.examples += 1

    def _fold(self, name: str, gradient: Tensor | None) -> None:
        if gradient is None:
            return
        gradient = gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32))
        self._reached.add(name)
        if name in self.sums:
            self.sums[name].add_(gradient)
        elif self.signed:
            self.sums[name] = gradient if self.unsized else gradient.clone()
        if self.mode == "mean_square" and name in self.sizes:
            self.sizes[name].addcmul_(gradient, gradient)
        elif not self.unsized:  # the gradient itself is freed with this call
            size = gradient.abs_() if self.mode == "mean_abs" else gradient.square_()
            self.sizes[name] = self.sizes[name].add_(size) if name in self.sizes else size

    def means(self) -> NamedTensors:
        """The signed means ḡ by parameter, computed in the sums' memory; a tensor that no loss reached is missing."""
        return {name: self.sums[name].div_(self.examples) for name in self.reached if self.sums}

    @property
    def reached(self) -> dict[str, int]:
        """The number of entries of each tensor that a loss reached."""
        return {name: parameter.numel() for name, parameter in self.parameters.items() if name in self._reached}

    def pop(self, name: str) -> Tensor:
        """The importance of one tensor's entries, up to a factor, of its shape; its magnitudes are freed."""
        if self.mode == CONTROL:
            return random_importance(self.parameters[name], f"{self.lot} {name}")
        return scores(self.sums[name]) if self.mode == "zscore" else self.sizes.pop(name)


def scores(mean: Tensor) -> Tensor:
    """|z| · std = |ḡ − mean ḡ| of one tensor, which has the order of |z|; zeros where std ḡ < 1e-12.

    >>> scores(torch.tensor([1.0, 2.0, 6.0])).tolist()
    [2.0, 1.0, 3.0]
    """
    centered = mean - mean.mean()
    return centered.abs() if float(centered.square().mean().sqrt()) >= FLAT else torch.zeros_like(mean)


Labels = Literal["random", "true", "corrupted"]


def split_losses(
    loaded: Loaded, sets: Mapping[str, list[EncodedExample]], labels: Labels = "random", draws: int = 3, seed: int = 0
) -> dict[str, Iterator[Callable[[], Tensor]]]:
    """The losses of each split's examples (`example_losses`), under one progress bar."""
    bar = Bar(sum(map(len, sets.values())), "example")

    def with_progress(name: str, examples: list[EncodedExample]) -> Iterator[Callable[[], Tensor]]:
        for loss in example_losses(loaded.model, loaded.tokenizer, examples, labels, draws, seed):
            yield loss
            bar.tell({name: ""}, steps=1)
        if bar.n == bar.total:
            bar.close()

    return {name: with_progress(name, examples) for name, examples in sets.items()}


def example_losses(
    model: CausalLM,
    tokenizer: Tokenizer,
    examples: Sequence[EncodedExample],
    labels: Labels = "random",
    draws: int = 3,
    seed: int = 0,
) -> Iterator[Callable[[], Tensor]]:
    """The losses of a set's examples, one forward pass each: the token mean, averaged over draws of labels.

    - ``random``: the answer's labels are replaced by uniform draws (arXiv 2504.12681); the inputs are not, so that all
      draws share a forward and a backward pass.
    - ``true``: the labels of the data.
    - ``corrupted``: half of the answer's positions are drawn anew in the *inputs*, and the labels copy them (that
      paper's official code, after arXiv 2407.01920's).

    Each value is a function that runs the model in its present mode and returns the loss; one that is not finite is
    refused. Draws depend on (seed, the example's index, draw) alone.
    """
    vocabulary, special = int(model.config.get_text_config().vocab_size), tokenizer.all_special_ids
    pad_id = pad_id_of(tokenizer)

    def outputs_of(examples: Sequence[EncodedExample]) -> Outputs:
        return forward(model, {name: tensor.to(model.device) for name, tensor in collate(examples, pad_id).items()})

    def loss(example: EncodedExample) -> Tensor:
        if labels == "random":
            others = [random_labels([example], vocabulary, special, seed, draw=draw)[0] for draw in range(draws)]
            value = _mean_over_labels(outputs_of([example]), torch.stack(others))
        elif labels == "corrupted":
            corrupted = [corrupt_answer(example, vocabulary, special, seed, draw) for draw in range(draws)]
            value = _mean_over_examples(outputs_of(corrupted))
        else:
            value = _mean_over_examples(outputs_of([example]))
        if not bool(value.detach().isfinite()):
            message = f"The loss of example {example.index} is {float(value.detach())}"
            raise GeffectError(message, remedy="Look at the model with geffect doctor")
        return value

    return (functools.partial(loss, example) for example in examples)


def _mean_over_examples(outputs: Outputs) -> Tensor:
    return (outputs.sequence_nll / outputs.mask.sum(1)).mean()


def _mean_over_labels(outputs: Outputs, labels: Tensor) -> Tensor:
    labels = labels.to(outputs.logits.device)  # [draws, T]
    nlls = torch.stack([outputs.nll_of(each[None]) for each in labels])
    return nlls.sum() / (labels[:, 1:] != IGNORE_INDEX).sum()
