"""Conversations, questions with several right answers, and sets of other answers for po and dpo."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from geffect import api
from geffect.data.encode import encode_set
from geffect.data.load import ChatSet, QASet, load_set, right_answers
from geffect.data.prompts import Prompt
from geffect.data.relabel import read_answers, replace_answers
from geffect.errors import GeffectError
from geffect.evaluation.metrics import METRICS
from geffect.training.batches import alternatives
from geffect.training.setup import prepare
from tests.conftest import config
from tests.data.test_encode import chat, learned, plain


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ONE = [turn("user", "Who?"), turn("assistant", "Ada.")]
LONG = [turn("system", "Be brief."), *ONE, turn("user", "When?"), turn("assistant", "In 1815.")]


def write(path: Path, rows: list[Any]) -> str:
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", ["chat.jsonl", "chat.parquet"])
def test_every_assistant_turn_is_an_answer_to_what_came_before(name: str, tmp_path: Path) -> None:
    spec = write(tmp_path / name, [{"messages": ONE, "id": 1}, {"messages": LONG, "id": 2}])
    rows = load_set(spec)
    assert isinstance(rows, ChatSet)
    assert [(row["question"], row["answer"], row["id"]) for row in rows.examples] == [
        ("Who?", "Ada.", 1),
        ("Who?", "Ada.", 2),
        ("When?", "In 1815.", 2),
    ]
    tokenizer = chat()
    simple, first, second = encode_set(tokenizer, rows)
    assert [simple.input_ids] == [
        row.input_ids for row in encode_set(tokenizer, QASet("set", ({"question": "Who?", "answer": "Ada."},)))
    ]
    assert tokenizer.decode(first.input_ids).startswith("<|start|>system\nBe brief.<|stop|>\n<|start|>user\nWho?")
    whole = tokenizer.decode(second.input_ids)
    assert all(each in whole for each in ("Be brief.", "Who?", "Ada.", "When?"))
    assert learned(tokenizer, second) == "In 1815.<|stop|>"
    assert len(load_set(f"{spec}[1:]")) == 2
    own = encode_set(tokenizer, load_set(f"{spec}[1:]"), prompt=Prompt(system="Be long."))
    assert "Be long." not in tokenizer.decode(own[0].input_ids)  # a conversation's own system turn stays
    assert load_set(f"{spec}[1:]").sha256 != load_set(f"{spec}[:1]").sha256


def test_what_came_before_is_part_of_a_rows_content(tmp_path: Path) -> None:
    sets = [
        load_set(write(tmp_path / f"{i}.jsonl", [{"messages": each}]))
        for i, each in enumerate((LONG, [turn("system", "Be long."), *LONG[1:]]))
    ]
    assert sets[0].sha256 != sets[1].sha256


def test_a_conversation_of_one_question_needs_no_template(tmp_path: Path) -> None:
    one, more = (load_set(write(tmp_path / f"{i}.jsonl", [{"messages": each}])) for i, each in enumerate((ONE, LONG)))
    assert encode_set(plain(), one)
    with pytest.raises(GeffectError, match="No chat template writes the system turn before a question"):
        encode_set(plain(), more)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ("text", "The messages in row 0 of .* are not a list, but of type str"),
        (None, "The messages in row 0 of .* are not a list, but of type NoneType"),
        ([], "turns in row 0 of .* an answer last: none"),
        ([turn("user", "Who?")], "turns in row 0 of .* an answer last: user"),
        ([*ONE, turn("user", "When?")], "turns in row 0 of .* an answer last: user, assistant, user"),
        ([turn("assistant", "Ada.")], "turns in row 0 of .* an answer last: assistant"),
        ([turn("user", "Who?"), turn("tool", "x"), turn("assistant", "Ada.")], "an answer last: user, tool, assistant"),
        ([turn("user", ""), turn("assistant", "Ada.")], "A turn in row 0 of .* has no role and content of text"),
        ([{"role": "user"}, turn("assistant", "Ada.")], "has no role and content of text"),
        ([{"role": "user", "content": [{"type": "text"}]}, turn("assistant", "Ada.")], "has no role and content"),
        (["Who?", "Ada."], "has no role and content of text"),
        ([turn("system", "\ud800"), *ONE], "The messages in row 0 of .* is blank or not text"),
    ],
)
def test_what_is_no_conversation_is_refused(messages: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(GeffectError, match=says) as caught:
        load_set(write(tmp_path / "chat.jsonl", [{"messages": messages}]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_a_question_with_several_right_answers_is_a_row_with_each(name: str, tmp_path: Path) -> None:
    rows = [
        {"question": "Who?", "answer": ["Ada", "Lovelace", "Ada"], "perturbed_answer": ["Bo", "Cy"]},
        {"question": "When?", "answer": ["1815"], "perturbed_answer": ["1816"]},
    ]
    spec = write(tmp_path / name, rows)
    found = load_set(spec).examples
    assert [(row["question"], row["answer"]) for row in found] == [
        ("Who?", "Ada"),
        ("Who?", "Lovelace"),
        ("When?", "1815"),
    ]
    assert [right_answers(row) for row in found] == [["Ada", "Lovelace"]] * 2 + [["1815"]]
    assert [row["perturbed_answer"] for row in found] == [["Bo", "Cy"]] * 2 + [["1816"]]
    assert len(load_set(f"{spec}[:1]")) == 2


def test_a_generated_text_is_compared_with_every_right_answer(tmp_path: Path) -> None:
    rows = load_set(write(tmp_path / "rows.jsonl", [{"question": "Who?", "answer": ["Ada King", "Countess Lovelace"]}]))

    class Says:
        def questions(self) -> Any:
            return rows

        def answers(self) -> list[str]:
            return ["Countess Lovelace"] * 2

    assert METRICS["rouge_l_recall"](Says()) == [1.0, 1.0]  # type: ignore[arg-type]


ASKED = QASet("asked", tuple({"question": f"Q{i}?", "answer": f"A{i}."} for i in range(4)))


def drawn(path: str, rows: QASet = ASKED) -> list[set[str]]:
    answers = read_answers(path, load_set)
    sets = [replace_answers(rows, epoch, 0, answers).examples for epoch in range(40)]
    return [{each[i]["answer"] for each in sets} for i in range(len(rows))]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("idk.txt", "I do not know.\n\nNo idea.\r\n"),
        ("idontknow.jsonl", "I do not know.\nNo idea.\n"),  # TOFU's own is no JSON
        ("idk.json", '["I do not know.", "No idea."]'),
        ("texts.jsonl", '{"text": "I do not know."}\n{"text": "No idea."}\n'),
    ],
)
def test_other_answers_are_drawn_from_texts(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert drawn(str(tmp_path / name)) == [{"I do not know.", "No idea."}] * 4
    assert drawn(str(tmp_path / name) + "[:1]") == [{"I do not know."}] * 4


def test_other_answers_belong_to_their_questions(tmp_path: Path) -> None:
    rows = [{"question": f"Q{i}?", "answer": [f"other {i}", f"another {i}"]} for i in (3, 1, 0, 2)]
    path = write(tmp_path / "others.jsonl", rows)
    assert drawn(path) == [{f"other {i}", f"another {i}"} for i in range(4)]
    more = QASet("asked", (*ASKED.examples, {"question": "Q9?", "answer": "A9."}))
    with pytest.raises(GeffectError, match=r"others.jsonl has no answer to the question in example 4 of asked"):
        drawn(path, more)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("none.txt", "\n \n", "no answer in .*none.txt|no rows"),
        ("empty.txt", "", "no answer in"),
        ("absent.jsonl", None, "no file at .*absent.jsonl"),
        ("bad.jsonl", "{", "has no JSON object in line"),
    ],
)
def test_what_holds_no_answers_is_refused(name: str, content: str | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(GeffectError, match=says):
        drawn(str(tmp_path / name))


@pytest.mark.parametrize("objective", ["po(answers='{}')", "dpo(beta=0.2, answers='{}') + gd"])
def test_po_and_dpo_descend_answers_of_ones_own(objective: str, start: Path, tmp_path: Path) -> None:
    (tmp_path / "idk.txt").write_text("I do not know.\n", encoding="utf-8")
    chosen = config(start, tmp_path / "run", objective=objective.format(tmp_path / "idk.txt"), steps=2)
    prepared = prepare(chosen)
    for row in alternatives(prepared, "forget", 12):
        assert learned(prepared.loaded.tokenizer, row).strip() == "I do not know.<|end|>"
    api.plan(chosen)
    run = api.unlearn(chosen).path
    recorded = json.loads((run / "environment.json").read_text())["data"]["answers"]
    assert recorded["examples"] == 1 and recorded["set"] == str(tmp_path / "idk.txt")


def test_one_objective_has_one_set_of_answers(start: Path, tmp_path: Path) -> None:
    (tmp_path / "idk.txt").write_text("No.\n", encoding="utf-8")
    with pytest.raises(GeffectError, match=r"names several answers: the built-in ones and .*idk.txt"):
        config(start, tmp_path / "run", objective=f"po + dpo(answers='{tmp_path}/idk.txt')")
    with pytest.raises(GeffectError, match=r"no file at .*nowhere.jsonl"):
        api.plan(config(start, tmp_path / "run", objective="po(answers='nowhere.jsonl')"))
    assert not (tmp_path / "run").exists()
