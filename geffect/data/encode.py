"""Sets → token ids and labels.

Of questions and answers, the prompt carries no loss, the answer and its end do; of texts, all tokens do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geffect.data.prompts import Prompt, Turn, has_template, render
from geffect.data.sets import ChatSet, RowSet, TextSet
from geffect.errors import GeffectError
from geffect.objectives.outputs import IGNORE_INDEX

PLAIN = "Question: {question}\nAnswer: {answer}"
PINNED = Prompt()
NO_TEMPLATE = "name one with --chat-template FILE, or leave the system turn and earlier turns out"


@dataclass(frozen=True)
class Encoded:
    """One row, or one chunk of a set of texts, as the model sees it.

    Attributes:
        index: its position among those of the set.
        input_ids: T token ids.
        labels: T labels, ``IGNORE_INDEX`` on a prompt and always at position 0.
    """

    index: int
    input_ids: list[int]
    labels: list[int]


def encode_set(
    tokenizer: Any, rows: RowSet, max_length: int = 512, context: int | None = None, prompt: Prompt = PINNED
) -> list[Encoded]:
    r"""Encode a set.

    Of questions and answers, the tokenizer's chat template is used where it has one, else ``Question: …\nAnswer: …``.
    The text is tokenised as a whole and labelled from the first token that differs from the prompt's own, so no merge
    across the boundary is lost. One end-of-sequence token closes the row and carries loss, unless the row was cut at
    ``max_length``.

    Texts are joined by an empty line and tokenised as one stream, without a template or special tokens, which is cut
    every ``max_length`` tokens. All of a chunk but its first token carries loss; a last chunk of one token is dropped.

    Args:
        tokenizer: a Hugging Face tokenizer.
        rows: the set.
        max_length: tokens kept of a row, or of a chunk.
        context: positions the model has, where that is known.
        prompt: the date that a chat template sees, and the system turn.

    Returns:
        One encoding a row, or a chunk.

    Raises:
        GeffectError: the template fails, leaves out the system turn or changes the answer, a row is left without a
            labelled token, or one is longer than the context.
    """
    if isinstance(rows, TextSet):
        encoded = _chunks(tokenizer, rows, max_length)
    else:
        encoded = [_encode(tokenizer, rows, i, max_length, prompt) for i in range(len(rows))]
    for row in encoded:
        if context is not None and len(row.input_ids) > context:
            raise GeffectError(f"rows within the model's context of {context} tokens",
                               f"{len(row.input_ids)} tokens in row {row.index} of {rows.name}",
                               f"cut them with --max-length {context}")  # fmt: skip
    return encoded


def _chunks(tokenizer: Any, texts: TextSet, max_length: int) -> list[Encoded]:
    ids = _tokenize(tokenizer, "\n\n".join(row["text"] for row in texts.rows), special=False)
    if len(ids) < 2 or max_length < 2:
        raise GeffectError(f"a token to learn after the first of a chunk of {texts.name}",
                           f"{len(ids)} tokens in chunks of {max_length}",
                           "name longer texts or raise --max-length")  # fmt: skip
    chunks = [ids[i : i + max_length] for i in range(0, len(ids) - 1, max_length)]
    return [Encoded(i, chunk, [IGNORE_INDEX, *chunk[1:]]) for i, chunk in enumerate(chunks)]


def _encode(tokenizer: Any, rows: RowSet, index: int, max_length: int, prompt: Prompt) -> Encoded:
    asked, text = _render(tokenizer, rows, index, prompt)
    plain = not has_template(tokenizer)
    ids, prompt_ids = (_tokenize(tokenizer, each, special=plain) for each in (text, asked))
    start = max(1, _common_prefix(ids, prompt_ids))
    ids = _ended(ids, start, tokenizer.eos_token_id)[:max_length]
    labels = [IGNORE_INDEX] * min(start, len(ids)) + ids[start:]
    if len(ids) <= start:
        raise GeffectError(f"a token to learn within {max_length} tokens in row {index} of {rows.name}",
                           f"a prompt of {start} tokens", "raise --max-length or shorten the row")  # fmt: skip
    return Encoded(index, ids, labels)


def _render(tokenizer: Any, rows: RowSet, index: int, prompt: Prompt) -> tuple[str, str]:
    """The text up to the answer, and all of it."""
    row = rows.rows[index]
    question, answer = row["question"].strip(), row["answer"].strip()
    before = _before(row["before"] if isinstance(rows, ChatSet) else (), prompt)
    other = "b" if answer.startswith("a") else "a"  # two answers that part at their first character show where it goes
    text, counterpart = (_written(tokenizer, before, question, each, prompt) for each in (answer, other))
    start = _common_prefix(text, counterpart)
    for turn in (turn for turn in before if turn["role"] == "system"):
        if turn["content"].strip() not in text[:start]:
            raise GeffectError("a chat template that renders the system turn", f"row {index} of {rows.name} without it",
                               "choose another with --chat-template, or leave the system turn out")  # fmt: skip
    if not text.startswith(answer, start):
        raise GeffectError(
            "a chat template that renders the answer as it is",
            f"row {index} of {rows.name} without its answer",
            "mend the tokenizer's chat template",
        )
    return text[:start].rstrip(" "), text


def _before(turns: Sequence[Turn], prompt: Prompt) -> list[Turn]:
    """The turns before a question, with the system's in front unless they begin with one."""
    own = bool(turns) and turns[0]["role"] == "system"
    system = [] if own or prompt.system is None else [{"role": "system", "content": prompt.system}]
    return [*system, *turns]


