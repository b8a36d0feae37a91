"""Other answers than the true ones: a hundred ways of not knowing, or a set of one's own."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from geffect.data.files import read_rows
from geffect.data.load import SPEC, ExampleSet, QASet
from geffect.data.synthetic import read_words
from geffect.errors import GeffectError

_WORDS = read_words("refusals")
REFUSALS: tuple[str, ...] = tuple(
    opening.format(matter) for opening in _WORDS["openings"] for matter in _WORDS["matters"]
)
Content = tuple[str, ...]


@dataclass(frozen=True)
class Answers:
    """What the questions of a set are answered with instead.

    Attributes:
        name: of the set.
        texts: answers to any question.
        by_question: where it is of questions and answers: those to each, by question and the turns before it.
    """

    name: str
    texts: tuple[str, ...] = ()
    by_question: Mapping[Content, tuple[str, ...]] = field(default_factory=dict)

    def to(self, rows: QASet) -> list[tuple[str, ...]]:
        """The answers to each row's question, of which one is drawn.

        Args:
            rows: the questions.

        Returns:
            The answers, row by row.

        Raises:
            GeffectError: a question has none.
        """
        if not self.by_question:
            return [self.texts] * len(rows)
        for index, content in enumerate(rows.contents):
            if _asked(content) not in self.by_question:
                raise GeffectError(
                    f"answers in {self.name} to every question of {rows.name}",
                    f"none to that of row {index}",
                    "add one, or name a set of texts",
                )
        return [self.by_question[_asked(content)] for content in rows.contents]

    @property
    def data(self) -> dict[str, str | int]:
        """What a run's record says of it."""
        content = json.dumps([self.texts, sorted(self.by_question.items())])
        size = len(self.texts) or len(self.by_question)
        return {"set": self.name, "examples": size, "sha256": hashlib.sha256(content.encode()).hexdigest()}


BUILT_IN = Answers("built-in refusals", REFUSALS)


def read_answers(spec: str, load: Callable[[str], ExampleSet]) -> Answers:
    """Read a set of other answers.

    Args:
        spec: as of `geffect.data.load.load_set`; texts serve any question, answers that to which they belong. A
            ``.txt`` file, or a ``.jsonl`` file that is none (TOFU's), holds a text a line.
        load: loads a set by its name.

    Returns:
        The answers.

    Raises:
        GeffectError: the set cannot be read, or is empty.
    """
    lines = _lines(spec)
    if lines is not None:
        if not lines:
            raise GeffectError(f"an answer a line in {spec}", "none", "name another file")
        return Answers(spec, lines)
    rows = load(spec)
    if not isinstance(rows, QASet):
        return Answers(spec, tuple(content[0] for content in rows.contents if content[0].strip()))
    found: dict[Content, tuple[str, ...]] = {}
    for content in rows.contents:
        found[_asked(content)] = (*found.get(_asked(content), ()), content[1])
    return Answers(spec, (), found)


def _asked(content: Content) -> Content:
    """The question, and the turns before it."""
    return content[0].strip(), *content[2:]


def _lines(spec: str) -> tuple[str, ...] | None:
    """The lines of a plain file; None where it is a table."""
    match = SPEC.match(spec)
    path, text = Path(os.path.expanduser(match["name"] if match else spec)), None
    if path.suffix.lower() == ".txt":
        (text,) = read_rows(path)
    elif path.suffix.lower() == ".jsonl":
        with contextlib.suppress(OSError, ValueError):  # told where the table is read
            text = path.read_text(encoding="utf-8-sig")
    if text is None or (path.suffix.lower() == ".jsonl" and text.lstrip()[:1] in ("", "{", "[", '"')):
        return None
    start, stop = (int(match[part]) if match and match[part] else None for part in ("start", "stop"))
    return tuple(line.strip() for line in text.split("\n") if line.strip())[start:stop]


def refused(rows: QASet, epoch: int, seed: int, answers: Answers = BUILT_IN) -> QASet:
    """Answer every question with another answer, drawn uniformly by (seed, epoch, row) and by nothing else.

    Args:
        rows: the set.
        epoch: of training; each draws anew.
        seed: of the draws.
        answers: what is drawn from; refusals by default.

    Returns:
        The set with the same name and questions, and other answers.

    Raises:
        GeffectError: a question has no other answer.

    >>> asked = QASet("one", ({"question": "Who?", "answer": "Ada."},))
    >>> refused(asked, epoch=0, seed=0).rows[0]["answer"] in REFUSALS
    True
    """
    drawn = [
        choices[int(np.random.default_rng([seed, epoch, i, 2]).integers(len(choices)))]
        for i, choices in enumerate(answers.to(rows))
    ]
    return replace(rows, rows=tuple(row | {"answer": each} for row, each in zip(rows.rows, drawn, strict=True)))
