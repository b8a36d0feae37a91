"""A run made longer is the run of that length in one go, bit for bit; one that would not be is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import geffect
from geffect.config import FinetuneConfig
from geffect.errors import GeffectError
from tests.conftest import Command, config

TIMES = ("seconds", "format")


def record(run: Path) -> list[dict[str, Any]]:
    """The lines of a run without what a clock says."""
    lines = map(json.loads, (run / "steps.jsonl").read_text(encoding="utf-8").splitlines())
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def assert_same(one: Path, other: Path, model: str) -> None:
    """The same record, length, end and weights."""
    assert record(one) == record(other)
    weights, others = (load_file(run / model / "model.safetensors") for run in (one, other))
    assert all(torch.equal(weights[name], others[name]) for name in others)
    for name in ("steps", "epochs"):
        assert yaml.safe_load((one / "config.yaml").read_text()).get(name) == yaml.safe_load(
            (other / "config.yaml").read_text()
        ).get(name)
    environments = [json.loads((run / "environment.json").read_text()) for run in (one, other)]
    assert environments[0]["batch"] == environments[1]["batch"]
    metrics = [json.loads((run / "metrics.json").read_text()) for run in (one, other)]
    assert metrics[0]["end"] == metrics[1]["end"]


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "sgd", "learning_rate": 1e-2},
        {"optimizer": "adamw_torch", "rectifier": "gru", "weight_decay": 0.1},
        {"optimizer": "adamw_torch", "schedule": "inverse_sqrt", "warmup_steps": 2},
    ],
    ids=["sgd", "adamw", "inverse_sqrt"],
)
def test_a_finished_run_continues_as_the_longer_run(settings: dict[str, Any], start: Path, tmp_path: Path) -> None:
    whole = geffect.unlearn(config(start, tmp_path / "whole", steps=7, **settings))
    geffect.unlearn(config(start, tmp_path / "run", steps=5, **settings))  # ends between two evaluations
    run = geffect.unlearn(config(start, tmp_path / "run", steps=7, **settings), resume=True)
    assert_same(run.path, whole.path, "checkpoints/checkpoint-7")
    assert (run.path / "DONE").exists()
    assert [line["step"] for line in record(run.path) if "gram" in line] == list(range(7))


def test_the_command_takes_more_steps(start: Path, tmp_path: Path, invoke: Command) -> None:
    geffect.unlearn(config(start, tmp_path / "run", steps=2))
    file = tmp_path / "run" / "config.yaml"
    for fewer in ((), ("--steps", 1)):
        assert (
            "is finished. Name another --out for another run, or ask for"
            in invoke("unlearn", file, "--resume", *fewer).err
        )
    ended = invoke("unlearn", file, "--resume", "--steps", 4)
    assert ended.code == 0, ended.err
    assert yaml.safe_load(file.read_text(encoding="utf-8"))["steps"] == 4
    assert [line["step"] for line in record(file.parent) if "gram" in line] == [0, 1, 2, 3]


def test_what_would_be_another_run_is_refused_and_nothing_changes(start: Path, tmp_path: Path) -> None:
    geffect.unlearn(config(start, tmp_path / "linear", steps=2, schedule="linear"))
    geffect.unlearn(config(start, tmp_path / "ended", steps=6, stop="forget_loss(level=0.1)"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(GeffectError, match="--schedule linear depends on the number of steps, so that the 2 steps"):
        geffect.unlearn(config(start, tmp_path / "linear", steps=4, schedule="linear"), resume=True)
    with pytest.raises(GeffectError, match="by its rules; so would one of 9"):
        geffect.unlearn(config(start, tmp_path / "ended", steps=9, stop="forget_loss(level=0.1)"), resume=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def fitted(start: Path, out: Path, **settings: Any) -> FinetuneConfig:
    """A fine-tuning on twelve examples."""
    plain = {"learning_rate": 1e-3, "save_every": 1, "batch_size": 4}
    return FinetuneConfig.read(model=str(start), train=["builtin:authors/forget[:12]"], out=out, **(plain | settings))


def test_an_unfinished_finetuning_takes_more_epochs(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = geffect.finetune(fitted(start, tmp_path / "whole", epochs=3))
    from geffect.training.finetune import FinetuneTrainer

    finish = FinetuneTrainer.finish_line

    def stop_after_four(self: FinetuneTrainer) -> None:
        finish(self)
        if self.state.global_step == 4:
            self.interrupt(2)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FinetuneTrainer, "finish_line", stop_after_four)
        geffect.finetune(fitted(start, tmp_path / "run", epochs=2))
    run = geffect.finetune(fitted(start, tmp_path / "run", epochs=3), resume=True)
    assert_same(run.path, whole.path, "")
    with pytest.raises(GeffectError, match="its checkpoints were removed with its end"):
        geffect.finetune(fitted(start, tmp_path / "run", epochs=4), resume=True)
