"""The house: arrows run one way, importing is silent, and nothing foreign stands in the tree."""

import ast
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "geffect"
ORDER = [
    "errors",
    "io",
    "core",
    "record",
    "data",
    "models",
    "objectives",
    "localization",
    "rectifiers",
    "stopping",
    "config",
    "measurement",
    "training",
    "evaluation",
    "inspection",
    "preflight",
    "reports",
    "api",
    "verbs",
    "cli",
    "monitoring",
    "__main__",
]
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent.name == "plots")


def _module(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {_module(path): path for path in FILES}


def _entry(module: str) -> str:
    return module.split(".")[1]


def _imports(path: Path) -> set[str]:
    """The modules of the package that a file imports, in functions too; not those that only annotations name."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        each
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for each in node.body
    }
    for node in (node for node in ast.walk(tree) if node not in for_types):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "geffect":
            names = [f"{node.module}.{each.name}" for each in node.names]
            found |= {name if name in MODULES else str(node.module) for name in names}
        elif isinstance(node, ast.Import):
            found |= {each.name for each in node.names if each.name.startswith("geffect.")}
    return found - {"geffect"}


def floors() -> dict[str, int]:
    """Entry → one more than the highest floor of those that it imports."""
    below = {entry: set[str]() for entry in ORDER}
    for module, path in MODULES.items():
        below[_entry(module)] |= {_entry(name) for name in _imports(path)} - {_entry(module)}
    floor: dict[str, int] = {}
    for entry in ORDER:
        floor[entry] = 1 + max((floor[name] for name in below[entry]), default=0)
    return floor


def test_every_entry_has_its_place() -> None:
    assert {_entry(module) for module in MODULES} == set(ORDER)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    here = ORDER.index(_entry(module))
    imported = _imports(MODULES[module])
    assert imported <= set(MODULES), "an import names the file that defines the name, not its package"
    back = {each for each in imported if ORDER.index(_entry(each)) > here}
    assert not back, f"{module} imports {back}, which stand after it"


def test_the_house_is_low() -> None:
    """The longest chain of entries that import one another, and how many entries there are."""
    floor = floors()
    assert max(floor.values()) <= 11, floor
    assert len(ORDER) <= 22


def test_no_circle_among_files() -> None:
    TopologicalSorter({module: _imports(path) for module, path in MODULES.items()}).prepare()


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
        _ = geffect.nothing  # type: ignore[attr-defined]


def test_a_wheel_has_every_file_that_is_no_code() -> None:
    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["geffect"]
    packaged = {path for pattern in patterns for path in PACKAGE.glob(pattern)}
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}}
    assert files <= packaged
