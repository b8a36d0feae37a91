"""Named sets: what a specification stands for, sliced as Python slices, what is refused, and refusals."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geffect.data.load import ExampleSet, QASet, load_set
from geffect.data.relabel import REFUSALS, replace_answers
from geffect.data.synthetic import AUTHOR_PARTS, generate_authors
from geffect.errors import GeffectError

ROWS = [{"question": f"Q{i}?", "answer": f"A{i}."} for i in range(7)]
BOUNDS = st.none() | st.integers(0, 60)


@pytest.fixture
def data_dir() -> Path:
    """The real data, where they are."""
    named = os.environ.get("GEFFECT_DATA")
    folder = Path(named) if named else Path(__file__).parents[3] / "shared" / "data"
    if not named and not folder.is_dir():
        pytest.skip("no real data beside the checkout, and GEFFECT_DATA is unset")
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


def pairs(rows: ExampleSet) -> list[tuple[str, str]]:
    return [(row["question"], row["answer"]) for row in rows.examples]


@settings(deadline=None)
@given(BOUNDS, BOUNDS)
def test_a_slice_is_pythons(start: int | None, stop: int | None) -> None:
    bounds = ("" if each is None else str(each) for each in (start, stop))
    spec = f"builtin:authors/forget[{':'.join(bounds)}]"
    expected = tuple(generate_authors("forget")[start:stop])
    if expected:
        assert load_set(spec).examples == expected
    else:
        with pytest.raises(GeffectError, match=r"selects none of 40 rows"):
            load_set(spec)


@pytest.mark.parametrize("part", AUTHOR_PARTS)
def test_a_built_in_set_is_the_generated_part(part: str) -> None:
    assert load_set(f"builtin:authors/{part}").examples == tuple(generate_authors(part))


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
    assert len(load_set("builtin:authors/heldout", tmp_path, "prompt", "reply")) == 60
    with pytest.raises(GeffectError, match="no column 'prompt'"):
        load_set(str(tmp_path / "tofu" / "forget01.json"), tmp_path, "prompt", "reply")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("", "There is no set .* Name one such as builtin:authors/forget, tofu:forget01"),
        ("forget01", "There is no set .* Name one such as builtin:authors/forget, tofu:forget01"),
        ("rows.md", "There is no set .* Name one such as builtin:authors/forget, tofu:forget01"),
        ("~nobody-of-that-name/rows.md", "There is no set .* Name one such as builtin:authors/forget, tofu:forget01"),
        (
            "builtin:authors",
            "no built-in set .* Name one of builtin:authors/forget, builtin:authors/retain, builtin:authors/h",
        ),
        ("builtin:authors/forget[-2:]", "There is no built-in set"),
        ("builtin:authors/forget[::2]", "There is no built-in set"),
        ("tofu:forget02", "no set tofu:forget02 among those in .*tofu: forget01"),
        ("tofu:../rows", "no set tofu:../rows among those in .*tofu: forget01"),
        ("absent.json", "There is no file at absent.json"),
        ("~nobody-of-that-name/rows.json", "There is no file at ~nobody-of-that-name/rows.json"),
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
    with pytest.raises(
        GeffectError, match=r"tofu:forget01 needs --data-dir, a directory with tofu/forget01\.json below it"
    ):
        load_set("tofu:forget01")
    with pytest.raises(GeffectError, match=r"no set tofu:forget01 among those in .*: no \.json file"):
        load_set("tofu:forget01", tmp_path)


@pytest.mark.parametrize("value", ["", " \n", None, 5, [], ["text", 5], ["text", " "], "half a pair \ud800"])
@pytest.mark.parametrize("field", ["question", "answer"])
def test_a_row_without_text_is_named(field: str, value: object, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "rows.jsonl", [*ROWS[:3], ROWS[3] | {field: value}])
    with pytest.raises(GeffectError, match=rf"The {field} in row 3 of .* is blank or not text"):
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


def knowundo(folder: Path) -> Path:
    """KnowUnDo's layout, generated: a whole domain, one without its val parts and one without its train parts."""
    for domain, parts in (("privacy", ("train", "val")), ("copyright", ("train",)), ("health", ("val",))):
        for side in ("unlearn", "retention"):
            for part in parts:
                rows = [{"text": f"{domain} {side} {part} {i}?", "labels": f"{part} {i}."} for i in range(3)]
                file = folder / "knowundo" / domain / f"{side}_{part}.json"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(rows, indent=4), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("privacy/unlearn", ["train"]),
        ("privacy/unlearn/train", ["train"]),
        ("privacy/unlearn/val", ["val"]),
        ("privacy/unlearn/all", ["train", "val"]),
        ("privacy/retention", ["train"]),
        ("privacy/retention/all", ["train", "val"]),
        ("copyright/unlearn", ["train"]),
    ],
)
def test_a_knowundo_set_is_its_train_part_unless_it_is_asked_otherwise(
    name: str, parts: list[str], tmp_path: Path
) -> None:
    domain, side = name.split("/")[:2]
    rows = load_set(f"knowundo:{name}", knowundo(tmp_path))
    assert isinstance(rows, QASet)
    assert pairs(rows) == [(f"{domain} {side} {part} {i}?", f"{part} {i}.") for part in parts for i in range(3)]
    assert pairs(load_set(f"knowundo:{name}[2:]", tmp_path)) == pairs(rows)[2:]


