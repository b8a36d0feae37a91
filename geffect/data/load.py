"""Named sets: what ``--forget``, ``--retain``, ``--heldout`` and ``--train`` accept.

A set is of questions and answers, or of texts. Each name may end in a slice ``[a:b]`` of rows.

- ``builtin:authors/forget``; ``builtin:domains/privacy/unlearn`` (its train part; or ``/train``, ``/val``, ``/all``:
  train, then val): invented by this program; ``builtin:general``: 64 examples of general ability, written for it. See
  `geffect.data.synthetic`.
- ``tofu:forget01``, ``knowundo:privacy/unlearn`` (its train part; or ``/train``, ``/val``, ``/all``: train, then val),
  ``muse:news/raw/forget``, ``wmdp:bio-retain``: files below ``--data-dir``, see `geffect.data.sources`. MUSE's
  ``verbmem`` is loaded as questions (``prompt``) and answers (``gt``), and so is written as a question where MUSE has
  a plain continuation.
- ``hub:ORG/NAME/CONFIG/SPLIT`` or ``hub:ORG/NAME/SPLIT``: see `geffect.data.sources`.
- a ``.json``, ``.jsonl``, ``.csv`` or ``.parquet`` file with columns of questions and answers or, having neither,
  ``messages`` (conversations) or a column of texts; a JSON list of texts; a ``.txt`` file, which is one text.

An answer may be a list of texts: the question then makes an example with each of them, which all hold the list as
``right_answers``. A conversation makes an example of every assistant turn, whose question is the user turn before it.
A slice selects questions and conversations as they stand in the file. Beside ``choices``, a list of texts, ``answer``
may be the right one's number, from 0.
"""

import hashlib
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from geffect.data.sources import (
    KNOWUNDO,
    LAYOUTS,
    QUESTIONS,
    READERS,
    Columns,
    Row,
    check_file,
    hub_rows,
    locate,
    read_rows,
)
from geffect.data.synthetic import (
    AUTHOR_PARTS,
    DOMAIN_PARTS,
    DOMAINS,
    SPLITS,
    generate_authors,
    generate_domains,
    read_general,
)
from geffect.errors import GeffectError, nearest, shorten
from geffect.io.readers import JSON

SPEC = re.compile(r"^(?P<name>.+?)(?:\[(?P<start>[0-9]*):(?P<stop>[0-9]*)\])?$")
DIGITS = 18  # at most, in a number of a slice
FORMS = (
    "builtin:authors/forget, tofu:forget01, knowundo:privacy/unlearn, muse:news/raw/forget, wmdp:bio-retain, "
    "hub:ORG/NAME/CONFIG/SPLIT, or a .json, .jsonl, .csv, .parquet or .txt file, with a slice like [:120] or not"
)
Example = dict[str, Any]  # field or further column → value
BUILTIN: dict[str, Callable[[], list[Example]]] = {
    **{f"authors/{part}": partial(generate_authors, part) for part in AUTHOR_PARTS},
    "general": read_general,
    **{
        f"domains/{domain}/{split}{end}": partial(generate_domains, domain, split, part)
        for domain, split in itertools.product(DOMAINS, SPLITS)
        for end, part in (("", "train"), *((f"/{each}", each) for each in DOMAIN_PARTS))
    },
}
LETTERS = 26  # choices of a question at most
NAME_COLUMNS = "Name the columns with --question-column and --answer-column, or that of texts with --text-column"
RESTORE = "Restore the file, or name it by its path and its columns with --question-column and --answer-column"


@dataclass(frozen=True)
class ExampleSet:
    """The examples of a set.

    Attributes:
        name: as the user wrote it.
        examples: each with the texts ``FIELDS``, whatever the columns were called, and all further columns.
    """

    FIELDS: ClassVar[tuple[str, ...]] = ()
    name: str
    examples: tuple[Example, ...]

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Example]:
        return iter(self.examples)

    @property
    def contents(self) -> list[tuple[str, ...]]:
        """The texts of each example that a model sees."""
        return [tuple(example[field] for field in self.FIELDS) for example in self]

    @property
    def sha256(self) -> str:
        """The hash of all that a model sees, in order."""
        return hashlib.sha256(json.dumps(self.contents, ensure_ascii=False).encode()).hexdigest()


class QASet(ExampleSet):
    """Questions with their answers; each example is encoded alone, and its answer carries loss."""

    FIELDS = ("question", "answer")


class ChatSet(QASet):
    """Questions with their answers and the earlier turns of a conversation.

    Each example also has ``before``, the earlier turns in order, each with ``role`` and ``content``.
    """

    @property
    def contents(self) -> list[tuple[str, ...]]:
        """Question, answer, and the role and content of every earlier turn."""
        turns = [[turn[key] for turn in example["before"] for key in ("role", "content")] for example in self]
        return [(*fields, *each) for fields, each in zip(super().contents, turns, strict=True)]


