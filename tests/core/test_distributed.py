"""Two processes are one: launched in earnest, over gloo on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from geffect.core.distributed import assign_items, is_sharded, local_part, num_processes, rank, sum_gradients, sum_gram
from geffect.core.gram import Gram
from geffect.record.frames import read, read_steps
from tests.support.launched import MODELS, rectified, train_monitored

ROOT = Path(__file__).resolve().parents[2]
KEYS = ["step", "group", "gradient", "other"]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left behind."""
    out = tmp_path_factory.mktemp("launched")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [*command, "-m", "tests.support.launched", str(out)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return out


def _inner(run: Path) -> "pd.Series[float]":
    frame = read(run)
    frame["group"] = frame["group"].replace({"embed": "tied", "lm_head": "tied"})  # a shard's tie is not split
    return frame.groupby(KEYS)["inner"].sum()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_two_processes_are_one(name: str, kind: str, launched: Path, tmp_path: Path) -> None:
    """Gram, losses and updates in float64: each process holds other examples of the batch and of the probes."""
    train_monitored("alone", tmp_path / f"{name}-alone")
    alone, losses = _inner(tmp_path / f"{name}-alone"), read_steps(tmp_path / f"{name}-alone")
    found, own = _inner(launched / f"{name}-{kind}"), read_steps(launched / f"{name}-{kind}")
    pd.testing.assert_series_equal(found, alone, rtol=1e-7, atol=1e-8 * alone.abs().max())  # a record keeps nine digits
    for column in ("forget_loss", "retain_accuracy", "norm_update"):
        measured = pytest.approx(losses[column].to_numpy(), rel=1e-8, nan_ok=True)  # the last line has scores alone
        assert own[column].to_numpy() == measured


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_a_trainer_trains_to_the_same_bits(kind: str, launched: Path) -> None:
    """With dropout, accumulation, clipping and AdamW in two processes."""
    plain, monitored = (load_file(launched / kind / f"{name}.safetensors") for name in ("plain", "monitored"))
    assert all(torch.equal(plain[name], monitored[name]) for name in plain)
    assert list(read_steps(launched / kind / "run")["step"]) == [0, 1, 2, 3]
    assert (launched / kind / "run" / "DONE").exists()


REFUSED = {
    "hidden": "FullyShardedDataParallel keeps gradients of its own, not those in .grad. "
    "Shard with FSDP2 (fsdp_version: 2, fully_shard), or train with DDP.",
    # each process sees every example there: their gradients are no shares of a sum
    "parallel": "The model is tensor-parallel (tp_plan): its processes share each pass, not the examples. "
    "Load it without tp_plan, and shard it with FSDP2 (fully_shard).",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", REFUSED)
def test_a_plan_with_other_gradients_is_refused(kind: str, launched: Path) -> None:
    assert {path.read_text(encoding="utf-8") for path in launched.glob(f"{kind}-*.txt")} == {REFUSED[kind]}


@pytest.mark.slow
def test_every_rectifier_makes_the_same_of_two_processes(launched: Path, tmp_path: Path) -> None:
    """Its gradient's and its update's violation of the guarantee, the update's length and its effect."""
    rectified(tmp_path / "alone.json")
    alone, found = (json.loads(path.read_text()) for path in (tmp_path / "alone.json", launched / "rectified.json"))
    assert found.keys() == alone.keys() and len(found) > 15
    for name, rows in alone.items():
        for own, other in zip(rows, found[name], strict=True):
            assert other == pytest.approx(own, rel=1e-6, abs=1e-9), name


def test_small_tensors_travel_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """One exchange a bucket, of one dtype each; a tensor larger than a bucket travels alone, and in place."""
    travelled = []

    def double(values: torch.Tensor) -> torch.Tensor:
        travelled.append(values.numel())
        return values.mul_(2)

    monkeypatch.setattr("geffect.core.distributed.num_processes", lambda: 2)
    monkeypatch.setattr("geffect.core.distributed.BUCKET", 40)
    monkeypatch.setattr("geffect.core.distributed.sum_over_processes", double)
    sizes = {"a": 4, "b": 6, "c": 1, "large": 30, "d": 2}
    parameters = {name: nn.Parameter(torch.zeros(size)) for name, size in sizes.items()}
    parameters["wide"] = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    parameters["unreached"] = nn.Parameter(torch.zeros(3))
    gradients = {"forget": {n: torch.ones_like(p) for n, p in parameters.items() if n != "unreached"}}
    kept = gradients["forget"]["large"]
    summed = sum_gradients(gradients, parameters)["forget"]
    assert travelled == [len(parameters), 10, 1, 30, 2, 2]
    assert summed["large"] is kept
    assert all(torch.equal(summed[n], torch.full_like(p, 2)) for n, p in parameters.items() if n != "unreached")
    assert "unreached" not in summed


def test_alone_there_is_nothing_to_add_up() -> None:
    parameter, gradients = nn.Parameter(torch.ones(2)), {"forget": {"w": torch.ones(2)}}
    gram = Gram.of(gradients)
    assert (num_processes(), rank(), assign_items("abc")) == (1, 0, [("a", 1.0), ("b", 1.0), ("c", 1.0)])
    assert sum_gradients(gradients, {"w": parameter})["forget"]["w"] is gradients["forget"]["w"]
    assert sum_gram(gram, sharded=True) is gram
    assert local_part(parameter) is parameter
    assert not is_sharded({"w": parameter})


def test_every_process_has_as_many_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five items over two processes: each once with weight, and one again without."""
    monkeypatch.setattr("geffect.core.distributed.num_processes", lambda: 2)
    turns = []
    for here in (0, 1):
        monkeypatch.setattr("geffect.core.distributed.rank", lambda here=here: here)
        turns.append(assign_items([0, 1, 2, 3, 4]))
    assert [len(each) for each in turns] == [3, 3]
    assert sorted(item for each in turns for item, weight in each if weight) == [0, 1, 2, 3, 4]
    assert turns[1][-1] == (0, 0.0)
