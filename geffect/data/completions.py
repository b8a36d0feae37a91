"""Prompts with completions, and preference pairs: the rows that supervised and preference trainers take.

A prompt and a completion are texts, or lists of turns. Of a pair, ``chosen`` and ``rejected`` are two completions of
one prompt; where it is missing they are whole conversations, and the turns that begin both are the prompt.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from geffect.core.architectures import Tokenizer
from geffect.core.forward import IGNORE_INDEX
from geffect.data.checks import check_control_texts
from geffect.data.encode import EncodedExample, encode_set
from geffect.data.load import ChatSet, Example, ExampleSet, load_rows, load_set, make_set, split_turns, to_lists
from geffect.data.sources import Row
from geffect.errors import GeffectError

PAIR = ("chosen", "rejected")
FORM = "Write prompt, chosen and rejected as texts, or each as a list of turns with role and content"


class CompletionSet(ExampleSet):
    """Prompts with their completions, two texts that are written one after the other; the completion carries loss."""

    FIELDS = ("prompt", "completion")


def read_sets(spec: str | ExampleSet | Sequence[Any], name: str) -> dict[str, ExampleSet]:
    """The set that a name, a set or rows stand for, under an empty key; of preference pairs two, under `PAIR`.

    Rows may have a question with an answer, messages, a text, a prompt with a completion, or be preference pairs.
    """
    if isinstance(spec, ExampleSet):
        return {"": spec}
    first = next(iter(load_rows(spec, 1) if isinstance(spec, str) else spec), None)
    columns = set(first) if isinstance(first, Mapping) else set()
    name = spec if isinstance(spec, str) else name
    if {*PAIR} <= columns:
        rows = [to_lists(row) for row in (load_rows(spec) if isinstance(spec, str) else spec)]
        return {each: _completions(name, [_one(row, each, i, name) for i, row in enumerate(rows)]) for each in PAIR}
    if {"prompt", "completion"} <= columns:
        rows = [to_lists(row) for row in (load_rows(spec) if isinstance(spec, str) else spec)]
        return {"": _completions(name, rows)}
    return {"": load_set(spec) if isinstance(spec, str) else make_set(name, spec)}


def encode_completions(
    tokenizer: Tokenizer, examples: ExampleSet, max_length: int = 512, context: int | None = None
) -> list[EncodedExample]:
    """Encode a set as token ids and labels; as TRL encodes it where it has prompts and completions that are texts.

    The tokenizer's end of sequence is added to a completion that does not end with it. The two are tokenized as one
    text, and labeled from the first token that differs from the prompt's own. Other sets are encoded by `encode_set`.
    """
    if not isinstance(examples, CompletionSet):
        return encode_set(tokenizer, examples, max_length, context)
    check_control_texts(tokenizer, examples)
    return [_encode(tokenizer, examples, i, max_length) for i in range(len(examples))]


def _encode(tokenizer: Tokenizer, examples: ExampleSet, index: int, max_length: int) -> EncodedExample:
    prompt, completion = examples.contents[index]
    end = tokenizer.eos_token or ""
    text = prompt + (completion if completion.endswith(end) else completion + end)
    ids, before = (list(tokenizer(each, verbose=False)["input_ids"]) for each in (text, prompt))
    same = next((i for i, (a, b) in enumerate(zip(ids, before, strict=False)) if a != b), min(len(ids), len(before)))
    start = max(1, same)
    if len(ids[:max_length]) <= start:
        message = (
            f"Example {index} of {examples.name} has no token to learn within {max_length}: its prompt has {start}"
        )
        raise GeffectError(message, remedy="Shorten it")
    cut = ids[:max_length]
    return EncodedExample(index, cut, [IGNORE_INDEX] * start + cut[start:], len(ids) - len(cut))


def _one(row: Row, side: str, index: int, name: str) -> Row:
    """A prompt and one of its completions."""
    if not isinstance(row, Mapping) or not {*PAIR} <= set(row):
        raise GeffectError(f"Row {index} of {name} is no preference pair", remedy=FORM)
    if "prompt" in row:
        return {"prompt": row["prompt"], "completion": row[side]}
    turns, other = (row[each] for each in (side, next(each for each in PAIR if each != side)))
    if not (isinstance(turns, list) and isinstance(other, list)):
        raise GeffectError(
            f"Row {index} of {name} has no prompt, and its completions are no lists of turns", remedy=FORM
        )
    same = next((i for i, (a, b) in enumerate(zip(turns, other, strict=False)) if a != b), min(len(turns), len(other)))
    return {"prompt": turns[:same], "completion": turns[same:]}


def _completions(name: str, rows: Sequence[Row]) -> ExampleSet:
    """Texts as they are; turns as conversations, of which the last answer carries loss."""
    examples = [_example(row, i, name) for i, row in enumerate(rows)]
    kinds = {"messages" in each for each in examples}
    if len(kinds) > 1:
        raise GeffectError(f"Some rows of {name} are texts, and others lists of turns", remedy=FORM)
    if kinds == {True}:
        return ChatSet(name, tuple(split_turns(each, i, name)[-1] for i, each in enumerate(examples)))
    return CompletionSet(name, tuple(examples))


def _example(row: Row, index: int, name: str) -> Example:
    parts: list[Any] = [row.get(field) if isinstance(row, Mapping) else None for field in CompletionSet.FIELDS]
    if all(isinstance(each, list) for each in parts):
        return {"messages": [*parts[0], *parts[1]]}
    if not all(isinstance(each, str) for each in parts) or not parts[1].strip():
        raise GeffectError(f"Row {index} of {name} has no text as prompt and completion", remedy=FORM)
    return dict(zip(CompletionSet.FIELDS, parts, strict=True))