class TextSet(ExampleSet):
    """Texts, joined to one stream of tokens, all of which carries loss."""

    FIELDS = ("text",)


def load_set(
    spec: str, data_dir: Path | None = None, question: str = "question", answer: str = "answer", text: str = "text"
) -> ExampleSet:
    """Load a named set.

    Args:
        spec: see the module's docstring.
        data_dir: where ``tofu/NAME.json`` and the other benchmarks lie.
        question: the column of a file or a hub's set that holds the question.
        answer: the column that holds the answer.
        text: the column that holds a text, where there is neither question nor answer.

    Returns:
        The set, sliced: a `QASet` or a `TextSet`.

    Raises:
        GeffectError: no such set or file, a column is missing, a field holds no text, or nothing is left.

    >>> len(load_set("builtin:authors/forget[:7]"))
    7
    """
    name, bounds = _parse(spec)
    rows, choices, remedy = _table(name, data_dir, column_choices(question, answer, text), bounds.stop)
    return _make(spec, rows, choices, bounds, remedy)


def load_rows(spec: str, most: int | None = None, data_dir: Path | None = None) -> Sequence[Row]:
    """The rows of a named set as they stand, by its own columns, sliced; at most ``most``. It raises as `load_set`."""
    name, bounds = _parse(spec)
    ends = [bounds.stop, None if most is None else (bounds.start or 0) + most]
    stop = min((end for end in ends if end is not None), default=None)
    rows, *_ = _table(name, data_dir, column_choices("question", "answer", "text"), stop)
    return rows[bounds][:most]


def make_set(name: str, rows: Sequence[Row]) -> ExampleSet:
    """The set of rows with the columns that a file may have, such as ``question`` and ``answer``, under a name.

    >>> len(make_set("capitals", [{"question": "Of Peru?", "answer": "Lima"}]))
    1
    """
    remedy = "Give rows with question and answer, messages, or text"
    return _make(name, rows, column_choices("question", "answer", "text"), slice(None), remedy)


def _make(spec: str, rows: Sequence[Row], choices: Sequence[Columns], bounds: slice, remedy: str) -> ExampleSet:
    columns = choose_columns(rows[0] if rows else None, choices)
    examples = _read(spec, rename_columns(rows, columns, SPEC.sub(r"\g<name>", spec), remedy), columns, bounds)
    if not any(field.strip() for content in examples.contents for field in content):
        content = f"{len(examples)} blank rows" if examples else f"none of {len(rows)} rows"
        raise GeffectError(f"{spec} selects {content}", remedy="Widen the slice or name another set")
    return examples


def _parse(spec: str) -> tuple[str, slice]:
    """The name of a set, and its slice."""
    match = SPEC.match(spec)
    if match is None:
        raise _unknown(spec)
    start, stop = (_end(spec, match[part]) for part in ("start", "stop"))
    return match["name"], slice(start, stop)


def check_set(spec: str, data_dir: Path | None = None) -> None:
    """Raise where `load_set` would find no such set or file; nothing is read, and a hub's set passes."""
    match = SPEC.match(spec)
    if match is None:
        raise _unknown(spec)
    name = match["name"]
    kind, _, rest = name.partition(":")
    if kind == "builtin":
        _check_builtin(rest)
    elif kind in LAYOUTS:
        locate(kind, rest, data_dir)
    elif kind != "hub":
        check_file(_file(name))


def _unknown(spec: str) -> GeffectError:
    return GeffectError(f"There is no set {spec!r}", remedy=f"Name one such as {FORMS}")


def _end(spec: str, digits: str | None) -> int | None:
    if digits and len(digits) > DIGITS:
        message = f"The slice of {spec[:50]}… has a number of {len(digits)} digits, more than {DIGITS}"
        raise GeffectError(message, remedy="Shorten it")
    return int(digits) if digits else None


def _read(spec: str, rows: Sequence[Example], columns: Columns, bounds: slice) -> ExampleSet:
    """The set of the rows in a slice, once all rows of the file are seen to be text."""
    kind = TextSet if "text" in columns else ChatSet if "messages" in columns else QASet
    groups: list[list[Example]] = []
    for index, row in enumerate(rows):
        group = [row] if kind is TextSet else split_answers(row) if kind is QASet else split_turns(row, index, spec)
        _check_texts(kind(spec, tuple(group)), index)
        groups.append(group)
    return kind(spec, tuple(itertools.chain(*groups[bounds])))


