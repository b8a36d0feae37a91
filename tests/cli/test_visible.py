"""What acts on a terminal, reverses text or cannot be seen is written out, wherever text of data is printed."""

import contextlib
import io
import json
import logging
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import geffect
from geffect import api
from geffect.cli import console
from geffect.config import EvaluateConfig
from geffect.errors import UNSEEN, GeffectError, visible_text
from geffect.preflight import Finding
from tests.conftest import Command, config

EVIL = "\x1b[31mred\x1b]0;title\x07\r\x08\x7f\x9b2J\u202egnp\u202c\u2066\u200b\u2060\ufeff\u2028\udc80\U000e0041"
NAME = EVIL.replace("\udc80", "")  # UTF-8 has none, nor has a data frame
BAD = [
    *range(0x09),
    0x0B,
    0x0C,
    0x0D,
    *range(0x0E, 0x20),
    *range(0x7F, 0xA0),
    *range(0x200B, 0x2010),
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
    0xFEFF,
    0xD800,
    0xDFFF,
]


def test_each_such_character_is_an_escape_of_json_and_no_other_is_touched() -> None:
    for point in BAD:
        shown = visible_text(chr(point))
        assert shown.isascii() and shown.isprintable() and json.loads(f'"{shown}"') == chr(point)
    kept = [
        chr(each) for each in range(0x110000) if unicodedata.category(chr(each)) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
    ]
    untouched = [each for each in kept if visible_text(each) != each]
    assert {unicodedata.category(each) for each in untouched} <= {"Cn", "Lo", "Mn"} and len(untouched) < 4100
    assert visible_text("Zoë\t“日本” עברית\n") == "Zoë\t“日本” עברית\n"
    assert visible_text("a\nb", lines=False) == "a\\nb"


@given(st.text(st.characters()))
def test_json_stays_the_same_json_and_nothing_is_escaped_twice(text: str) -> None:
    assert json.loads(visible_text(json.dumps({text: text}, ensure_ascii=False))) == {text: text}
    assert visible_text(visible_text(text)) == visible_text(text)
    assert not UNSEEN.search(visible_text(text))


@contextlib.contextmanager
def printed(*, terminal: bool) -> Iterator[io.StringIO]:
    """What is printed inside; on a terminal Rich adds colors of its own."""
    stream = io.StringIO()
    stream.isatty = lambda: terminal  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERM", "xterm-256color")
        patch.setenv("COLUMNS", "400")
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            yield stream
    assert "\\u001b[31mred" in stream.getvalue() and "gnp" in stream.getvalue()
    for each in ("\x1b[31m", "\x1b]", "\x07", "\x08", "\x7f", "\x9b", "\u202e", "\u2066", "\u200b", "\udc80"):
        assert each not in stream.getvalue(), repr(each)


@pytest.mark.parametrize("terminal", [False, True])
def test_batches_plans_findings_and_tables(terminal: bool) -> None:
    with printed(terminal=terminal):
        console.batch([(EVIL, [(EVIL, True), (EVIL, False)])])
        console.plan({EVIL: EVIL})
        console.findings([Finding(EVIL, "good", EVIL, EVIL)], as_json=False)
        console.findings([Finding(EVIL, "good", EVIL, EVIL)], as_json=True)
        console.comparison(pd.DataFrame({NAME: [NAME]}), Path(EVIL))
        console.matched_comparison(
            pd.DataFrame({"run": [NAME], "forget loss": [1.0]}), pd.DataFrame({NAME: [NAME]}, index=[NAME])
        )


@pytest.mark.parametrize("terminal", [False, True])
def test_a_name_in_a_table_is_not_cut(terminal: bool) -> None:
    with printed(terminal=terminal) as stream:
        console.comparison(pd.DataFrame({"run": [NAME]}), Path("out"))
    assert visible_text(NAME) in stream.getvalue()


