"""SIGTERM and SIGHUP do what Ctrl-C does, and leave the host's handlers as they were."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from geffect import api
from geffect.config import InspectConfig, UnlearnConfig
from geffect.errors import Interrupted
from geffect.io.system import SIGNALS, keep_interrupts, raise_on_signals
from geffect.record.reader import read_lines
from geffect.record.schema import CONFIG, DONE, STEPS
from geffect.record.writer import RunDirectory
from geffect.training.trainer import defer_signals
from tests.conftest import config

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Every test leaves the handlers as it found them; a shell's background job would begin with SIGINT ignored."""
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = [signal.getsignal(each) for each in SIGNALS]
    yield
    after = [signal.getsignal(each) for each in SIGNALS]
    signal.signal(signal.SIGINT, outside)
    assert after == before


@pytest.fixture
def own() -> Iterator[list[int]]:
    """A host's own handlers, and what they received."""
    received: list[int] = []
    before = {each: signal.signal(each, lambda signum, _: received.append(signum)) for each in SIGNALS}
    yield received
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.parametrize("signum", SIGNALS)
def test_the_first_signal_is_noted_and_the_second_is_the_hosts(signum: signal.Signals, own: list[int]) -> None:
    noted: list[int] = []
    with defer_signals(noted.append):
        signal.raise_signal(signum)
        assert (noted, own) == ([signum], [])
        signal.raise_signal(signum)
    assert (noted, own) == ([signum], [signum])
    signal.raise_signal(signum)
    assert own == [signum, signum]


