"""The house: arrows run one way, importing is silent, and nothing foreign stands in the tree."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "geffect"
ORDER = [
    "errors", "launched", "grammar", "scopes", "uses", "kinds", "groups", "shards", "rows", "gram", "replicas",
    "support", "effects", "localisation", "ties",
    "objectives", "tokens", "rectify", "ledger", "measurement", "data", "models", "metrics", "rules", "training",
    "record", "plots", "comparison", "alignment", "views", "findings", "page", "config", "environment", "arguments",
    "domains", "preparation", "suites", "probes", "evaluation", "acquisition", "planning", "lifecycle", "inspection",
    "doctor", "api", "demonstration", "citations", "watching", "show", "cli", "__main__",
]  # fmt: skip


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("geffect"):
            names = [node.module] if node.module != "geffect" else [f"geffect.{each.name}" for each in node.names]
            found |= {name.split(".")[1] for name in names}
        elif isinstance(node, ast.Import):
            found |= {each.name.split(".")[1] for each in node.names if each.name.startswith("geffect.")}
    return found


def test_every_room_has_its_place() -> None:
    rooms = {_room(path) for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert rooms == set(ORDER)


@pytest.mark.parametrize("path", [p for p in PACKAGE.rglob("*.py") if _room(p) != "__init__"], ids=str)
def test_arrows_run_from_first_to_last(path: Path) -> None:
    here = ORDER.index(_room(path))
    back = {room for room in _imports(path) if ORDER.index(room) > here}
    assert not back, f"{path.name} leans on {back}, which stand after it"


@pytest.mark.parametrize("arguments", [["-c", "import geffect"], ["-m", "geffect", "--help"]])
def test_the_front_door_loads_nothing_heavy(arguments: list[str]) -> None:
    code = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=True
    ).stderr
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in code.splitlines()}
    assert "geffect" in loaded
    assert not loaded & {"torch", "transformers", "matplotlib", "pandas", "peft", "numpy"}


def test_importing_configures_no_logger() -> None:
    code = "import logging, geffect.api, geffect.training; assert not logging.getLogger('geffect').handlers"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there() -> None:
    import geffect

    for name in geffect.__all__:
        assert getattr(geffect, name) is not None
    with pytest.raises(AttributeError, match="it has"):
        _ = geffect.nothing
