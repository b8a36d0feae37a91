"""Devices: what a name stands for, what is refused and when, and draws and computations that repeat."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from geffect import api
from geffect.config import DoctorConfig, EvaluateConfig, FinetuneConfig, InspectConfig, LocalizeConfig, UnlearnConfig
from geffect.core import devices
from geffect.core.devices import deterministic_algorithms, find_device, seeded
from geffect.errors import GeffectError
from geffect.training.dry_run import loader_settings, optimizer_name, training_arguments

SETS: Any = {"forget": "builtin:authors/forget[:4]", "retain": "builtin:authors/retain[:4]"}
CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Two GPUs that torch sees, and that nothing may open."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv(devices.VARIABLE, raising=False)
    yield 2


def test_auto_is_what_a_trainer_takes(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    assert find_device() == find_device("cuda") == CUDA
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert find_device() == CPU
    monkeypatch.setenv(devices.VARIABLE, "cuda:1")
    assert find_device() == torch.device("cuda:1")
    assert find_device("cpu") == CPU


def test_of_several_processes_each_takes_its_own(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert find_device() == find_device("cuda") == torch.device("cuda:1")
    assert find_device("cpu") == CPU
    with pytest.raises(GeffectError, match="2 processes were launched"):
        find_device("cuda:0")


@pytest.mark.parametrize("name", ["cuda:2", "cpu:1", "gpu", "meta", "none:0"])
def test_an_absent_device_is_refused_with_those_there_are(name: str, gpus: int) -> None:
    with pytest.raises(GeffectError, match=f"device .?{name}") as caught:
        find_device(name)
    assert "Choose one of auto, cpu" in caught.value.remedy
    assert "cuda:0, cuda:1" in caught.value.remedy


@pytest.mark.parametrize("device", ["", "cudda", "cuda:", "cuda:1,2", "cpu cuda"])
def test_what_is_no_device_is_no_configuration(device: str) -> None:
    with pytest.raises(GeffectError, match="--device is"):
        UnlearnConfig(model="m", **SETS, out="o", device=device)


@pytest.mark.parametrize("verb", ["finetune", "unlearn", "localize", "inspect", "evaluate", "doctor", "load_model"])
def test_an_absent_device_is_refused_before_weights_are_read(
    verb: str, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "load", None)
    model, out = str(start), tmp_path / "out"
    domain = [f"a={SETS['forget']},{SETS['retain']}"]
    run: Any = {
        "finetune": lambda: api.finetune(FinetuneConfig(model=model, train=SETS["forget"], out=out, device="xpu:7")),
        "unlearn": lambda: api.unlearn(UnlearnConfig(model=model, **SETS, out=out, device="xpu:7")),
        "localize": lambda: api.localize(LocalizeConfig(model=model, domain=domain, out=out, device="xpu:7")),
        "inspect": lambda: api.inspect(InspectConfig(checkpoints=model, **SETS, out=out, device="xpu:7")),
        "evaluate": lambda: api.evaluate(EvaluateConfig(model=model, suite="builtin", out=out, device="xpu:7")),
        "doctor": lambda: list(api.doctor(DoctorConfig(model=model, **SETS, device="xpu:7"))),
        "load_model": lambda: api.load_model(model, device="xpu:7"),
    }[verb]
    with pytest.raises(GeffectError, match="The device xpu:7 is not available: torch sees none of its kind"):
        run()
    assert not out.exists()


def test_a_trainer_takes_one_device_of_several(tmp_path: Path, gpus: int) -> None:
    config = UnlearnConfig(model="m", **SETS, out=tmp_path / "out", device="cpu")
    arguments = training_arguments(config, 2)
    assert (arguments.device, arguments.n_gpu, arguments.distributed_state.device) == (CPU, 0, CPU)


def test_cuda_has_pinned_batches_and_the_fused_kernel_of_the_default_optimizer(tmp_path: Path) -> None:
    config = UnlearnConfig(model="m", **SETS, out=tmp_path / "out")
    assert (optimizer_name(config, CPU), optimizer_name(config, CUDA)) == ("adamw_torch", "adamw_torch_fused")
    assert optimizer_name(config.replace(optimizer="sgd"), CUDA) == "sgd"
    assert optimizer_name(config.replace(shard=True), CUDA) == "adamw_torch"
    assert loader_settings(CPU) == {"dataloader_pin_memory": False}
    assert loader_settings(CUDA)["dataloader_pin_memory"] is True


def test_a_seed_draws_as_torch_does_and_leaves_its_state() -> None:
    before = torch.get_rng_state()
    with seeded(3):
        drawn = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(torch.rand(4, generator=torch.Generator().manual_seed(3)), drawn)


def test_an_operation_without_a_deterministic_algorithm_is_refused_by_its_name() -> None:
    place = torch.tensor([0, 0])
    with (
        pytest.raises(GeffectError, match="put_ has no deterministic algorithm on this device"),
        deterministic_algorithms(),
    ):
        torch.zeros(3).put_(place, torch.ones(2))
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(RuntimeError, match="another"), deterministic_algorithms():
        raise RuntimeError("another")
    with deterministic_algorithms(False):
        torch.zeros(3).put_(place, torch.ones(2))


def test_deterministic_algorithms_give_the_cpu_its_numbers_and_the_record_names_the_device(
    start: Path, tmp_path: Path
) -> None:
    settings: Any = {"model": start, **SETS, "steps": 1, "objective": "npo", "rectifier": "gru"}
    plain = api.unlearn(UnlearnConfig(**settings, out=tmp_path / "one"))
    other = api.unlearn(UnlearnConfig(**settings, deterministic=True, device="cpu", out=tmp_path / "two"))
    assert plain.to_frame().equals(other.to_frame())
    environment = json.loads((tmp_path / "two" / "environment.json").read_text(encoding="utf-8"))
    assert (environment["device"], environment["device_name"], environment["optimizer"]) == (
        "cpu",
        "cpu",
        "adamw_torch",
    )
