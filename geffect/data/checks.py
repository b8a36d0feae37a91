"""What a set would lose on its way to a model: control tokens in its text, tokens cut off, ids that no model has."""

import logging
import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from geffect.core.forward import IGNORE_INDEX
from geffect.data.load import ExampleSet, TextSet
from geffect.errors import GeffectError

if TYPE_CHECKING:
    from geffect.data.encode import EncodedExample

LOGGER = logging.getLogger(__name__)


def control_texts(tokenizer: Any) -> set[str]:
    """The texts that a tokenizer reads as control tokens, such as ``</s>``; they never stand for themselves.

    Args:
        tokenizer: a Hugging Face tokenizer.

    Returns:
        The texts.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return {each for each in (*tokenizer.all_special_tokens, *(str(t) for t in added if t.special)) if each.strip()}


def check_control_texts(tokenizer: Any, rows: ExampleSet) -> None:
    """Raise where a question or an answer holds a control token's text: an answer would end at ``</s>``, say.

    Of a set of texts, which nothing cuts, it is told.

    Args:
        tokenizer: a Hugging Face tokenizer.
        rows: the set.

    Raises:
        GeffectError: a question or an answer holds one; the first such row is named.
    """
    texts = sorted(control_texts(tokenizer), key=len, reverse=True)
    if not texts:
        return
    pattern = re.compile("|".join(map(re.escape, texts)))
    found = [
        (i, field, match[0])
        for i, content in enumerate(rows.contents)
        for field, text in zip_longest(rows.FIELDS, content, fillvalue="conversation")
        if (match := pattern.search(text))
    ]
    if not found:
        return
    count, (index, field, text) = len({i for i, _, _ in found}), found[0]
    if isinstance(rows, TextSet):
        told = "%d of %d texts of %s hold %r or another control token's text, which this tokenizer reads as that token"
        LOGGER.warning(told, count, len(rows), rows.name, text)
        return
    raise GeffectError(
        f"questions and answers of {rows.name} without the texts of this tokenizer's control tokens",
        f"{text!r} in the {field} of row {index}, and such in {count} of {len(rows)} rows",
        "rewrite them in the file, or leave those rows out",
    )


def tell_unknown(tokenizer: Any, rows: Sequence["EncodedExample"], name: str) -> None:
    """Warn of text that a tokenizer has no token for, and reads as its unknown token.

    Args:
        tokenizer: a Hugging Face tokenizer.
        rows: the encoded set.
        name: of the set.
    """
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}:
        return
    if count := sum(unknown in row.input_ids for row in rows):
        told = "%d of %d examples of %s hold text that this tokenizer reads as %s: it has no tokens for it"
        LOGGER.warning(told, count, len(rows), name, tokenizer.unk_token)


def check_ids(rows: Sequence["EncodedExample"], vocabulary: int | None, name: str, pad_id: int = 0) -> None:
    """Raise where a token or a label is none of the model's.

    Args:
        rows: the encoded set.
        vocabulary: rows of the model's embedding; None where that is not known.
        name: of the set.
        pad_id: fills batches.

    Raises:
        GeffectError: the first such id is named.
    """
    if vocabulary is None:
        return
    remedy = "use the model's own tokenizer, or resize the model's embedding and train it"
    for row in rows:
        ids = {*row.input_ids, *(label for label in row.labels if label != IGNORE_INDEX)}
        if wrong := sorted(each for each in ids if not 0 <= each < vocabulary):
            raise GeffectError(
                f"token ids from 0 to {vocabulary - 1}, which the model's embedding has, in {name}",
                f"{wrong[-1] if wrong[-1] >= vocabulary else wrong[0]} in row {row.index}",
                remedy,
            )
    if not 0 <= pad_id < vocabulary:
        raise GeffectError(
            f"a padding token among the {vocabulary} of the model's embedding",
            str(pad_id),
            "choose another padding token in the tokenizer's files",
        )


def tell_cut(sets: Mapping[str, Sequence["EncodedExample"]]) -> None:
    """Warn of examples that are cut.

    Args:
        sets: name → encoded rows.
    """
    for name, rows in sets.items():
        if lost := [row.cut for row in rows if row.cut]:
            told = "%d of %d examples of %s are cut at --max-length: the last %d tokens of their answers are left out"
            LOGGER.warning(told, len(lost), len(rows), name, sum(lost))