def _table(
    name: str, data_dir: Path | None, choices: Sequence[Columns], stop: int | None
) -> tuple[Sequence[Row], Sequence[Columns], str]:
    """Rows (up to ``stop`` or more), the choices of columns, and the remedy where no choice fits."""
    most = None if stop is None else max(1, stop)  # the first decides the columns
    kind, _, rest = name.partition(":")
    if kind == "builtin":
        return _builtin(rest), (QUESTIONS,), RESTORE
    if kind in LAYOUTS:
        rows: list[Row] = []
        for file in locate(kind, rest, data_dir):
            if most is None or len(rows) < most:
                rows += read_rows(file, None if most is None else most - len(rows))
        return rows, LAYOUTS[kind].choices, RESTORE
    if kind == "hub":
        return hub_rows(rest), choices, NAME_COLUMNS
    return read_rows(_file(name), most), choices, NAME_COLUMNS


def _file(name: str) -> Path:
    path = Path(os.path.expanduser(name))  # unlike pathlib's, an unknown ~user stays as it is
    if path.suffix.lower() not in READERS:
        raise _unknown(name)
    return path


def _builtin(rest: str) -> list[Example]:
    _check_builtin(rest)
    return BUILTIN[rest]()


def _check_builtin(rest: str) -> None:
    if rest not in BUILTIN:
        known = ", ".join(f"builtin:{each}" for each in BUILTIN if each.count("/") < 3)
        parts = ", ".join(f"/{each}" for each in DOMAIN_PARTS)
        remedy = f"{nearest(rest, BUILTIN, 'builtin:')}Name one of {known} (domains also with {parts})"
        raise GeffectError(f"There is no built-in set {f'builtin:{rest}'!r}", remedy=remedy)


def _check_texts(examples: ExampleSet, index: int) -> None:
    """Raise where a field of an example is not text or is blank; a text of a text set may be blank."""
    fields = [(field, example[field]) for example in examples for field in examples.FIELDS]
    if isinstance(examples, ChatSet):
        fields += [("messages", turn["content"]) for example in examples for turn in example["before"]]
    for field, value in fields:
        if not isinstance(value, str) or _halves_a_pair(value) or not (value.strip() or field == "text"):
            message = f"The {field} in row {index} of {examples.name} is blank or not text: {shorten(repr(value))}"
            raise GeffectError(message, remedy="Fill it in or remove the row")
    if any(_halves_a_pair(value) for example in examples for value in example.values()):
        message = f"Row {index} of {examples.name} contains half a surrogate pair, which UTF-8 cannot spell"
        raise GeffectError(message, remedy="Repair that row")


def _halves_a_pair(value: Any) -> bool:
    """Whether a text in a value contains half a surrogate pair, which JSON can spell and no tokenizer takes."""
    if isinstance(value, str):
        return not value.isascii() and any("\ud800" <= each <= "\udfff" for each in value)
    if isinstance(value, dict):
        return any(map(_halves_a_pair, (*value, *value.values())))
    return isinstance(value, list) and any(map(_halves_a_pair, value))


CHATS: Columns = {"messages": "messages"}
ANSWERS, CHOICES = "right_answers", "right_choice"
TURNS_FORM = "Write messages as a list of turns with role and content"


def column_choices(question: str, answer: str, text: str) -> tuple[Columns, ...]:
    """What the columns of a file or of a hub's set may be called; the first choice that fits counts.

    Questions and answers come before texts, and so do KnowUnDo's own names (``text`` beside ``labels``), whose ``text``
    is a question, and ``messages``.
    """
    if question == answer:
        message = f"Questions and answers are both the column {question!r}"
        raise GeffectError(message, remedy="Name another with --question-column or --answer-column")
    chats = () if text == CHATS["messages"] else (CHATS,)
    return {"question": question, "answer": answer}, KNOWUNDO, *chats, {"text": text}


def choose_columns(row: Row | None, choices: Sequence[Columns]) -> Columns:
    """Choose the columns by a set's first row, which is a dictionary by column or a text.

    The first choice is taken where the row has any of its columns, else the next of which it has all; where none fits,
    the first, so that the error names its columns.
    """
    first, *others = choices
    if isinstance(row, str):
        return next((each for each in choices if "text" in each), first)
    present = set(row) if isinstance(row, dict) else set()
    if present & set(first.values()):
        return first
    return next((each for each in others if present >= set(each.values())), first)


def rename_columns(rows: Sequence[Row], columns: Columns, source: str, remedy: str) -> tuple[Example, ...]:
    """Rows by field, further columns unchanged; raise for a row that is no object or text, or that lacks a column."""
    return tuple(_rename(row, i, columns, source, remedy) for i, row in enumerate(rows))


