"""``--target NAME=SET``: a run of unlearning, and an inspection of its checkpoints, tell effects on further sets."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import geffect
from geffect import api
from geffect.config import InspectConfig, UnlearnConfig
from geffect.errors import GeffectError
from geffect.record.reader import read_lines
from tests.conftest import Command, config

TARGETS = {"general": "builtin:general[:6]", "other/authors": "builtin:authors/heldout[:5]"}


SETTINGS: dict[str, Any] = {
    "rectifier": "gru",
    "target": TARGETS,
    "prediction": 4,
    "overlap": 0.1,
    "evaluate_every": 1,
    "save_every": 2,
}


def lines(run: Path) -> list[dict[str, Any]]:
    """All that a record holds but the seconds."""
    return [{name: value for name, value in line.items() if name != "seconds"} for line in read_lines(run)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Of the last checkpoint."""
    (file,) = (run / "checkpoints").glob("checkpoint-4/model.safetensors")
    found: dict[str, torch.Tensor] = load_file(file)
    return found


@pytest.fixture(scope="module")
def run(start: Path, tmp_path_factory: pytest.TempPathFactory) -> geffect.Run:
    """A run under AdamW with two further targets."""
    out = tmp_path_factory.mktemp("targets") / "run"
    return api.unlearn(config(start, out, **SETTINGS))


def test_targets_change_no_bit_of_a_run(start: Path, run: geffect.Run, tmp_path: Path) -> None:
    plain = api.unlearn(config(start, tmp_path / "run", rectifier="gru", evaluate_every=1, save_every=2))
    told, untold = weights(run.path), weights(plain.path)
    assert all(torch.equal(told[name], untold[name]) for name in untold)


def test_every_view_has_the_targets(run: geffect.Run) -> None:
    names = ["forget", "retain", *TARGETS]
    assert run.targets == names
    effects = run.effects().groupby(["step", "target"])["effect"].sum().unstack()
    assert sorted(map(str, effects)) == sorted(names)
    checked = run.prediction().query("reading == 'update'")
    assert sorted(checked["target"].unique()) == sorted(names)
    for name in TARGETS:
        own = checked[checked["target"] == name]
        assert list(own["measured"]) == pytest.approx(list(own["predicted"]), abs=0.1 * own["measured"].abs().max())
    assert {*TARGETS} <= {*run.overlap()["gradient"]}
    assert {*TARGETS} <= {*run.target_cosines()["target"], *run.target_cosines()["other"]}
    assert {*TARGETS} <= {*run.evaluations()["set"]}


def test_a_target_of_few_examples_is_predicted_as_its_gradient_says(run: geffect.Run) -> None:
    """The effect in the record is of all five examples, the prediction of four: alike, and not the same."""
    effects = run.effects().query("target == 'other/authors'").groupby("step")["effect"].sum()
    losses = run.evaluations().query("set == 'other/authors'").set_index("step")["loss"]
    change = losses.diff().shift(-1).dropna()
    assert list(effects) == pytest.approx(list(change), abs=0.2 * change.abs().max())


def test_a_resumed_run_has_the_same_lines(start: Path, run: geffect.Run, tmp_path: Path) -> None:
    home = tmp_path / "run"
    shutil.copytree(run.path, home)
    for name in ("DONE", "metrics.json"):
        (home / name).unlink()
    shutil.rmtree(home / "checkpoints" / "checkpoint-4")
    again = config(start, home, **SETTINGS)
    whole, resumed = lines(run.path), lines(api.unlearn(again, resume=True).path)
    assert resumed == whole


def test_an_inspection_measures_them_over_whole_sets(run: geffect.Run, tmp_path: Path) -> None:
    """They come from the run; the sums over tokens are the Gram's entries, and the objective's effect is read."""
    asked = InspectConfig.read(None, checkpoints=[str(run.path)], out=tmp_path / "i", tokens=9, objective="ga")
    (found,) = api.inspect(asked)
    assert found.targets == ["forget", "retain", *TARGETS]
    effects = found.effects(direction="objective").groupby(["step", "target"])["effect"].sum()
    tokens = found.tokens()
    for step in (0, 2, 4):
        for name in TARGETS:
            own = tokens[(tokens["step"] == step) & (tokens["set"] == name)]
            mean = own["effect"].sum() / own["labeled"].sum()
            assert -effects[step, name] == pytest.approx(mean, rel=1e-4)
    with pytest.raises(
        GeffectError, match=r"recorded no applied update\. Name one of the record's gradients \(objective"
    ):
        found.effects()


def test_limits_and_the_report_know_them(run: geffect.Run, invoke: Command) -> None:
    told = invoke("check", str(run.path), "--max-harm", "general=100", "--max-harm", "other/authors=100")
    assert told.code == 0, told.err
    broken = invoke("check", str(run.path), "--max-harm", "other/authors=-1")
    assert broken.code == 1
    page = geffect.report(runs=[run.path], out=run.path.parent / "page")
    assert "general" in page.path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (["privacy"], "--target 'privacy' is not NAME=SET"),
        ({"forget": "a.jsonl"}, "A target cannot be called forget"),
        ({"retain/x": "a.jsonl"}, "A target cannot be called retain/x"),
        ({"update": "a.jsonl"}, "A target cannot be called update"),
        ({"heldout": "a.jsonl"}, "A target cannot be called heldout"),  # which this run has
        (["a=builtin:authors/forget", "A=builtin:authors/retain"], "Two targets are called a and A"),
        ({"a b": "a.jsonl"}, "A target cannot be called a b"),
        ({"a": "nothing.jsonl"}, "There is no file"),
    ],
    ids=str,
)
def test_bad_targets_are_one_sentence(target: Any, message: str, start: Path, tmp_path: Path) -> None:
    with pytest.raises(GeffectError) as caught:
        api.unlearn(config(start, tmp_path / "run", target=target))
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "run").exists()


def test_a_mapping_and_texts_are_the_same_setting(start: Path, tmp_path: Path) -> None:
    one = config(start, tmp_path / "a", target={"x": "builtin:authors/retain"})
    other: UnlearnConfig = config(start, tmp_path / "a", target=["x=builtin:authors/retain"])
    assert one == other
