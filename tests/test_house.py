"""The house: arrows run one way, importing is silent, and nothing foreign stands in the tree."""

import ast
import inspect
import re
import subprocess
import sys
import textwrap
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

import geffect

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
    "cli",
    "monitoring",
    "__main__",
]
FILES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent.name in {"config", "plots"}
)


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


HEAVY = {"torch", "transformers", "matplotlib", "pandas", "peft", "numpy"}


@pytest.mark.parametrize("arguments", [["-c", "import geffect"], ["-m", "geffect", "--help"]])
def test_the_front_door_loads_nothing_heavy(arguments: list[str]) -> None:
    ended = _with_import_times(arguments)
    assert ended.returncode == 0, ended.stderr
    assert "geffect" in _loaded(ended.stderr)
    assert not _loaded(ended.stderr) & HEAVY


UNLEARN = ["unlearn", "--model", "m", "--forget", "f", "--retain", "r", "--out", "o"]
EVALUATE = ["evaluate", "--model", "m", "--out", "o"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([*UNLEARN, "--objective", "npoo"], "'npoo' is not an objective. Did you mean npo? There are adversarial"),
        ([*UNLEARN, "--objective", "ga + dual(gdd)"], "'gdd' is not an objective. Did you mean gd?"),
        ([*UNLEARN, "--objective", "GradDif"], "'graddif' is not an objective. Did you mean graddiff?"),
        ([*UNLEARN, "--preset", "open_unlearning:NPOO"], "is not a preset. Did you mean open_unlearning:NPO?"),
        ([*UNLEARN, "--objective", "ga + + gd)"], "'ga + + gd)'"),
        ([*UNLEARN, "--rectifier", "grue"], "'grue' is not a rectifier. Did you mean gru?"),
        ([*UNLEARN, "--objective", "npo(bta=1)"], "npo has no parameter 'bta'. Did you mean beta? It has beta."),
        ([*UNLEARN, "--stop", "kneel"], "'kneel' is not a stop rule. Did you mean knee?"),
        ([*EVALUATE, "--suite", "tofuu"], "'tofuu' is not a suite. Did you mean tofu?"),
        ([*EVALUATE, "--set", "a=b", "--metric", "losss"], "'losss' is not a metric. Did you mean loss?"),
        (["inspect", "run", "--out", "o", "--points", "xyzzy"], "'xyzzy' is not an objective. Choose one of adver"),
        ([*UNLEARN, "--stesp", "3"], "--stesp"),
    ],
)
def test_a_misspelt_name_is_refused_before_anything_heavy_is_loaded(arguments: list[str], says: str) -> None:
    ended = _with_import_times(["-m", "geffect", *arguments])
    assert ended.returncode == 2
    assert says in ended.stderr
    assert not _loaded(ended.stderr) & HEAVY


def _with_import_times(arguments: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True)


def _loaded(times: str) -> set[str]:
    """The top-level packages that a process imported."""
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in times.splitlines() if "|" in line}


def test_the_names_known_early_are_those_of_the_registries() -> None:
    from geffect.core import registry as names
    from geffect.evaluation.metrics import METRICS
    from geffect.evaluation.suites import DERIVED, SUITES
    from geffect.objectives.registry import OBJECTIVES
    from geffect.rectifiers.registry import RECTIFIERS
    from geffect.stopping import RULES

    tables: dict[str, Any] = {
        "objective": OBJECTIVES,
        "rectifier": RECTIFIERS,
        "stop": RULES,
        "suite": {name: suite.parts for name, suite in SUITES.items()},
        "metric": {name: each.compute for name, each in (METRICS | DERIVED).items()},
    }
    for setting, table in tables.items():
        early = names.OF_SETTING[setting]
        assert early.module in sys.modules
        ours = {name for name, each in table.items() if each.__module__.startswith("geffect.")}  # no other test's
        assert set(early.names) == ours
        if early.weighed:
            for name, own in early.parameters.items():
                fields = names.annotations(table[name])
                assert own == [each for each, kind in fields.items() if not names._wraps(kind)], name


def test_importing_configures_no_logger() -> None:
    code = "import logging, geffect.api, geffect.training; assert not logging.getLogger('geffect').handlers"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there() -> None:
    import geffect

    for name in geffect.__all__:
        assert getattr(geffect, name) is not None
    with pytest.raises(AttributeError, match="it has"):
        _ = geffect.nothing  # type: ignore[attr-defined]


def test_no_public_signature_says_any() -> None:
    """Of `geffect.__all__`: functions, and the public methods of classes; `JSON` is what a file may hold."""
    hits = []
    for name in geffect.__all__:
        value = getattr(geffect, name)
        if not inspect.isclass(value) and not inspect.isfunction(value):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(value))).body
        for function in definition.body if isinstance(definition, ast.ClassDef) else [definition]:
            if isinstance(function, ast.FunctionDef) and (
                not function.name.startswith("_") or "__init__" in function.name
            ):
                annotations = [each.annotation for each in ast.walk(function.args) if isinstance(each, ast.arg)]
                said = [ast.unparse(each) for each in [*annotations, function.returns] if each is not None]
                hits += [f"{name}.{function.name}: {each}" for each in said if re.search(r"\bAny\b", each)]
    assert not hits