def test_what_a_launcher_passes_on_is_the_same_signal(own: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    noted: list[int] = []
    with defer_signals(noted.append):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert (noted, own) == ([signal.SIGTERM], [])
        monkeypatch.setattr("geffect.training.trainer.TWICE", 0.0)
        time.sleep(0.001)
        signal.raise_signal(signal.SIGTERM)
    assert (noted, own) == ([signal.SIGTERM], [signal.SIGTERM])


def test_an_ignored_signal_stays_ignored_as_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        noted: list[int] = []
        with raise_on_signals(), defer_signals(noted.append):
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert noted == []
    finally:
        signal.signal(signal.SIGHUP, before)


def test_sigint_is_heard_in_a_background_job_which_a_shell_starts_with_it_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        noted: list[int] = []
        with defer_signals(noted.append):
            signal.raise_signal(signal.SIGINT)
        assert noted == [signal.SIGINT] and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_that_an_import_swallows_is_raised_after_it() -> None:
    with pytest.raises(KeyboardInterrupt), keep_interrupts(), contextlib.suppress(BaseException):
        signal.raise_signal(signal.SIGINT)
    with keep_interrupts():
        pass


def test_a_hosts_own_handler_is_left_in_place(own: list[int]) -> None:
    with raise_on_signals():
        signal.raise_signal(signal.SIGTERM)
    assert own == [signal.SIGTERM]


@pytest.fixture(scope="module")
def whole(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is left alone."""
    return api.unlearn(config(start, tmp_path_factory.mktemp("whole") / "run", steps=3, save_every=0)).path


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_run_stops_after_its_step_and_is_resumed(
    start: Path, whole: Path, tmp_path: Path, signum: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real signal in the middle of the run; the record and the weights are those of a run left alone."""
    chosen = config(start, tmp_path / "run", steps=3, save_every=0)
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match=r"stopped after step 2 of 3") as stopped:
        _raise_at_line(2, signum, patch)
        api.unlearn(chosen)
    assert stopped.value.exit_code == CODES[signum]
    api.unlearn(chosen, resume=True)
    assert _record(tmp_path / "run") == _record(whole)


def _raise_at_line(number: int, signum: int, patch: pytest.MonkeyPatch) -> None:
    append, written = RunDirectory.append, {"n": 0}

    def counting(self: RunDirectory, *given: Any) -> None:
        append(self, *given)
        written["n"] += 1
        if written["n"] == number:
            signal.raise_signal(signum)

    patch.setattr(RunDirectory, "append", counting)


def _record(run: Path) -> tuple[list[dict[str, Any]], bytes]:
    lines = [{key: value for key, value in line.items() if key != "seconds"} for line in read_lines(run)]
    (weights,) = (run / "checkpoints" / "checkpoint-3").glob("*model.safetensors")
    return lines, weights.read_bytes()


@pytest.fixture(scope="module")
def saved(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint at every step."""
    return api.unlearn(config(start, tmp_path_factory.mktemp("saved") / "run", steps=2, save_every=1)).path


@pytest.mark.parametrize("signum", SIGNALS)
def test_an_inspection_that_is_stopped_keeps_its_checkpoints(
    saved: Path, tmp_path: Path, signum: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = InspectConfig.read(None, checkpoints=[str(saved)], out=tmp_path / "seen")
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="checkpoints before it are kept") as stopped:
        _raise_at_line(1, signum, patch)
        api.inspect(chosen)
    assert stopped.value.exit_code == CODES[signum]
    api.inspect(chosen, resume=True)
    assert (tmp_path / "seen" / DONE).exists()


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("verb", ["unlearn", "evaluate", "localize"])
def test_before_anything_is_written_it_ends_in_one_line(
    verb: str, signum: signal.Signals, start: Path, tmp_path: Path, invoke: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the model is loaded, say: the code is 128 + the signal's number, and nothing is left behind."""

    def load(*_: object, **__: object) -> None:
        signal.raise_signal(signum)

    monkeypatch.setattr(api, "load_model", load)
    sets = {
        "unlearn": ["--forget", "builtin:authors/forget[:2]", "--retain", "builtin:authors/retain[:2]"],
        "evaluate": ["--set", "a=builtin:authors/forget[:2]", "--metric", "accuracy"],
        "localize": ["--domain", "privacy=builtin:domains/privacy"],
    }[verb]
    plan = ["--model", start, "--out", tmp_path / "out", *sets]
    ended = invoke(verb, *plan)
    name = "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name
    assert (ended.code, ended.err.strip().split("\n")[-1]) == (CODES[signum], f"geffect: stopped by {name}")
    assert not (tmp_path / "out").exists()


def _wait_for_lines(file: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 200
    while not file.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.exhaustive
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_process_that_receives_it_says_how_to_continue(start: Path, tmp_path: Path, signum: signal.Signals) -> None:
    """A process of its own, as a cluster's: once it trains, the signal ends it after the step with a checkpoint."""
    plain = config(start, tmp_path / "run", steps=400, save_every=0).model_dump(mode="json", exclude_none=True)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(plain))
    command = [sys.executable, "-m", "geffect", "unlearn", str(file)]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as process:
        _wait_for_lines(tmp_path / "run" / STEPS, process)
        process.send_signal(signum)
        _, told = process.communicate()
    assert process.returncode == CODES[signum], told
    last = told.strip().split("\n")[-1]
    assert "whose state is kept; continue with: geffect unlearn " in last and "Traceback" not in told
    assert list((tmp_path / "run" / "checkpoints").glob("checkpoint-*"))
    assert (tmp_path / "run" / CONFIG).exists() and UnlearnConfig.read(file).out == tmp_path / "run"


@pytest.mark.exhaustive
def test_launched_processes_stop_together_and_go_on(start: Path, tmp_path: Path) -> None:
    """A cluster signals the launcher and its processes alike; the launcher passes the signal on once more."""
    plain = config(start, tmp_path / "run", steps=20, save_every=0, batch_size=2, heldout="builtin:authors/heldout[:2]")
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(plain.model_dump(mode="json", exclude_none=True)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "geffect"]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*launch, "unlearn", str(file)]
    with subprocess.Popen(command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True, env=alone) as process:
        _wait_for_lines(tmp_path / "run" / STEPS, process)
        for each in psutil.Process(process.pid).children():
            each.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        told, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    assert told.count("whose state is kept; continue with: torchrun --nproc-per-node 2 -m geffect unlearn ") == 1, told
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    lines = sum("loss_objective" in line for line in read_lines(tmp_path / "run"))
    assert checkpoint.name == f"checkpoint-{lines}" and lines < 20
    again = subprocess.run([*command, "--resume"], env=alone, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert [line["step"] for line in read_lines(tmp_path / "run")] == list(range(21))
