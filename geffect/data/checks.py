"""Checks of sets: control tokens in a text, ids outside a model's vocabulary, examples that are cut or in two sets."""

import itertools
import logging
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from geffect.core.architectures import Tokenizer
from geffect.core.forward import IGNORE_INDEX
from geffect.data.load import ExampleSet
from geffect.errors import GeffectError

if TYPE_CHECKING:
    from geffect.data.encode import EncodedExample

LOGGER = logging.getLogger(__name__)


def control_texts(tokenizer: Tokenizer) -> set[str]:
    """The texts that a tokenizer reads as control tokens, such as ``</s>``."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    return {each for each in (*tokenizer.all_special_tokens, *(str(t) for t in added if t.special)) if each.strip()}


def check_control_texts(tokenizer: Tokenizer, examples: ExampleSet) -> None:
    """Raise where a question or an answer contains a control token's text; in texts, only warn."""
    texts = sorted(control_texts(tokenizer), key=len, reverse=True)
    if not texts:
        return
    pattern = re.compile("|".join(map(re.escape, texts)))
    matches = [
        (i, field, match[0])
        for i, content in enumerate(examples.contents)
        for field, text in itertools.zip_longest(examples.FIELDS, content, fillvalue="conversation")
        if (match := pattern.search(text))
    ]
    if not matches:
        return
    count, (index, field, text) = len({i for i, _, _ in matches}), matches[0]
    if "question" not in examples.FIELDS:
        message = "%d of %d texts of %s hold %r or another text that this tokenizer reads as a control token"
        LOGGER.warning(message, count, len(examples), examples.name, text)
        return
    where = f"{text!r} in the {field} of example {index}"
    message = (
        f"{count} of {len(examples)} examples of {examples.name} hold the text of a control token, the first {where}"
    )
    raise GeffectError(message, remedy="Rewrite them in the file, or omit those examples")


def warn_unknown(tokenizer: Tokenizer, examples: Sequence["EncodedExample"], name: str) -> None:
    """Warn of text that a tokenizer has no token for and reads as its unknown token."""
    unknown = tokenizer.unk_token_id
    if unknown is None or unknown in {tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id}:
        return
    if count := sum(unknown in example.input_ids for example in examples):
        message = "%d of %d examples of %s hold text that this tokenizer reads as %s: it has no tokens for it"
        LOGGER.warning(message, count, len(examples), name, tokenizer.unk_token)


def check_ids(examples: Sequence["EncodedExample"], vocabulary: int | None, name: str, pad_id: int = 0) -> None:
    """Raise where an id or label is not below ``vocabulary``, the size of the model's embedding (None: unknown)."""
    if vocabulary is None:
        return
    for example in examples:
        ids = {*example.input_ids, *(label for label in example.labels if label != IGNORE_INDEX)}
        if wrong := sorted(each for each in ids if not 0 <= each < vocabulary):
            bad = wrong[-1] if wrong[-1] >= vocabulary else wrong[0]
            where, last = f"Example {example.index} of {name}", vocabulary - 1
            message = f"{where} has the token id {bad}, and the model's ids are 0 to {last}"
            remedy = "Use the model's own tokenizer, or resize the model's embedding and train it"
            raise GeffectError(message, remedy=remedy)
    if not 0 <= pad_id < vocabulary:
        message = f"The padding token {pad_id} is not among the {vocabulary} of the model's embedding"
        raise GeffectError(message, remedy="Choose another padding token in the tokenizer's files")


def warn_cut(sets: Mapping[str, Sequence["EncodedExample"]]) -> None:
    """Warn of examples whose answers ``--max-length`` cuts."""
    for name, examples in sets.items():
        if lost := [example.cut for example in examples if example.cut]:
            message = "%d of %d examples of %s are cut at --max-length: the last %d tokens of their answers are lost"
            LOGGER.warning(message, len(lost), len(examples), name, sum(lost))


@dataclass(frozen=True)
class Shared:
    """The examples that two sets have in common.

    Attributes:
        one: name of the first set.
        other: name of the second.
        positions: of the shared examples in the first.
        near: how many of them differ in case, spaces or punctuation.
    """

    one: str
    other: str
    positions: tuple[int, ...]
    near: int

    def __str__(self) -> str:
        first = ", ".join(map(str, self.positions[:5])) + (", …" if len(self.positions) > 5 else "")
        near = f", {self.near} but for case, spaces and punctuation" if self.near else ""
        return f"{len(self.positions)} examples of {self.one} stand in {self.other}{near} (numbers {first})"


def shared_examples(sets: Mapping[str, ExampleSet]) -> Iterator[Shared]:
    """Compare every two sets, and yield what they share where they share an example."""
    exact = {name: [" ".join(content) for content in examples.contents] for name, examples in sets.items()}
    loose = {name: [_normalized(text) for text in texts] for name, texts in exact.items()}
    for one, other in itertools.combinations(sets, 2):
        known, same = set(loose[other]), set(exact[other])
        positions = tuple(i for i, text in enumerate(loose[one]) if text and text in known)
        if positions:
            yield Shared(one, other, positions, sum(exact[one][i] not in same for i in positions))


def warn_shared(sets: Mapping[str, ExampleSet]) -> None:
    """Warn of examples in two sets: none can be both forgotten and retained, or both trained on and held out."""
    for each in shared_examples(sets):
        LOGGER.warning("%s", each)


def _normalized(text: str) -> str:
    """A text's letters and digits in lower case, or all its characters where it has neither."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    words = "".join(each if each.isalnum() or unicodedata.combining(each) else " " for each in plain).split()
    return " ".join(words or plain.split())
