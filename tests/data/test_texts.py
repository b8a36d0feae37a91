"""Sets of texts: what makes one, how its texts become chunks, and the layouts of MUSE and WMDP."""

import json
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from geffect.core.forward import IGNORE_INDEX
from geffect.data.encode import EncodedExample, encode_examples, encode_set, pad_id_of
from geffect.data.load import ExampleSet, QASet, TextSet, load_set
from geffect.errors import GeffectError
from geffect.models.builtin import make_tokenizer
from tests.data.test_encode import BOS, adding

STORY = ["A man went to town.", " It rained;\n\nhe bought\tbread. ", "", "The end: é漢😀"]
TEXT = st.text(max_size=40)
Writer = Callable[[Path, list[str]], None]


def contents(rows: ExampleSet) -> list[str]:
    assert isinstance(rows, TextSet)
    return [row["text"] for row in rows.examples]


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())
    return path


def write_strings(path: Path, texts: list[str]) -> None:
    write(path, json.dumps(texts))


def write_json(path: Path, texts: list[str]) -> None:
    write(path, json.dumps([{"text": text} for text in texts]))


def write_lines(path: Path, texts: list[str]) -> None:
    write(path, "".join(json.dumps({"text": text, "title": "x"}) + "\n" for text in texts))


def write_csv(path: Path, texts: list[str]) -> None:
    pd.DataFrame({"text": texts, "n": range(len(texts))}).to_csv(path, index=False)


def write_parquet(path: Path, texts: list[str]) -> None:
    pytest.importorskip("pyarrow")
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"text": texts}).to_parquet(path)


WRITERS: dict[str, Writer] = {
    "strings.json": write_strings,
    "rows.json": write_json,
    "rows.jsonl": write_lines,
    "rows.csv": write_csv,
    "rows.parquet": write_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_of_texts_is_a_set_of_texts(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name, STORY)
    assert contents(load_set(str(tmp_path / name))) == STORY
    assert contents(load_set(f"{tmp_path / name}[1:3]")) == STORY[1:3]


def test_a_plain_file_is_a_set_of_one_text(tmp_path: Path) -> None:
    write(tmp_path / "story.txt", "\n\n".join(STORY))
    assert contents(load_set(str(tmp_path / "story.txt"))) == ["\n\n".join(STORY)]


def test_the_column_of_texts_can_be_named(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.json", json.dumps([{"body": "One.", "text": "other"}]))
    assert contents(load_set(str(file), text="body")) == ["One."]
    write_strings(file, STORY)
    assert contents(load_set(str(file), text="body")) == STORY


def test_questions_and_answers_win_over_texts(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.json", json.dumps([{"text": "T", "q": "Q?", "answer": "A."}]))
    both = load_set(str(file), None, "q", "answer")
    assert isinstance(both, QASet)
    assert both.examples == ({"text": "T", "question": "Q?", "answer": "A."},)
    with pytest.raises(GeffectError, match=r"Row 0 of .* has no column 'question', only text, q, answer\."):
        load_set(str(file))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"body": "T"}], "Row 0 of .* has no column 'question', only body\\. Name .*--text-column\\.$"),
        (
            [{"text": "T"}, {"question": "Q?", "answer": "A."}],
            "Row 1 of .* has no column 'text', only question, answer\\.",
        ),
        ([{"text": "T"}, {"text": None}], "The text in row 1 of .* is blank or not text: None"),
        ([{"text": "T"}, {"text": "\ud800"}], "The text in row 1 of .* is blank or not text"),
        ([{"text": ["T"]}], "The text in row 0 of .* is blank or not text"),
        ([{"text": ""}, " \n"], "selects 2 blank rows"),
    ],
)
def test_what_is_no_set_of_texts_is_refused_in_one_line(rows: list[Any], says: str, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.json", json.dumps(rows))
    with pytest.raises(GeffectError, match=says) as caught:
        load_set(str(file))
    assert "\n" not in str(caught.value)


def test_a_blank_plain_file_and_a_slice_of_blanks_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "blank.txt", "\n")
    write_strings(tmp_path / "rows.json", STORY)
    for spec, content in (
        ("blank.txt", "1 blank rows"),
        ("rows.json[2:3]", "1 blank rows"),
        ("rows.json[9:]", "none of 4 rows"),
    ):
        with pytest.raises(GeffectError, match=rf"selects {content}\."):
            load_set(str(tmp_path / spec))


