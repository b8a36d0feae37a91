"""Every verb and method on an emulated GPU: it runs there, to the CPU's numbers, and a step waits ten times at most.

One process runs a sample of the cases of `tests.support.device_cases`; ``make test-all`` runs all of them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import geffect
from geffect.objectives.registry import TERMS
from tests.support.device_cases import GPU, OBJECTIVES, Case, all_cases

NOT_EMULATED = {"token effects over two devices": "the emulated device has no forward mode over two devices"}
Results = dict[str, dict[str, Any]]
PACKAGE = Path(geffect.__file__).parent
BUDGET = 10  # waits a step
TRANSFERS = "core/devices.py"
CASES = {name: f"unlearn {name}" for name in ("ga, none, full", "ga, gru, full", "npo, none, full", "npo, gru, full")}
OVERLAP, PREDICTION = "unlearn with overlap", "unlearn with prediction"


def parameters(cases: list[Case]) -> list[Any]:
    """The names of cases, those that cannot be emulated marked so."""
    reasons = {case.name: NOT_EMULATED.get(case.name) for case in cases}
    return [
        pytest.param(name, marks=[pytest.mark.xfail(reason=why, strict=True)] if why else [])
        for name, why in reasons.items()
    ]


def run(out: Path, *options: str) -> Results:
    """What the process writes: ``cases`` and ``emulation``."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    command = [sys.executable, "-m", "tests.support.device_cases", str(out), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results: Results = json.loads(out.read_text(encoding="utf-8"))
    return results


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run(tmp_path_factory.mktemp("devices") / "sample.json")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run(tmp_path_factory.mktemp("devices") / "all.json", "--exhaustive")


def check(outcome: dict[str, Any]) -> None:
    """A case passed on both devices, to the same bits."""
    assert not outcome["on_cpu"]
    assert not outcome["error"], outcome["where"]
    assert outcome["total"]["launches"], "nothing ran on the device"
    assert outcome["same"], f"{outcome['differs']} differs by {outcome['difference']:.2g}"


@pytest.mark.slow
@pytest.mark.parametrize("name", parameters([case for case in all_cases() if case.sample]))
def test_a_sample_runs_on_a_gpu_to_the_same_bits(name: str, sample: Results) -> None:
    check(sample["cases"][name])


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", parameters(list(all_cases())))
def test_everything_runs_on_a_gpu_to_the_same_bits(name: str, sweep: Results) -> None:
    check(sweep["cases"][name])


def test_every_objective_is_among_the_cases() -> None:
    assert list(OBJECTIVES) == sorted(TERMS)


REFUSED = {
    "a host tensor": f"at least two devices, cpu and {GPU}!",
    "another device": f"at least two devices, {GPU} and gpu:1!",
    "a host tensor written to": f"at least two devices, cpu and {GPU}!",
    "a host number stacked": f"at least two devices, cpu and {GPU}!",
    "a host mask": f"at least two devices, cpu and {GPU}!",
    "a host tensor indexed": "indices should be either on cpu or on the same device",
    "numpy": f"can't convert {GPU} device type tensor to numpy",
    "in a hook": f"at least two devices, cpu and {GPU}!",
}
COUNTED = {
    "a host number": {"launches": 1},
    "to the host": {"d2h": 1, "waits": 1},
    "to the device": {"h2d": 1, "waits": 1},
    "not waited for": {"h2d": 1},
    "to another device": {"d2d": 1},
    "item": {"item": 1, "waits": 1, "launches": 1},
    "tolist": {"d2h": 1, "tolist": 1, "waits": 1},
    "truth": {"item": 1, "waits": 1, "launches": 2},
    "a mask's entries": {"index": 1, "waits": 1, "launches": 2},
    "nonzero": {"nonzero": 1, "waits": 1, "launches": 1},
    "equal": {"equal": 1, "waits": 1, "launches": 1},
    "host indices": {"h2d": 1, "waits": 1, "launches": 1},
    "a view": {},
}


@pytest.mark.slow
def test_the_emulated_gpu_refuses_what_a_gpu_refuses(sample: Results) -> None:
    refused = sample["emulation"]["refused"]
    assert list(refused) == list(REFUSED)
    assert [name for name, text in refused.items() if REFUSED[name] not in text] == []


@pytest.mark.slow
def test_the_emulated_gpu_counts_copies_waits_and_launches(sample: Results) -> None:
    assert sample["emulation"]["counted"] == COUNTED


def of_a_step(case: dict[str, Any]) -> dict[str, float]:
    """Line of geffect → its waits a step; the calls of Hugging Face's own methods aside."""
    assert case["same"], case["error"] or case["differs"]
    waits = {event: count for event, (count, _) in case["step"]["by_line"].items() if not event.startswith("h2d")}
    assert sum(waits.values()) == pytest.approx(case["step"]["waits"])  # what goes to the device is not waited for
    return {event: count for event, count in waits.items() if "super()" not in _source(event.split(" ", 1)[1])}


def _source(place: str) -> str:
    file, line = place.rsplit(":", 1)
    return (PACKAGE / file).read_text(encoding="utf-8").splitlines()[int(line) - 1]


def copies(waits: dict[str, float]) -> float:
    """The copies of numbers to the host."""
    return sum(count for event, count in waits.items() if TRANSFERS in event)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_measured_step_waits_ten_times_at_most(name: str, sample: Results) -> None:
    waits = of_a_step(sample["cases"][CASES[name]])
    assert sum(waits.values()) <= BUDGET, waits
    assert copies(waits) == 2, waits  # of the losses, and of the inner products


@pytest.mark.slow
@pytest.mark.parametrize(("name", "more"), [(OVERLAP, 1), (PREDICTION, 3)])
def test_other_diagnostics_add_a_few_copies_whatever_the_number_of_tensors(
    name: str, more: int, sample: Results
) -> None:
    waits = of_a_step(sample["cases"][name])
    assert copies(waits) == 2 + more, waits
