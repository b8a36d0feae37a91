"""What README shows is run here, in its order, and must print what it shows; digits may differ between machines."""

import contextlib
import io
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from geffect.cli.main import app
from geffect.record.frames import read_steps

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"```(sh|python)\n(.*?)```\n```text\n(.*?)```", re.DOTALL)
EXACT = ("geffect preview", "geffect plot")


@dataclass(frozen=True)
class Shown:
    """A command or program with the output README prints below it."""

    language: str
    source: str
    output: str


def _blocks() -> list[Shown]:
    return [Shown(*found) for found in BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))]


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
@pytest.mark.parametrize("shown", _blocks(), ids=lambda shown: shown.source.split("\n")[0])
def test_readme_prints_what_it_shows(shown: Shown, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_what_readme_says_of_grail_is_so(workplace: Path) -> None:
    """Nearly all is forgotten in both domains, and most of the retain sets is kept."""
    scores = json.loads((workplace / "runs" / "grail" / "metrics.json").read_text())["success"]["end"]
    assert all(each["US"] > 90 and each["RS"] > 65 for each in scores.values())


def test_there_are_blocks_to_run() -> None:
    assert [block.source.split()[:2] for block in _blocks() if block.language == "sh"] == [
        ["geffect", verb]
        for verb in (
            "demo",
            "unlearn",
            "plot",
            "preview",
            "evaluate",
            "compare",
            "localize",
            "unlearn",
            "inspect",
            "report",
        )
    ]


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.findall(r"\b[A-Z]+_[A-Z]+\b", (ROOT / "README.md").read_text(encoding="utf-8"))


def test_what_readme_links_to_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    headings = {re.sub(r"[^\w -]", "", each).lower().replace(" ", "-") for each in re.findall(r"^#+ (.+)$", text, re.M)}
    assert {"#" + each for each in headings} & set(links)
    assert not [link for link in links if link[0] != "#" and not (ROOT / link).exists()]
    assert not [link for link in links if link[0] == "#" and link[1:] not in headings]
