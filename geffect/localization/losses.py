"""The loss of each example that a localization back-propagates: on true labels, random ones, or a corrupted answer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from geffect.core.forward import IGNORE_INDEX, forward
from geffect.data.encode import EncodedExample, collate, pad_id_of
from geffect.data.relabel import corrupt_answer, random_labels
from geffect.errors import GeffectError
from geffect.models.load import Loaded

Labels = Literal["random", "true", "corrupted"]


def split_losses(
    loaded: Loaded, rows: Mapping[str, list[EncodedExample]], labels: Labels = "random", draws: int = 3, seed: int = 0
) -> dict[str, Iterator[Callable[[], Tensor]]]:
    """The losses of each split's examples (`example_losses`), under one progress bar."""
    bar = tqdm(total=sum(map(len, rows.values())), unit="example", disable=None)

    def with_progress(examples: list[EncodedExample]) -> Iterator[Callable[[], Tensor]]:
        losses = example_losses(loaded.model, loaded.tokenizer, examples, labels, draws, seed)
        for loss in losses:
            yield loss
            bar.update()
        if bar.n == bar.total:
            bar.close()

    return {name: with_progress(each) for name, each in rows.items()}


def example_losses(
    model: Any, tokenizer: Any, rows: Sequence[EncodedExample], labels: Labels = "random", draws: int = 3, seed: int = 0
) -> Iterator[Callable[[], Tensor]]:
    """The losses of a set's examples, one forward pass each: the token mean, averaged over draws of labels.

    - ``random``: the answer's labels are replaced by uniform draws (arXiv 2504.12681); the inputs are not, so that all
      draws share a forward and a backward pass.
    - ``true``: the labels of the data.
    - ``corrupted``: half of the answer's positions are drawn anew in the *inputs*, and the labels copy them (that
      paper's official code, after arXiv 2407.01920's).

    Each value is a function that runs the model in its present mode and returns the loss. Draws depend on (seed,
    the example's index, draw) alone.
    """
    vocabulary, special = int(model.config.get_text_config().vocab_size), tokenizer.all_special_ids
    pad_id = pad_id_of(tokenizer)

    def loss(row: EncodedExample) -> Tensor:
        if labels == "corrupted":
            rows = [corrupt_answer(row, vocabulary, special, seed, draw) for draw in range(draws)]
            return _finite(_mean(model, rows, pad_id), row)
        if labels == "true":
            return _finite(_mean(model, [row], pad_id), row)
        others = [random_labels([row], vocabulary, special, seed, draw=draw)[0] for draw in range(draws)]
        return _finite(_relabeled(model, row, others, pad_id), row)

    for row in rows:
        yield lambda row=row: loss(row)  # type: ignore[misc]


def _mean(model: Any, rows: Sequence[EncodedExample], pad_id: int) -> Tensor:
    outputs = forward(model, _on_device(model, rows, pad_id))
    return (outputs.sequence_nll / outputs.mask.sum(1)).mean()


def _relabeled(model: Any, row: EncodedExample, labels: Sequence[Tensor], pad_id: int) -> Tensor:
    outputs = forward(model, _on_device(model, [row], pad_id))
    drawn = torch.stack(list(labels)).to(outputs.logits.device)  # [draws, T]
    nlls = torch.stack([outputs.nll_of(each[None]) for each in drawn])
    return nlls.sum() / (drawn[:, 1:] != IGNORE_INDEX).sum()


def _on_device(model: Any, rows: Sequence[EncodedExample], pad_id: int) -> dict[str, Tensor]:
    return {name: tensor.to(model.device) for name, tensor in collate(rows, pad_id).items()}


def _finite(loss: Tensor, row: EncodedExample) -> Tensor:
    if not bool(loss.detach().isfinite()):
        raise GeffectError(
            f"The loss of example {row.index} is {float(loss.detach())}", remedy="Look at the model with geffect doctor"
        )
    return loss