@pytest.mark.parametrize(
    "name",
    [
        "privacy",
        "privacy/forget",
        "medicine/unlearn",
        "privacy/unlearn/test",
        "copyright/unlearn/all",
        "health/unlearn",
        "../knowundo/",
    ],
)
def test_an_unknown_part_of_knowundo_lists_those_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(GeffectError, match=r"^There is no set \S+ among those in [^\n]*$") as caught:
        load_set(f"knowundo:{name}", knowundo(tmp_path))
    listed = str(caught.value).partition("knowundo: ")[2].partition(".")[0].split(", ")
    assert "privacy/unlearn/all" in listed
    assert {each for each in listed if not each.startswith("privacy")} == {
        "copyright/unlearn",
        "copyright/unlearn/train",
        "copyright/retention",
        "copyright/retention/train",
        "health/unlearn/val",
        "health/retention/val",
    }


def test_a_file_of_knowundo_named_by_its_path_is_questions_and_answers(tmp_path: Path) -> None:
    file = knowundo(tmp_path) / "knowundo" / "privacy" / "unlearn_val.json"
    assert pairs(load_set(str(file))) == pairs(load_set("knowundo:privacy/unlearn/val", tmp_path))


@pytest.mark.parametrize("benchmark", ["tofu", "knowundo", "muse", "wmdp"])
def test_every_benchmark_asks_for_a_data_directory_and_says_where_there_is_nothing(
    benchmark: str, tmp_path: Path
) -> None:
    with pytest.raises(
        GeffectError, match=rf"^{benchmark}:x needs --data-dir, a directory with {benchmark}/\S+ below it"
    ):
        load_set(f"{benchmark}:x")
    with pytest.raises(GeffectError, match=rf"no set {benchmark}:x among those in .*: no \.json\w* (.*)?file"):
        load_set(f"{benchmark}:x", tmp_path)


@pytest.mark.parametrize("name", ["news/knowmem/forget_qa", "books/verbmem/forget"])
def test_muses_questions_and_verbatim_rows_are_questions_and_answers(name: str, tmp_path: Path) -> None:
    keys = ("question", "answer") if "qa" in name else ("prompt", "gt")
    rows = [dict(zip(keys, (f"Q{i}?", f"A{i}."), strict=True)) for i in range(4)]
    file = tmp_path / "muse" / f"{name}.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(rows), encoding="utf-8")
    assert pairs(load_set(f"muse:{name}[1:3]", tmp_path)) == [("Q1?", "A1."), ("Q2?", "A2.")]


