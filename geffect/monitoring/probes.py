"""The rows a host's update is judged by: a forget and a retain set, in batches."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from geffect.core.forward import IGNORE_INDEX
from geffect.data.checks import check_ids, warn_cut
from geffect.data.encode import EncodedExample, collate, encode_set, pad_id_of
from geffect.data.load import ExampleSet, load_set
from geffect.errors import GeffectError, shorten
from geffect.measurement.measurement import Batch

ProbeSet = str | ExampleSet | Sequence[EncodedExample] | Sequence[Mapping[str, Any]]
FORMS = "a set's name, geffect.load_set(…), or examples with input_ids and labels"


@dataclass(frozen=True)
class Probe:
    """A set to judge by.

    Attributes:
        name: of the set, or ``rows``.
        rows: as the model sees them.
        batches: the same, padded.
    """

    name: str
    rows: list[EncodedExample]
    batches: list[Batch]

    @property
    def data(self) -> dict[str, Any]:
        """What a record's environment says of it."""
        text = json.dumps([[row.input_ids, row.labels] for row in self.rows])
        return {"set": self.name, "examples": len(self.rows), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def make_probe(
    role: str, given: ProbeSet, tokenizer: Any, batch_size: int, context: int | None, vocabulary: int | None = None
) -> Probe:
    """Read a set and put it into batches.

    Args:
        role: ``forget`` or ``retain``, for messages.
        given: a set's name, a set, or rows that are encoded already.
        tokenizer: of the model; rows that are encoded do without.
        batch_size: rows of a batch.
        context: positions the model has, where known.
        vocabulary: tokens the model has, where known.

    Returns:
        The probe.

    Raises:
        GeffectError: the set cannot be read or encoded, a row has no label, or a token is none of the model's.
    """
    name, rows = _rows(role, given, tokenizer, context)
    for row in rows:
        if len(row.labels) != len(row.input_ids) or all(each == IGNORE_INDEX for each in row.labels[1:]):
            carrying = sum(each != IGNORE_INDEX for each in row.labels[1:])
            raise GeffectError(
                f"Example {row.index} of the {role} set has {len(row.labels)} labels "
                f"of {len(row.input_ids)} tokens, {carrying} of them with loss",
                remedy="Label every token: the answer with its own ids and the prompt with -100",
            )
    pad_id = 0 if tokenizer is None else pad_id_of(tokenizer)
    check_ids(rows, vocabulary, f"the {role} set", pad_id)
    warn_cut({f"the {role} set": rows})
    return Probe(name, rows, [collate(rows[i : i + batch_size], pad_id) for i in range(0, len(rows), batch_size)])


def _rows(role: str, given: ProbeSet, tokenizer: Any, context: int | None) -> tuple[str, list[EncodedExample]]:
    if isinstance(given, str | ExampleSet):
        if tokenizer is None:
            raise GeffectError(f"The {role} set needs a tokenizer to be encoded with", remedy="Pass tokenizer=…")
        whole = load_set(given) if isinstance(given, str) else given
        return whole.name, encode_set(tokenizer, whole, context=context)
    rows = list(given)
    if not rows:
        raise GeffectError(f"The {role} set has no example", remedy=f"Give {FORMS}")
    return "rows", [_encoded(role, i, row) for i, row in enumerate(rows)]


def _encoded(role: str, index: int, row: Any) -> EncodedExample:
    if isinstance(row, EncodedExample):
        return EncodedExample(index, row.input_ids, row.labels)
    if not isinstance(row, Mapping) or not {"input_ids", "labels"} <= set(row):
        what = ", ".join(row) if isinstance(row, Mapping) else type(row).__name__
        raise GeffectError(
            f"Example {index} of the {role} set has {shorten(what)}, not input_ids and labels", remedy=f"Give {FORMS}"
        )
    ids, labels = ([int(each) for each in row[key]] for key in ("input_ids", "labels"))
    return EncodedExample(index, ids, labels)
