"""A run that was stopped goes on to the record and weights of one that was not."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from geffect import api
from geffect.config import FitConfig, UnlearnConfig
from geffect.errors import GeffectError
from geffect.record import CONFIG, DONE, STEPS, RunDirectory, read_lines
from tests.conftest import config

SETTINGS: dict[str, Any] = {
    "objective": "npo(beta=0.5) + 0.5*gd", "rectifier": "gru(space=both)", "steps": 7, "batch_size": 2,
    "grad_accum_steps": 2, "forget": "builtin:authors/forget[:11]", "weight_decay": 0.1, "schedule": "linear",
    "warmup_steps": 2, "save_every": 2, "evaluate_every": 3, "max_grad_norm": 5.0,
}  # fmt: skip


class Stopped(BaseException):
    """What stops a run here."""


def _stop_after(lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    append, written = RunDirectory.append, {"n": 0}

    def counting(self: RunDirectory, line: Any) -> None:
        append(self, line)
        written["n"] += 1
        if written["n"] == lines:
            raise Stopped

    monkeypatch.setattr(RunDirectory, "append", counting)


def _lines(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(run)]


def _weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    (file,) = (run / "checkpoints" / f"checkpoint-{step}").glob("*model.safetensors")
    tensors: dict[str, torch.Tensor] = load_file(file)
    return tensors


def _assert_same(run: Path, other: Path, step: int) -> None:
    assert _lines(run) == _lines(other)
    left, right = _weights(run, step), _weights(other, step)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert (run / DONE).exists()
    assert not (run / "checkpoints" / ".partial").exists()


@pytest.fixture(scope="module")
def whole(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return api.unlearn(config(start, tmp_path_factory.mktemp("whole") / "run", **SETTINGS))


@pytest.mark.parametrize("lines", [1, 3, 5, 6, 8])
def test_a_stopped_run_goes_on_to_the_same_end(
    start: Path, whole: Path, tmp_path: Path, lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = config(start, tmp_path / "run", **SETTINGS)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        _stop_after(lines, patch)
        api.unlearn(chosen)
    assert not (tmp_path / "run" / DONE).exists()
    _assert_same(api.unlearn(chosen, resume=True), whole, 7)


def test_it_goes_on_after_kill_9(start: Path, whole: Path, tmp_path: Path) -> None:
    recorded = yaml.safe_load((whole / CONFIG).read_text(encoding="utf-8")) | {"out": str(tmp_path / "run")}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(recorded), encoding="utf-8")
    steps = tmp_path / "run" / STEPS
    with subprocess.Popen(
        [sys.executable, "-m", "geffect", "unlearn", str(file)], stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 120
        while not steps.exists() or steps.read_bytes().count(b"\n") < 4:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "run" / DONE).exists()
    with steps.open("ab") as stream:
        stream.write(b'{"step": 9, "gra')  # as a line torn by the fall
    _assert_same(api.unlearn(UnlearnConfig.read(file), resume=True), whole, 7)


def test_after_a_resume_the_reference_is_still_the_start(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NPO's weight goes on falling from where it was; a reference read at the checkpoint would set it back to one."""
    fitted = api.fit(FitConfig.read(model=str(start), train=["builtin:authors/forget[:12]"], out=tmp_path / "fit",
                                    lora=4, epochs=2, learning_rate=1e-2))  # fmt: skip
    chosen = config(fitted, tmp_path / "run", objective="npo(beta=0.5) + kl", steps=6, save_every=1, learning_rate=1e-2,
                    keep_dropout=True)  # fmt: skip
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        _stop_after(5, patch)
        api.unlearn(chosen)
    lines = read_lines(api.unlearn(chosen, resume=True))
    assert lines[0]["weight_mean"] == pytest.approx(1, abs=1e-5)
    assert lines[0]["loss_objective"] == pytest.approx(2 / 0.5 * math.log(2), rel=1e-5)
    weights = [line["weight_mean"] for line in lines[:6]]
    assert len(weights) == 6 and max(weights[4:]) < 0.9
    again = api.unlearn(chosen.model_copy(update={"out": tmp_path / "again"}))
    _assert_same(tmp_path / "run", again, 6)


def test_a_run_without_a_checkpoint_begins_again(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = config(start, tmp_path / "run", objective="npo", rectifier="gru")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        _stop_after(3, patch)
        api.unlearn(chosen)
    again = api.unlearn(chosen.model_copy(update={"out": tmp_path / "again"}))
    _assert_same(api.unlearn(chosen, resume=True), again, 4)


def test_a_run_stopped_after_its_last_checkpoint_only_ends(
    known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether its steps were all taken, or an evaluation had ended it early."""
    for name, changes in (("all", {"steps": 3}), ("early", {"until_accuracy": 0.4, "steps": 50, "evaluate_every": 1})):
        chosen = config(known, tmp_path / name, **changes, learning_rate=1e-2)
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(RunDirectory, "finish", _stop)
            api.unlearn(chosen)
        lines = _lines(tmp_path / name)
        assert "evaluation" in lines[-1] and lines[-1]["step"] < 50
        api.unlearn(chosen, resume=True)
        assert _lines(tmp_path / name) == lines
        assert (tmp_path / name / DONE).exists()


def _stop(*_: Any) -> None:
    raise Stopped


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"learning_rate": 0.5}, r"learning_rate: 0.001 as .*config.yaml has it; found 0.5; resume it by: geffect"),
        ({"steps": 9}, "steps: 7 as "),
        ({"held": None}, r"held: builtin:authors/held\[:6\] as .*; found None"),
    ],
)
def test_another_configuration_is_refused(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], says: str
) -> None:
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        _stop_after(1, patch)
        api.unlearn(config(start, tmp_path / "run", **SETTINGS))
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    for resumed in (api.unlearn, api.plan):
        with pytest.raises(GeffectError, match=says):
            resumed(config(start, tmp_path / "run", **(SETTINGS | changes)), resume=True)
    assert before == {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}


def test_what_is_finished_or_absent_is_not_resumed(start: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(GeffectError, match=r"an unfinished run .*; found a finished one"):
        api.unlearn(config(start, whole, **SETTINGS), resume=True)
    with pytest.raises(GeffectError, match=r"an unfinished run .*; found no config.yaml; leave --resume out"):
        api.unlearn(config(start, tmp_path / "none"), resume=True)
    assert not (tmp_path / "none").exists()


def test_a_set_that_changed_meanwhile_is_refused(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "forget.jsonl"
    row = '{{"question": "Who is {0}?", "answer": "{0} is nobody."}}\n'
    file.write_text("".join(row.format(name) for name in ("Ada", "Bo", "Cy", "Di")), encoding="utf-8")
    chosen = config(start, tmp_path / "run", forget=str(file))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        _stop_after(2, patch)
        api.unlearn(chosen)
    lines = _lines(tmp_path / "run")
    file.write_text("".join(row.format(name) for name in ("Ada", "Bo", "Cy", "Ed")), encoding="utf-8")
    with pytest.raises(GeffectError, match=r"the forget set of .*run \(sha256 .*; found another"):
        api.unlearn(chosen, resume=True)
    assert _lines(tmp_path / "run") == lines
