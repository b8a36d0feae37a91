"""Random labels in place of true ones: a pure function of (seed, row index)."""

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from geffect.core.forward import IGNORE_INDEX
from geffect.data.encode import EncodedExample


def random_labels(
    rows: Sequence[EncodedExample],
    vocabulary: int,
    special: Collection[int],
    seed: int,
    *,
    everywhere: bool = False,
    draw: int = 0,
) -> list[Tensor]:
    """Draw every label from the vocabulary, uniformly; special tokens keep their own.

    Args:
        rows: the set.
        vocabulary: V, number of tokens.
        special: ids of special tokens.
        seed: of the draws.
        everywhere: label the prompts too (arXiv 2407.01920's code), not only what carries loss.
        draw: which of several independent draws.

    Returns:
        Labels ``[T]`` a row, ``IGNORE_INDEX`` where no loss is carried.
    """
    found = []
    for row in rows:
        further = [draw] if draw else []
        rng = np.random.default_rng([seed, row.index, 4, *further])
        drawn = rng.integers(vocabulary, size=len(row.input_ids))
        kept = np.isin(row.input_ids, list(special))
        labels = np.where(kept, row.input_ids, drawn)
        carries = np.ones(len(labels), dtype=bool) if everywhere else np.array(row.labels) != IGNORE_INDEX
        found.append(torch.from_numpy(np.where(carries, labels, IGNORE_INDEX)))
    return found


def corrupted(
    row: EncodedExample, vocabulary: int, special: Collection[int], seed: int, draw: int = 0
) -> EncodedExample:
    """Draw ⌊n/2⌋ of an answer's n positions anew, in inputs and labels alike (arXiv 2504.12681's official code).

    Positions are drawn with replacement; special tokens, the end of the answer among them, keep their place.

    Args:
        row: the row.
        vocabulary: V, number of tokens.
        special: ids of special tokens.
        seed: of the draws.
        draw: which of several independent draws.

    Returns:
        The row with other tokens.
    """
    rng = np.random.default_rng([seed, row.index, 7, draw])
    ids, labels = np.array(row.input_ids), np.array(row.labels)
    places = np.flatnonzero((labels != IGNORE_INDEX) & ~np.isin(ids, list(special)))
    chosen = rng.choice(places, size=len(places) // 2) if len(places) else places
    ids[chosen] = labels[chosen] = rng.integers(vocabulary, size=len(chosen))
    return EncodedExample(row.index, ids.tolist(), labels.tolist())
