"""geffect unlearn in two processes, launched from the shell over gloo: one run, and it goes on when killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch
from safetensors.torch import load_file

from geffect import api
from geffect.config import EvaluateConfig, InspectConfig, LocalizeConfig, UnlearnConfig
from geffect.errors import GeffectError
from geffect.record.frames import read
from geffect.record.reader import read_environment, read_lines
from tests.conftest import Command, config, exhaustive

pytestmark = pytest.mark.slow
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "geffect"]
STEPS, KEYS = 8, ["step", "parameter", "gradient", "other"]
METHOD = {
    "objective": "npo + dual(gd, eps=1, start=1)",
    "rectifier": "gru",
    "optimizer": "adamw_torch",
    "prediction": 4,
    "overlap": 0.1,
}


def settings(start: Path, out: Path) -> UnlearnConfig:
    """Two rows a process."""
    return config(start, out, batch_size=2, steps=STEPS, save_every=2, heldout="builtin:authors/heldout[:2]", **METHOD)


def launched(path: Path, *flags: str) -> "subprocess.Popen[str]":
    """Start two processes on a configuration."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*LAUNCH, "unlearn", str(path), *flags],
        text=True,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def whole(frame: pd.DataFrame, value: str = "inner") -> "pd.Series[float]":
    """What is recorded of pairs of rows, with the tied tensor's put together: in parts it is not told apart by use."""
    frame["parameter"] = frame["parameter"].str.replace(r"@(embed|lm_head|tied)$", "", regex=True)
    return frame.groupby(KEYS, sort=True)[value].sum()


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Those of the last checkpoint."""
    found: dict[str, torch.Tensor] = load_file(run / "checkpoints" / f"checkpoint-{STEPS}" / "model.safetensors")
    return found


@pytest.fixture(scope="module")
def one(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows in one process: two micro-batches a step."""
    whole = settings(start, tmp_path_factory.mktemp("one") / "run")
    return api.unlearn(whole.model_copy(update={"grad_accum_steps": 2})).path


@pytest.fixture(scope="module", params=[False, exhaustive(True)], ids=["replicas", "shards"])
def recipe(request: pytest.FixtureRequest, start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file to launch from."""
    import yaml

    path = tmp_path_factory.mktemp("two") / "recipe.yaml"
    plain = settings(start, path.parent / "run").model_dump(mode="json", exclude_none=True)
    path.write_text(yaml.safe_dump(plain | {"shard": request.param}))
    return path


@pytest.fixture(scope="module")
def two(recipe: Path) -> tuple[Path, str]:
    """A run in two processes, one of which was killed once it had a checkpoint; and what was printed at last."""
    first, run = launched(recipe), recipe.parent / "run"
    deadline = time.monotonic() + 200
    while not (run / "checkpoints" / "checkpoint-2").exists():
        assert first.poll() is None, first.communicate()[0][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers = psutil.Process(first.pid).children()
    workers[-1].send_signal(signal.SIGKILL)
    first.communicate(timeout=120)
    assert first.returncode != 0
    again = launched(recipe, "--resume")
    told = again.communicate(timeout=250)[0]
    assert again.returncode == 0, told[:3000]
    return run, told


def test_two_processes_make_the_run_of_one(one: Path, two: tuple[Path, str]) -> None:
    left, right = (whole(read(path, "parameter")) for path in (one, two[0]))
    pd.testing.assert_series_equal(right, left, rtol=1e-4, atol=1e-5 * left.abs().max())
    before, after = weights(one), weights(two[0])
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-5, atol=1e-5)
    for own, other in zip(read_lines(one), read_lines(two[0]), strict=True):
        assert own.get("evaluation", {}).keys() == other.get("evaluation", {}).keys()
        assert other.get("loss_forget", 0.0) == pytest.approx(own.get("loss_forget", 0.0), rel=1e-5)
        assert other.get("multiplier_2", 0.0) == pytest.approx(own.get("multiplier_2", 0.0), rel=1e-5)


def test_it_is_one_run_with_one_record(two: tuple[Path, str]) -> None:
    run, told = two
    assert [line["step"] for line in read_lines(run)] == [*range(STEPS), STEPS]
    assert read_environment(run)["batch"]["processes"] == 2
    assert told.count("accuracy, end") == 1
    assert (run / "DONE").exists()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"batch_size": 5},
            "12 forget examples do not divide by 5 examples × 2 processes. Slice the set to 10 examples",
        ),
        (
            {"grad_accum_steps": 2, "standard_errors": True},
            "--standard-errors works in one process, and 2 were launched",
        ),
        ({"mode": "paper"}, "--mode paper works in one process, and 2 were launched"),
    ],
    ids=str,
)
def test_what_cannot_be_shared_is_refused(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], told: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match=told):
        api.unlearn(config(start, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("ACCELERATE_USE_FSDP", "true", "Launch several processes plainly, and add --shard"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed, which keeps gradients to itself"),
        ("ACCELERATE_MIXED_PRECISION", "fp16", r"mixed precision of its own \(ACCELERATE_MIXED_PRECISION=fp16\)"),
    ],
)
def test_what_a_launcher_must_leave_alone_is_refused(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=told):
        api.unlearn(config(start, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_one_process_holds_no_shards(start: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--shard needs several processes; there is one"):
        api.unlearn(config(start, tmp_path / "run", shard=True))


@pytest.mark.parametrize("verb", ["finetune", "inspect", "localize", "evaluate", "demo"])
def test_other_verbs_take_one_process(
    verb: str, tmp_path: Path, invoke: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {
        "finetune": ["--train", "builtin:authors/forget"],
        "inspect": ["runs/none"],
        "demo": [],
        "localize": ["--domain", "a=builtin:domains/privacy"],
        "evaluate": ["--suite", "builtin"],
    }
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    ended = invoke(verb, *flags[verb], "--out", tmp_path / "run")
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err
    assert f"geffect {verb} works in one process" in ended.err


@pytest.mark.parametrize(
    ("run", "asked"),
    [
        (api.localize, LocalizeConfig.read(model="none", domain=["a=builtin:domains/privacy"], out="none")),
        (api.evaluate, EvaluateConfig.read(model="none", suite="builtin", out="none")),
        (api.inspect, InspectConfig.read(checkpoints=["none"], out="none")),
    ],
    ids=["localize", "evaluate", "inspect"],
)
def test_so_they_do_from_python(run: Callable[[Any], Any], asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")  # which would not see who else writes
    with pytest.raises(GeffectError, match="works in one process"):
        run(asked)


def test_another_number_of_processes_does_not_go_on(two: tuple[Path, str], start: Path, tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(two[0], run)
    for name in ("DONE", "metrics.json"):
        (run / name).unlink()
    begun = UnlearnConfig.read(run / "config.yaml", out=run)
    with pytest.raises(ValueError, match="several processes" if begun.shard else "2 processes"):
        api.unlearn(begun, resume=True)