def test_the_hash_is_of_the_texts_in_order(tmp_path: Path) -> None:
    def hashed(*texts: str) -> str:
        return TextSet("set", tuple({"text": text} for text in texts)).sha256

    assert len({hashed("a", "b"), hashed("b", "a"), hashed("a"), hashed("ab"), hashed("a\n\nb")}) == 5
    write_lines(tmp_path / "rows.jsonl", ["a", "b"])
    assert load_set(str(tmp_path / "rows.jsonl")).sha256 == hashed("a", "b")


@cache
def plain() -> Any:
    return make_tokenizer()


def encode(texts: list[str], max_length: int, tokenizer: Any = None) -> list[EncodedExample]:
    rows = TextSet("set", tuple({"text": text} for text in texts))
    return encode_set(tokenizer or plain(), rows, max_length)


def stream(texts: list[str]) -> list[int]:
    ids: list[int] = plain()("\n\n".join(texts))["input_ids"]
    return ids


@settings(deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=5), st.integers(2, 20))
def test_chunks_are_the_stream_of_joined_texts(texts: list[str], length: int) -> None:
    whole = stream(texts)
    assume(len(whole) > 1)
    chunks = encode(texts, length)
    joined = [each for chunk in chunks for each in chunk.input_ids]
    assert joined == (whole[:-1] if len(whole) % length == 1 else whole)
    assert {len(chunk.input_ids) for chunk in chunks[:-1]} <= {length}
    assert 2 <= len(chunks[-1].input_ids) <= length
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))


@settings(deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=5), st.integers(2, 20))
def test_all_of_a_chunk_but_its_first_token_carries_loss(texts: list[str], length: int) -> None:
    assume(len(stream(texts)) > 1)
    for chunk in encode(texts, length):
        assert chunk.labels == [IGNORE_INDEX, *chunk.input_ids[1:]]


@pytest.mark.parametrize(("tokens", "lengths"), [(8, [4, 4]), (9, [4, 4]), (10, [4, 4, 2]), (2, [2]), (5, [4])])
def test_a_last_chunk_of_one_token_is_dropped(tokens: int, lengths: list[int]) -> None:
    tokenizer = make_tokenizer()
    text = tokenizer.decode(stream(["one two three four five six seven eight nine ten"] * 3)[:tokens])
    assert len(stream([text])) == tokens
    assert [len(chunk.input_ids) for chunk in encode([text], 4)] == lengths


def test_no_template_and_no_special_token_is_put_to_texts() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer()
    eos = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{eos[0]} $A {eos[0]}", special_tokens=[eos]
    )
    tokenizer.chat_template = "{{ raise_exception('asked for a template') }}"
    assert tokenizer("x")["input_ids"][0] == tokenizer("x")["input_ids"][-1] == eos[1]
    (chunk,) = encode(STORY, 512, tokenizer)
    assert chunk.input_ids == stream(STORY)
    assert eos[1] not in chunk.input_ids


def adds_bos() -> Any:
    """A tokenizer that puts a beginning of sequence before every text."""
    return adding(f"{BOS} $A")


