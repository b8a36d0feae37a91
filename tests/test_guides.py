"""The guides' blocks run, in their order, and their tables name what there is."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"


def run_guide(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, object]]:
    """A guide's text, and what its blocks left behind, run in a folder."""
    text = (DOCS / name).read_text(encoding="utf-8")
    monkeypatch.chdir(folder)
    found: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(block, name, "exec"), found)
    return text, found


@pytest.mark.filterwarnings("ignore:.*pin_memory.*", "ignore::FutureWarning")
def test_the_guide_to_questions_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own claims stand in it as asserts."""
    _, found = run_guide("questions.md", tmp_path, monkeypatch)
    checked = found["checked"]
    assert (checked["standard_error"] > 0).all()  # type: ignore[index]
    print(found["plain"], found["protected"], checked, found["by_layer"], found["helped"])


@pytest.mark.filterwarnings("ignore:.*pin_memory.*")
def test_the_guide_to_targets_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own claims stand in it as asserts; the prediction holds, and the log has the numbers of its table."""
    text, found = run_guide("targets.md", tmp_path, monkeypatch)
    assert float(str(found["within"])) > 0.5
    logged = {key for line in found["trainer"].state.log_history for key in line}  # type: ignore[attr-defined]
    told = re.findall(r"^\| `(geffect/[^`]+)`", text, re.MULTILINE)
    assert len(told) == 11
    for name in told:
        pattern = re.escape(name).replace("NAME", r"\w+").replace("GROUP", r"\w+").replace(r"A\~B", r"\w+\~\w+")
        assert any(re.fullmatch(pattern, key) for key in logged), name
