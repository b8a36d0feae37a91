"""Sets → token ids and labels.

Of questions and answers, the prompt carries no loss, the answer and its end do; of texts, all tokens do.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geffect.core.forward import IGNORE_INDEX
from geffect.data.checks import check_control_texts, tell_unknown
from geffect.data.load import ChatSet, ExampleSet, TextSet
from geffect.data.prompts import Prompt, Turn, has_template, render
from geffect.errors import GeffectError

LOGGER = logging.getLogger(__name__)

PLAIN = "Question: {question}\nAnswer: {answer}"
PINNED = Prompt()
NO_TEMPLATE = "name one with --chat-template FILE, or leave the system turn and earlier turns out"


@dataclass(frozen=True)
class EncodedExample:
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


def encode_set(
    tokenizer: Any, rows: ExampleSet, max_length: int = 512, context: int | None = None, prompt: Prompt = PINNED
) -> list[EncodedExample]:
    r"""Encode a set.

    Of questions and answers, the tokenizer's chat template is used where it has one, else ``Question: …\nAnswer: …``.
    The text is tokenized as a whole and labeled from the first token that differs from the prompt's own, so no merge
    across the boundary is lost. One end (`turn_end`) closes the row and carries loss, unless the row was cut at
    ``max_length``.

    Texts are joined by an empty line and tokenized as one stream, without a template or special tokens, which is cut
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
        GeffectError: the template fails, leaves out the system turn or changes the answer, a question or an answer
            holds a control token's text, a row is left without a labeled token, or one is longer than the context.
    """
    check_control_texts(tokenizer, rows)
    if isinstance(rows, TextSet):
        encoded = _chunks(tokenizer, rows, max_length)
    else:
        end = turn_end(tokenizer, prompt)
        encoded = [_encode(tokenizer, rows, i, max_length, prompt, end) for i in range(len(rows))]
    tell_unknown(tokenizer, encoded, rows.name)
    return _within(context, rows, encoded)


def encode_examples(
    tokenizer: Any, rows: ExampleSet, max_length: int = 512, context: int | None = None, prompt: Prompt = PINNED
) -> list[EncodedExample]:
    """Encode a set, one encoding an example: texts are scored one each, where `encode_set` trains on their stream.

    A text is tokenized alone, with the special tokens that the tokenizer puts around any text, and cut at
    ``max_length``, which a warning tells. All of it but its first token carries loss; a text of one token or none
    carries no loss. Questions and answers are encoded as by `encode_set`.

    Args:
        tokenizer: a Hugging Face tokenizer.
        rows: the set.
        max_length: tokens kept of an example, the first.
        context: positions the model has, where that is known.
        prompt: as of `encode_set`.

    Returns:
        One encoding an example, in the set's order.

    Raises:
        GeffectError: as `encode_set`, for questions and answers, or an example is longer than the context.
    """
    if not isinstance(rows, TextSet):
        return encode_set(tokenizer, rows, max_length, context, prompt)
    whole = [_tokenize(tokenizer, row["text"], special=True) for row in rows.rows]
    cut = sum(len(ids) > max_length for ids in whole)
    if cut:
        LOGGER.warning(
            "%d of %d texts of %s are longer than %d tokens: their first %d are scored (--max-length)",
            cut,
            len(whole),
            rows.name,
            max_length,
            max_length,
        )
    kept = [ids[:max_length] or [pad_id_of(tokenizer)] for ids in whole]  # a model does not take a row of no token
    return _within(context, rows, [EncodedExample(i, ids, [IGNORE_INDEX, *ids[1:]]) for i, ids in enumerate(kept)])


def _within(context: int | None, rows: ExampleSet, encoded: list[EncodedExample]) -> list[EncodedExample]:
    for row in encoded:
        if context is not None and len(row.input_ids) > context:
            raise GeffectError(
                f"rows within the model's context of {context} tokens",
                f"{len(row.input_ids)} tokens in row {row.index} of {rows.name}",
                f"cut them with --max-length {context}",
            )
    return encoded


def turn_end(tokenizer: Any, prompt: Prompt = PINNED) -> int | None:
    """The token that ends an answer.

    Args:
        tokenizer: a Hugging Face tokenizer.
        prompt: as of `encode_set`.

    Returns:
        The first added token, such as ``<end_of_turn>`` or ``<|im_end|>``, that the chat template writes after an
        answer; the tokenizer's end of sequence where there is no such token or no template; None without either.

    Raises:
        GeffectError: the template fails.
    """
    end: int | None = tokenizer.eos_token_id
    if not has_template(tokenizer):
        return end
    answer = "Quenza"  # stands nowhere in a template
    _, written, after = _written(tokenizer, _before((), prompt), "a", answer, prompt).rpartition(answer)
    if not written:
        return end
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if str(token).strip()} - {tokenizer.bos_token_id}
    return next((i for i in _tokenize(tokenizer, after, special=False) if i == end or i in added), end)


def _chunks(tokenizer: Any, texts: TextSet, max_length: int) -> list[EncodedExample]:
    ids = _tokenize(tokenizer, "\n\n".join(row["text"] for row in texts.rows), special=False)
    if len(ids) < 2 or max_length < 2:
        raise GeffectError(
            f"a token to learn after the first of a chunk of {texts.name}",
            f"{len(ids)} tokens in chunks of {max_length}",
            "name longer texts or raise --max-length",
        )
    chunks = [ids[i : i + max_length] for i in range(0, len(ids) - 1, max_length)]
    return [EncodedExample(i, chunk, [IGNORE_INDEX, *chunk[1:]]) for i, chunk in enumerate(chunks)]


def _encode(
    tokenizer: Any, rows: ExampleSet, index: int, max_length: int, prompt: Prompt, end: int | None
) -> EncodedExample:
    asked, text = _render(tokenizer, rows, index, prompt)
    plain = not has_template(tokenizer)
    ids, prompt_ids = (_tokenize(tokenizer, each, special=plain) for each in (text, asked))
    start = max(1, _common_prefix(ids, prompt_ids))
    whole = _ended(ids, start, end)
    ids = whole[:max_length]
    labels = [IGNORE_INDEX] * min(start, len(ids)) + ids[start:]
    if len(ids) <= start:
        raise GeffectError(
            f"a token to learn within {max_length} tokens in row {index} of {rows.name}",
            f"a prompt of {start} tokens",
            "raise --max-length or shorten the row",
        )
    return EncodedExample(index, ids, labels, len(whole) - len(ids))


def _render(tokenizer: Any, rows: ExampleSet, index: int, prompt: Prompt) -> tuple[str, str]:
    """The text up to the answer, and all of it."""
    row = rows.rows[index]
    question, answer = row["question"].strip(), row["answer"].strip()
    before = _before(row["before"] if isinstance(rows, ChatSet) else (), prompt)
    other = "b" if answer.startswith("a") else "a"  # two answers that part at their first character show where it goes
    text, counterpart = (_written(tokenizer, before, question, each, prompt) for each in (answer, other))
    start = _common_prefix(text, counterpart)
    for turn in (turn for turn in before if turn["role"] == "system"):
        if turn["content"].strip() not in text[:start]:
            raise GeffectError(
                "a chat template that renders the system turn",
                f"row {index} of {rows.name} without it",
                "choose another with --chat-template, or leave the system turn out",
            )
    if not text.startswith(answer, start):
        raise GeffectError(
            "a chat template that renders the answer as it is",
            f"row {index} of {rows.name} without its answer",
            "correct the tokenizer's chat template",
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


def _ended(ids: list[int], start: int, end: int | None) -> list[int]:
    """Cut after the first end from ``start`` on; append one where there is none."""
    if end is None:
        return ids
    return ids[: ids.index(end, start) + 1] if end in ids[start:] else [*ids, end]


def _common_prefix(a: Sequence[object], b: Sequence[object]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def collate(rows: Sequence[EncodedExample], pad_id: int) -> dict[str, Tensor]:
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
