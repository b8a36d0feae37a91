"""The mask: exactly the answer and one end of sequence carry loss, whatever the tokenizer and its template do."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from geffect.core.forward import IGNORE_INDEX
from geffect.data.encode import EncodedExample, collate, encode_set, pad_id_of, turn_end
from geffect.data.load import QASet, load_set
from geffect.errors import GeffectError
from geffect.models.builtin import make_tokenizer

START, STOP, BOS = "<|start|>", "<|stop|>", "<|bos|>"
TURN = START + "{{ m['role'] }}\n{{ m['content'] }}" + STOP + "\n"
PROMPT = "{% if add_generation_prompt %}" + START + "assistant\n{% endif %}"
CHAT = "{% for m in messages %}" + TURN + "{% endfor %}" + PROMPT
THINK = (
    (  # what stands before an answer is not in the generation prompt
        "{% for m in messages %}" + START + "{{ m['role'] }}\n"
        "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}"
        + STOP
        + "\n{% endfor %}"
    )
    + PROMPT
)
INST = (
    BOS
    + "[INST] {{ messages[0]['content'] }} [/INST]{% if messages[1] %} {{ messages[1]['content'] }}"
    + (STOP + "{% endif %}")
)


def plain() -> Any:
    return make_tokenizer()


def chat(template: str = CHAT) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [START], "eos_token": STOP, "bos_token": BOS})
    tokenizer.chat_template = template
    return tokenizer


def adding(single: str) -> Any:
    """A tokenizer that puts special tokens around every text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = chat("")
    tokens = [(each, tokenizer.convert_tokens_to_ids(each)) for each in (BOS, STOP)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=tokens)
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    return tokenizer


def adding_and_chat() -> Any:
    tokenizer = adding(f"{BOS} $A {STOP}")
    tokenizer.chat_template = INST
    return tokenizer


KINDS: dict[str, Callable[[], Any]] = {
    "plain": plain,
    "adds BOS": lambda: adding(f"{BOS} $A"),
    "adds BOS and EOS": lambda: adding(f"{BOS} $A {STOP}"),
    "chat": chat,
    "chat that thinks": lambda: chat(THINK),
    "chat with a space": lambda: chat(INST),
    "chat, BOS both ways": adding_and_chat,
}
WITH_BOS = ("adds BOS", "adds BOS and EOS", "chat with a space", "chat, BOS both ways")
TEXT = st.text(max_size=30).filter(str.strip)
AWKWARD = (
    "a",
    "b",
    "aa",
    "end",
    "assistant",
    "user",
    "think",
    "<think>",
    "</think>",
    "stop",
    "Answer:",
    "Question: Answer:",
    ":",
    "\n",
    ">",
    "|>",
    "[/INST]",
    "INST",
    "Question",
    "{answer}",
    "{{ answer }}",
    "Answer: Answer: a",
)
PAIRS = st.tuples(TEXT, TEXT) | st.tuples(TEXT, st.sampled_from([each for each in AWKWARD if each.strip()]))


@cache
def kind(name: str) -> Any:
    return KINDS[name]()


def space(name: str) -> str:
    """A space before an answer is learned with it, whether the tokenizer merges the two or not."""
    return "" if name in {"chat", "chat that thinks"} else " "


def encode(tokenizer: Any, question: str, answer: str, max_length: int = 512) -> EncodedExample:
    (row,) = encode_set(tokenizer, QASet("set", ({"question": question, "answer": answer},)), max_length)
    return row


def encode_drawn(tokenizer: Any, pair: tuple[str, str]) -> EncodedExample:
    """Special tokens within the text are another matter."""
    assume(not any(special in text for special in tokenizer.all_special_tokens for text in pair))
    return encode(tokenizer, *pair)


def learned(tokenizer: Any, row: EncodedExample) -> str:
    return str(tokenizer.decode([label for label in row.labels if label != IGNORE_INDEX]))


@pytest.mark.parametrize("name", KINDS)
@settings(deadline=None)
@given(pair=PAIRS)
def test_what_carries_loss_is_the_answer_and_the_end(name: str, pair: tuple[str, str]) -> None:
    tokenizer = kind(name)
    found = learned(tokenizer, encode_drawn(tokenizer, pair))
    assert found == space(name) + pair[1].strip() + tokenizer.eos_token


@pytest.mark.parametrize("name", KINDS)
@settings(deadline=None)
@given(pair=PAIRS)
def test_the_end_of_sequence_is_there_once_where_it_is_learned(name: str, pair: tuple[str, str]) -> None:
    tokenizer = kind(name)
    row = encode_drawn(tokenizer, pair)
    assert row.labels.count(tokenizer.eos_token_id) == 1
    assert row.labels[-1] == row.input_ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("name", KINDS)
