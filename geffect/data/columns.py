"""From which columns a row's fields are read: that decides whether a set is of questions and answers or of texts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from geffect.errors import GeffectError

Columns = Mapping[str, str]  # a field's column, by field

QUESTIONS: Columns = {"question": "question", "answer": "answer"}
KNOWUNDO: Columns = {"question": "text", "answer": "labels"}
VERBATIM: Columns = {"question": "prompt", "answer": "gt"}
TEXTS: Columns = {"text": "text"}
CHATS: Columns = {"messages": "messages"}


def settable(question: str, answer: str, text: str) -> tuple[Columns, ...]:
    """What the columns of a file or of a hub's set may be called.

    Args:
        question: the column that holds the question.
        answer: the column that holds the answer.
        text: the column that holds a text, in a set without questions.

    Returns:
        Choices, the first that fits counts: questions and answers win over texts, and so do KnowUnDo's own names
        (``text`` beside ``labels``), whose ``text`` is a question, and ``messages``.

    Raises:
        GeffectError: question and answer are one column.
    """
    if question == answer:
        raise GeffectError(
            "two columns, one of questions and one of answers",
            f"{question!r} for both",
            "name another with --question-column or --answer-column",
        )
    chats = () if text == CHATS["messages"] else (CHATS,)
    return {"question": question, "answer": answer}, KNOWUNDO, *chats, {"text": text}


def choose(row: Any, choices: Sequence[Columns]) -> Columns:
    """Choose the columns by a set's first row.

    Args:
        row: by column, or a text.
        choices: of which the first, where the row has any of its columns, else the next of which the row has all.

    Returns:
        The choice; the first where none fits, so that its columns are the ones missed.
    """
    first, *others = choices
    if isinstance(row, str):
        return next((each for each in choices if "text" in each), first)
    present = set(row) if isinstance(row, dict) else set()
    if present & set(first.values()):
        return first
    return next((each for each in others if present >= set(each.values())), first)


def rename(rows: Sequence[Any], columns: Columns, source: str, remedy: str) -> tuple[dict[str, Any], ...]:
    """Name the fields of every row.

    Args:
        rows: by column, or texts.
        columns: of the fields.
        source: of the rows, for the error.
        remedy: where a column is missing.

    Returns:
        The rows by field, further columns as found.

    Raises:
        GeffectError: a row is neither an object nor, in a set of texts, a text; or it lacks a column.
    """
    return tuple(_renamed(row, i, columns, source, remedy) for i, row in enumerate(rows))


def _renamed(row: Any, index: int, columns: Columns, source: str, remedy: str) -> dict[str, Any]:
    if isinstance(row, str) and "text" in columns:
        return {"text": row}
    if not isinstance(row, dict):
        raise GeffectError(f"objects in {source}", f"{type(row).__name__} in row {index}", "write one object a row")
    missing = [column for column in columns.values() if column not in row]
    if missing:
        found = ", ".join(map(str, row)) or "none"
        raise GeffectError(f"a column {missing[0]!r} in {source}", f"{found} in row {index}", remedy)
    rest = {key: _listed(value) for key, value in row.items() if key not in columns.values()}
    return rest | {field: _listed(row[column]) for field, column in columns.items()}


def _listed(value: Any) -> Any:
    """Lists as JSON has them: those of a parquet file are arrays, of objects that hold arrays too."""
    if isinstance(value, dict):
        return {key: _listed(each) for key, each in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_listed(each) for each in (value.tolist() if isinstance(value, np.ndarray) else value)]
    return value
