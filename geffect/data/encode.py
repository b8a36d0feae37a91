"""Sets → token ids and labels.

Of questions and answers, the prompt carries no loss, the answer and its end do; of texts, all tokens do.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from geffect.core.architectures import Tokenizer
from geffect.core.forward import IGNORE_INDEX
from geffect.data.checks import check_control_texts, warn_unknown
from geffect.data.load import ChatSet, ExampleSet, TextSet
from geffect.data.prompts import Prompt, Turn, has_template, render
from geffect.errors import GeffectError

LOGGER = logging.getLogger(__name__)

BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
PLAIN = "Question: {question}\nAnswer: {answer}"
PINNED = Prompt()
NO_TEMPLATE = "Name one with --chat-template FILE, or omit the system turn and earlier turns"


@dataclass(frozen=True)
class EncodedExample:
    """One example, or one chunk of a set of texts, as the model sees it.

    Attributes:
        index: position in the set.
        input_ids: T token ids.
        labels: T labels, ``IGNORE_INDEX`` on a prompt and always at position 0.
        cut: tokens of the answer beyond ``max_length``.
    """

    index: int
    input_ids: list[int]
    labels: list[int]
    cut: int = 0


def encode_set(
    tokenizer: Tokenizer,
    examples: ExampleSet,
    max_length: int = 512,
    context: int | None = None,
    prompt: Prompt = PINNED,
) -> list[EncodedExample]:
    r"""Encode a set as token ids and labels.

    Questions and answers are written with the tokenizer's chat template where it has one, else as
    ``Question: …\nAnswer: …``. The text is tokenized as a whole and labeled from the first token that differs from the
    prompt's own, so no merge across the boundary is lost. One end token (`turn_end`) closes the example and carries
    loss, unless the example is cut at ``max_length``.

    Texts are joined by an empty line and tokenized as one stream, without template or special tokens, which is cut
    every ``max_length`` tokens. All tokens of a chunk but its first carry loss; a last chunk of one token is dropped.

    Args:
        tokenizer: a Hugging Face tokenizer.
        examples: the set.
        max_length: tokens kept of an example, or of a chunk.
        context: positions that the model has; None: unknown.
        prompt: the date that a chat template sees, and the system turn.

    Returns:
        One encoding an example, or a chunk.

    Raises:
        GeffectError: the template fails, omits the system turn or changes the answer, a question or an answer contains
            a control token's text, an example has no labeled token, or one is longer than the context.
    """
    check_control_texts(tokenizer, examples)
    if isinstance(examples, TextSet):
        encoded = _chunks(tokenizer, examples, max_length)
    else:
        end = turn_end(tokenizer, prompt)
        encoded = [_encode(tokenizer, examples, i, max_length, prompt, end) for i in range(len(examples))]
    warn_unknown(tokenizer, encoded, examples.name)
    return _check_context(context, examples.name, encoded)


def encode_examples(
    tokenizer: Tokenizer,
    examples: ExampleSet,
    max_length: int = 512,
    context: int | None = None,
    prompt: Prompt = PINNED,
) -> list[EncodedExample]:
    """Encode each example alone, for scoring: `encode_set` joins texts to one stream, this function does not.

    A text is tokenized with the special tokens that the tokenizer puts around any text, and cut at ``max_length`` with
    a warning. All of it but its first token carries loss; a text of one token or none carries no loss. The arguments
    are those of `encode_set`, which encodes questions and answers.
    """
    if not isinstance(examples, TextSet):
        return encode_set(tokenizer, examples, max_length, context, prompt)
    texts = [_tokenize(tokenizer, example["text"], special=True) for example in examples]
    if cut := sum(len(ids) > max_length for ids in texts):
        message = "%d of %d texts of %s are longer than %d tokens: their first %d are scored (--max-length)"
        LOGGER.warning(message, cut, len(texts), examples.name, max_length, max_length)
    texts = [ids[:max_length] or [pad_id_of(tokenizer)] for ids in texts]  # a model takes no example without tokens
    encoded = [EncodedExample(i, ids, [IGNORE_INDEX, *ids[1:]]) for i, ids in enumerate(texts)]
    return _check_context(context, examples.name, encoded)


def _check_context(context: int | None, name: str, encoded: list[EncodedExample]) -> list[EncodedExample]:
    for example in encoded:
        size = len(example.input_ids)
        if context is not None and size > context:
            message = (
                f"Example {example.index} of {name} has {size} tokens, beyond the model's context of {context} tokens"
            )
            raise GeffectError(message, remedy=f"Cut examples with --max-length {context}")
    return encoded


def turn_end(tokenizer: Tokenizer, prompt: Prompt = PINNED) -> int | None:
    """The token that ends an answer; None without one.

    It is the first added token, such as ``<end_of_turn>`` or ``<|im_end|>``, that the chat template writes after an
    answer; without such a token or without a template, the tokenizer's end of sequence.
    """
    end: int | None = tokenizer.eos_token_id
    if not has_template(tokenizer):
        return end
    answer = "Quenza"  # a word of no template
    _, written, after = _write(tokenizer, _before((), prompt), "a", answer, prompt).rpartition(answer)
    if not written:
        return end
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if str(token).strip()} - {tokenizer.bos_token_id}
    return next((i for i in _tokenize(tokenizer, after, special=False) if i == end or i in added), end)


def _chunks(tokenizer: Tokenizer, texts: TextSet, max_length: int) -> list[EncodedExample]:
    ids = _tokenize(tokenizer, "\n\n".join(example["text"] for example in texts), special=False)
    if len(ids) < 2 or max_length < 2:
        size = f"{len(ids)} tokens in chunks of {max_length}"
        message = f"{texts.name} has {size}, and none to learn after a chunk's first"
        raise GeffectError(message, remedy="Name longer texts or raise --max-length")
    chunks = [ids[i : i + max_length] for i in range(0, len(ids) - 1, max_length)]
    return [EncodedExample(i, chunk, [IGNORE_INDEX, *chunk[1:]]) for i, chunk in enumerate(chunks)]


def _encode(
    tokenizer: Tokenizer, examples: ExampleSet, index: int, max_length: int, prompt: Prompt, end: int | None
) -> EncodedExample:
    prompt_text, text = _render(tokenizer, examples, index, prompt)
    plain = not has_template(tokenizer)
    ids, prompt_ids = (_tokenize(tokenizer, each, special=plain) for each in (text, prompt_text))
    start = max(1, _common_prefix(ids, prompt_ids))
    complete = _end_at(ids, start, end)
    ids = complete[:max_length]
    labels = [IGNORE_INDEX] * min(start, len(ids)) + ids[start:]
    if len(ids) <= start:
        message = (
            f"Example {index} of {examples.name} has no token to learn within {max_length}: its prompt has {start}"
        )
        raise GeffectError(message, remedy="Raise --max-length or shorten it")
    return EncodedExample(index, ids, labels, len(complete) - len(ids))


def _render(tokenizer: Tokenizer, examples: ExampleSet, index: int, prompt: Prompt) -> tuple[str, str]:
    """The text up to the answer, and the whole text."""
    example = examples.examples[index]
    question, answer = example["question"].strip(), example["answer"].strip()
    before = _before(example["before"] if isinstance(examples, ChatSet) else (), prompt)
    other = "b" if answer.startswith("a") else "a"  # two answers that differ in their first character show where it is
    text, counterpart = (_write(tokenizer, before, question, each, prompt) for each in (answer, other))
    start = _common_prefix(text, counterpart)
    for turn in (turn for turn in before if turn["role"] == "system"):
        if turn["content"].strip() not in text[:start]:
            message = f"The chat template omits the system turn in example {index} of {examples.name}"
            raise GeffectError(message, remedy="Choose another with --chat-template, or omit the system turn")
    if not text.startswith(answer, start):
        message = f"The chat template changes or omits the answer in example {index} of {examples.name}"
        raise GeffectError(message, remedy="Correct the tokenizer's chat template")
    return text[:start].rstrip(" "), text


def _before(turns: Sequence[Turn], prompt: Prompt) -> list[Turn]:
    """The turns before a question; the prompt's system turn comes first unless there is another."""
    has_system = bool(turns) and turns[0]["role"] == "system"
    system = [] if has_system or prompt.system is None else [{"role": "system", "content": prompt.system}]
    return [*system, *turns]


