"""Sets → token ids and labels.

Of questions and answers, the prompt carries no loss, the answer and its end do; of texts, all tokens do.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from torch import Tensor

from geffect.data.checks import check_control_texts, tell_unknown
from geffect.data.sets import RowSet, TextSet
from geffect.errors import GeffectError
from geffect.objectives.outputs import IGNORE_INDEX

LOGGER = logging.getLogger(__name__)

PLAIN = "Question: {question}\nAnswer: {answer}"


@dataclass(frozen=True)
class Encoded:
    """One row, or one chunk of a set of texts, as the model sees it.

    Attributes:
        index: its position among those of the set.
        input_ids: T token ids.
        labels: T labels, ``IGNORE_INDEX`` on a prompt and always at position 0.
        cut: tokens of the answer that ``max_length`` left out.
    """

    index: int
    input_ids: list[int]
    labels: list[int]
    cut: int = 0


def encode_set(tokenizer: Any, rows: RowSet, max_length: int = 512, context: int | None = None) -> list[Encoded]:
    r"""Encode a set.

    Of questions and answers, the tokenizer's chat template is used where it has one, else ``Question: …\nAnswer: …``.
    The text is tokenised as a whole and labelled from the first token that differs from the prompt's own, so no merge
    across the boundary is lost. One end (`turn_end`) closes the row and carries loss, unless the row was cut at
    ``max_length``.

    Texts are joined by an empty line and tokenised as one stream, without a template or special tokens, which is cut
    every ``max_length`` tokens. All of a chunk but its first token carries loss; a last chunk of one token is dropped.

    Args:
        tokenizer: a Hugging Face tokenizer.
        rows: the set.
        max_length: tokens kept of a row, or of a chunk.
        context: positions the model has, where that is known.

    Returns:
        One encoding a row, or a chunk.

    Raises:
        GeffectError: the template changes the answer, a question or an answer holds a control token's text, a row is
            left without a labelled token, or one is longer than the context.
    """
    check_control_texts(tokenizer, rows)
    if isinstance(rows, TextSet):
        encoded = _chunks(tokenizer, rows, max_length)
    else:
        end = turn_end(tokenizer)
        encoded = [_encode(tokenizer, row, i, rows.name, max_length, end) for i, row in enumerate(rows.rows)]
    tell_unknown(tokenizer, encoded, rows.name)
    return _within(context, rows, encoded)


def encode_examples(
    tokenizer: Any, rows: RowSet, max_length: int = 512, context: int | None = None
) -> list[Encoded]:  # fmt: skip
    """Encode a set, one encoding an example: texts are scored one each, where `encode_set` trains on their stream.

    A text is tokenized alone, with the special tokens that the tokenizer puts around any text, and cut at
    ``max_length``, which a warning tells. All of it but its first token carries loss; a text of one token or none
    carries no loss. Questions and answers are encoded as by `encode_set`.

    Args:
        tokenizer: a Hugging Face tokenizer.
        rows: the set.
        max_length: tokens kept of an example, the first.
        context: positions the model has, where that is known.

    Returns:
        One encoding an example, in the set's order.

    Raises:
        GeffectError: as `encode_set`, for questions and answers, or an example is longer than the context.
    """
    if not isinstance(rows, TextSet):
        return encode_set(tokenizer, rows, max_length, context)
    whole = [_tokenize(tokenizer, row["text"], special=True) for row in rows.rows]
    cut = sum(len(ids) > max_length for ids in whole)
    if cut:
        LOGGER.warning("%d of %d texts of %s are longer than %d tokens: their first %d are scored (--max-length)",
                       cut, len(whole), rows.name, max_length, max_length)  # fmt: skip
    kept = [ids[:max_length] or [pad_id_of(tokenizer)] for ids in whole]  # a model does not take a row of no token
    return _within(context, rows, [Encoded(i, ids, [IGNORE_INDEX, *ids[1:]]) for i, ids in enumerate(kept)])


def _within(context: int | None, rows: RowSet, encoded: list[Encoded]) -> list[Encoded]:
    for row in encoded:
        if context is not None and len(row.input_ids) > context:
            raise GeffectError(f"rows within the model's context of {context} tokens",
                               f"{len(row.input_ids)} tokens in row {row.index} of {rows.name}",
                               f"cut them with --max-length {context}")  # fmt: skip
    return encoded


def turn_end(tokenizer: Any) -> int | None:
    """The token that ends an answer.

    Args:
        tokenizer: a Hugging Face tokenizer.

    Returns:
        The first added token, such as ``<end_of_turn>`` or ``<|im_end|>``, that the chat template writes after an
        answer; the tokenizer's end of sequence where there is no such token or no template; None without either.

    Raises:
        GeffectError: the template fails.
    """
    end: int | None = tokenizer.eos_token_id
    if not tokenizer.chat_template:
        return end
    answer = "Quenza"  # stands nowhere in a template
    _, written, after = _written(tokenizer, "a", answer).rpartition(answer)
    if not written:
        return end
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if str(token).strip()} - {tokenizer.bos_token_id}
    return next((i for i in _tokenize(tokenizer, after, special=False) if i == end or i in added), end)


def _chunks(tokenizer: Any, texts: TextSet, max_length: int) -> list[Encoded]:
    ids = _tokenize(tokenizer, "\n\n".join(row["text"] for row in texts.rows), special=False)
    if len(ids) < 2 or max_length < 2:
        raise GeffectError(f"a token to learn after the first of a chunk of {texts.name}",
                           f"{len(ids)} tokens in chunks of {max_length}",
                           "name longer texts or raise --max-length")  # fmt: skip
    chunks = [ids[i : i + max_length] for i in range(0, len(ids) - 1, max_length)]
    return [Encoded(i, chunk, [IGNORE_INDEX, *chunk[1:]]) for i, chunk in enumerate(chunks)]


def _encode(
    tokenizer: Any, row: dict[str, Any], index: int, name: str, max_length: int, end: int | None
) -> Encoded:  # fmt: skip
    prompt, text = _render(tokenizer, row, index, name)
    plain = not tokenizer.chat_template
    ids, prompt_ids = (_tokenize(tokenizer, each, special=plain) for each in (text, prompt))
    start = max(1, _common_prefix(ids, prompt_ids))
    whole = _ended(ids, start, end)
    ids = whole[:max_length]
    labels = [IGNORE_INDEX] * min(start, len(ids)) + ids[start:]
    if len(ids) <= start:
        raise GeffectError(f"a token to learn within {max_length} tokens in row {index} of {name}",
                           f"a prompt of {start} tokens", "raise --max-length or shorten the row")  # fmt: skip
    return Encoded(index, ids, labels, len(whole) - len(ids))


def _render(tokenizer: Any, row: dict[str, Any], index: int, name: str) -> tuple[str, str]:
    """The text up to the answer, and all of it."""
    question, answer = row["question"].strip(), row["answer"].strip()
    other = "b" if answer.startswith("a") else "a"  # two answers that part at their first character show where it goes
    text, counterpart = (_written(tokenizer, question, each) for each in (answer, other))
    start = _common_prefix(text, counterpart)
    if not text.startswith(answer, start):
        raise GeffectError(
            "a chat template that renders the answer as it is",
            f"row {index} of {name} without its answer",
            "mend the tokenizer's chat template",
        )
    return text[:start].rstrip(" "), text


def _written(tokenizer: Any, question: str, answer: str) -> str:
    if not tokenizer.chat_template:
        return PLAIN.format(question=question, answer=answer)
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False))
    except TemplateError as error:
        reason = str(error).partition("\n")[0]
        raise GeffectError("a chat template that renders a question and its answer", reason,
                           "mend the tokenizer's chat template") from error  # fmt: skip


def _tokenize(tokenizer: Any, text: str, *, special: bool) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return ids


def _ended(ids: list[int], start: int, end: int | None) -> list[int]:
    """Cut after the first end from ``start`` on; append one where there is none."""
    if end is None:
        return ids
    return ids[: ids.index(end, start) + 1] if end in ids[start:] else [*ids, end]


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