@settings(deadline=None)
@given(pair=PAIRS)
def test_labels_are_the_ids_after_an_unlabeled_prompt(name: str, pair: tuple[str, str]) -> None:
    row = encode_drawn(kind(name), pair)
    prompt = row.labels.count(IGNORE_INDEX)
    assert 1 <= prompt < len(row.input_ids)
    assert row.labels == [IGNORE_INDEX] * prompt + row.input_ids[prompt:]


@pytest.mark.parametrize("name", ["plain", "adds BOS", "adds BOS and EOS"])
@settings(deadline=None)
@given(pair=PAIRS)
def test_without_a_template_the_text_is_the_plain_form(name: str, pair: tuple[str, str]) -> None:
    tokenizer = kind(name)
    text = tokenizer.decode(encode_drawn(tokenizer, pair).input_ids)
    question, answer = (each.strip() for each in pair)
    assert text.removeprefix(BOS) == f"Question: {question}\nAnswer: {answer}{tokenizer.eos_token}"


TURN_END = "<end_of_turn>"


def ended_by(template: str, end: str = TURN_END, *, special: bool = True) -> Any:
    """A chat tokenizer whose template ends a turn with another token than the end of sequence."""
    tokenizer = chat(template)
    tokenizer.add_tokens([end], special_tokens=special)
    return tokenizer


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    "after", [TURN_END, TURN_END + "\n", "\n" + TURN_END, TURN_END + "\n" + STOP, TURN_END + TURN_END]
)
def test_a_template_that_ends_the_turn_gets_no_second_end(after: str, special: bool) -> None:
    tokenizer = ended_by(CHAT.replace(STOP, after), special=special)
    end = tokenizer.convert_tokens_to_ids(TURN_END)
    row = encode(tokenizer, "Where does she live?", "In Quenza.")
    assert learned(tokenizer, row) == "In Quenza." + after.partition(TURN_END)[0] + TURN_END
    assert (row.labels[-1], row.labels.count(end), turn_end(tokenizer)) == (end, 1, end)
    assert tokenizer.eos_token_id not in row.labels
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Where does she live?"}, {"role": "assistant", "content": "In Quenza."}],
        tokenize=False,
    )
    assert rendered.startswith(tokenizer.decode(row.input_ids))


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (None, STOP),
        (CHAT, STOP),
        (CHAT.replace(STOP, ""), STOP),
        (CHAT.replace(STOP, "</answer>"), STOP),
        (CHAT.replace(STOP, STOP + TURN_END), STOP),
        ("{{ messages[0]['content'] }}" + TURN_END, STOP),
        (CHAT.replace(STOP, BOS), STOP),
    ],
)
def test_where_no_turn_is_ended_the_end_of_sequence_is_learned(template: str | None, end: str) -> None:
    tokenizer = ended_by(template or "")
    tokenizer.chat_template = template
    assert turn_end(tokenizer) == tokenizer.convert_tokens_to_ids(end)


@pytest.mark.parametrize("name", [name for name in KINDS if "chat" in name])
@settings(deadline=None)
@given(pair=PAIRS)
def test_with_a_template_the_text_is_what_it_renders_up_to_the_end(name: str, pair: tuple[str, str]) -> None:
    tokenizer = kind(name)
    turns = [{"role": r, "content": t.strip()} for r, t in zip(("user", "assistant"), pair, strict=True)]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    assert tokenizer.decode(encode_drawn(tokenizer, pair).input_ids) == rendered.removesuffix("\n")


@pytest.mark.parametrize("name", WITH_BOS)
@settings(deadline=None)
@given(pair=PAIRS)
def test_a_beginning_of_sequence_stands_first_and_once(name: str, pair: tuple[str, str]) -> None:
    tokenizer = kind(name)
    row = encode_drawn(tokenizer, pair)
    assert [i for i, each in enumerate(row.input_ids) if each == tokenizer.bos_token_id] == [0]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("question", ["Is it Paris?", "Paris", "Answer: Paris", "Paris Paris"])
def test_an_answer_within_its_question_is_learned_once(name: str, question: str) -> None:
    tokenizer = kind(name)
    row = encode(tokenizer, question, "Paris")
    assert learned(tokenizer, row) == space(name) + "Paris" + tokenizer.eos_token
    assert "Paris" in tokenizer.decode([i for i, label in zip(row.input_ids, row.labels, strict=True) if label < 0])


@pytest.mark.parametrize("answer", ["think", "<think>", "</think>", "</", "\n\n</think>", "ink"])
def test_text_a_template_puts_before_an_answer_carries_no_loss(answer: str) -> None:
    tokenizer = kind("chat that thinks")
    row = encode(tokenizer, "What precedes an answer?", answer)
    prompt = tokenizer.decode(row.input_ids[: row.labels.count(IGNORE_INDEX)])
    assert prompt.endswith("<think>\n\n</think>\n\n")
    assert learned(tokenizer, row) == answer.strip() + STOP


