"""Nothing is dropped in silence: what stands twice, what does nothing, what is cut, what was not reached."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from geffect import api
from geffect.config import EvaluateConfig, FinetuneConfig, InspectConfig, LocalizeConfig, UnlearnConfig
from geffect.config.schema import Schema
from geffect.data.checks import check_ids, shared_examples
from geffect.data.encode import EncodedExample, encode_set
from geffect.data.load import QASet, TextSet, load_set
from geffect.data.sources import read_rows
from geffect.errors import GeffectError
from geffect.evaluation.suites import parts
from geffect.io.readers import parse_yaml
from geffect.models.builtin import make_tokenizer
from geffect.models.load import load
from geffect.monitoring.monitor import Monitor
from geffect.record.reader import read_lines
from geffect.record.schema import FORMAT, STEPS
from geffect.record.writer import check_lines
from geffect.training.dry_run import training_arguments
from tests.conftest import Command, config
from tests.data.test_encode import CHAT, START, STOP, chat, learned
from tests.support.cases import VOCABULARY, llama

QA = {"question": "Who?", "answer": "Ada."}


# what stands twice


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.json", '[{"question": "Q", "answer": "A", "answer": "B"}]', "the key 'answer' twice"),
        ("a.json", '[{"question": "Q", "answer": "A", "more": [{"x": 1, "x": 2}]}]', "the key 'x' twice"),
        ("a.jsonl", '{"question": "Q", "answer": "A"}\n{"answer": "A", "answer": "B"}', "in line 2: .*'answer' twice"),
        ("a.csv", "question,answer,answer\nQ,A,B\n", "the column 'answer' twice"),
        ("a.csv", '\n"question",answer,question\nQ,A,B\n', "the column 'question' twice"),
    ],
)
def test_a_key_or_a_column_that_stands_twice_is_refused(name: str, text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(GeffectError, match=rf"^[^\n]*{says}"):
        read_rows(tmp_path / name)


@pytest.mark.parametrize("nested", [False, True])
def test_a_parquet_column_or_field_that_stands_twice_is_refused(nested: bool, tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names, columns = ["answer", "answer"], [pyarrow.array(["A"]), pyarrow.array(["B"])]
    if nested:
        names, columns = ["answer"], [pyarrow.StructArray.from_arrays(columns, names=["x", "x"])]
    parquet.write_table(pyarrow.table(columns, names=names), tmp_path / "a.parquet")
    with pytest.raises(GeffectError, match=r"the column '(answer|x)' twice"):
        read_rows(tmp_path / "a.parquet")


def test_blank_columns_of_a_spreadsheet_are_no_twins(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,answer,,\nWho?,Ada.,,\n", encoding="utf-8")
    assert load_set(str(tmp_path / "a.csv")).contents == [("Who?", "Ada.")]


@pytest.mark.parametrize("text", ["steps: 1\nsteps: 2", "steps: 1\n'steps': 1", "more: {a: 1, a: 2}", "? a\n: 1\na: 2"])
def test_a_key_that_stands_twice_in_yaml_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(GeffectError, match=r"^[^\n]* is no readable YAML file: [^\n]*the key '\w+' twice[^\n]*$"):
        UnlearnConfig.read(tmp_path / "c.yaml")


def test_what_yaml_merges_in_may_be_overridden() -> None:
    assert parse_yaml("x: &x {a: 1, b: 1}\ny: {<<: *x, a: 2}\nz: {<<: *x}")["y"] == {"a": 2, "b": 1}


@pytest.mark.parametrize(
    "arguments",
    [
        ["preview", "--model", "m", "--data", "a", "--data", "b"],
        ["compare", "r", "--seed=1", "--seed", "1"],
        ["unlearn", "--dry-run", "--dry-run"],
        ["plot", "r", "--out", "a", "--out", "a"],
        ["inspect", "r", "--one-pass", "--one-pass"],
    ],
)
def test_a_flag_that_stands_twice_is_refused(arguments: list[str], invoke: Command) -> None:
    ended = invoke(*arguments)
    assert ended.code == 2
    assert ended.err.startswith("geffect: --") and " stands twice. Leave one" in ended.err


@pytest.mark.parametrize(
    ("schema", "values"),
    [
        (FinetuneConfig, {"train": ["a", "a"]}),
        (LocalizeConfig, {"domain": ["p=a,b"], "share": [0.1, "0.1"]}),
        (EvaluateConfig, {"metric": ["loss", "accuracy", "loss"], "set": ["forget=a"]}),
    ],
)
def test_a_value_that_stands_twice_is_refused(schema: type[Schema], values: dict[str, Any]) -> None:
    with pytest.raises(GeffectError, match=r"^--\w+ names '.*' twice."):
        schema.read(model="m", out="o", **values)


# settings that do nothing


@pytest.mark.parametrize(
    ("schema", "values", "other"),
    [
        (UnlearnConfig, {"lora_dropout": 0.1}, {"lora": 2}),
        (UnlearnConfig, {"balance": "cut"}, {"domain": ["p=a,b"], "forget": None, "retain": None}),
        (EvaluateConfig, {"tau": 0.5}, {"calibrate": "m"}),
        (EvaluateConfig, {"relearn_rate": 0.5}, {"relearn": 2}),
        (EvaluateConfig, {"split": "forget05"}, {"suite": "tofu"}),
        (EvaluateConfig, {"domain": ["p=a,b"]}, {"suite": "knowundo"}),
        (EvaluateConfig, {"task_dir": "d"}, {"task": ["mmlu"]}),
        (LocalizeConfig, {"draws": 2, "labels": "true"}, {"labels": "corrupted"}),
    ],
)
def test_a_setting_that_does_nothing_is_refused(
    schema: type[Schema], values: dict[str, Any], other: dict[str, Any]
) -> None:
    plain: dict[str, Any] = {"model": "m", "out": "o"}
    plain |= {"forget": "a", "retain": "b"} if schema is UnlearnConfig else {}
    plain |= {"domain": ["p=a,b"]} if schema is LocalizeConfig else {}
    plain |= {"set": ["forget=a"]} if schema is EvaluateConfig else {}
    with pytest.raises(GeffectError, match=r"^--\S+ does nothing without --\w.*, which is "):
        schema.read(**(plain | values))
    schema.read(**(plain | values | other))


@pytest.mark.parametrize("values", [{"shots": "builtin:authors/heldout"}, {"reference": "r"}])
def test_what_no_metric_looks_at_is_refused(values: dict[str, Any]) -> None:
    asked = EvaluateConfig.read(model="m", out="o", metric=["loss"], set=["forget=a"], **values)
    with pytest.raises(GeffectError, match="does nothing without"):
        parts(asked)


def test_a_warm_up_longer_than_the_run_is_refused(tmp_path: Path) -> None:
    whole = config(tmp_path, tmp_path / "out", warmup_steps=4)
    training_arguments(whole, 4)
    with pytest.raises(GeffectError, match=r"The warm-up takes 4 steps, more than the 3 of the run. Lower --warmup-s"):
        training_arguments(whole, 3)


# what is cut, and tokens that no model has


@pytest.mark.parametrize("field", ["question", "answer"])
@pytest.mark.parametrize("text", [STOP, START, f"to{STOP}morrow", "<|end|>"])
def test_a_control_tokens_text_in_a_row_is_refused(field: str, text: str) -> None:
    """The answer ended there, and what came after was learned by nobody."""
    tokenizer = chat(CHAT) if text != "<|end|>" else make_tokenizer()
    rows = QASet("set", (QA, QA | {field: f"well {text} then"}))
    with pytest.raises(GeffectError, match=rf"1 of 2 examples of set .* first '<\|\w+\|>' in the {field} of example 1"):
        encode_set(tokenizer, rows)
    near = QA | {field: "well < |end| > then"}
    (row,) = encode_set(tokenizer, QASet("set", (near,)))
    assert near["answer"] in learned(tokenizer, row)


def test_a_control_tokens_text_in_a_corpus_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        encode_set(make_tokenizer(), TextSet("corpus", ({"text": "One.<|end|>Two."}, {"text": "Three."})))
    assert "1 of 2 texts of corpus hold '<|end|>'" in caplog.text


def test_text_a_tokenizer_has_no_tokens_for_is_told(caplog: pytest.LogCaptureFixture) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[UNK]", "</s>", "Question", ":", "Who", "?", "Answer", "Ada", "."]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", eos_token="</s>")
    with caplog.at_level(logging.WARNING):
        encode_set(tokenizer, QASet("set", (QA,)))
        assert not caplog.records
        encode_set(tokenizer, QASet("set", (QA, QA | {"answer": "Grace."})))
    assert "1 of 2 examples of set hold text that this tokenizer reads as [UNK]" in caplog.text


def test_answers_that_are_cut_are_counted(start: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    forget = load_set("builtin:authors/forget[:12]")
    tokenizer = load(str(start)).tokenizer
    whole, cut = (encode_set(tokenizer, forget, length) for length in (512, 30))
    assert [row.cut for row in cut] == [max(0, len(row.input_ids) - 30) for row in whole]
    lost = [row.cut for row in cut if row.cut]
    assert lost
    chosen = config(start, tmp_path / "run", max_length=30, steps=1)
    assert api.plan(chosen)["forget"].endswith(f"longest 30, {len(lost)} cut at --max-length")
    with caplog.at_level(logging.WARNING):
        api.unlearn(chosen)
    assert f"{len(lost)} of 12 examples of forget are cut at --max-length: the last {sum(lost)} tokens" in caplog.text


@pytest.mark.parametrize("wrong", [VOCABULARY, VOCABULARY + 7, -1])
@pytest.mark.parametrize("where", ["input_ids", "labels"])
def test_given_ids_that_the_model_lacks_are_refused(wrong: int, where: str, tmp_path: Path) -> None:
    good = {"input_ids": [2, 3, 4], "labels": [-100, 3, 4]}
    bad = good | {where: [good[where][0], wrong, 4]}
    says = rf"^Example 1 of the retain set has the token id {wrong}, and the model's ids are 0 to {VOCABULARY - 1}"
    with pytest.raises(GeffectError, match=says):
        Monitor(llama(), {"forget": [good], "retain": [good, bad]}, out=tmp_path / "run")
    check_ids([EncodedExample(0, good["input_ids"], good["labels"])], VOCABULARY, "set")


def test_a_tokenizer_longer_than_the_embedding_is_refused_in_every_verb(
    start: Path, tmp_path: Path, invoke: Command
) -> None:
    path = tmp_path / "model"
    shutil.copytree(start, path)
    tokenizer = load(str(path)).tokenizer
    rows = load(str(path)).model.get_input_embeddings().weight.shape[0]
    tokenizer.add_tokens(["Quilla"])
    tokenizer.save_pretrained(path)
    (tmp_path / "a.json").write_text(json.dumps([{"question": "Who?", "answer": "Quilla."}] * 2), encoding="utf-8")
    sets, out = ["--forget", tmp_path / "a.json", "--retain", tmp_path / "a.json"], ["--out", tmp_path / "out"]
    for command in (
        ["unlearn", "--model", path, *sets, *out],
        ["inspect", path, *sets, *out],
        ["finetune", "--model", path, "--train", tmp_path / "a.json", *out],
        ["evaluate", "--model", path, "--metric", "loss", "--set", f"forget={tmp_path / 'a.json'}", *out],
        ["preview", "--model", path, "--data", tmp_path / "a.json"],
    ):
        ended = invoke(*command)
        assert ended.code == 2 and f"the model's ids are 0 to {rows - 1}" in ended.err, command
    assert not (tmp_path / "out").exists()


# a resume


LINES: dict[str, tuple[list[Any], str]] = {
    "missing": ([0, 2, 3, 4], r"Line 2 of .* is not the one line of step 1: it is that of step 2\."),
    "missing at the end": ([0, 1], r"Line 3 of .* is not the one line of step 2: it is missing\."),
    "doubled": ([0, 1, 1, 2, 3], r": step 1 after step 1 in line 3\."),
    "doubled behind": ([0, 1, 2, 3, 1], r": step 1 after step 3 in line 5\."),
    "out of order": ([1, 0, 2, 3], r": step 0 after step 1 in line 2\."),
    "no step": ([0, None, 2, 3], r": None for a step in line 2\."),
    "a text": ([0, "1", 2, 3], r": '1' for a step in line 2\."),
}


@pytest.mark.parametrize("case", LINES)
def test_a_record_is_whole_before_it_goes_on(case: str, tmp_path: Path) -> None:
    steps, says = LINES[case]
    (tmp_path / STEPS).write_text(
        "".join(json.dumps({"format": FORMAT, "step": step}) + "\n" for step in steps), encoding="utf-8"
    )
    with pytest.raises(GeffectError, match=says):
        check_lines(tmp_path, range(3))
    (tmp_path / STEPS).write_text("".join(json.dumps({"format": FORMAT, "step": step}) + "\n" for step in (0, 1, 2, 5)))
    check_lines(tmp_path, range(3))


def test_a_run_whose_lines_were_lost_does_not_go_on(start: Path, tmp_path: Path) -> None:
    """It finished as 0, 2, 3, 4."""
    chosen = config(start, tmp_path / "run", save_every=2)
    api.unlearn(chosen)
    (tmp_path / "run" / "DONE").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-4")
    lines = (tmp_path / "run" / STEPS).read_bytes().splitlines(keepends=True)
    for spoiled in (lines[:1] + lines[2:], lines[:2] + lines[1:], lines[1::-1] + lines[2:]):
        (tmp_path / "run" / STEPS).write_bytes(b"".join(spoiled))
        with pytest.raises(GeffectError, match=r"the one line of step \d|step \d after step \d"):
            api.unlearn(chosen, resume=True)
        assert (tmp_path / "run" / STEPS).read_bytes() == b"".join(spoiled)
    (tmp_path / "run" / STEPS).write_bytes(b"".join(lines))
    assert [line["step"] for line in read_lines(api.unlearn(chosen, resume=True).path)] == [0, 1, 2, 3, 4]


# shared examples, and what was not reached


def test_examples_of_two_sets_are_found_but_for_case_spaces_and_punctuation() -> None:
    rows = [
        QA,
        {"question": "  who ", "answer": "ADA"},
        {"question": "Ｗho?", "answer": "Ada\u00a0."},
        {"question": "Who?", "answer": "Adam."},
        {"question": "…", "answer": "?!"},
    ]
    sets = {
        "forget": QASet("f", tuple(rows)),
        "retain": QASet("r", (QA, {"question": "…", "answer": "!?"})),
        "heldout": TextSet("h", ({"text": "who ada"},)),
        "holdout": QASet("o", ({"question": "a", "answer": "b"},)),
    }
    found = {(each.one, each.other): (each.positions, each.near) for each in shared_examples(sets)}
    assert found == {
        ("forget", "retain"): ((0, 1, 2), 2),
        ("forget", "heldout"): ((0, 1, 2), 3),
        ("retain", "heldout"): ((0,), 1),
    }


def test_shared_examples_are_told_before_a_run_an_inspection_and_an_evaluation(
    start: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one, near = tmp_path / "one.json", tmp_path / "near.json"
    rows = [
        dict(zip(("question", "answer"), each, strict=True)) for each in load_set("builtin:authors/forget[:4]").contents
    ]
    one.write_text(json.dumps(rows), encoding="utf-8")
    near.write_text(json.dumps([{k: v.upper() for k, v in row.items()} for row in rows[1:]]), encoding="utf-8")
    plain = config(start, tmp_path / "run", forget=str(one), heldout=str(near))
    inspected = InspectConfig.read(checkpoints=[str(start)], forget=str(one), retain=str(near), out=tmp_path / "i")
    scored = EvaluateConfig.read(
        model=str(start), metric=["loss"], set=[f"forget={one}", f"holdout={near}"], out=tmp_path / "e"
    )
    for other, run in (
        ("heldout", lambda: api.plan(plain)),
        ("retain", lambda: api.plan(inspected)),
        ("holdout", lambda: api.evaluate(scored)),
    ):
        with caplog.at_level(logging.WARNING):
            run()
        told = f"3 examples of forget stand in {other}, 3 but for case, spaces and punctuation (numbers 1, 2, 3)"
        assert told in caplog.messages
        caplog.clear()


def _metrics(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return found


def test_an_accuracy_that_was_not_reached_is_told_and_recorded(
    start: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit: dict[str, Any] = {"model": str(start), "train": ["builtin:authors/forget[:4]"], "steps": 1}
    with caplog.at_level(logging.WARNING):
        path = api.finetune(FinetuneConfig.read(**fit, until_accuracy=0.9, out=tmp_path / "fit")).path
    (told,) = _metrics(path)["unmet"]
    assert told in caplog.messages and told.startswith("--until-accuracy 0.9 was not reached: after 1 steps the token")
    assert told.endswith("on builtin:authors/forget[:4]; raise --steps or --learning-rate")
    assert "unmet" not in _metrics(api.finetune(FinetuneConfig.read(**fit, out=tmp_path / "never")).path)


def test_an_unlearning_that_reached_nothing_says_so(
    known: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        path = api.unlearn(
            config(
                known, tmp_path / "run", steps=1, until_accuracy=0.1, stop="forget_loss(level=1000)", learning_rate=0.0
            )
        ).path
    accuracy, rules = _metrics(path)["unmet"]
    assert accuracy.startswith("--until-accuracy 0.1 was not reached: after 1 steps the token accuracy is 0.")
    assert accuracy.endswith(" on forget; raise --steps or --learning-rate")
    assert rules == "no rule of --stop 'forget_loss(level=1000)' was met: the run took all its 1 steps"
    assert {accuracy, rules} <= set(caplog.messages)


def test_a_rule_that_was_met_is_not_told(start: Path, tmp_path: Path) -> None:
    path = api.unlearn(
        config(start, tmp_path / "run", steps=2, stop="forget_loss(level=0.001)", learning_rate=0.0)
    ).path
    assert "unmet" not in _metrics(path)
    assert torch.isfinite(torch.tensor(read_lines(path)[-1]["evaluation"]["forget"]["loss"]))
