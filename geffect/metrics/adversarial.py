"""What a model would most likely say instead: labels for fine-tuning on adversarial samples."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from geffect.data import Encoded
from geffect.metrics.likelihood import outputs_of
from geffect.objectives.outputs import IGNORE_INDEX


def adversarial_labels(
    model: nn.Module, rows: Sequence[Encoded], pad_id: int, *, misaligned: bool = False, batch_size: int = 16
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
    for chosen, outputs in outputs_of(model, rows, pad_id, batch_size):
        for i, logits in zip(chosen, outputs.logits.cpu(), strict=True):
            row = rows[i]
            found[i] = (_misaligned if misaligned else _aligned)(logits[: len(row.input_ids)].clone(), row)
    return [found[i] for i in range(len(rows))]


def _aligned(logits: Tensor, row: Encoded) -> Tensor:
    ids = torch.tensor(row.input_ids)
    before = logits[:-1].scatter(1, ids[1:, None], -torch.inf)  # [T-1, V]: position t-1 predicts token t
    best = torch.cat([ids[:1], before.argmax(-1)])
    return torch.where(torch.tensor(row.labels) != IGNORE_INDEX, best, IGNORE_INDEX)


def _misaligned(logits: Tensor, row: Encoded) -> Tensor:
    banned = logits.scatter(1, torch.tensor(row.input_ids)[:, None], -torch.inf)
    banned[:, -1] = -torch.inf
    return banned.argmax(-1)