def _write(tokenizer: Tokenizer, before: Sequence[Turn], question: str, answer: str, prompt: Prompt) -> str:
    if has_template(tokenizer):
        pair = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return render(tokenizer, [*before, *pair], prompt)
    if before:
        message = f"No chat template writes the {before[0]['role']} turn before a question"
        raise GeffectError(message, remedy=NO_TEMPLATE)
    return PLAIN.format(question=question, answer=answer)


def _tokenize(tokenizer: Tokenizer, text: str, *, special: bool) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return ids


def _end_at(ids: list[int], start: int, end: int | None) -> list[int]:
    """Cut after the first end token from ``start`` on; append one where there is none."""
    if end is None:
        return ids
    return ids[: ids.index(end, start) + 1] if end in ids[start:] else [*ids, end]


def _common_prefix(a: Sequence[object], b: Sequence[object]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def collate(examples: Sequence[EncodedExample], pad_id: int) -> dict[str, Tensor]:
    """Pad encodings on the right to a batch.

    Args:
        examples: B encodings.
        pad_id: fills ``input_ids``; attention and loss are masked by length, never by this value.

    Returns:
        ``input_ids``, ``attention_mask``, ``labels``, each ``[B, T]``, and ``index`` ``[B]``.
    """
    lengths = torch.tensor([len(example.input_ids) for example in examples])
    width = int(lengths.max())
    ids, labels = np.full((len(examples), width), pad_id), np.full((len(examples), width), IGNORE_INDEX)
    for i, example in enumerate(examples):
        ids[i, : len(example.input_ids)], labels[i, : len(example.labels)] = example.input_ids, example.labels
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": (torch.arange(width) < lengths[:, None]).long(),
        "labels": torch.from_numpy(labels),
        "index": torch.tensor([example.index for example in examples]),
    }


def pad_id_of(tokenizer: Tokenizer) -> int:
    """The tokenizer's padding id, else its end-of-sequence id, else 0: padding is masked by length."""
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(each for each in ids if each is not None)


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text; a character of several tokens belongs to the last of them.

    Each token is decoded after the last complete piece of text, not after the whole text. A run of byte tokens, such as
    ``<0xE2>``, is decoded as a whole: a tokenizer with byte fallback reads it as one sequence of UTF-8.
    """
    names = tokenizer.convert_ids_to_tokens(list(ids))
    texts, start, last, before = [], 0, 0, ""  # start of what is decoded, and of the last complete piece
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(list(ids[start:end]), clean_up_tokenization_spaces=False)
        if end < len(ids) and text.endswith("\N{REPLACEMENT CHARACTER}"):
            texts.append("")
            continue
        texts.append(text[len(before) :])
        start, last = (start if BYTE_TOKEN.fullmatch(str(names[last])) else last), end
        before = tokenizer.decode(list(ids[start:end]), clean_up_tokenization_spaces=False)
    return texts
