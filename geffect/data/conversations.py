"""Rows of which one makes several: a question with several right answers, and a conversation."""

from collections.abc import Mapping, Sequence
from typing import Any

from geffect.errors import GeffectError

ANSWERS = "right_answers"
FORM = "write messages as a list of turns with role and content"


def each_answer(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row with each of a question's right answers.

    Args:
        row: with ``answer``, a text or a list of texts.

    Returns:
        The row itself where there is one answer; else a row an answer, each once, with all of them under `ANSWERS`.

    >>> [each["answer"] for each in each_answer({"question": "Who?", "answer": ["Ada", "Lovelace", "Ada"]})]
    ['Ada', 'Lovelace']
    """
    answers = row["answer"]
    if not isinstance(answers, list) or not answers or not all(isinstance(each, str) for each in answers):
        return [dict(row)]
    once = list(dict.fromkeys(answers))
    several = {ANSWERS: once} if len(once) > 1 else {}
    return [dict(row) | {"answer": each} | several for each in once]


def right_answers(row: Mapping[str, Any]) -> list[str]:
    """All answers that are right for a row's question."""
    found = row.get(ANSWERS)
    return found if isinstance(found, list) and row["answer"] in found else [row["answer"]]


def each_reply(row: Mapping[str, Any], index: int, source: str) -> list[dict[str, Any]]:
    """A row of every assistant turn of a conversation.

    Args:
        row: with ``messages``, turns with ``role`` and ``content``; further keys of a turn are not read.
        index: of the row, for the error.
        source: of the row, for the error.

    Returns:
        Rows with ``question`` (the user turn before), ``answer`` and ``before`` (the turns before the question), and
        the row's further columns.

    Raises:
        GeffectError: a turn has another form, one of the assistant follows none of the user, or the last is none of the
            assistant.
    """
    turns = [_turn(each, index, source) for each in _list(row["messages"], index, source)]
    roles = [turn["role"] for turn in turns]
    replies = [i for i, role in enumerate(roles) if role == "assistant"]
    if not replies or roles[-1] != "assistant" or any(roles[i - 1 : i] != ["user"] for i in replies):
        raise GeffectError(
            f"conversations in {source} whose assistant turns follow a user turn each, one at the end",
            f"{', '.join(roles) or 'no turn'} in row {index}",
            "correct its turns",
        )
    rest = {key: value for key, value in row.items() if key != "messages"}
    return [
        rest | {"question": turns[i - 1]["content"], "answer": turns[i]["content"], "before": turns[: i - 1]}
        for i in replies
    ]


def _list(value: Any, index: int, source: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise GeffectError(f"turns in the messages of {source}", f"{type(value).__name__} in row {index}", FORM)
    return value


def _turn(value: Any, index: int, source: str) -> dict[str, str]:
    turn = {key: value.get(key) for key in ("role", "content")} if isinstance(value, Mapping) else {}
    if not turn or not all(isinstance(each, str) and each.strip() for each in turn.values()):
        raise GeffectError(
            f"turns with a role and a content of text in {source}", f"{str(value)[:80]} in row {index}", FORM
        )
    return {key: str(each) for key, each in turn.items()}