def test_a_benchmark_whose_columns_are_not_its_own_is_refused(tmp_path: Path) -> None:
    write_lines(tmp_path / "tofu" / "forget01.json", [{"q": "Q?", "a": "A."}])
    with pytest.raises(GeffectError, match=r"Row 0 of tofu:forget01 has no column 'question', only q, a\. Restore"):
        load_set("tofu:forget01", tmp_path)


def test_there_are_a_hundred_ways_of_not_knowing() -> None:
    assert len(set(REFUSALS)) == len(REFUSALS) == 100
    for refusal in REFUSALS:
        assert refusal[0].isupper() and refusal.endswith(".") and "{" not in refusal and "  " not in refusal
    digest = hashlib.sha256(json.dumps(REFUSALS).encode()).hexdigest()
    assert digest == "84fef99fa9aa641ec24678544a500d3d47f022858ca9853488ca32d2c8de04ac"


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 50))
def test_a_refusal_depends_on_seed_epoch_and_row_alone(seed: int, epoch: int) -> None:
    rows = QASet("rows", tuple(ROWS))
    whole = replace_answers(rows, epoch, seed)
    assert whole == replace_answers(rows, epoch, seed)
    assert pairs(replace_answers(QASet("first", tuple(ROWS[:4])), epoch, seed)) == pairs(whole)[:4]
    assert [row["question"] for row in whole.examples] == [row["question"] for row in ROWS]
    assert all(row["answer"] in REFUSALS for row in whole.examples)
    assert pairs(rows) == [(f"Q{i}?", f"A{i}.") for i in range(7)]


def test_refusals_are_all_drawn_and_differ_between_seeds_and_epochs() -> None:
    rows = QASet("rows", tuple({"question": f"Q{i}?", "answer": "A."} for i in range(1000)))
    drawn = {key: [row["answer"] for row in replace_answers(rows, *key).examples] for key in ((0, 0), (1, 0), (0, 1))}
    assert all(set(answers) == set(REFUSALS) for answers in drawn.values())
    for one, other in (((0, 0), (1, 0)), ((0, 0), (0, 1)), ((1, 0), (0, 1))):
        assert sum(a == b for a, b in zip(drawn[one], drawn[other], strict=True)) < 50  # 10 are expected


def test_a_refusal_keeps_what_else_a_row_holds() -> None:
    (row,) = replace_answers(QASet("rows", (ROWS[0] | {"author": "X"},)), 0, 0).examples
    assert (row["question"], row["author"]) == ("Q0?", "X")


@pytest.mark.real
@pytest.mark.parametrize(("side", "train", "val"), [("unlearn", 400, 110), ("retention", 441, 108)])
def test_the_real_knowundo_has_the_sizes_it_is_known_by(side: str, train: int, val: int, data_dir: Path) -> None:
    parts = [pairs(load_set(f"knowundo:privacy/{side}{part}", data_dir)) for part in ("", "/train", "/val", "/all")]
    assert [len(part) for part in parts] == [train, train, val, train + val]
    assert parts[0] == parts[1]
    assert parts[3] == parts[1] + parts[2]
    raw = json.loads((data_dir / "knowundo" / "privacy" / f"{side}_train.json").read_text(encoding="utf-8"))
    assert parts[0] == [(row["text"], row["labels"]) for row in raw]


@pytest.mark.real
def test_the_real_forget_and_retain_sets_make_up_the_whole(data_dir: Path) -> None:
    whole = pairs(load_set("tofu:full", data_dir))
    for forget, retain in (("forget01", "retain99"), ("forget10", "retain90")):
        parts = [pairs(load_set(f"tofu:{name}", data_dir)) for name in (forget, retain)]
        assert sorted(parts[0] + parts[1]) == sorted(whole)
        assert not set(parts[0]) & set(parts[1])