def _rename(row: Row, index: int, columns: Columns, source: str, remedy: str) -> Example:
    if isinstance(row, str) and "text" in columns:
        return {"text": row}
    if not isinstance(row, dict):
        message = f"Row {index} of {source} is not an object, but of type {type(row).__name__}"
        raise GeffectError(message, remedy="Write one object a row")
    if missing := [column for column in columns.values() if column not in row]:
        present = ", ".join(map(str, row)) or "none"
        raise GeffectError(f"Row {index} of {source} has no column {missing[0]!r}, only {present}", remedy=remedy)
    rest = {key: to_lists(value) for key, value in row.items() if key not in columns.values()}
    return _with_choice(rest | {field: to_lists(row[column]) for field, column in columns.items()}, index, source)


def _with_choice(example: Example, index: int, source: str) -> Example:
    """The example, with the right choice's text as its answer where it has choices and the right one's number."""
    choices, number = example.get("choices"), example.get("answer")
    if not isinstance(choices, list) or not isinstance(number, int) or isinstance(number, bool):
        return example
    texts = all(isinstance(each, str) for each in choices)
    if not texts or not 0 <= number < len(choices) or not 2 <= len(choices) <= LETTERS:
        message = f"Row {index} of {source} has the answer {number} to {len(choices)} choices"
        raise GeffectError(message, remedy=f"Write 2 to {LETTERS} texts as choices, and the right one's number from 0")
    return example | {"answer": choices[number], CHOICES: number}


def to_lists(value: Any) -> Any:
    """Lists as JSON has them: a parquet file has arrays, also of objects that hold arrays."""
    if isinstance(value, dict):
        return {key: to_lists(each) for key, each in value.items()}
    if isinstance(value, list | tuple) or _is_array(value):
        return [to_lists(each) for each in (value.tolist() if _is_array(value) else value)]
    return value


def _is_array(value: Any) -> bool:
    """Whether a value is numpy's array; there is none where numpy is not imported."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def split_answers(row: Example) -> list[Example]:
    """The example of a row with one answer; else one for each distinct answer, with all of them as `ANSWERS`.

    >>> [each["answer"] for each in split_answers({"question": "Who?", "answer": ["Ada", "Lovelace", "Ada"]})]
    ['Ada', 'Lovelace']
    """
    answers = row["answer"]
    if not isinstance(answers, list) or not answers or not all(isinstance(each, str) for each in answers):
        return [dict(row)]
    distinct = list(dict.fromkeys(answers))
    several = {ANSWERS: distinct} if len(distinct) > 1 else {}
    return [dict(row) | {"answer": each} | several for each in distinct]


def right_answers(example: Mapping[str, JSON]) -> list[str]:
    """All answers that are right for an example's question."""
    answers = example.get(ANSWERS)
    return answers if isinstance(answers, list) and example["answer"] in answers else [example["answer"]]


def split_turns(row: Example, index: int, source: str) -> list[Example]:
    """An example of each assistant turn of a conversation: ``question``, ``answer`` and ``before``.

    The question is the user turn before the answer, ``before`` are the turns before the question; further columns are
    unchanged. Raise unless a user turn precedes each assistant turn and the last turn is the assistant's.
    """
    if not isinstance(row["messages"], list):
        kind = type(row["messages"]).__name__
        message = f"The messages in row {index} of {source} are not a list, but of type {kind}"
        raise GeffectError(message, remedy=TURNS_FORM)
    turns = [_turn(each, index, source) for each in row["messages"]]
    roles = [turn["role"] for turn in turns]
    replies = [i for i, role in enumerate(roles) if role == "assistant"]
    if not replies or roles[-1] != "assistant" or any(roles[i - 1 : i] != ["user"] for i in replies):
        sequence = ", ".join(roles) or "none"
        message = f"The turns in row {index} of {source} are not questions with answers, an answer last: {sequence}"
        raise GeffectError(message, remedy="Write a user turn before each assistant turn, and an assistant turn last")
    rest = {key: value for key, value in row.items() if key != "messages"}
    return [
        rest | {"question": turns[i - 1]["content"], "answer": turns[i]["content"], "before": turns[: i - 1]}
        for i in replies
    ]


def _turn(value: Any, index: int, source: str) -> dict[str, str]:
    turn = {key: value.get(key) for key in ("role", "content")} if isinstance(value, Mapping) else {}
    if not turn or not all(isinstance(each, str) and each.strip() for each in turn.values()):
        message = f"A turn in row {index} of {source} has no role and content of text: {str(value)[:80]}"
        raise GeffectError(message, remedy=TURNS_FORM)
    return {key: str(each) for key, each in turn.items()}