def test_a_tokenizer_without_an_end_learns_the_answer_alone() -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    assert learned(tokenizer, encode(tokenizer, "Where?", "In Paris.")) == " In Paris."


@settings(deadline=None)
@given(TEXT, TEXT, st.integers(2, 60))
def test_a_row_is_cut_at_the_length_asked_for(question: str, answer: str, length: int) -> None:
    tokenizer = kind("plain")
    whole = encode_drawn(tokenizer, (question, answer))
    if length > whole.labels.count(IGNORE_INDEX):
        row = encode(tokenizer, question, answer, length)
        assert (row.input_ids, row.labels) == (whole.input_ids[:length], whole.labels[:length])
    else:
        with pytest.raises(GeffectError, match=rf"Example 0 of set has no token to learn within {length}"):
            encode(tokenizer, question, answer, length)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0]['content'] }}",  # drops it
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] | truncate(9) }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] | e }}{% endfor %}",
    ],
)
def test_a_template_that_changes_the_answer_is_refused(template: str) -> None:
    with pytest.raises(GeffectError, match="The chat template changes or omits the answer in example 0 of set"):
        encode(chat(template), "Who?", "an <odd> answer of many words")


@pytest.mark.parametrize("template", ["{% for %}", "{{ raise_exception('no\nsystem turn') }}"])
def test_a_template_that_fails_is_refused_in_one_line(template: str) -> None:
    with pytest.raises(GeffectError, match=r"^The chat template fails on a question and[^\n]*$"):
        encode(chat(template), "Who?", "Ada.")


def test_a_row_beyond_the_models_context_is_refused_and_names_the_flag() -> None:
    rows = QASet("set", tuple({"question": "Who?", "answer": "word " * n} for n in (2, 40)))
    lengths = [len(row.input_ids) for row in encode_set(kind("plain"), rows)]
    assert lengths[0] < 30 < lengths[1]
    says = rf"^Example 1 of set has {lengths[1]} tokens, beyond the model's context of 30 tokens\. .*"
    with pytest.raises(GeffectError, match=says + r"--max-length 30\.$"):
        encode_set(kind("plain"), rows, context=30)
    for length, context in ((30, 30), (512, lengths[1])):
        assert encode_set(kind("plain"), rows, length, context) == encode_set(kind("plain"), rows, length)


def test_rows_are_numbered_as_the_set_has_them() -> None:
    rows = encode_set(kind("plain"), load_set("builtin:authors/forget[3:9]"))
    assert [row.index for row in rows] == [0, 1, 2, 3, 4, 5]


def encoded(pad_id: int = 0) -> st.SearchStrategy[list[EncodedExample]]:
    """Rows of any ids, the padding id among them."""
    tokens = st.lists(st.integers(0, 5) | st.just(pad_id), min_size=2, max_size=9)
    rows = st.builds(
        lambda i, ids, n: EncodedExample(i, ids, [-100] * min(n, len(ids) - 1) + ids[min(n, len(ids) - 1) :]),
        st.integers(0, 99),
        tokens,
        st.integers(1, 8),
    )
    return st.lists(rows, min_size=1, max_size=5)


@settings(deadline=None)
@given(encoded(), st.integers(0, 5))
def test_padding_is_neither_attended_nor_labeled(rows: list[EncodedExample], pad_id: int) -> None:
    batch = collate(rows, pad_id)
    for i, row in enumerate(rows):
        length = len(row.input_ids)
        assert batch["attention_mask"][i].tolist() == [1] * length + [0] * (batch["labels"].shape[1] - length)
        assert set(batch["labels"][i, length:].tolist()) <= {IGNORE_INDEX}
        assert set(batch["input_ids"][i, length:].tolist()) <= {pad_id}


@settings(deadline=None)
@given(encoded(), st.integers(0, 5))
def test_rows_survive_padding(rows: list[EncodedExample], pad_id: int) -> None:
    batch = collate(rows, pad_id)
    kept = [
        [batch[name][i][batch["attention_mask"][i] == 1].tolist() for name in ("input_ids", "labels")]
        for i in range(len(rows))
    ]
    assert kept == [[row.input_ids, row.labels] for row in rows]
    assert batch["index"].tolist() == [row.index for row in rows]
    assert batch["input_ids"].shape[1] == max(len(row.input_ids) for row in rows)
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_what_pads_is_the_padding_id_else_the_end_else_zero() -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [START], "pad_token": START})
    found = [pad_id_of(tokenizer)]
    for name in ("pad_token", "eos_token"):
        setattr(tokenizer, name, None)
        found.append(pad_id_of(tokenizer))
    assert found == [tokenizer.convert_tokens_to_ids(START), tokenizer.convert_tokens_to_ids("<|end|>"), 0]
