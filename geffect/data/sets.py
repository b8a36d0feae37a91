"""Named sets: what ``--forget``, ``--retain``, ``--held`` and ``--train`` accept.

``builtin:authors/forget``, ``tofu:forget01``, or a json, jsonl, csv or parquet file; each may end in a slice ``[a:b]``.
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geffect.data import authors
from geffect.data.files import read_rows
from geffect.errors import GeffectError

SPEC = re.compile(r"^(?P<name>.+?)(?:\[(?P<start>\d*):(?P<stop>\d*)\])?$")
FORMS = (
    "builtin:authors/forget, tofu:forget01, or a .json, .jsonl, .csv or .parquet file, with a slice like [:120] or not"
)


@dataclass(frozen=True)
class QASet:
    """Questions with their answers.

    Attributes:
        name: as the user wrote it.
        rows: each with ``question`` and ``answer``, whatever the columns were called, and further columns as found.
    """

    name: str
    rows: tuple[dict[str, Any], ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def sha256(self) -> str:
        """The hash of what a model sees: questions and answers in order."""
        text = json.dumps([[row["question"], row["answer"]] for row in self.rows], ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def load_set(spec: str, data_dir: Path | None = None, question: str = "question", answer: str = "answer") -> QASet:
    """Load a named set.

    Args:
        spec: see the module's docstring.
        data_dir: where ``tofu/NAME.json`` lies.
        question: the column of a file that holds the question.
        answer: the column of a file that holds the answer.

    Returns:
        The set, sliced.

    Raises:
        GeffectError: no such set or file, a column is missing, an answer is empty, or nothing is left.

    >>> len(load_set("builtin:authors/forget[:7]"))
    7
    """
    match = SPEC.match(spec)
    if match is None:
        raise GeffectError(f"a set: {FORMS}", repr(spec), "name one of these")
    start, stop = (int(match[part]) if match[part] else None for part in ("start", "stop"))
    rows = [_checked(row, i, spec) for i, row in enumerate(_rows(match["name"], data_dir, question, answer))]
    chosen = tuple(rows[start:stop])
    if not chosen:
        raise GeffectError(f"at least one row in {spec}", f"none of {len(rows)}", "widen the slice or name another set")
    return QASet(spec, chosen)


def _rows(name: str, data_dir: Path | None, question: str, answer: str) -> list[dict[str, Any]]:
    kind, _, rest = name.partition(":")
    if kind == "builtin":
        return _builtin(rest)
    if kind == "tofu":
        if data_dir is None:
            raise GeffectError(f"--data-dir with tofu/{rest}.json below it for {name}", "no --data-dir", "add it")
        return read_rows(_tofu(data_dir, rest), "question", "answer")
    path = Path(os.path.expanduser(name))  # as pathlib's, but an unknown ~user stays as written
    if path.suffix.lower() not in {".json", ".jsonl", ".csv", ".parquet"}:
        raise GeffectError(f"a set: {FORMS}", repr(name), "name one of these")
    return read_rows(path, question, answer)


def _builtin(rest: str) -> list[dict[str, Any]]:
    benchmark, _, part = rest.partition("/")
    if benchmark != "authors" or part not in authors.PARTS:
        known = ", ".join(f"builtin:authors/{each}" for each in authors.PARTS)
        raise GeffectError(f"a built-in set among {known}", repr(f"builtin:{rest}"), "name one of these")
    return authors.generate(part)


def _tofu(data_dir: Path, name: str) -> Path:
    folder = Path(os.path.expanduser(data_dir)) / "tofu"
    known = sorted(path.stem for path in folder.glob("*.json"))
    if name not in known:
        have = ", ".join(known) or "no .json file"
        raise GeffectError(f"a set among those in {folder}: {have}", repr(f"tofu:{name}"), "name one of these")
    return folder / f"{name}.json"


def _checked(row: dict[str, Any], index: int, spec: str) -> dict[str, Any]:
    for field in ("question", "answer"):
        if not _is_text(row[field]):
            raise GeffectError(f"text in the {field} of every row of {spec}", f"{row[field]!r} in row {index}",
                               "fill it in or remove the row")  # fmt: skip
    return row


def _is_text(value: Any) -> bool:
    """Some characters, none of them half a surrogate pair (which JSON can spell and no tokenizer takes)."""
    return isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= each <= "\udfff" for each in value)
