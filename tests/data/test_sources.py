"""Tables from four formats, and plain text: the same rows whatever the format, and errors that say where."""

import csv
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geffect.data.load import load_set
from geffect.data.sources import read_rows
from geffect.errors import GeffectError

Rows = list[dict[str, Any]]
TEXT = st.text(alphabet="ab,;\"'\n\t []{}:é漢😀", min_size=1)
TABLES = st.lists(st.fixed_dictionaries({"question": TEXT, "answer": TEXT}), min_size=1, max_size=4)


def write_json(path: Path, rows: Rows) -> None:
    path.write_text(json.dumps(rows, indent=2), encoding="utf-8")


def write_lines(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_csv(path: Path, rows: Rows) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: Rows) -> None:
    pytest.importorskip("pyarrow")
    pd.DataFrame(rows).to_parquet(path)


WRITERS: dict[str, tuple[str, Callable[[Path, Rows], None]]] = {
    "a JSON list": ("rows.json", write_json),
    "JSON lines called .json": ("rows.json", write_lines),
    "JSON lines": ("rows.JSONL", write_lines),
    "CSV": ("rows.csv", write_csv),
    "Parquet": ("rows.parquet", write_parquet),
}
FILES = ("rows.json", "rows.jsonl", "rows.csv", "rows.parquet", "rows.txt")


@pytest.mark.parametrize("form", WRITERS)
@settings(deadline=None)
@given(rows=TABLES)
def test_what_was_written_is_read(form: str, rows: Rows) -> None:
    name, write = WRITERS[form]
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, name), rows)
        assert read_rows(Path(folder, name)) == rows


@pytest.mark.parametrize("form", WRITERS)
def test_columns_are_renamed_and_others_kept(form: str, tmp_path: Path) -> None:
    name, write = WRITERS[form]
    write(tmp_path / name, [{"q": "Q?", "a": "A.", "question": "other", "author": "X"}])
    expected = [{"question": "Q?", "answer": "A.", "author": "X"}]
    assert list(load_set(str(tmp_path / name), None, "q", "a").examples) == expected


def test_columns_may_trade_names_but_none_serves_as_both(tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.jsonl", [{"question": "Q?", "answer": "A."}])
    traded = load_set(str(tmp_path / "rows.jsonl"), None, "answer", "question")
    assert traded.examples == ({"question": "A.", "answer": "Q?"},)
    with pytest.raises(GeffectError, match=r"^Questions and answers are both the column 'question'\. [^\n]*-column\.$"):
        load_set(str(tmp_path / "rows.jsonl"), None, "question", "question")


@pytest.mark.parametrize("form", WRITERS)
def test_a_missing_column_is_an_error_that_lists_those_found(form: str, tmp_path: Path) -> None:
    name, write = WRITERS[form]
    write(tmp_path / name, [{"prompt": "Q?", "reply": "A."}])
    with pytest.raises(
        GeffectError, match=r"Row 0 of .* has no column 'answer', only prompt, reply\. .*--answer-column"
    ):
        load_set(str(tmp_path / name), None, "prompt", "answer")


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv"])
def test_a_byte_order_mark_is_no_part_of_the_first_column(name: str, tmp_path: Path) -> None:
    write = write_csv if name == "rows.csv" else write_lines
    write(tmp_path / name, [{"question": "Q?", "answer": "A."}])
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (tmp_path / name).read_bytes())
    assert read_rows(tmp_path / name) == [{"question": "Q?", "answer": "A."}]


def test_csv_values_stay_text(tmp_path: Path) -> None:
    values = ["NA", "null", "007", "1e3", "True", "nan"]
    rows = [{"question": value, "answer": value} for value in values]
    write_csv(tmp_path / "rows.csv", rows)
    assert read_rows(tmp_path / "rows.csv") == rows


def test_blank_lines_are_no_rows(tmp_path: Path) -> None:
    line = json.dumps({"question": "Q?", "answer": "A."})
    (tmp_path / "rows.json").write_text(f"\n{line}\r\n  \n{line}\n\n", encoding="utf-8")
    assert len(read_rows(tmp_path / "rows.json")) == 2


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize("bad", [1, 2, 3])
def test_a_garbled_line_is_named(name: str, bad: int, tmp_path: Path) -> None:
    lines = [json.dumps({"question": "Q?", "answer": "A."})] * 3
    lines[bad - 1] = lines[bad - 1][:-9]
    (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(GeffectError, match=rf"has no JSON object in line {bad}"):
        read_rows(tmp_path / name)


def test_a_garbled_list_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"question": "Q?", "answer": "A."},\n{"question":\n', encoding="utf-8")
    with pytest.raises(GeffectError, match=r"The \.json file at .* cannot be read: .*line 3"):
        read_rows(tmp_path / "rows.json")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[1]]", "Row 0 of .* list"),
        ("[5]", "Row 0 of .* int"),
        ("[null]", "Row 0 of .* NoneType"),
        ('[{"question": "Q?", "answer": "A."}, "Q?"]', "Row 1 of .* str"),
        ('["a text", ["another"]]', "Row 1 of .* list"),
    ],
)
def test_a_row_that_is_no_object_is_refused(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(text, encoding="utf-8")
    with pytest.raises(GeffectError, match=rf"^{says}\. Write one object a row"):
        load_set(str(tmp_path / "rows.json"))


def test_a_plain_file_is_one_text_as_it_stands(tmp_path: Path) -> None:
    text = ' First line.\n\n["not", "json"]\nLast: é漢😀\n'
    (tmp_path / "rows.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_rows(tmp_path / "rows.txt") == [text]


@pytest.mark.parametrize("rows", ["Q?,A.,more\n", "Q?,A.,more\nQ?,A.,more\n", "Q?,A.\nQ?,A.,more\n"])
def test_surplus_csv_fields_are_refused_and_shift_nothing(rows: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("question,answer\n" + rows, encoding="utf-8")
    with pytest.raises(GeffectError, match=r"The \.csv file at .* cannot be read: .* fields"):
        read_rows(tmp_path / "rows.csv")


@pytest.mark.parametrize("name", FILES)
def test_bytes_that_are_not_of_the_format_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"question,answer\ncaf\xe9,caf\xe9\n")
    with pytest.raises(GeffectError, match=r"^The \.\w+ file at [^\n]* cannot be read: [^\n]*$"):
        read_rows(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("rows.json", ""),
        ("rows.json", "[]"),
        ("rows.jsonl", "\n \n"),
        ("rows.csv", ""),
        ("rows.csv", "question,answer\n"),
    ],
)
def test_a_file_without_rows_is_refused(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(GeffectError, match=r"has no rows|No columns"):
        read_rows(tmp_path / name)


def test_json_nested_beyond_reason_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(GeffectError, match=r"The \.json file at .* cannot be read"):
        read_rows(tmp_path / "rows.json")


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "rows.json").mkdir()
    with pytest.raises(GeffectError, match="There is no file at"):
        read_rows(tmp_path / "rows.json")
