"""Random labels in place of true ones: a pure function of (seed, row index)."""

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from geffect.data.encode import Encoded
from geffect.objectives.outputs import IGNORE_INDEX


def random_labels(
    rows: Sequence[Encoded], vocabulary: int, special: Collection[int], seed: int, *, everywhere: bool = False
) -> list[Tensor]:
    """Draw every label from the vocabulary, uniformly; special tokens keep their own.

    Args:
        rows: the set.
        vocabulary: V, number of tokens.
        special: ids of special tokens.
        seed: of the draws.
        everywhere: label the prompts too (arXiv 2407.01920's code), not only what carries loss.

    Returns:
        Labels ``[T]`` a row, ``IGNORE_INDEX`` where no loss is carried.
    """
    found = []
    for row in rows:
        drawn = np.random.default_rng([seed, row.index, 4]).integers(vocabulary, size=len(row.input_ids))
        kept = np.isin(row.input_ids, list(special))
        labels = np.where(kept, row.input_ids, drawn)
        carries = np.ones(len(labels), dtype=bool) if everywhere else np.array(row.labels) != IGNORE_INDEX
        found.append(torch.from_numpy(np.where(carries, labels, IGNORE_INDEX)))
    return found
