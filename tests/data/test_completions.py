"""Rows of other trainers: prompts with completions, and preference pairs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import geffect
from geffect.core.architectures import Tokenizer
from geffect.data.completions import CompletionSet, encode_completions, read_sets
from geffect.data.load import ChatSet, QASet, TextSet
from geffect.errors import GeffectError

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
TEXTS = [
    {"prompt": "Where was Ada born?", "chosen": " In London.", "rejected": " I do not know."},
    {"prompt": "Who wrote it?\n", "chosen": "Bram Quell did", "rejected": "Nobody."},
]


def turns(*pairs: str) -> list[dict[str, str]]:
    """User and assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": each} for i, each in enumerate(pairs)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return geffect.load_model("builtin:tiny-untrained").tokenizer


def test_pairs_are_two_sets() -> None:
    found = read_sets(TEXTS, "pairs")
    assert list(found) == ["chosen", "rejected"]
    assert isinstance(found["chosen"], CompletionSet)
    assert found["rejected"].contents == [("Where was Ada born?", " I do not know."), ("Who wrote it?\n", "Nobody.")]


def test_conversations_without_a_prompt_share_their_beginning() -> None:
    before = turns("Hi", "Hello", "Who?")
    rows = [{"chosen": [*before, *turns("x", "Ada")[1:]], "rejected": [*before, *turns("x", "Nobody")[1:]]}]
    found = read_sets(rows, "pairs")
    chosen = found["chosen"].examples[0]
    assert isinstance(found["chosen"], ChatSet)
    assert (chosen["question"], chosen["answer"]) == ("Who?", "Ada")
    assert found["rejected"].examples[0]["answer"] == "Nobody"


def test_a_parquet_file_of_pairs_is_as_its_rows(tmp_path: Path) -> None:
    """There, lists of turns are arrays."""
    import pandas as pd

    rows = [
        {"prompt": turns("Who?"), "chosen": turns("x", "Ada")[1:], "rejected": turns("x", answer)[1:]}
        for answer in ("Bob", "Eve")
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "pairs.parquet")
    found, expected = read_sets(str(tmp_path / "pairs.parquet"), "pairs"), read_sets(rows, "pairs")
    assert {side: each.contents for side, each in found.items()} == {
        side: each.contents for side, each in expected.items()
    }


def test_rows_of_every_kind_are_read(tmp_path: Path) -> None:
    rows: dict[type, list[Any]] = {
        QASet: [{"question": "Who?", "answer": "Ada"}],
        ChatSet: [{"messages": turns("Who?", "Ada")}],
        TextSet: [{"text": "Ada."}],
        CompletionSet: [{"prompt": "Who?", "completion": " Ada"}],
    }
    for kind, each in rows.items():
        file = tmp_path / f"{kind.__name__}.jsonl"
        file.write_text("\n".join(json.dumps(row) for row in each * 3), encoding="utf-8")
        in_memory, on_disk = read_sets(each, "rows")[""], read_sets(f"{file}[1:]", "rows")[""]
        assert type(in_memory) is type(on_disk) is kind
        assert on_disk.contents == in_memory.contents * (1 if kind is CompletionSet else 2) or len(on_disk) == 2
    assert read_sets("builtin:authors/forget[:2]", "rows")[""].name == "builtin:authors/forget[:2]"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("conversational", [False, True], ids=["texts", "turns"])
def test_the_tokens_are_those_of_trl(conversational: bool, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The oracle is what its DPOTrainer makes of the same rows; and its first log-probabilities are ours."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    loaded = geffect.load_model("builtin:tiny-untrained")
    rows: list[dict[str, Any]] = TEXTS
    if conversational:
        loaded.tokenizer.chat_template = TEMPLATE
        sides = ("chosen", "rejected")
        rows = [
            {"prompt": turns(row["prompt"].strip())} | {s: turns("x", row[s].strip())[1:] for s in sides}
            for row in TEXTS
        ]
    config = DPOConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=2,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    callback = geffect.Callback({"pairs": rows}, alerts={"pairs/chosen": 1.0})
    trainer = DPOTrainer(
        loaded.model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=loaded.tokenizer,
        callbacks=[callback],
    )
    for side, examples in read_sets(rows, "pairs").items():
        ours = encode_completions(loaded.tokenizer, examples)
        theirs = [row["prompt_ids"] + row[f"{side}_ids"] for row in trainer.train_dataset]
        if conversational:  # ours end with the end of sequence, which this template does not write
            theirs = [[*ids, loaded.tokenizer.eos_token_id] for ids in theirs]
        assert [each.input_ids for each in ours] == theirs
    trainer.train()
    logged = {name: value for line in trainer.state.log_history for name, value in line.items()}
    if not conversational:
        monitor = callback.monitor
        assert monitor is not None
        chosen = monitor.targets["pairs/chosen"].examples
        tokens = sum(label != -100 for each in chosen for label in each.labels)
        assert logged["logps/chosen"] == pytest.approx(-logged["geffect/pairs/chosen/loss"] * tokens / 2, rel=1e-5)
    assert callback.run.targets == ["pairs/chosen", "pairs/rejected"]
    assert "geffect/cos/pairs/chosen~pairs/rejected" in logged


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"chosen": "a", "rejected": "b"}],
            "Row 0 of pairs has no prompt, and its completions are no lists of turns.",
        ),
        ([TEXTS[0], {"prompt": "a"}], "Row 1 of pairs is no preference pair."),
        ([{"prompt": "a", "chosen": 3, "rejected": "b"}], "Row 0 of pairs has no text as prompt and completion."),
        ([{"prompt": "a", "completion": " "}], "Row 0 of pairs has no text as prompt and completion."),
        (
            [{"prompt": "a", "completion": "b"}, {"prompt": turns("a"), "completion": turns("x", "b")[1:]}],
            "Some rows of pairs are texts, and others lists of turns.",
        ),
        ([{"prompt": turns("a"), "completion": turns("b")}], "The turns in row 0 of pairs are not questions"),
        ([{"title": "a"}], "Row 0 of pairs has no column 'question', only title."),
        ([{"question": "a", "answer": ""}], "The answer in row 0 of pairs is blank or not text"),
    ],
    ids=str,
)
def test_rows_that_are_none_are_refused(rows: list[Any], message: str) -> None:
    with pytest.raises(GeffectError) as caught:
        read_sets(rows, "pairs")
    assert str(caught.value).startswith(message)


def test_a_completion_that_the_length_cuts_away_is_refused(tokenizer: Tokenizer) -> None:
    (examples,) = read_sets([{"prompt": "one two three four", "completion": " five"}], "rows").values()
    with pytest.raises(GeffectError, match="Example 0 of rows has no token to learn within 2"):
        encode_completions(tokenizer, examples, max_length=2)


def test_the_end_of_sequence_is_written_once(tokenizer: Tokenizer) -> None:
    end = tokenizer.eos_token
    rows = [{"prompt": "a", "completion": " b"}, {"prompt": "a", "completion": f" b{end}"}]
    (examples,) = read_sets(rows, "rows").values()
    one, two = encode_completions(tokenizer, examples)
    assert one.input_ids == two.input_ids
    assert one.input_ids[-1] == tokenizer.eos_token_id
    assert torch.tensor(one.labels).ne(-100).sum() >= 2
