"""Named sets: what a specification stands for, sliced as Python slices, and what is refused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geffect.data import QASet, load_set
from geffect.data.authors import PARTS, generate
from geffect.errors import GeffectError

ROWS = [{"question": f"Q{i}?", "answer": f"A{i}."} for i in range(7)]
BOUNDS = st.none() | st.integers(0, 60)


@pytest.fixture
def data_dir() -> Path:
    """The real data, where they are."""
    named = os.environ.get("GEFFECT_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not named and not folder.is_dir():
        pytest.skip("no real data beside the checkout, and GEFFECT_DATA is unset")
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


def pairs(rows: QASet) -> list[tuple[str, str]]:
    return [(row["question"], row["answer"]) for row in rows.rows]


@settings(deadline=None)
@given(BOUNDS, BOUNDS)
def test_a_slice_is_pythons(start: int | None, stop: int | None) -> None:
    bounds = ("" if each is None else str(each) for each in (start, stop))
    spec = f"builtin:authors/forget[{':'.join(bounds)}]"
    expected = tuple(generate("forget")[start:stop])
    if expected:
        assert load_set(spec).rows == expected
    else:
        with pytest.raises(GeffectError, match=r"expected at least one row in .* found none of 40"):
            load_set(spec)


@pytest.mark.parametrize("part", PARTS)
def test_a_built_in_set_is_the_generated_part(part: str) -> None:
    assert load_set(f"builtin:authors/{part}").rows == tuple(generate(part))


def test_a_file_is_sliced_and_keeps_the_name_it_was_given(tmp_path: Path) -> None:
    spec = f"{write_lines(tmp_path / 'rows.jsonl', ROWS)}[2:5]"
    rows = load_set(spec)
    assert (rows.name, pairs(rows)) == (spec, [(f"Q{i}?", f"A{i}.") for i in (2, 3, 4)])
    assert len(rows) == 3


def test_a_tofu_set_is_the_file_below_the_data_directory(tmp_path: Path) -> None:
    write_lines(tmp_path / "tofu" / "forget01.json", ROWS)
    assert pairs(load_set("tofu:forget01[:2]", tmp_path)) == [("Q0?", "A0."), ("Q1?", "A1.")]


def test_the_columns_asked_for_are_those_of_files_alone(tmp_path: Path) -> None:
    write_lines(tmp_path / "tofu" / "forget01.json", ROWS)
    assert len(load_set("tofu:forget01", tmp_path, "prompt", "reply")) == len(ROWS)
    assert len(load_set("builtin:authors/held", tmp_path, "prompt", "reply")) == 60
    with pytest.raises(GeffectError, match="a column 'prompt'"):
        load_set(str(tmp_path / "tofu" / "forget01.json"), tmp_path, "prompt", "reply")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("", "expected a set: builtin:authors/forget, tofu:forget01"),
        ("forget01", "expected a set: builtin:authors/forget, tofu:forget01"),
        ("rows.txt", "expected a set: builtin:authors/forget, tofu:forget01"),
        ("~nobody-of-that-name/rows.txt", "expected a set: builtin:authors/forget, tofu:forget01"),
        ("builtin:authors", "a built-in set among builtin:authors/forget, builtin:authors/retain, builtin:authors/h"),
        ("builtin:authors/forget[-2:]", "a built-in set among"),
        ("builtin:authors/forget[::2]", "a built-in set among"),
        ("tofu:forget02", "among those in .*tofu: forget01; found 'tofu:forget02'"),
        ("tofu:../rows", "among those in .*tofu: forget01; found 'tofu:../rows'"),
        ("absent.json", "expected a file at absent.json; found none"),
        ("~nobody-of-that-name/rows.json", "expected a file at ~nobody-of-that-name/rows.json; found none"),
        ("x" * 300 + ".json", "File name too long"),
    ],
)
def test_what_names_no_set_is_refused(spec: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "tofu" / "forget01.json", ROWS)
    write_lines(tmp_path / "rows.json", ROWS)
    with pytest.raises(GeffectError, match=says):
        load_set(spec, tmp_path)


def test_tofu_asks_for_a_data_directory_and_says_where_there_is_nothing(tmp_path: Path) -> None:
    with pytest.raises(GeffectError, match=r"expected --data-dir with tofu/forget01\.json below it"):
        load_set("tofu:forget01")
    with pytest.raises(GeffectError, match=r"no \.json file; found 'tofu:forget01'"):
        load_set("tofu:forget01", tmp_path)


@pytest.mark.parametrize("value", ["", " \n", None, 5, ["text"], "half a pair \ud800"])
@pytest.mark.parametrize("field", ["question", "answer"])
def test_a_row_without_text_is_named(field: str, value: object, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "rows.jsonl", [*ROWS[:3], ROWS[3] | {field: value}])
    with pytest.raises(GeffectError, match=rf"text in the {field} of every row of .* in row 3;"):
        load_set(str(file))


def test_the_hash_is_of_questions_and_answers_in_order() -> None:
    def hashed(*rows: dict[str, Any], name: str = "a") -> str:
        return QASet(name, rows).sha256

    first, second = ROWS[:2]
    base = hashed(first, second)
    assert base == hashed(first | {"author": "X"}, second, name="b")
    others = [
        hashed(second, first),
        hashed(first),
        hashed(first, second | {"answer": "A1!"}),
        hashed(first, {"question": second["answer"], "answer": second["question"]}),
        hashed(first, {"question": "Q1", "answer": "?A1."}),
    ]
    assert len({base, *others}) == 6


@pytest.mark.real
def test_the_real_forget_and_retain_sets_make_up_the_whole(data_dir: Path) -> None:
    whole = pairs(load_set("tofu:full", data_dir))
    for forget, retain in (("forget01", "retain99"), ("forget10", "retain90")):
        parts = [pairs(load_set(f"tofu:{name}", data_dir)) for name in (forget, retain)]
        assert sorted(parts[0] + parts[1]) == sorted(whole)
        assert not set(parts[0]) & set(parts[1])
