"""What README and the guides show is run here, in their order, and must print what they show; digits may differ."""

import contextlib
import io
import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import typer

import geffect
from geffect.cli.main import app
from geffect.core.registry import ALIASES
from geffect.objectives.registry import OBJECTIVES
from geffect.record.frames import read_steps
from geffect.rectifiers.registry import RECTIFIERS
from geffect.reports.plots.registry import PLOTS

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
GUIDES = [ROOT / "docs" / f"{name}.md" for name in ("start", "reading", "evaluating", "domains", "checkpoints")]
PAGES = [README, *sorted((ROOT / "docs").glob("**/*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts]
LINES = r"((?:(?!```).*\n)+)```"
FENCE = re.compile(r"^```(\S*)\n" + LINES, re.MULTILINE)
BLOCK = re.compile(r"^```(sh|python)\n" + LINES + r"\n```text\n" + LINES, re.MULTILINE)
EXACT = ("geffect preview", "geffect plot")


@dataclass(frozen=True)
class Shown:
    """A command or program with the output that a page prints below it."""

    page: str
    language: str
    source: str
    output: str


def _text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def _blocks() -> list[Shown]:
    return [Shown(page.stem, *found) for page in (README, *GUIDES) for found in BLOCK.findall(_text(page))]


def _run(shown: Shown) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        if shown.language == "python":
            exec(shown.source, {})
        else:
            _, *arguments = shlex.split(shown.source.replace("\\\n", " "))
            app(arguments, standalone_mode=False)
    return out.getvalue()


# Another processor rounds otherwise, and so near a bound one may give another verdict, with its own remedy.
VERDICT = re.compile(r"^(?:Selective|Not selective|Not told from noise whether [^:]*): (.* against [^;.]*\]).*", re.M)
FINDING = re.compile(r"^- .*", re.M)


def _words(text: str) -> list[str]:
    """What is left without digits, signs, frames of tables, verdicts and findings, which only clear numbers give."""
    text = FINDING.sub("", VERDICT.sub(r"\1", text))
    return re.findall(r"[^\W\d_]{2,}[\w./+]*", re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", " ", text))


def _findings(text: str) -> list[list[str]]:
    """The words of each finding: one that is significant on a processor may not be on another."""
    return [_words(each.removeprefix("- ")) for each in FINDING.findall(text)]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("readme")
    with contextlib.chdir(path):
        yield path


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("shown", _blocks(), ids=lambda shown: f"{shown.page}: {shown.source.splitlines()[0]}")
def test_a_page_prints_what_it_shows(shown: Shown, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    found = _run(shown)
    if shown.source.startswith(EXACT):
        assert found.strip() == shown.output.strip()
    else:
        assert _words(found) == _words(shown.output)
        findings = _findings(shown.output)
        assert not findings or any(each in findings for each in _findings(found))


@pytest.mark.slow
def test_what_readme_says_of_the_demo_is_so(workplace: Path) -> None:
    """All three forget; at equal forget loss the heldout loss is lower with GRU, at every level that all reach."""
    runs = {
        name: read_steps(workplace / "runs" / "demo" / name).dropna(subset="forget_loss")  # the steps evaluated
        for name in ("GA", "GA+GRU", "NPO+GRU")
    }
    for steps in runs.values():
        assert steps["forget_accuracy"].iloc[-1] < 0.65
        assert steps["forget_loss"].iloc[-1] > 2.5
    level = np.linspace(0.5, min(steps["forget_loss"].max() for steps in runs.values()), 20)
    held = {name: np.interp(level, steps["forget_loss"], steps["heldout_loss"]) for name, steps in runs.items()}
    assert (held["GA+GRU"] < held["GA"]).all()
    assert (held["NPO+GRU"] < held["GA"]).all()


@pytest.mark.slow
def test_what_the_guide_says_of_grail_is_so(workplace: Path) -> None:
    """Nearly all is forgotten in both domains, and most of the retain sets is kept."""
    scores = json.loads((workplace / "runs" / "grail" / "metrics.json").read_text())["success"]["end"]
    assert all(each["US"] > 90 and each["RS"] > 65 for each in scores.values())


def test_there_are_blocks_to_run() -> None:
    verbs = ["demo", "preview", "unlearn", "plot", "report", "evaluate", "compare", "localize", "unlearn", "inspect"]
    assert [block.source.split()[:2] for block in _blocks() if block.language == "sh"] == [
        ["geffect", verb] for verb in verbs
    ]
    assert sum(block.language == "python" for block in _blocks()) == 3


def _commands() -> Iterator[list[str]]:
    for page in PAGES:
        for block in (block for language, block in FENCE.findall(_text(page)) if language in {"", "sh"}):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("geffect "):
                    yield shlex.split(line, comments=True)[1:]


def test_every_command_shown_has_verbs_and_flags_that_exist() -> None:
    commands = list(_commands())
    assert len(commands) > 20
    group = typer.main.get_group(app)
    context = typer.Context(group)
    for arguments in commands:
        name, command, rest = group.resolve_command(context, arguments)
        assert command is not None
        command.make_context(name, rest, parent=context)


def test_readme_is_short_and_names_the_two_commands() -> None:
    lines = _text(README).splitlines()
    assert len(lines) <= 150
    assert {line.partition("#")[0].strip() for line in lines} >= {"make demo", "make test"}
    assert (
        f"objective ({len(set(OBJECTIVES) - set(ALIASES))} terms), rectifier ({len(set(RECTIFIERS) - {'none'})})"
        in (_text(README))
    )


def test_the_guides_have_every_objective_rectifier_and_plot() -> None:
    methods, reading = (
        re.findall(r"^\| (.*?) \|", _text(ROOT / "docs" / f"{p}.md"), re.M) for p in ("methods", "reading")
    )
    listed = {name for cell in methods for name in re.findall(r"`(\w+)[`(]", cell)}
    assert set(OBJECTIVES) - set(ALIASES) <= listed
    assert set(RECTIFIERS) - {"none"} <= listed
    assert set(PLOTS) <= {name for cell in reading for name in re.findall(r"`(\w+)`", cell)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_nothing_is_left_to_fill_in(page: Path) -> None:
    assert not re.findall(r"\bTODO\b|\bTBD\b|\?\?\?", _text(page))
    assert page.stem == "api" or not set(re.findall(r"(?<![\w/.$])[A-Z]+_[A-Z]+\b", _text(page))) - KNOWN


KNOWN = {"MALLOC_MMAP_THRESHOLD_", "OMP_NUM_THREADS", "TOFU_EVAL", "TOFU_SUMMARY"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_name_of_the_package_is_public(page: Path) -> None:
    named = set(re.findall(r"\bgeffect\.(\w+)", re.sub(r"geffect\.errors\.\w+", "", _text(page))))
    assert named <= {*geffect.__all__, "NAME", "objectives"}


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", _text(page), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each).strip().lower().replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "figures" / "README.md"], ids=lambda page: page.stem)
def test_what_a_page_links_to_exists(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", _text(page), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        file = Path(os.path.normpath(page.parent / path)) if path else page
        assert file.exists(), link
        assert not anchor or anchor in _anchors(file), link


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb")))
def test_what_a_notebook_links_to_exists(name: str) -> None:
    cells = json.loads(_text(ROOT / "notebooks" / f"{name}.ipynb"))["cells"]
    text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith("http")]
    assert not [link for link in links if not (ROOT / "notebooks" / link).exists()]
