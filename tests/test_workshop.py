"""What the workflows, the templates and the Makefile name exists."""

import importlib.util
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

import geffect
from tests.support.packaged import NEEDED, PROBES, PROJECT, faults

ROOT = Path(__file__).resolve().parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z][\w-]*):", MAKEFILE, re.MULTILINE))
SYSTEM = [["sudo", "apt-get"], ["python", "-c"], ["python", "-m", "pip"], ["geffect"]]


def _read(path: Path) -> dict[Any, Any]:
    content: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def _steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in _read(path)["jobs"].values() for step in job["steps"]]


def _exists(command: list[str]) -> bool:
    if command[0] == "make":
        return command[1] in TARGETS
    if command[0] == "bash":
        return (ROOT / command[1]).is_file()
    return any(command[: len(known)] == known for known in SYSTEM)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_what_exists(path: Path) -> None:
    assert {"name", "jobs"} <= set(_read(path))
    assert all("timeout-minutes" in job and "runs-on" in job for job in _read(path)["jobs"].values())
    commands = [shlex.split(line, comments=True) for step in _steps(path) for line in step.get("run", "").splitlines()]
    assert commands
    assert not [command for command in commands if not _exists(command)]


def test_every_supported_python_is_tested() -> None:
    jobs = _read(GITHUB / "workflows" / "tests.yml")["jobs"]
    setups = [step["with"]["python-version"] for job in jobs.values() for step in job["steps"] if "with" in step]
    versions = {*setups, *jobs["python"]["strategy"]["matrix"]["python"]}
    assert {"3.11", "3.12", "3.13", "3.14"} <= versions
    assert 'requires-python = ">=3.11"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_the_night_runs_the_exhaustive_sweeps() -> None:
    commands = [step.get("run", "") for step in _steps(GITHUB / "workflows" / "nightly.yml")]
    assert "make test-all" in commands
    assert re.search(r"^test-all:.*\n\t.*-m \"\"$", MAKEFILE, re.MULTILINE)


@pytest.mark.parametrize("name", ["make nothing", "bash .ci/nothing", "curl x"])
def test_a_command_that_does_not_exist_is_seen(name: str) -> None:
    assert not _exists(name.split())


# looking for pip makes setuptools replace the distutils that an earlier test's compiler may have imported
@pytest.mark.filterwarnings("ignore:Setuptools is replacing distutils:UserWarning")
def test_the_makefile_runs_modules_that_exist() -> None:
    modules = set(re.findall(r"/python -m ([\w.]+)", MAKEFILE))
    assert {"tests.support.fuzz", "analysis.demo_figures"} <= modules
    assert not [module for module in modules if importlib.util.find_spec(module) is None]
    phony = MAKEFILE.partition(".PHONY:")[2].partition("\n")[0].split()
    assert set(phony) == TARGETS


@pytest.mark.parametrize("path", [path for path in FORMS if path.stem != "config"], ids=lambda path: path.stem)
def test_an_issue_form_has_what_the_site_requires(path: Path) -> None:
    form = _read(path)
    assert {"name", "description", "body"} <= set(form)
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids))
    assert all(field["attributes"]["label"] for field in form["body"])


def test_the_version_stands_in_one_place() -> None:
    """What repeats it says the same; the changelog's first release is this one, below what is not released."""
    version = PROJECT["version"]
    citation = _read(ROOT / "CITATION.cff")
    titles = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert titles[:2] == ["[Unreleased]", f"[{version}] - {citation['date-released']}"]
    assert citation["version"] == version
    assert geffect.__version__ == version, "pip install -e . again"


def test_every_extra_is_checked_and_every_bound_has_a_reason() -> None:
    assert set(PROBES) == set(PROJECT["optional-dependencies"])
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if re.search(r"\w>=\d", line) and not re.search(r"# \d[\d.]*: ", line)]


def test_what_a_wheel_lacks_or_has_too_much_is_told() -> None:
    assert {"geffect/py.typed", "geffect/cli/references.bib", "geffect/models/weights/tiny.safetensors"} <= {*NEEDED}
    assert faults(NEEDED) == []
    assert faults(NEEDED[1:]) == [f"{NEEDED[0]} is missing"]
    for foreign in ("tests/test_a.py", "geffect/__pycache__/a.pyc", "analysis/runs.py", ".ruff_cache/x"):
        assert faults([*NEEDED, foreign]) == [f"{foreign} does not belong there"]


def test_the_checkout_is_what_is_checked() -> None:
    """The last line of what the continuous integration runs builds the wheel and runs it alone."""
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1] == "make check-wheel"
