"""The examples of docs/extending.md run, in their order, and what they registered is named everywhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "extending.md"
NAMES = """
import contextlib, io
from geffect.cli import console
for kind, name in [("objectives", "hinge"), ("objectives", "ceiling"), ("rectifiers", "shortest"),
                   ("stop-rules", "patience"), ("metrics", "answer_tokens"), ("plots", "losses")]:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        console.names(kind)
    assert name in printed.getvalue(), kind
"""
CHECKS = """
import os, yaml
assert yaml.safe_load(open("shortest/config.yaml"))["rectifier"] == "shortest()"
assert yaml.safe_load(open("patience/config.yaml"))["stop"] == "patience(evaluations=2)"
gradients = set(geffect.read("shortest")["gradient"])
assert gradients == {"objective", "forget", "retain", "rectified"}, gradients
assert os.path.exists("shortest/figures/losses.png")
"""


@pytest.mark.slow
def test_every_block_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6
    script = tmp_path / "extending.py"
    script.write_text("\n\n".join([*blocks, NAMES, CHECKS]), encoding="utf-8")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
