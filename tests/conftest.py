"""What several tests share: small starts, made once a session, and the command line."""

import contextlib
import gc
import io
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from torch.utils import backend_registration

from geffect.config import FinetuneConfig, UnlearnConfig

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
EMULATED = ["devices/test_emulated.py", "support/device_cases.py", "support/emulated_device.py"]
collect_ignore = [] if hasattr(backend_registration, "_DummyBackendModule") else EMULATED  # torch 2.6 has none


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files early, since files are shared out whole: those with slow tests, then those that train a model."""
    selected = [item for item in items if not item.get_closest_marker("exhaustive")]
    slow = {item.path for item in selected if item.get_closest_marker("slow")}
    trains = {item.path for item in selected if {"start", "known"} & set(getattr(item, "fixturenames", ()))}

    items.sort(key=lambda item: (item.path not in slow, item.path not in trains))


@pytest.fixture(autouse=True, scope="module")
def _frozen_modules() -> None:
    """Hide from garbage collection what is imported: every training run collects, over all that half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _built_in_sets() -> Iterator[None]:
    """Generate every built-in set once a process; each reader has a copy of its own."""
    from geffect.data.load import BUILTIN

    made = {name: cache(generate) for name, generate in BUILTIN.items()}
    with pytest.MonkeyPatch.context() as patch:
        for name, generate in made.items():
            patch.setitem(BUILTIN, name, partial(_copy_of, generate))
        yield


def _copy_of(generate: Callable[[], Any]) -> Any:
    return deepcopy(generate())


@pytest.fixture(autouse=True)
def _levels() -> Iterator[None]:
    """Put back the levels of the package's loggers: scripts and the command line set them for their whole process."""
    yield
    for name in [name for name in logging.root.manager.loggerDict if name.partition(".")[0] == "geffect"]:
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this session that all its workers use."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model directory of some 80 thousand parameters."""
    from geffect.models.builtin import make_tiny
    from geffect.models.load import quiet_transformers

    path = tmp_path_factory.mktemp("start")
    model, tokenizer = make_tiny(**SHAPE)
    with quiet_transformers():
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def known(start: Path, shared_folder: Path) -> Path:
    """The same model once it knows the first twelve forget rows by heart, more or less; one worker makes it."""
    from filelock import FileLock

    from geffect import api

    fitted = FinetuneConfig.read(
        model=str(start),
        train=["builtin:authors/forget[:12]"],
        epochs=60,
        learning_rate=1e-2,
        until_accuracy=0.7,
        out=shared_folder / "known",
    )
    with FileLock(shared_folder / "known.lock"):
        return fitted.out if (fitted.out / "DONE").exists() else api.finetune(fitted).path


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: object
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command line, in this process: one of its own takes ten seconds to begin."""
    from geffect.cli.main import main

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["geffect", *map(str, arguments)])
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            main()
        return Ended(ended.value.code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def untouched_style() -> Iterator[None]:
    """Drawing leaves matplotlib's settings alone, and no figure open."""
    import matplotlib
    from matplotlib import pyplot

    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []


@pytest.fixture(autouse=True, scope="session")
def own_cache(shared_folder: Path) -> Iterator[None]:
    """Nothing a test makes lands in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEFFECT_CACHE", str(shared_folder / "cache"))
        yield


def exhaustive(*values: Any) -> Any:
    """Values of a parameter that only ``make test-all`` runs."""
    return pytest.param(*values, marks=pytest.mark.exhaustive)


def sweep(period: int, *, turn: int = 0, **values: Iterable[Any]) -> pytest.MarkDecorator:
    """Every combination of the values of some parameters, of which ``make test`` runs every ``period``-th.

    Two parameters meet in each pair of their values where another one has ``period`` values or more. Tests that take
    other turns run other combinations.
    """
    combinations = product(*(enumerate(each) for each in values.values()))
    placed = [tuple(zip(*combination, strict=True)) for combination in combinations]
    return pytest.mark.parametrize(
        list(values), [chosen if sum(indices) % period == turn else exhaustive(*chosen) for indices, chosen in placed]
    )


def config(start: Path, out: Path, **changes: Any) -> UnlearnConfig:
    """A short run on the built-in benchmark."""
    plain: dict[str, Any] = {
        "model": str(start),
        "forget": "builtin:authors/forget[:12]",
        "retain": "builtin:authors/retain[:20]",
        "heldout": "builtin:authors/heldout[:6]",
        "steps": 4,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "evaluate_every": 2,
        "out": str(out),
    }
    return UnlearnConfig.read(None, **(plain | changes))
