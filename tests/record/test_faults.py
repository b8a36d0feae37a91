"""A run that fails at one of its writes is refused in one sentence, or resumes to the same record and weights."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from geffect.record.writer import write
from tests.support.faults import SAME, VERBS, Faults, content, judged, points


def _sweep(*options: str) -> str:
    """The sweep in a process of its own: it forks, which this one's threads forbid."""
    command = [sys.executable, "-m", "tests.support.faults", *options]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_a_sample_of_the_writes_of_a_run() -> None:
    text = _sweep("--verb", "unlearn", "--how", "turn", "--stride", "31")
    assert f"KILL: killed, then {SAME}" in text
    assert f"ENOSPC: refused, then {SAME}" in text


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("verb", VERBS)
def test_every_write(verb: str) -> None:
    assert SAME in _sweep("--verb", verb)


def test_the_nth_write_fails_and_has_written_half(tmp_path: Path) -> None:
    faults = Faults(tmp_path, 2, "EIO")
    write_fails = pytest.raises(OSError, match="Input/output")
    with faults.installed(), (tmp_path / "a").open("w", encoding="utf-8") as stream, write_fails as raised:
        stream.write("four")
    assert raised.value.errno == errno.EIO
    assert faults.names == ["open a", "write a"]
    assert (tmp_path / "a").read_text(encoding="utf-8") == "fo"


def test_a_whole_file_is_written_in_five_operations(tmp_path: Path) -> None:
    faults = Faults(tmp_path)
    with faults.installed():
        write(tmp_path / "a", "text")
    assert [name.split()[0] for name in faults.names] == ["open", "write", "fsync", "rename", "fsync"]
    assert os.listdir(tmp_path) == ["a"]


def test_kinds_of_fault_in_turn() -> None:
    assert points(5, "turn", 2) == [(1, "ENOSPC"), (3, "EIO"), (5, "KILL")]
    assert len(points(5, "all", 1)) == 15


def test_a_run_that_differs_or_is_refused_in_two_lines_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "steps.jsonl").write_text('{"step": 0, "seconds": 1}\n', encoding="utf-8")
    same = content(tmp_path)
    assert same == {"steps.jsonl": [{"step": 0}]}
    assert judged("killed", "completed", tmp_path, same) == (f"killed, then {SAME}", True)
    assert not judged("killed", "completed", tmp_path, {})[1]
    assert not judged("killed", "refused two\nlines", tmp_path, same)[1]
    assert not judged("raised KeyError: 0", "completed", tmp_path, same)[1]
    assert not judged("killed", "raised KeyError: 0", tmp_path, same)[1]
