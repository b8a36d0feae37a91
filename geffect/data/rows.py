"""Fields of an example from a row: its columns, its several answers, the turns of its conversation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from geffect.errors import GeffectError

Columns = Mapping[str, str]  # field → column

QUESTIONS: Columns = {"question": "question", "answer": "answer"}
KNOWUNDO: Columns = {"question": "text", "answer": "labels"}
VERBATIM: Columns = {"question": "prompt", "answer": "gt"}
TEXTS: Columns = {"text": "text"}
CHATS: Columns = {"messages": "messages"}
ANSWERS = "right_answers"
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


def choose_columns(row: Any, choices: Sequence[Columns]) -> Columns:
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


def rename_columns(rows: Sequence[Any], columns: Columns, source: str, remedy: str) -> tuple[dict[str, Any], ...]:
    """Rows by field, further columns unchanged; raise for a row that is no object or text, or that lacks a column."""
    return tuple(_rename(row, i, columns, source, remedy) for i, row in enumerate(rows))


def _rename(row: Any, index: int, columns: Columns, source: str, remedy: str) -> dict[str, Any]:
    if isinstance(row, str) and "text" in columns:
        return {"text": row}
    if not isinstance(row, dict):
        message = f"Row {index} of {source} is not an object, but of type {type(row).__name__}"
        raise GeffectError(message, remedy="Write one object a row")
    if missing := [column for column in columns.values() if column not in row]:
        present = ", ".join(map(str, row)) or "none"
        raise GeffectError(f"Row {index} of {source} has no column {missing[0]!r}, only {present}", remedy=remedy)
    rest = {key: _to_lists(value) for key, value in row.items() if key not in columns.values()}
    return rest | {field: _to_lists(row[column]) for field, column in columns.items()}


def _to_lists(value: Any) -> Any:
    """Lists as JSON has them: a parquet file has arrays, also of objects that hold arrays."""
    if isinstance(value, dict):
        return {key: _to_lists(each) for key, each in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_to_lists(each) for each in (value.tolist() if isinstance(value, np.ndarray) else value)]
    return value


def split_answers(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The row itself where it has one answer; else a row for each distinct answer, with all of them as `ANSWERS`.

    >>> [each["answer"] for each in split_answers({"question": "Who?", "answer": ["Ada", "Lovelace", "Ada"]})]
    ['Ada', 'Lovelace']
    """
    answers = row["answer"]
    if not isinstance(answers, list) or not answers or not all(isinstance(each, str) for each in answers):
        return [dict(row)]
    distinct = list(dict.fromkeys(answers))
    several = {ANSWERS: distinct} if len(distinct) > 1 else {}
    return [dict(row) | {"answer": each} | several for each in distinct]


def right_answers(row: Mapping[str, Any]) -> list[str]:
    """All answers that are right for a row's question."""
    answers = row.get(ANSWERS)
    return answers if isinstance(answers, list) and row["answer"] in answers else [row["answer"]]


def split_turns(row: Mapping[str, Any], index: int, source: str) -> list[dict[str, Any]]:
    """A row for each assistant turn of a conversation: ``question``, ``answer`` and ``before``.

    The question is the user turn before the answer, ``before`` are the turns before the question; further columns are
    unchanged. Raise unless a user turn precedes each assistant turn and the last turn is the assistant's.
    """
    turns = [_turn(each, index, source) for each in _list(row["messages"], index, source)]
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


def _list(value: Any, index: int, source: str) -> Sequence[Any]:
    if not isinstance(value, list):
        message = f"The messages in row {index} of {source} are not a list, but of type {type(value).__name__}"
        raise GeffectError(message, remedy=TURNS_FORM)
    return value


def _turn(value: Any, index: int, source: str) -> dict[str, str]:
    turn = {key: value.get(key) for key in ("role", "content")} if isinstance(value, Mapping) else {}
    if not turn or not all(isinstance(each, str) and each.strip() for each in turn.values()):
        message = f"A turn in row {index} of {source} has no role and content of text: {str(value)[:80]}"
        raise GeffectError(message, remedy=TURNS_FORM)
    return {key: str(each) for key, each in turn.items()}
