"""Every notebook runs afresh without an error, and what is stored in it reads well for those who do not run it."""

import ast
import importlib
import os
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import geffect
from analysis.runs import AUTHORS
from tests.conftest import exhaustive

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
QUICK = ("g_effect_tour", "own_trainer", "records")  # of seconds each; make test-all runs the others afresh, too
LARGEST = 1_000_000  # bytes of a notebook, its pictures included
PLACES = re.compile(r"""(?<![\w.:/<])/(?:home|root|tmp|usr|var|work|Users|private|opt|mnt)/|\b[A-Z]:\\|~/""")
NOISE = re.compile(r"\w*Warning\b|WARNING|Traceback|\d+%\|")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def _cells(path: Path) -> list[Any]:
    cells: list[Any] = nbformat.read(path, as_version=4).cells
    return cells


def _outputs(path: Path) -> list[Any]:
    return [output for cell in _cells(path) if cell.cell_type == "code" for output in cell.outputs]


def _texts(path: Path) -> list[str]:
    """What a reader sees as text: everything but pictures."""
    found = [output.text for output in _outputs(path) if output.output_type == "stream"]
    kinds = [output.data for output in _outputs(path) if "data" in output]
    return found + [text for data in kinds for kind, text in data.items() if not kind.startswith("image/")]


def test_there_are_notebooks() -> None:
    assert [path.stem for path in NOTEBOOKS] == [
        "g_effect_tour",
        "grail_localization",
        "gru_geometry",
        "inspect_checkpoints",
        "own_trainer",
        "records",
    ]


@each_notebook
def test_a_notebook_names_what_the_package_has(path: Path) -> None:
    """Its imports, and what it takes from ``geffect`` itself."""
    code = "\n".join(cell.source for cell in _cells(path) if cell.cell_type == "code")
    nodes = list(ast.walk(ast.parse(code)))
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert not str(node.module).startswith("geffect"), "what a notebook teaches is public"
            assert all(hasattr(importlib.import_module(str(node.module)), each.name) for each in node.names)
    taken = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "geffect"
    }
    assert taken
    assert taken <= set(geffect.__all__)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    "path",
    [path if path.stem in QUICK else exhaustive(path) for path in NOTEBOOKS],
    ids=[path.stem for path in NOTEBOOKS],
)
def test_a_notebook_runs_afresh_in_silence(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))  # the kernel takes this checkout
    notebook = nbformat.read(path, as_version=4)
    if path.stem == "records":  # the record is there, and torch is not: a laptop's case
        settings: Any = AUTHORS | {"objective": "npo", "rectifier": "gru", "steps": 4, "prediction": 16}
        geffect.unlearn(**settings, evaluate_every=2, out=tmp_path / "runs" / "records")
        (tmp_path / "torch.py").write_text("raise ImportError('torch is asked for')", encoding="utf-8")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (tmp_path, FOLDER.parent))))
    client = NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    said = [output for cell in notebook.cells for output in cell.get("outputs", []) if output.get("name") == "stderr"]
    assert not said


@each_notebook
def test_stored_outputs_are_whole_and_clean(path: Path) -> None:
    nbformat.validate(nbformat.read(path, as_version=4))
    code = [cell for cell in _cells(path) if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = _outputs(path)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    for text in _texts(path):
        assert not PLACES.search(text)
        assert not NOISE.search(text)
    assert all(set(cell.metadata) == set() for cell in _cells(path))  # no time stamps
    assert path.stat().st_size < LARGEST


@each_notebook
def test_a_notebook_is_told_in_words(path: Path) -> None:
    """A title, headings, and no two long stretches of code without a word between them."""
    cells = _cells(path)
    told = [cell.source for cell in cells if cell.cell_type == "markdown"]
    assert told[0].startswith("# ")
    assert sum(text.startswith("## ") or "\n## " in text for text in told) >= 3
    assert cells[0].cell_type == "markdown"
    assert "## What to do next" in told[-1]
    assert cells[-1].source == told[-1]
    linked = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", "\n".join(told))
    assert len(linked) > 2
    assert not [each for each in linked if not (FOLDER / each).exists()]


@each_notebook
def test_own_data_goes_into_one_short_cell_above_all_code(path: Path) -> None:
    first, second, *rest = (ast.parse(cell.source).body for cell in _cells(path) if cell.cell_type == "code")
    assert first
    assert all(isinstance(node, ast.Assign) for node in first)
    assert isinstance(second[0], ast.Import | ast.ImportFrom)
    nodes = [node for body in (second, *rest) for each in body for node in ast.walk(each)]
    named = [node.value for node in nodes if isinstance(node, ast.Constant) and str(node.value).startswith("builtin:")]
    assert not named or path.stem == "records", "its first cell names a run"


@pytest.mark.parametrize("text", ["/home/someone/x", "see /tmp/a", "C:\\Users\\x", "~/runs"])
def test_places_are_found(text: str) -> None:
    assert PLACES.search(text)


@pytest.mark.parametrize("text", ["runs/home/x", "</tmp>", "https://x.org/home/x", "and/or", "θ ~ N"])
def test_other_slashes_are_not_places(text: str) -> None:
    assert not PLACES.search(text)
