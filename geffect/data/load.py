"""Named sets: what ``--forget``, ``--retain``, ``--heldout`` and ``--train`` accept.

A set is of questions and answers, or of texts. Each name may end in a slice ``[a:b]``, which chooses rows.

- ``builtin:authors/forget``; ``builtin:domains/privacy/unlearn`` (its train part; or ``/train``, ``/val``, ``/all``:
  train, then val): invented by this program, see `geffect.data.synthetic`.
- ``tofu:forget01``, ``knowundo:privacy/unlearn`` (its train part; or ``/train``, ``/val``, ``/all``: train, then val),
  ``muse:news/raw/forget``, ``wmdp:bio-retain``: files below ``--data-dir``, see `geffect.data.layouts`. MUSE's
  ``verbmem`` is loaded as questions (``prompt``) and answers (``gt``), and so asked as a question where MUSE has a
  plain continuation.
- ``hub:ORG/NAME/CONFIG/SPLIT`` or ``hub:ORG/NAME/SPLIT``: see `geffect.data.hub`.
- a ``.json``, ``.jsonl``, ``.csv`` or ``.parquet`` file with columns of questions and answers or, having neither,
  ``messages`` (conversations) or a column of texts; a JSON list of texts; a ``.txt`` file, which is one text.

An answer may be a list of texts: the question then makes a row with each of them, which all hold the list as
``answers``. A conversation makes a row of every assistant turn, asked by the user turn before it, after those before.
A slice chooses among questions and conversations as they stand in the file.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

from geffect.data.columns import QUESTIONS, Columns, choose, rename, settable
from geffect.data.conversations import each_answer, each_reply
from geffect.data.files import READERS, read_rows
from geffect.data.hub import hub_rows
from geffect.data.layouts import LAYOUTS, locate
from geffect.data.synthetic import AUTHOR_PARTS, DOMAIN_PARTS, DOMAINS, SPLITS, generate_authors, generate_domains
from geffect.errors import GeffectError

SPEC = re.compile(r"^(?P<name>.+?)(?:\[(?P<start>[0-9]*):(?P<stop>[0-9]*)\])?$")
DIGITS = 18  # of a slice's ends
FORMS = (
    "builtin:authors/forget, tofu:forget01, knowundo:privacy/unlearn, muse:news/raw/forget, wmdp:bio-retain, "
    "hub:ORG/NAME/CONFIG/SPLIT, or a .json, .jsonl, .csv, .parquet or .txt file, with a slice like [:120] or not"
)
BUILTIN: dict[str, Callable[[], list[dict[str, Any]]]] = {
    **{f"authors/{part}": partial(generate_authors, part) for part in AUTHOR_PARTS},
    **{
        f"domains/{domain}/{split}{end}": partial(generate_domains, domain, split, part)
        for domain, split in product(DOMAINS, SPLITS)
        for end, part in (("", "train"), *((f"/{each}", each) for each in DOMAIN_PARTS))
    },
}
NAME_COLUMNS = "name the columns with --question-column and --answer-column, or that of texts with --text-column"
RESTORE = "restore the file, or name it by its path and its columns with --question-column and --answer-column"


@dataclass(frozen=True)
class ExampleSet:
    """Rows with the fields a model sees, text each.

    Attributes:
        name: as the user wrote it.
        rows: each with ``FIELDS``, whatever the columns were called, and further columns as found.
    """

    FIELDS: ClassVar[tuple[str, ...]] = ()
    name: str
    rows: tuple[dict[str, Any], ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def contents(self) -> list[tuple[str, ...]]:
        """What a model sees of each row."""
        return [tuple(row[field] for field in self.FIELDS) for row in self.rows]

    @property
    def sha256(self) -> str:
        """The hash of what a model sees, in order."""
        return hashlib.sha256(json.dumps(self.contents, ensure_ascii=False).encode()).hexdigest()


class QASet(ExampleSet):
    """Questions with their answers; a row is one encoding, and its answer carries loss."""

    FIELDS = ("question", "answer")


class ChatSet(QASet):
    """Questions with their answers, and with the turns of a conversation that came before.

    Each row has ``before`` too: turns with ``role`` and ``content``, in order.
    """

    @property
    def contents(self) -> list[tuple[str, ...]]:
        """What a model sees of each row: question, answer, and the role and content of every turn before."""
        turns = [[turn[key] for turn in row["before"] for key in ("role", "content")] for row in self.rows]
        return [(*fields, *each) for fields, each in zip(super().contents, turns, strict=True)]


class TextSet(ExampleSet):
    """Texts, which are joined to one stream of tokens; all of it carries loss."""

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
    match = SPEC.match(spec)
    if match is None:
        raise GeffectError(f"a set: {FORMS}", repr(spec), "name one of these")
    start, stop = (_end(spec, match[part]) for part in ("start", "stop"))
    rows, choices, remedy = _table(match["name"], data_dir, settable(question, answer, text), stop)
    columns = choose(rows[0] if rows else None, choices)
    chosen = _read(spec, rename(rows, columns, match["name"], remedy), columns, slice(start, stop))
    if not any(field.strip() for content in chosen.contents for field in content):
        found = f"{len(chosen)} blank ones" if chosen.rows else f"none of {len(rows)}"
        raise GeffectError(f"at least one row in {spec}", found, "widen the slice or name another set")
    return chosen


def _end(spec: str, digits: str | None) -> int | None:
    if digits and len(digits) > DIGITS:
        raise GeffectError(f"a slice of at most {DIGITS} digits in {spec[:50]}…", f"{len(digits)} digits", "shorten it")
    return int(digits) if digits else None


def _read(spec: str, rows: Sequence[dict[str, Any]], columns: Columns, chosen: slice) -> ExampleSet:
    """A set of the rows that were chosen, once all of the file are seen to be text."""
    kind = TextSet if "text" in columns else ChatSet if "messages" in columns else QASet
    made: list[list[dict[str, Any]]] = []
    for index, row in enumerate(rows):
        each = [row] if kind is TextSet else each_answer(row) if kind is QASet else each_reply(row, index, spec)
        _refuse_gaps(kind(spec, tuple(each)), index)
        made.append(each)
    return kind(spec, tuple(row for each in made[chosen] for row in each))


def _table(
    name: str, data_dir: Path | None, asked: Sequence[Columns], stop: int | None
) -> tuple[list[Any], Sequence[Columns], str]:
    """The rows up to ``stop`` or more, what their columns may be called, and the remedy where they are not."""
    most = None if stop is None else max(1, stop)  # the first tells the columns
    kind, _, rest = name.partition(":")
    if kind == "builtin":
        return _builtin(rest), (QUESTIONS,), RESTORE
    if kind in LAYOUTS:
        rows: list[Any] = []
        for file in locate(kind, rest, data_dir):
            if most is None or len(rows) < most:
                rows += read_rows(file, None if most is None else most - len(rows))
        return rows, LAYOUTS[kind].choices, RESTORE
    if kind == "hub":
        return hub_rows(rest), asked, NAME_COLUMNS
    path = Path(os.path.expanduser(name))  # as pathlib's, but an unknown ~user stays as written
    if path.suffix.lower() not in READERS:
        raise GeffectError(f"a set: {FORMS}", repr(name), "name one of these")
    return read_rows(path, most), asked, NAME_COLUMNS


def _builtin(rest: str) -> list[dict[str, Any]]:
    if rest not in BUILTIN:
        known = ", ".join(f"builtin:{each}" for each in BUILTIN if each.count("/") < 3)
        parts = ", ".join(f"/{each}" for each in DOMAIN_PARTS)
        raise GeffectError(
            f"a built-in set among {known} (domains also with {parts})", repr(f"builtin:{rest}"), "name one of these"
        )
    return BUILTIN[rest]()


def _refuse_gaps(rows: ExampleSet, index: int) -> None:
    """Every field of what a file's row makes is text; of texts only, a corpus may have blank ones."""
    fields = [(field, row[field]) for row in rows.rows for field in rows.FIELDS]
    if isinstance(rows, ChatSet):
        fields += [("messages", turn["content"]) for row in rows.rows for turn in row["before"]]
    for field, value in fields:
        if not _is_text(value) or not (value.strip() or field == "text"):
            raise GeffectError(
                f"text in the {field} of every row of {rows.name}",
                f"{value!r} in row {index}",
                "fill it in or remove the row",
            )
    if any(_halves_a_pair(value) for row in rows.rows for value in row.values()):
        raise GeffectError(
            f"text that UTF-8 can spell in {rows.name}", f"half a surrogate pair in row {index}", "repair that row"
        )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not _halves_a_pair(value)


def _halves_a_pair(value: Any) -> bool:
    """Whether a text in this value has half a surrogate pair, which JSON can spell and no tokenizer takes."""
    if isinstance(value, str):
        return not value.isascii() and any("\ud800" <= each <= "\udfff" for each in value)
    if isinstance(value, dict):
        return any(map(_halves_a_pair, (*value, *value.values())))
    return isinstance(value, list) and any(map(_halves_a_pair, value))
