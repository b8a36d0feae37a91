"""The benchmark of watched trainings on the tiny model: what is trained, who looks, and who is absent."""

import importlib
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from analysis.benchmarks import watching
from analysis.benchmarks.table import BUDGETS, TRAININGS, WATCHERS
from analysis.benchmarks.timing import StandardErrors
from analysis.benchmarks.watching import PLAIN, Shape
from geffect.api import load_model
from geffect.models.load import Loaded

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),  # TRL's own use of transformers
    pytest.mark.filterwarnings("ignore::UserWarning:trl"),
]
UNTRAINED = "builtin:tiny-untrained"
SHAPE = Shape(steps=2, rows=2, tokens=16, every=1)


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load_model(UNTRAINED)


def test_both_trainings_see_the_same_rows(loaded: Loaded, tmp_path: Path) -> None:
    packed, chunked = (watching.make_trainer(name, loaded, SHAPE, tmp_path).train_dataset for name in ("lora", "full"))
    rows = [list(ids) for ids in packed["input_ids"]]
    assert [ids for ids in rows if len(ids) == SHAPE.tokens] == [list(ids) for ids in chunked["input_ids"]]
    assert len(rows) > 100


@pytest.mark.parametrize("training", TRAININGS)
def test_every_watcher_has_its_findings(
    training: str, loaded: Loaded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watching, "is_installed", lambda package: False)
    monkeypatch.setattr(watching, "load_model", lambda spec: loaded)
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    peaks = {PLAIN: 30, "1": 40, "2": 50, "4": 70}
    monkeypatch.setattr(watching, "measure_alone", lambda _, name, *__: {"loaded": 10, "peak": peaks[name]})
    with caplog.at_level(logging.WARNING):
        found, values = watching.benchmark(training, UNTRAINED, 2, SHAPE)
    assert [each.key for each in found] == [
        f"{key} {training} {name}" for name in ("1", "2", "4") for key in ("watch", "watch memory")
    ]
    assert {each.key for each in found} <= set(BUDGETS)
    assert [each.ours.median for each in found[1::2]] == [1.5, 2.0, 3.0]
    assert all(len(each) == (1 if name.endswith("model") else 2) for name, each in values.items())
    assert {name for name in values if " " not in name} == {PLAIN, "1", "2", "4"}
    assert [text for text in caplog.messages if "skipped" in text] == [
        f"{name} is not installed, and is skipped" for name in ("wandb", "bergson")
    ]
    assert "2 steps of 2 rows of 16 tokens" in found[0].note and " 0 tokens of targets" not in found[0].note
    assert all(tensor.equal(before[name]) for name, tensor in loaded.model.state_dict().items())


def test_a_watcher_looks_as_often_as_it_is_asked(loaded: Loaded) -> None:
    few, more = (watching.train("full", name, loaded, SHAPE)[1] for name in ("1", "4"))
    assert 0 < few < more
    assert watching.train("full", PLAIN, loaded, SHAPE)[1] == 0
    assert [Shape(steps, every=10).measured for steps in (1, 10, 11, 20)] == [1, 1, 2, 2]


def test_wandb_is_offline_in_the_folder(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []

    def noted(name: str) -> Any:
        return lambda *given, **named: asked.append((name, named or given))

    run = SimpleNamespace(**{name: noted(name) for name in ("watch", "log", "unwatch", "finish")})

    def init(**named: Any) -> Any:
        noted("init")(**named)
        return run

    fake = SimpleNamespace(init=init, Settings=dict)
    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda name, *more: fake if name == "wandb" else real(name, *more))
    trainer = watching.make_trainer("full", loaded, SHAPE, tmp_path)
    with watching.watch("wandb", trainer, 2, tmp_path) as callback:
        trainer.train()
    assert callback is None
    assert [name for name, _ in asked] == ["init", "watch", "log", "unwatch", "finish"]
    assert (asked[0][1]["mode"], asked[0][1]["dir"]) == ("offline", tmp_path)
    assert asked[1][1] == {"log": "gradients", "log_freq": 2}
    assert asked[2][1] == ({"steps": 2},)


def test_a_process_tells_its_peak() -> None:
    found = watching.measure_alone("full", "1", UNTRAINED, SHAPE)
    assert found["peak"] > found["loaded"] > 1e6


def test_a_ratio_is_of_medians_with_the_range_of_pairs() -> None:
    values = {"a": [2.0, 3.0, 9.0], "b": [1.0, 2.0, 3.0]}
    assert watching.ratio_of_medians(values, "a", "b") == StandardErrors(1.5, 1.5, 3.0, 3)
    assert set(WATCHERS) == {"1", "2", "4", "wandb", "bergson"}
