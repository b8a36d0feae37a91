"""Other answers, labels and tokens than the true ones: refusals, a set of other answers, random labels."""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from geffect.core.forward import IGNORE_INDEX
from geffect.data.encode import EncodedExample
from geffect.data.load import SPEC, ExampleSet, QASet
from geffect.data.sources import read_rows
from geffect.data.synthetic import read_words
from geffect.errors import GeffectError

_WORDS = read_words("refusals")
REFUSALS: tuple[str, ...] = tuple(
    opening.format(matter) for opening in _WORDS["openings"] for matter in _WORDS["matters"]
)
Content = tuple[str, ...]


@dataclass(frozen=True)
class Answers:
    """Other answers to the questions of a set.

    Attributes:
        name: of the set of answers.
        texts: answers to any question.
        by_question: of a set of questions and answers: those to each question and the turns before it.
    """

    name: str
    texts: tuple[str, ...] = ()
    by_question: Mapping[Content, tuple[str, ...]] = field(default_factory=dict)

    def to(self, examples: QASet) -> list[tuple[str, ...]]:
        """The possible answers to each question of a set; raise where one has none."""
        if not self.by_question:
            return [self.texts] * len(examples)
        for index, content in enumerate(examples.contents):
            if _question(content) not in self.by_question:
                message = f"{self.name} has no answer to the question in example {index} of {examples.name}"
                raise GeffectError(message, remedy="Add one, or name a set of texts")
        return [self.by_question[_question(content)] for content in examples.contents]

    @property
    def data(self) -> dict[str, str | int]:
        """Its entry in a run's record."""
        content = json.dumps([self.texts, sorted(self.by_question.items())])
        size = len(self.texts) or len(self.by_question)
        return {"set": self.name, "examples": size, "sha256": hashlib.sha256(content.encode()).hexdigest()}


BUILT_IN = Answers("built-in refusals", REFUSALS)


def read_answers(spec: str, load: Callable[[str], ExampleSet]) -> Answers:
    """The other answers of a set: texts serve any question, answers the question to which they belong.

    A ``.txt`` file, or a ``.jsonl`` file that is no table (TOFU's), has one text a line; ``load`` loads any other set
    by its name.
    """
    lines = _lines(spec)
    if lines is not None:
        if not lines:
            raise GeffectError(f"There is no answer in {spec}", remedy="Name another file")
        return Answers(spec, lines)
    examples = load(spec)
    if not isinstance(examples, QASet):
        return Answers(spec, tuple(content[0] for content in examples.contents if content[0].strip()))
    by_question: dict[Content, tuple[str, ...]] = {}
    for content in examples.contents:
        by_question[_question(content)] = (*by_question.get(_question(content), ()), content[1])
    return Answers(spec, (), by_question)


def _question(content: Content) -> Content:
    """The question, and the turns before it."""
    return content[0].strip(), *content[2:]


def _lines(spec: str) -> tuple[str, ...] | None:
    """The lines of a plain file; None for a table."""
    match = SPEC.match(spec)
    path = Path(os.path.expanduser(match["name"] if match else spec))
    if path.suffix.lower() == ".txt":
        text = str(read_rows(path)[0])
    elif path.suffix.lower() == ".jsonl":
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, ValueError):  # reported where the table is read
            return None
        if text.lstrip()[:1] in ("", "{", "[", '"'):
            return None
    else:
        return None
    start, stop = (int(match[part]) if match and match[part] else None for part in ("start", "stop"))
    return tuple(line.strip() for line in text.split("\n") if line.strip())[start:stop]


def replace_answers(examples: QASet, epoch: int, seed: int, answers: Answers = BUILT_IN) -> QASet:
    """Replace every answer by another, drawn uniformly: a function of (seed, epoch, position) alone.

    >>> examples = QASet("one", ({"question": "Who?", "answer": "Ada."},))
    >>> replace_answers(examples, epoch=0, seed=0).examples[0]["answer"] in REFUSALS
    True
    """
    texts = [
        choices[int(np.random.default_rng([seed, epoch, i, 2]).integers(len(choices)))]
        for i, choices in enumerate(answers.to(examples))
    ]
    changed = tuple(example | {"answer": each} for example, each in zip(examples, texts, strict=True))
    return replace(examples, examples=changed)


def random_labels(
    examples: Sequence[EncodedExample],
    vocabulary: int,
    special: Collection[int],
    seed: int,
    *,
    everywhere: bool = False,
    draw: int = 0,
) -> list[Tensor]:
    """Labels ``[T]`` of each example, drawn uniformly from V tokens; special tokens keep their own.

    ``IGNORE_INDEX`` stands where no loss is carried; ``everywhere`` labels the prompts too, as arXiv 2407.01920's code
    does. ``draw`` counts independent draws of one seed.
    """
    all_labels = []
    for example in examples:
        rng = np.random.default_rng([seed, example.index, 4, *([draw] if draw else [])])
        random = rng.integers(vocabulary, size=len(example.input_ids))
        labels = np.where(np.isin(example.input_ids, list(special)), example.input_ids, random)
        is_labeled = np.ones(len(labels), dtype=bool) if everywhere else np.array(example.labels) != IGNORE_INDEX
        all_labels.append(torch.from_numpy(np.where(is_labeled, labels, IGNORE_INDEX)))
    return all_labels


def skip_labels(examples: Sequence[EncodedExample], count: int) -> list[Tensor]:
    """Labels ``[T]`` of each example without its first so many labeled tokens; refuse one that none is left of.

    >>> skip_labels([EncodedExample(0, [5, 6, 7], [-100, 6, 7])], 1)[0].tolist()
    [-100, -100, 7]
    """
    all_labels = []
    for example in examples:
        labels = torch.tensor(example.labels)
        labeled = (labels != IGNORE_INDEX).nonzero()[:, 0]
        if len(labeled) <= count:
            message = f"skip={count} leaves no labeled token of example {example.index}, which has {len(labeled)}"
            raise GeffectError(message, remedy="Lower skip, or leave that example out")
        labels[labeled[:count]] = IGNORE_INDEX
        all_labels.append(labels)
    return all_labels


def corrupt_answer(
    example: EncodedExample, vocabulary: int, special: Collection[int], seed: int, draw: int = 0
) -> EncodedExample:
    """Redraw ⌊n/2⌋ of an answer's n tokens, in inputs and labels alike (arXiv 2504.12681's official code).

    Positions are drawn with replacement; special tokens, the end of the answer among them, do not change. ``draw``
    counts independent draws of one seed.
    """
    rng = np.random.default_rng([seed, example.index, 7, draw])
    ids, labels = np.array(example.input_ids), np.array(example.labels)
    positions = np.flatnonzero((labels != IGNORE_INDEX) & ~np.isin(ids, list(special)))
    positions = rng.choice(positions, size=len(positions) // 2) if len(positions) else positions
    ids[positions] = labels[positions] = rng.integers(vocabulary, size=len(positions))
    return EncodedExample(example.index, ids.tolist(), labels.tolist())
