"""Tables, messages and progress bars on terminals of several widths."""

import io
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.cells import cell_len

from geffect.cli import console
from geffect.io.terminal import wrap
from tests.conftest import config, exhaustive

NAMES = [f"npo-gru-decay-0.99-learning-rate-3e-04-{i:02}" for i in range(6)]  # 40 characters each
METRICS = ["step", "forget acc.", "heldout loss", "heldout acc.", "gained", "harm", "gained per harm", "low", "high"]
WIDTHS = [60, 80, 100, 160]


def shown(monkeypatch: pytest.MonkeyPatch, width: int, *table: Any) -> str:
    """A table as a terminal of so many columns shows it."""
    monkeypatch.setenv("COLUMNS", str(width))
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    console.Console(highlight=False).show(*table)
    return re.sub(r"\x1b\[[\d;]*m", "", stream.getvalue())


def cells_of(names: list[str], cell: str = "{:.4f}") -> list[list[str]]:
    """A row a name with numbers that are all different."""
    return [[name, *(cell.format(i + j / 100 + 0.001) for j in range(len(METRICS)))] for i, name in enumerate(names)]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("names", [NAMES, ["ga", "npo"], [f"r{i}" for i in range(60)]], ids=["long", "two", "many"])
@pytest.mark.parametrize("cell", ["{:.4f}", "{:.4f} ± 0.021"])
def test_every_name_and_number_is_whole(
    monkeypatch: pytest.MonkeyPatch, width: int, names: list[str], cell: str
) -> None:
    rows = cells_of(names, cell)
    text = shown(monkeypatch, width, "runs", ["run", *METRICS], rows, ["run"])
    wanted = [each for row in rows for each in row] + [word for name in METRICS for word in name.split()]
    assert [each for each in wanted if each not in text] == []
    assert "…" not in text
    assert max(map(cell_len, text.splitlines())) <= width


def test_a_wide_terminal_has_the_plain_table_and_a_narrow_one_has_runs_as_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = cells_of(["npo_a", "npo_b"])
    wide, narrow = (shown(monkeypatch, width, "", ["run", *METRICS], rows, ["run"]) for width in (160, 60))
    assert re.search(r"run +┃ +step ┃ forget acc\.", wide)
    assert re.search(r"run +┃ +npo_a ┃ +npo_b ┃", narrow)
    assert re.search(r"gained per harm +│ 0\.0610 │ 1\.0610 │", narrow)


def test_tables_of_some_columns_each_repeat_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["forget", f"metric_{i}", *row[1:]] for i, row in enumerate(cells_of([""] * 8))]
    text = shown(monkeypatch, 60, "", ["set", "metric", *METRICS], rows, ["set", "metric"])
    tables = text.count("┏")
    assert tables > 1
    assert len(re.findall(r"│ forget │ metric_7 │", text)) == tables


def test_a_value_wider_than_the_terminal_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    value = "runs/" + "x" * 90
    text = shown(monkeypatch, 60, "", ["setting", *NAMES], [["masks", *([value] * 6)]], ["setting"])
    assert text.count(value) == 6
    assert all(f"  {name}  {value}" in text for name in NAMES)


def test_a_pipe_is_not_as_wide_as_anything(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    console.Console().show("runs", ["run", *METRICS], cells_of(NAMES), ["run"])
    console.Console().say("word " * 60)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + 4 + 6 + 1
    assert all(name in line for name, line in zip(NAMES, printed[4:10], strict=True))


def test_messages_end_lines_between_words_and_keep_a_command_whole() -> None:
    command = "geffect unlearn runs/a/config.yaml --resume"
    text = f"geffect: stopped after step 6 of 60, whose state is kept; continue with: {command}"
    assert wrap(text, 50).splitlines() == [
        "geffect: stopped after step 6 of 60, whose state",
        "is kept; continue with:",
        f"  {command}",
    ]
    assert wrap(text, None) == text


def screen_of(output: str, width: int) -> list[str]:
    """The lines that a terminal shows after carriage returns, line feeds and the wrapping of what is too long."""
    lines, row, column = [[" "] * width], 0, 0
    for character in re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", output):
        if character == "\r":
            column = 0
        elif character == "\n" or column == width:
            row, column = row + 1, column if character == "\n" else 0
        if row == len(lines):
            lines.append([" "] * width)
        if character not in "\r\n":
            lines[row][column] = character
            column += 1
    return ["".join(line).rstrip() for line in lines]


def run_in_terminal(arguments: list[str], width: int, interrupt_at: str) -> tuple[int, str]:
    """Run the command line in a terminal of so many columns, with Ctrl-C once a text is shown: exit code, output."""
    import pty
    import struct
    from fcntl import ioctl
    from termios import TIOCSWINSZ

    child, terminal = pty.fork()
    if child == 0:
        time.sleep(0.2)  # until the size is set
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as in a terminal, also where these tests run in the background
        environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
        os.execve(sys.executable, [sys.executable, "-m", "geffect", *arguments], environment | {"TERM": "xterm"})
    ioctl(terminal, TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    output, asked = b"", False
    while True:
        try:
            output += os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        if not asked and interrupt_at.encode() in output:
            asked = True
            os.write(terminal, b"\x03")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), output.decode()


@pytest.mark.skipif(os.name != "posix", reason="a pseudo-terminal")
@pytest.mark.parametrize("width", [80, exhaustive(60)])
def test_bar_messages_and_ctrl_c_do_not_collide(width: int, start: Path, tmp_path: Path) -> None:
    settings = config(start, tmp_path / "run", steps=900, evaluate_every=1).model_dump(mode="json", exclude_unset=True)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    code, output = run_in_terminal(["unlearn", str(tmp_path / "own.yaml")], width, "3/900 ")
    lines = screen_of(output, width)
    text = " ".join(lines)
    assert code == 130, text
    assert "^C" in output
    assert "^C" not in text
    for name in ("forget", "retain", "heldout"):
        assert f"this model does not know the {name} set (below 0.9): fit it first (geffect finetune)" in text
    assert re.search(r"stopping after this step; a second Ctrl-C or signal stops at once *(\d|$| )", text)
    bars = [line for line in lines if re.search(r"\d/900 \[", line)]
    assert len(bars) == 1
    assert re.search(r"forget \d+\.\d+, heldout \d+\.\d+\]$", bars[0])
    assert all("geffect:" not in line or line.startswith("geffect:") for line in lines)


@pytest.mark.skipif(os.name != "posix", reason="a pseudo-terminal")
def test_ctrl_c_while_the_model_is_loaded_ends_in_a_line(start: Path, tmp_path: Path) -> None:
    sets = ["--forget", "builtin:authors/forget", "--retain", "builtin:authors/retain"]
    arguments = ["unlearn", "--model", str(start), *sets, "--out", str(tmp_path / "run")]
    code, output = run_in_terminal(arguments, 80, "loading the model...")
    assert code == 130 and "geffect: stopped by Ctrl-C" in screen_of(output, 80)
    assert not (tmp_path / "run").exists()
