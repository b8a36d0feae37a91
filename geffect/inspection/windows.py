"""Whole sets as one window of micro-batches, so that a row is a set's gradient and not a batch's."""

from collections.abc import Iterator, Mapping, Sequence

from geffect.data.encode import EncodedExample
from geffect.data.pairing import PairedDataset, PairedSampler
from geffect.measurement.measurement import Batch
from geffect.training.aux_inputs import Columns, collated

FEWEST = 2  # parts whose spread can be told


def dataset_parts(
    sets: Mapping[str, Sequence[EncodedExample]], columns: Columns, pad_id: int, batch_size: int
) -> list[list[dict[str, Batch]]]:
    """Every row of every set once: parts alike in their shares of all sets, each in micro-batches.

    Standard errors see the parts; there are as many as the smallest set fills batches. A part holds an equal share of
    each set, cut into batches; where a set has fewer of them, it stands in the last, so that every part ends with all.

    Args:
        sets: set → encoded rows.
        columns: what the objective needs of each row.
        pad_id: fills the batches.
        batch_size: rows of a set at most in a micro-batch.

    Returns:
        Parts of micro-batches, each set → batch.
    """
    count = num_parts(min(map(len, sets.values())), batch_size)
    found = []
    for part in range(count):
        shares = {name: _share(rows, part, count) for name, rows in sets.items()}
        chunks = {
            name: [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)] for name, rows in shares.items()
        }
        longest = max(map(len, chunks.values()))
        found.append([
            collated(
                {name: each[i - longest] for name, each in chunks.items() if longest - i <= len(each)}, columns, pad_id
            )
            for i in range(longest)
        ])
    return found


def num_parts(smallest: int, batch_size: int) -> int:
    """Parts that standard errors see.

    Args:
        smallest: rows of the smallest set.
        batch_size: rows of a batch at most.

    Returns:
        Their number.

    >>> num_parts(40, 8), num_parts(8, 8), num_parts(1, 8)
    (5, 2, 1)
    """
    return min(smallest, max(FEWEST, -(-smallest // batch_size)))


def _share(rows: Sequence[EncodedExample], part: int, count: int) -> Sequence[EncodedExample]:
    return rows[part * len(rows) // count : (part + 1) * len(rows) // count]


def published_batches(
    sets: Mapping[str, Sequence[EncodedExample]], columns: Columns, pad_id: int, batch_size: int, seed: int
) -> Iterator[dict[str, Batch]]:
    """One pass over the forget rows, as many random rows of each other set beside them, as a run draws them.

    Args:
        sets: set → encoded rows.
        columns: what the objective needs of each row.
        pad_id: fills the batches.
        batch_size: forget rows of a micro-batch.
        seed: of the draws.

    Yields:
        Set → batch.
    """
    met = [PairedDataset(sets)[each] for each in PairedSampler({name: len(rows) for name, rows in sets.items()}, seed)]
    for i in range(0, len(met), batch_size):
        yield collated({name: [row[name] for row in met[i : i + batch_size]] for name in sets}, columns, pad_id)