def test_the_terminals_own_colors_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    terminal = console.Console(file=stream, force_terminal=True, color_system="truecolor")
    terminal.print(console.Text("a\x1b", style="red"))
    assert stream.getvalue() == "\x1b[31ma\\u001b\x1b[0m\n"


def test_brackets_in_a_name_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    console.comparison(pd.DataFrame({"run": ["[red]a[/red] :smile: [/nope]"]}), Path("[b]out"))
    out = capsys.readouterr().out
    assert "[red]a[/red] :smile: [/nope]" in out and "[b]out" in out


def test_an_error_is_one_line_to_whoever_prints_it() -> None:
    text = str(GeffectError("a\nb" + EVIL, remedy=EVIL))
    assert not UNSEEN.search(text) and "\n" not in text


def test_files_names_and_texts_reach_no_terminal_as_they_are(
    start: Path, tmp_path: Path, invoke: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real commands on a set whose name and texts are evil."""
    file = tmp_path / f"set{NAME}.json"
    file.write_text(json.dumps([{"question": f"Who{i}{NAME}?", "answer": f"{NAME}me"} for i in range(3)]), "utf-8")
    broken = tmp_path / f"broken{NAME}.json"
    broken.write_text('{"question": "\x1b[31m"', "utf-8")
    model, out = ["--model", start], tmp_path / f"out{NAME}"
    commands: list[list[Any]] = [
        ["preview", *model, "--data", file],
        ["preview", *model, "--data", broken],
        ["evaluate", *model, "--set", f"forget={file}", "--metric", "loss", "--out", out / "e"],
        ["evaluate", *model, "--set", f"forget={file}", "--metric", "loss", "--out", out / "j", "--json"],
        ["evaluate", *model, "--set", f"forget={file}", "--metric", EVIL, "--out", out / "f"],
        ["unlearn", *model, "--forget", file, "--retain", file, "--steps", "1", "--out", out / "u"],
        ["unlearn", "--model", f"./{EVIL}", "--forget", file, "--retain", file, "--out", out / "x"],
        ["doctor", *model, "--forget", file, "--retain", file, "--json"],
        ["report", out / "u"],
        ["inspect", out / "u", "--out", out / "i"],
        ["cite", EVIL],
    ]
    for words in commands:
        ended = invoke(*words)
        assert ended.code in (0, 1, 2, None)
        assert not UNSEEN.search(ended.out + ended.err), (words[0], ended)
    shown = invoke(*commands[0]).out
    assert all(visible_text(each) in shown for each in NAME if visible_text(each) != each)


def test_logs_and_warnings_of_others_too(invoke: Command, capsys: pytest.CaptureFixture[str]) -> None:
    invoke("cite", "gru")  # the command line sets them up
    record = logging.getLogger("transformers").makeRecord("x", 30, "", 0, "%s", (EVIL,), None)
    assert record.getMessage() == visible_text(EVIL)
    assert not UNSEEN.search(warnings.formatwarning(EVIL, UserWarning, "file", 1))


def test_a_run_shows_itself_in_a_notebook(start: Path, tmp_path: Path) -> None:
    run = api.unlearn(config(start, tmp_path / "run\u202e<b>", steps=1)).path
    html = geffect.Run(run)._repr_html_()
    assert "run\\u202e&lt;b&gt;" in html and not UNSEEN.search(html)


def test_the_values_of_an_evaluation_are_stored_as_they_are(start: Path, tmp_path: Path) -> None:
    """Escapes are for eyes: files keep what was read and written."""
    file = tmp_path / "set.json"
    file.write_text(json.dumps([{"question": "Q\u202e\x1b", "answer": "A\x07"}]))
    found = api.evaluate(
        EvaluateConfig.read(
            model=str(start), set=[f"forget={file}"], metric=["rouge_l_recall"], max_new_tokens=2, out=tmp_path / "out"
        )
    ).path
    (line,) = (json.loads(each) for each in (found / "texts.jsonl").read_text("utf-8").split("\n") if each)
    assert (line["question"], line["true"]) == ("Q\u202e\x1b", "A\x07")