@pytest.mark.parametrize("make", [make_tokenizer, adds_bos])
@pytest.mark.parametrize("length", [2, 5, 512])
def test_examples_of_texts_are_the_texts_alone_and_cut(make: Callable[[], Any], length: int) -> None:
    tokenizer, texts = make(), ("The sea is cold.", "Who lives in Quenza? " * 9, "a", "", " ")
    rows = TextSet("set", tuple({"text": text} for text in texts))
    found = encode_examples(tokenizer, rows, length)
    for i, (row, text) in enumerate(zip(found, texts, strict=True)):
        ids = tokenizer(text)["input_ids"][:length] or [pad_id_of(tokenizer)]
        assert row == EncodedExample(i, ids, [IGNORE_INDEX, *ids[1:]])
    for more in texts:  # another text beside it changes nothing
        together = TextSet("set", ({"text": texts[0]}, {"text": more}))
        assert encode_examples(tokenizer, together, length)[0] == found[0]
    answers = load_set("builtin:authors/forget[:3]")
    assert encode_examples(tokenizer, answers) == encode_set(tokenizer, answers)


def test_a_text_beyond_the_models_context_is_refused() -> None:
    rows = TextSet("set", ({"text": "short"}, {"text": "word " * 40}))
    with pytest.raises(
        GeffectError, match=r"^Example 1 of set has \d+ tokens, beyond .* context of 30 tokens\. .*--max-length 30\.$"
    ):
        encode_examples(make_tokenizer(), rows, context=30)
    assert len(encode_examples(make_tokenizer(), rows, 30, context=30)) == 2


