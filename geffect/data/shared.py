"""Examples that stand in two sets, as they are or but for case, spaces and punctuation."""

import itertools
import logging
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from geffect.data.load import ExampleSet

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shared:
    """What two sets have in common.

    Attributes:
        one: name of the first set.
        other: name of the second.
        rows: rows of the first that stand in the second.
        near: how many of them differ in case, spaces or punctuation.
    """

    one: str
    other: str
    rows: tuple[int, ...]
    near: int

    def __str__(self) -> str:
        first = ", ".join(map(str, self.rows[:5])) + (", …" if len(self.rows) > 5 else "")
        near = f", {self.near} but for case, spaces and punctuation" if self.near else ""
        return f"{len(self.rows)} examples of {self.one} stand in {self.other}{near} (rows {first})"


def shared_examples(sets: Mapping[str, ExampleSet]) -> Iterator[Shared]:
    """Compare every two sets.

    Args:
        sets: name → set.

    Yields:
        What two sets share, where they share an example.
    """
    exact = {name: [" ".join(content) for content in rows.contents] for name, rows in sets.items()}
    loose = {name: [_loosened(text) for text in texts] for name, texts in exact.items()}
    for one, other in itertools.combinations(sets, 2):
        known, same = set(loose[other]), set(exact[other])
        rows = tuple(i for i, text in enumerate(loose[one]) if text and text in known)
        if rows:
            yield Shared(one, other, rows, sum(exact[one][i] not in same for i in rows))


def tell_shared(sets: Mapping[str, ExampleSet]) -> None:
    """Warn of examples that stand in two sets: what is forgotten cannot be kept, nor what is trained on be held out.

    Args:
        sets: name → set.
    """
    for each in shared_examples(sets):
        LOGGER.warning("%s", each)


def _loosened(text: str) -> str:
    """A text's letters and digits in lower case; all of its marks where it has none of these."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    words = "".join(each if each.isalnum() or unicodedata.combining(each) else " " for each in plain).split()
    return " ".join(words or plain.split())
