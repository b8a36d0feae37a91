"""The check of a GPU machine: what it reports of checks that pass, fail and do not fit, and all of it on the CPU."""

import json
import math
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from analysis.gpu import check as command
from analysis.gpu import numbers, study
from analysis.gpu.running import FAILED, OK, SKIPPED, Check, Number, Numbers, Place, results, seconds_of
from geffect.core.gram import inner_products
from geffect.errors import GeffectError

ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    folder = tmp_path / "made"
    folder.mkdir()
    return Place("cpu", small=True, folder=folder)


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command sets for its process does not stay in this one."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def fine(place: Place) -> Numbers:
    return {"two": Number(2.0, 3.0)}


def raising(place: Place) -> Numbers:
    raise RuntimeError("CUDA error: an illegal memory access [was] encountered")


def beyond(place: Place) -> Numbers:
    return {"off": Number(3e-5, 1e-6), "of no account": Number(7.0)}


def unknown(place: Place) -> Numbers:
    return {"off": Number(math.nan, 1e-6)}


def leaving(place: Place) -> Numbers:
    sys.exit(3)


def endless(place: Place) -> Numbers:
    while True:
        time.sleep(0.01)


def asked(*arguments: object) -> Any:
    app = Typer()
    app.command()(command.main)
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_a_failure_is_told_with_its_place_and_the_rest_still_runs(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = {"raises": raising, "fine": fine, "beyond": beyond, "unknown": unknown, "leaves": leaving, "last": fine}
    out = tmp_path / "found.json"
    assert command.run([Check(name, each) for name, each in made.items()], place, out, minutes=1)
    found = {each["check"]: each for each in json.loads(out.read_text(encoding="utf-8"))["checks"]}
    assert list(found) == list(made)
    status = {name: each["status"] for name, each in found.items()}
    assert status == dict.fromkeys(made, FAILED) | {"fine": OK, "last": OK}
    assert found["raises"]["error"].startswith("RuntimeError: CUDA error")
    assert found["raises"]["where"][-1].startswith("test_gpu_check.py:")
    assert found["raises"]["where"][-1].endswith(" raising")
    assert found["beyond"]["error"] == "off: 3e-05, at most 1e-06"
    assert found["unknown"]["numbers"]["off"] == {"value": None, "limit": 1e-6}
    assert found["fine"]["numbers"] == {"two": {"value": 2.0, "limit": 3.0}}
    printed = capsys.readouterr().out
    assert "2 ok, 4 failed, 0 skipped" in printed
    assert "[was]" in printed
    lines = printed.splitlines()
    assert max(len(line) for line in lines[:-1]) <= command.WIDTH


def test_all_well_is_no_failure(place: Place, tmp_path: Path) -> None:
    assert not command.run([Check("fine", fine)], place, tmp_path / "found.json", minutes=1)


def test_what_no_longer_fits_is_skipped_and_what_still_runs_is_stopped(place: Place) -> None:
    large = Place("cpu", small=False, folder=place.folder)
    first, second = results([Check("long", fine, seconds=100), Check("short", fine, seconds=0)], large, 5.0)
    assert (first.status, second.status) == (SKIPPED, OK)
    assert first.error == "may take 100 s; 5 s are left"
    began = time.monotonic()
    stopped, late = results([Check("endless", endless), Check("late", fine)], place, 0.3)
    assert time.monotonic() - began < 5
    assert (stopped.status, late.status) == (FAILED, SKIPPED)
    assert "still running" in stopped.error
    (elsewhere,) = results([Check("only", raising, only_cuda=True)], place, 5.0)
    assert elsewhere.status == SKIPPED


def test_a_callers_own_timer_runs_on(place: Place) -> None:
    theirs = signal.setitimer(signal.ITIMER_REAL, 200)
    try:
        list(results([Check("fine", fine)], place, 5.0))
        assert 100 < signal.getitimer(signal.ITIMER_REAL)[0] <= 200
    finally:
        signal.setitimer(signal.ITIMER_REAL, *theirs)


def test_interrupting_stops_the_whole(place: Place) -> None:
    def interrupted(place: Place) -> Numbers:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(results([Check("interrupted", interrupted), Check("fine", fine)], place, 5.0))


def test_a_device_that_is_not_used_is_a_failure(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check of a GPU that left its memory alone: stands in for the GPU that is not at hand."""
    monkeypatch.setattr(Place, "clear", lambda self: None)
    monkeypatch.setattr(Place, "synchronize", lambda self: None)
    monkeypatch.setattr(Place, "total_gb", lambda self: 80.0)
    monkeypatch.setattr(Place, "held_gb", lambda self: 2.0)
    there = Place("cuda", small=False, folder=place.folder)
    for peak, status in ((2.0, FAILED), (3.0, OK)):
        monkeypatch.setattr(Place, "peak_gb", lambda self, peak=peak: peak)
        (found,) = results([Check("one", fine)], there, 100.0)
        assert (found.status, found.peak_gb) == (status, peak)
    (found,) = results([Check("large", fine, gb=81)], there, 100.0)
    assert (found.status, found.error) == (SKIPPED, "needs 81 GB; the device has 80")


def test_a_wrong_number_on_the_device_is_seen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inner products that are off by 2e-6, masks with one entry more: the same checks fail."""
    right = inner_products
    monkeypatch.setattr(numbers, "inner_products", lambda rows: right(rows) * (1 + 2e-6))
    found = list(results([each for each in numbers.checks() if "/Gram" in each.name], place, 60))
    assert [each.status for each in found] == [FAILED] * 4
    made = iter(range(1000))

    def other_mask(tensor: torch.Tensor, share: float) -> torch.Tensor:
        return torch.full(tensor.shape, next(made) == 0)

    monkeypatch.setattr(numbers, "top_mask", other_mask)
    (found_mask,) = results(
        [each for each in numbers.checks() if each.name == "numbers/top-k masks float32"], place, 60
    )
    assert found_mask.status == FAILED


def test_time_is_taken_of_calls_after_the_first(place: Place) -> None:
    calls: list[int] = []

    def run() -> None:
        time.sleep(0.2 if not calls else 0.0)
        calls.append(1)

    assert seconds_of(place, run) < 0.1


def test_what_is_asked_wrongly_ends_with_code_2(tmp_path: Path) -> None:
    there = tmp_path / "there.json"
    there.write_text("mine", encoding="utf-8")
    small = ("--device", "cpu", "--small")
    for arguments, told in (
        (("--device", "tpu"), "There is no device 'tpu'"),
        (("--device", "cuda"), "no GPU that torch can use"),
        ((*small, "--only", "none"), "No check's name begins with 'none'"),
        ((*small, "--out", there), "exists already"),
        ((*small, "--out", there / "x.json"), "cannot be written to"),
    ):
        if arguments == ("--device", "cuda") and torch.cuda.is_available():
            continue
        ended = asked(*arguments)
        assert ended.exit_code == 2, ended.output
        assert told in " ".join(ended.output.split())
    assert there.read_text(encoding="utf-8") == "mine"


@pytest.mark.slow
def test_numbers_are_checked_small_on_the_cpu(tmp_path: Path) -> None:
    ended = asked("--device", "cpu", "--small", "--only", "numbers", "--out", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert ended.exit_code == 0, ended.output
    assert found["checks"]
    assert all(each["status"] == OK and each["check"].startswith("numbers/") for each in found["checks"])


def test_every_family_has_checks_under_names_that_differ() -> None:
    names = [check.name for check in command._chosen([])]
    assert len(set(names)) == len(names)
    assert {name.partition("/")[0] for name in names} == {"numbers", "paths", "1b", "8b"}


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_everything_runs_small_on_the_cpu(tmp_path: Path) -> None:
    """A cost has no limit here: small models on a busy machine say nothing of it."""
    out = tmp_path / "figures" / "found.json"
    ended = asked("--device", "cpu", "--small", "--minutes", 10, "--out", out)
    found = json.loads(out.read_text(encoding="utf-8"))
    failed = [each for each in found["checks"] if each["status"] == FAILED]
    assert failed == []
    assert ended.exit_code == 0, ended.output
    assert [each["check"] for each in found["checks"] if each["status"] == SKIPPED] == ["1b/device synchronizations"]
    assert {each["check"].partition("/")[0] for each in found["checks"]} == {"numbers", "paths", "1b", "8b"}
    assert {"versions", "device", "small", "at", "accelerators", "minutes"} <= set(found)
    assert all(each["seconds"] > 0 and each["peak_gb"] is None for each in found["checks"] if each["status"] == OK)


@pytest.mark.slow
def test_the_study_runs_small_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second call finds its runs; a table of five methods and a picture of what was drawn are left."""
    app = Typer()
    app.command()(study.main)
    asked = [
        "--small",
        "--device",
        "cpu",
        "--seeds",
        "1",
        "--runs",
        str(tmp_path / "runs"),
        "--out",
        str(tmp_path / "out"),
    ]
    tables = []
    for _ in range(2):
        ended = CliRunner().invoke(app, asked, catch_exceptions=False)
        assert ended.exit_code == 0, ended.output
        tables.append((tmp_path / "out" / "table.csv").read_text())
    assert tables[0] == tables[1]
    assert list(pd.read_csv(tmp_path / "out" / "table.csv")["objective"]) == [name for name, _ in study.METHODS]
    assert (tmp_path / "out" / "by_loss.png").exists() and (tmp_path / "out" / "by_loss.csv").exists()


def test_a_model_comes_in_parts(tmp_path: Path) -> None:
    parts = [tmp_path / "a", tmp_path / "b"]
    for part, text in zip(parts, (b"one", b"two"), strict=True):
        part.write_bytes(text)
    assert study.joined(parts, tmp_path / "deep" / "whole").read_bytes() == b"onetwo"
    with pytest.raises(GeffectError, match=r"There is no file .*missing"):
        study.joined([*parts, tmp_path / "missing"], tmp_path / "other")
    with pytest.raises(GeffectError, match="No part of the model is named"):
        study.joined([], tmp_path / "other")
