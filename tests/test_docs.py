"""The documentation: every public name is on its pages, and what the pages name exists."""

import ast
import re
from pathlib import Path

import pytest

import geffect
from tests.test_house import ORDER

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.mark.parametrize("name", geffect.__all__)
def test_a_public_name_is_documented(name: str) -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    assert re.search(rf"^\.\. auto(function|class|data):: geffect\.{name}$", page, re.MULTILINE)
    assert (getattr(geffect, name).__doc__ or "").strip()


def test_only_public_names_are_documented() -> None:
    names = re.findall(r"^\.\. auto\w+:: geffect\.(\w+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(names) == sorted(geffect.__all__)


def _named() -> list[tuple[Path, str]]:
    """(file, function) as the walk through the code names them: a function is of the last file before it."""
    named, file = [], Path()
    for path, function in re.findall(
        r"`(geffect/[\w/]+\.py)`|`(\w+)\(\)`", (DOCS / "architecture.md").read_text("utf-8")
    ):
        file = DOCS.parent / path if path else file
        named.append((file, function))
    return named


def test_the_architecture_names_files_and_functions_that_exist() -> None:
    assert len(_named()) > 30
    for file, function in _named():
        functions = {
            each.name for each in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(each, ast.FunctionDef)
        }
        assert not function or function in functions, (file, function)


def test_the_architecture_has_every_entry() -> None:
    rows = re.findall(r"^\| `(\w+)` \| \d+ \| \S", (DOCS / "architecture.md").read_text("utf-8"), re.MULTILINE)
    assert rows == ORDER


def test_every_metric_is_defined() -> None:
    from geffect.core.registry import METRICS
    from geffect.evaluation.suites import SUITES

    page = (DOCS / "evaluation.md").read_text("utf-8")
    rows = page.partition("## Metrics")[2].partition("## Suites")[0].splitlines()
    cells = [row.split("|")[1:-1] for row in rows if row.startswith("| `")]
    names = [name for first, *_ in cells for name in re.findall(r"`(\w+)`", first)]
    assert sorted(names) == sorted(METRICS.names), "each once"
    assert all(len(each) == 4 and all(cell.strip() for cell in each) for each in cells)
    suites = page.partition("## Suites")[2].partition("\n## ")[0]
    ours = [name for name, each in SUITES.items() if each.parts.__module__.startswith("geffect.")]
    assert re.findall(r"^\| `(\w+)` ", suites, re.MULTILINE) == ours


def _literals() -> str:
    """Every piece of text in the package's source, f-strings without their values."""
    trees = (ast.parse(path.read_text("utf-8")) for path in (DOCS.parent / "geffect").rglob("*.py"))
    nodes = (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return "\n".join(node.value for node in nodes if isinstance(node.value, str))


def test_the_faq_quotes_the_code() -> None:
    text = (DOCS / "faq.md").read_text("utf-8")
    refusals, remedies = (re.findall(form, text, re.MULTILINE) for form in (r"^### `(.+)`$", r"^> (.+)$"))
    literals = _literals()
    assert len(refusals) == 10
    for quoted in (*refusals, *remedies):
        pieces = [piece.strip(" '") for piece in quoted.split("…")]
        assert max(len(piece.split()) for piece in pieces) >= 2
        assert not [piece for piece in pieces if piece not in literals], quoted


@pytest.mark.parametrize("page", sorted((DOCS / "results").glob("*.md")), ids=lambda page: page.stem)
def test_a_result_names_its_source(page: Path) -> None:
    """Its first paragraph tells the script or command, and whether the numbers are of another start."""
    title, _, source = page.read_text("utf-8").split("\n")[:3]
    assert title.startswith("# ") and source.startswith("*")
    for module in re.findall(r"python -m ([\w.]+)", page.read_text("utf-8")):
        path = DOCS.parent / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module


def test_llms_txt_lists_every_page_there_is() -> None:
    """In the form of llmstxt.org: a title, a summary, sections of links, each with a line on what is there."""
    lines = (DOCS / "llms.txt").read_text("utf-8").splitlines()
    assert lines[0] == "# geffect"
    assert lines[2].startswith("> ")
    found = [re.fullmatch(r"- \[[^]]+\]\(([\w/]+\.md)\): \S.*", line) for line in lines if line.startswith("- ")]
    linked = [each[1] for each in found if each]
    pages = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md") if "_build" not in page.parts]
    assert len(found) == len(linked)
    assert sorted(linked) == sorted({*pages} - {"index.md"})
