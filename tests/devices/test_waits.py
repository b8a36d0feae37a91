"""How often a step waits for an emulated GPU, apart from what Hugging Face's own loop waits."""

from pathlib import Path
from typing import Any

import pytest

import geffect
from tests.devices.test_emulated import Results, run

PACKAGE = Path(geffect.__file__).parent
BUDGET = 10  # waits a step
TRANSFERS = "core/devices.py"
CASES = {name: f"unlearn {name}" for name in ("ga, none, full", "ga, gru, full", "npo, none, full", "npo, gru, full")}
OVERLAP, PREDICTION = "unlearn with overlap", "unlearn with prediction"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Results:
    names = (*CASES.values(), OVERLAP, PREDICTION)
    only = [part for name in names for part in ("--only", name)]
    return run(tmp_path_factory.mktemp("waits") / "waits.json", *only)


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
def test_a_measured_step_waits_ten_times_at_most(name: str, measured: Results) -> None:
    waits = of_a_step(measured["cases"][CASES[name]])
    assert sum(waits.values()) <= BUDGET, waits
    assert copies(waits) == 2, waits  # of the losses, and of the inner products


@pytest.mark.slow
@pytest.mark.parametrize(("name", "more"), [(OVERLAP, 1), (PREDICTION, 3)])
def test_other_diagnostics_add_a_few_copies_whatever_the_number_of_tensors(
    name: str, more: int, measured: Results
) -> None:
    waits = of_a_step(measured["cases"][name])
    assert copies(waits) == 2 + more, waits