def test_a_stream_longer_than_the_tokenizers_limit_goes_without_a_warning(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    tokenizer = make_tokenizer()
    tokenizer.model_max_length = 8
    assert len(encode(STORY * 20, 16, tokenizer)) > 8
    assert not caplog.records and not any(capfd.readouterr())
    tokenizer("word " * 40)
    assert "longer than the specified maximum" in caplog.text  # so the silence above was not the logger's


@pytest.mark.parametrize(("texts", "length"), [(["a"], 8), ([""], 8), (["one two three"], 1)])
def test_texts_that_leave_nothing_to_learn_are_refused(texts: list[str], length: int) -> None:
    with pytest.raises(GeffectError, match=r"^set has \d tokens in chunks of \d, and none to learn [^\n]*$"):
        encode(texts, length)


def test_a_chunk_beyond_the_models_context_is_refused() -> None:
    rows = TextSet("set", ({"text": "word " * 100},))
    with pytest.raises(
        GeffectError, match=r"^Example 0 of set has 32 tokens, beyond .* context of 16 tokens\. .*--max-length 16"
    ):
        encode_set(make_tokenizer(), rows, 32, context=16)
    assert len(encode_set(make_tokenizer(), rows, 16, context=16)[0].input_ids) == 16


MUSE: dict[str, Writer] = {
    "raw/forget.json": write_strings,
    "raw/forget.jsonl": write_lines,
    "raw/forget.parquet": write_parquet,
    "raw/forget-00000-of-00001.parquet": write_parquet,
}


@pytest.mark.parametrize("file", MUSE)
def test_muses_raw_texts_are_found_in_each_of_its_layouts(file: str, tmp_path: Path) -> None:
    MUSE[file](tmp_path / "muse" / "news" / file, STORY)
    MUSE[file](tmp_path / "muse" / "news" / file.replace("forget", "retain1"), STORY[::-1])
    assert contents(load_set("muse:news/raw/forget[:2]", tmp_path)) == STORY[:2]
    assert contents(load_set("muse:news/raw/retain1", tmp_path)) == STORY[::-1]
    with pytest.raises(
        GeffectError, match=r"no set muse:news/raw/retain2 among .*muse: news/raw/forget, news/raw/retain1\."
    ):
        load_set("muse:news/raw/retain2", tmp_path)


def test_a_book_of_muse_may_be_a_plain_file(tmp_path: Path) -> None:
    write(tmp_path / "muse" / "books" / "raw" / "forget.txt", "\n".join(STORY))
    assert contents(load_set("muse:books/raw/forget", tmp_path)) == ["\n".join(STORY)]


def test_shards_are_one_set_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    folder = tmp_path / "muse" / "news" / "raw"
    for i in reversed(range(12)):
        write_parquet(folder / f"forget-{i:05}-of-00012.parquet", [f"text {i}", f"more {i}"])
    expected = [f"{word} {i}" for i in range(12) for word in ("text", "more")]
    assert contents(load_set("muse:news/raw/forget", tmp_path)) == expected
    (folder / "forget-00003-of-00012.parquet").unlink()
    with pytest.raises(GeffectError, match=r"^muse:news/raw/forget is not one file, or each of its shards once"):
        load_set("muse:news/raw/forget", tmp_path)


@pytest.mark.parametrize("twin", ["forget.jsonl", "forget-00000-of-00001.json"])
def test_a_set_that_lies_there_twice_is_refused(twin: str, tmp_path: Path) -> None:
    folder = tmp_path / "muse" / "news" / "raw"
    write_strings(folder / "forget.json", STORY)
    write_lines(folder / twin, STORY)
    with pytest.raises(GeffectError, match=rf"muse:news/raw/forget is not one file, .*raw/{twin}.*\. Restore or"):
        load_set("muse:news/raw/forget", tmp_path)


WMDP: dict[str, tuple[str, Writer]] = {
    "bio-retain.jsonl": ("bio-retain", write_lines),
    "bio-retain.json": ("bio-retain", write_json),
    "bio-retain.parquet": ("bio-retain", write_parquet),
    "bio-retain/train.parquet": ("bio-retain", write_parquet),
    "bio-retain/train-00000-of-00001.parquet": ("bio-retain", write_parquet),
    "cyber-forget/anything.jsonl": ("cyber-forget", write_lines),
    "bio_remove_dataset.jsonl": ("bio_remove_dataset", write_lines),
}


@pytest.mark.parametrize("file", WMDP)
def test_wmdps_corpora_are_found_in_each_of_their_layouts(file: str, tmp_path: Path) -> None:
    name, writer = WMDP[file]
    writer(tmp_path / "wmdp" / file, STORY)
    write(tmp_path / "wmdp" / name / "README.txt", "no corpus")
    assert contents(load_set(f"wmdp:{name}[1:]", tmp_path)) == STORY[1:]


def test_the_files_of_a_folder_are_one_corpus_and_a_file_beside_it_is_one_too_many(tmp_path: Path) -> None:
    for part, texts in (("a", ["1", "2"]), ("b", ["3"])):
        write_lines(tmp_path / "wmdp" / "bio-retain" / f"{part}.jsonl", texts)
    assert contents(load_set("wmdp:bio-retain", tmp_path)) == ["1", "2", "3"]
    write_lines(tmp_path / "wmdp" / "bio-retain.jsonl", ["4"])
    with pytest.raises(
        GeffectError, match=r"wmdp:bio-retain is not one file, .*: bio-retain/a\.jsonl, .*wmdp/bio-retain\.jsonl\."
    ):
        load_set("wmdp:bio-retain", tmp_path)


@pytest.mark.parametrize("benchmark", ["tofu", "knowundo", "muse", "wmdp"])
@pytest.mark.parametrize("name", ["../secret", "../../secret", "x/../../secret", "{outside}", "./known", ""])
def test_no_name_leads_out_of_the_data_directory(benchmark: str, name: str, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    outside = [write(folder / "secret.json", '["hidden"]') for folder in (tmp_path, data_dir)]
    write(data_dir / benchmark / "known.json", '["shown"]')
    spec = f"{benchmark}:{name.format(outside=outside[0].with_suffix(''))}"
    with pytest.raises(
        GeffectError, match=rf"^There is no set [^\n]* among those in [^\n]*{benchmark}: [^\n]*Name one of these\.$"
    ):
        load_set(spec, data_dir)