def _written(tokenizer: Any, before: Sequence[Turn], question: str, answer: str, prompt: Prompt) -> str:
    if has_template(tokenizer):
        asked = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return render(tokenizer, [*before, *asked], prompt)
    if before:
        raise GeffectError(f"a chat template for a {before[0]['role']} turn before a question", "none", NO_TEMPLATE)
    return PLAIN.format(question=question, answer=answer)


def _tokenize(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return ids


def _ended(ids: list[int], start: int, eos: int | None) -> list[int]:
    """Cut after the first end-of-sequence token from ``start`` on; append one where there is none."""
    if eos is None:
        return ids
    return ids[: ids.index(eos, start) + 1] if eos in ids[start:] else [*ids, eos]


def _common_prefix(a: Sequence[object], b: Sequence[object]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def collate(rows: Sequence[Encoded], pad_id: int) -> dict[str, Tensor]:
    """Pad on the right.

    Args:
        rows: B encodings.
        pad_id: what fills ``input_ids``; masked from attention and from loss by length, never by value.

    Returns:
        ``input_ids``, ``attention_mask``, ``labels``, each ``[B, T]``, and ``index`` ``[B]``.
    """
    lengths = torch.tensor([len(row.input_ids) for row in rows])
    width = int(lengths.max())
    ids, labels = np.full((len(rows), width), pad_id), np.full((len(rows), width), IGNORE_INDEX)
    for i, row in enumerate(rows):
        ids[i, : len(row.input_ids)], labels[i, : len(row.labels)] = row.input_ids, row.labels
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": (torch.arange(width) < lengths[:, None]).long(),
        "labels": torch.from_numpy(labels),
        "index": torch.tensor([row.index for row in rows]),
    }


def pad_id_of(tokenizer: Any) -> int:
    """The tokenizer's padding id, else its end-of-sequence id, else 0: padding is masked by length."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(each for each in ids if each is not None)


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text; a character's bytes stand with the token that completes it.

    Args:
        tokenizer: a Hugging Face tokenizer.
        ids: of the tokens.

    Returns:
        A text a token; together they are the whole.
    """
    texts, before = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(list(ids[:end]), clean_up_tokenization_spaces=False)
        whole = end == len(ids) or not text.endswith("\N{REPLACEMENT CHARACTER}")
        texts.append(text[len(before) :] if whole else "")
        before = text if whole else before
    return texts
