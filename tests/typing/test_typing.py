"""Wrong calls of the public functions fail in mypy, each in its own line."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

WRONG = """\
import geffect
geffect.unlearn(model="m", forget="f", retain="r", out="o", stepz=3)
geffect.unlearn(model="m", forget="f", retain="r", out="o", steps="3")
geffect.unlearn(model="m", forget="f", retain="r")
geffect.unlearn(geffect.FinetuneConfig(model="m", train=["t"], out="o"))
geffect.UnlearnConfig(model=3, out="o")
geffect.UnlearnConfig(model="m", out="o", objective=3)
geffect.evaluate(model="m", out="o", suite="tofu", dtype="int8")
geffect.Run("a").nothing
geffect.read(3)
geffect.unlern(model="m")
len(geffect.unlearn(model="m", forget="f", retain="r", out="o"))
"""


@pytest.mark.slow
def test_every_wrong_call_is_an_error(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parent.parent.parent
    (tmp_path / "wrong.py").write_text(WRONG, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", str(root / "pyproject.toml"), str(tmp_path / "wrong.py")]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    wrong = {int(line) for line in re.findall(r"wrong\.py:(\d+): error", ended.stdout)}
    assert wrong == set(range(2, len(WRONG.splitlines()) + 1)), ended.stdout + ended.stderr
