"""What a model would most likely say instead: labels for fine-tuning on adversarial samples."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from geffect.core.forward import ALL_LOGITS, IGNORE_INDEX
from geffect.data.encode import EncodedExample
from geffect.models.scoring import forward_batches


def adversarial_labels(
    model: nn.Module, rows: Sequence[EncodedExample], pad_id: int, *, misaligned: bool = False, batch_size: int = 16
) -> list[Tensor]:
    """The model's best token but the true one, as labels.

    Aligned: the label of a loss-carrying token t is argmax of the prediction of t, with token t itself banned.
    Misaligned (arXiv 2407.01920's code): the label of every position j is argmax of the prediction of token j + 1, with
    token j and the vocabulary's last banned, although a label at j is scored by the prediction of j.

    Args:
        model: the start of an unlearning run.
        rows: the encoded set.
        pad_id: fills the batches.
        misaligned: the published variant.
        batch_size: rows at a time.

    Returns:
        Labels ``[T]`` a row, ``IGNORE_INDEX`` where no loss is carried.
    """
    found: dict[int, Tensor] = {}
    label = _misaligned if misaligned else _aligned
    for chosen, outputs in forward_batches(model, rows, pad_id, batch_size, {ALL_LOGITS} if misaligned else ()):
        for i, logits in zip(chosen, outputs.logits_by_row(), strict=True):
            found[i] = label(logits.cpu(), rows[i])
    return [found[i] for i in range(len(rows))]


def _aligned(logits: Tensor, row: EncodedExample) -> Tensor:
    """Of the n labeled tokens' predictions ``[n, V]``."""
    labels = torch.tensor(row.labels)
    labeled = labels[1:] != IGNORE_INDEX  # nothing predicts a row's first token
    true = torch.tensor(row.input_ids)[1:][labeled]
    best = logits.scatter(1, true[:, None], -torch.inf).argmax(-1)
    labels[1:][labeled] = best
    return labels


def _misaligned(logits: Tensor, row: EncodedExample) -> Tensor:
    """Of every position's prediction, padding included."""
    ids = torch.tensor(row.input_ids)
    banned = logits[: len(ids)].scatter(1, ids[:, None], -torch.inf)
    banned[:, -1] = -torch.inf
    return banned.argmax(-1)
