"""A run that was stopped goes on to the record and weights of one that was not."""

import math
import os
import shutil
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
from geffect.config import FinetuneConfig, UnlearnConfig
from geffect.errors import GeffectError
from geffect.models.checkpoints import write_checksums
from geffect.record.reader import read_lines
from geffect.record.schema import CONFIG, DONE, LOCK, STEPS
from geffect.record.writer import RunDirectory
from geffect.training import run as training_run
from tests.conftest import SHAPE, config, exhaustive

SETTINGS: dict[str, Any] = {
    "objective": "npo(beta=0.5) + 0.5*gd",
    "rectifier": "gru(space=both)",
    "steps": 7,
    "batch_size": 2,
    "grad_accum_steps": 2,
    "forget": "builtin:authors/forget[:11]",
    "weight_decay": 0.1,
    "schedule": "linear",
    "warmup_steps": 2,
    "save_every": 2,
    "evaluate_every": 3,
    "max_grad_norm": 5.0,
}


class Stopped(BaseException):
    """What stops a run here."""


def _stop_after(lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    append, written = RunDirectory.append, {"n": 0}

    def counting(self: RunDirectory, *given: Any) -> None:
        append(self, *given)
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
    return api.unlearn(config(start, tmp_path_factory.mktemp("whole") / "run", **SETTINGS)).path


@pytest.mark.parametrize("lines", [1, exhaustive(3), 5, exhaustive(6), exhaustive(8)])
def test_a_stopped_run_goes_on_to_the_same_end(
    start: Path, whole: Path, tmp_path: Path, lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = config(start, tmp_path / "run", **SETTINGS)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        _stop_after(lines, patch)
        api.unlearn(chosen)
    assert not (tmp_path / "run" / DONE).exists()
    _assert_same(api.unlearn(chosen, resume=True).path, whole, 7)


@pytest.mark.parametrize("rectifier", ["gem(memory=3)", exhaustive("gem(memory=4, space=both, scope=layer)")])
def test_remembered_gradients_are_resumed_bit_for_bit(
    start: Path, tmp_path: Path, rectifier: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the step before the checkpoint and of the one before that."""
    chosen = config(start, tmp_path / "run", **(SETTINGS | {"rectifier": rectifier}))
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        _stop_after(5, patch)
        api.unlearn(chosen)
    again = api.unlearn(chosen.model_copy(update={"out": tmp_path / "again"})).path
    _assert_same(api.unlearn(chosen, resume=True).path, again, 7)


@pytest.mark.exhaustive
def test_it_goes_on_after_kill_9(whole: Path, tmp_path: Path) -> None:
    file = _written(tmp_path, yaml.safe_load((whole / CONFIG).read_text(encoding="utf-8")))
    steps = tmp_path / "run" / STEPS
    with _process("unlearn", file) as process:
        _wait_for(steps, 4, process)
        process.kill()
    assert not (tmp_path / "run" / DONE).exists()
    _tear(steps)
    _assert_same(api.unlearn(UnlearnConfig.read(file), resume=True).path, whole, 7)


def test_a_stopped_run_goes_on_with_its_multiplier(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = "pdu + 0.5*dual(gd, eps=0.3, eta=2, start=1)"
    settings = SETTINGS | {"objective": objective, "steps": 5, "diagnose_every": 2, "rectifier": "none"}
    chosen = config(start, tmp_path / "run", **settings)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        _stop_after(4, patch)
        api.unlearn(chosen)
    lines = read_lines(api.unlearn(chosen, resume=True).path)
    _assert_same(api.unlearn(chosen.model_copy(update={"out": tmp_path / "again"})).path, tmp_path / "run", 5)
    multiplier = 1.0
    for line in lines[:5]:
        assert line["multiplier_2"] == pytest.approx(multiplier, rel=1e-12)
        assert line["term_2"] == line["loss_retain"]
        multiplier = max(0.0, multiplier + 2 * (line["term_2"] - 0.3))
    assert multiplier > 10


def _tear(steps: Path) -> None:
    """Add half a line, as a process writes that is killed."""
    with steps.open("ab") as stream:
        stream.write(b'{"step": 9, "gra')


def test_half_a_line_is_dropped_at_a_resume(start: Path, whole: Path, stopped: Path) -> None:
    _tear(stopped / STEPS)
    _assert_same(api.unlearn(config(start, stopped, **SETTINGS), resume=True).path, whole, 7)


def test_after_a_resume_the_reference_is_still_the_start(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NPO's weight goes on falling from where it was; a reference read at the checkpoint would set it back to one."""
    fitted = api.finetune(
        FinetuneConfig.read(
            model=str(start),
            train=["builtin:authors/forget[:12]"],
            out=tmp_path / "fit",
            lora=4,
            epochs=2,
            learning_rate=1e-2,
        )
    ).path
    chosen = config(
        fitted,
        tmp_path / "run",
        objective="npo(beta=0.5) + kl",
        steps=6,
        save_every=1,
        learning_rate=1e-2,
        keep_dropout=True,
    )
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        _stop_after(5, patch)
        api.unlearn(chosen)
    lines = read_lines(api.unlearn(chosen, resume=True).path)
    assert lines[0]["weight_mean"] == pytest.approx(1, abs=1e-5)
    assert lines[0]["loss_objective"] == pytest.approx(2 / 0.5 * math.log(2), rel=1e-5)
    weights = [line["weight_mean"] for line in lines[:6]]
    assert len(weights) == 6 and max(weights[4:]) < 0.9
    again = api.unlearn(chosen.model_copy(update={"out": tmp_path / "again"})).path
    _assert_same(tmp_path / "run", again, 6)


def test_a_run_without_a_checkpoint_begins_again(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = config(start, tmp_path / "run", objective="npo", rectifier="gru")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        _stop_after(3, patch)
        api.unlearn(chosen)
    again = api.unlearn(chosen.model_copy(update={"out": tmp_path / "again"})).path
    _assert_same(api.unlearn(chosen, resume=True).path, again, 4)


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
        ({"learning_rate": 0.5}, r"learning_rate is 0.5, and 0.001 in .*config.yaml. Resume the run from that file"),
        ({"steps": 9}, "--schedule linear depends on the number of steps, so that the 7 steps in "),
        ({"heldout": None}, r"heldout is None, and builtin:authors/heldout\[:6\] in "),
    ],
)
def test_another_configuration_is_refused(start: Path, stopped: Path, changes: dict[str, Any], says: str) -> None:
    before = {file: file.read_bytes() for file in stopped.rglob("*") if file.is_file()}
    for resumed in (api.unlearn, api.plan):
        with pytest.raises(GeffectError, match=says):
            resumed(config(start, stopped, **(SETTINGS | changes)), resume=True)
    assert before == {file: file.read_bytes() for file in stopped.rglob("*") if file.is_file()}


def test_what_is_finished_or_absent_is_not_resumed(start: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(GeffectError, match=r"The run in .* is finished"):
        api.unlearn(config(start, whole, **SETTINGS), resume=True)
    with pytest.raises(GeffectError, match=r"There is no run .*no config\.yaml\. Leave --resume out"):
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
    with pytest.raises(GeffectError, match=r"The forget set of .*run has changed: sha256 "):
        api.unlearn(chosen, resume=True)
    assert _lines(tmp_path / "run") == lines


def _process(verb: str, file: Path, **kwargs: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "geffect", verb, str(file)], stderr=subprocess.PIPE, text=True, **kwargs
    )


def _wait_for(file: Path, lines: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while not file.exists() or file.read_bytes().count(b"\n") < lines:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)


def test_one_process_at_a_time_writes_a_run(whole: Path, tmp_path: Path) -> None:
    file = _written(tmp_path, yaml.safe_load((whole / CONFIG).read_text(encoding="utf-8")) | {"steps": 400})
    with _process("unlearn", file) as process:
        _wait_for(tmp_path / "run" / STEPS, 4, process)
        with pytest.raises(GeffectError, match=r"Another process writes .*run\. Wait"):
            api.unlearn(UnlearnConfig.read(file), resume=True)
        assert process.poll() is None
        lines = read_lines(tmp_path / "run")
        process.kill()
    assert read_lines(tmp_path / "run")[: len(lines)] == lines
    with RunDirectory(tmp_path / "run", resume=True):
        assert (tmp_path / "run" / LOCK).exists()  # what a killed one held is free
    assert not (tmp_path / "run" / LOCK).exists()


def test_of_two_that_found_a_directory_free_one_begins(tmp_path: Path) -> None:
    first, second = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "run")
    with first:
        with pytest.raises(GeffectError, match="Another process writes"), second:
            pass
        first.create({"model": "first"}, {})
        first.finish({})
    with pytest.raises(GeffectError, match="exists already"), second:
        pass
    assert yaml.safe_load((tmp_path / "run" / CONFIG).read_text(encoding="utf-8")) == {"model": "first"}
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_run_that_ended_meanwhile_is_left_alone(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process ends it after it was found unfinished; and nobody else begins while a model is being loaded."""
    chosen = config(start, tmp_path / "run")
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        _stop_after(3, patch)
        api.unlearn(chosen)
    found, begun = training_run.read_unfinished, api._start

    def and_ends_elsewhere(asked: Any) -> Any:
        monkeypatch.setattr(api, "read_unfinished", found)
        monkeypatch.setattr(api, "_start", while_loading)
        api.unlearn(chosen, resume=True)
        return asked

    def while_loading(asked: Any, setup: Any) -> Any:
        monkeypatch.setattr(api, "_start", begun)
        with pytest.raises(GeffectError, match="Another process writes"):
            api.unlearn(chosen, resume=True)
        return begun(asked, setup)

    monkeypatch.setattr(api, "read_unfinished", and_ends_elsewhere)
    with pytest.raises(GeffectError, match=r"The run in .* is finished"):
        api.unlearn(chosen, resume=True)
    assert len(_lines(tmp_path / "run")) == 5
    assert (tmp_path / "run" / DONE).exists()


def test_who_is_refused_leaves_the_first_ones_rows(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = config(start, tmp_path / "run", steps=1, save_gradients=["objective"])
    second, begun = first.model_copy(update={"seed": 7}), api._start

    def beside_another(asked: Any, setup: Any) -> Any:
        monkeypatch.setattr(api, "_start", begun)
        with pytest.raises(GeffectError, match="Another process writes"):
            api.unlearn(second)
        return begun(asked, setup)

    monkeypatch.setattr(api, "_start", beside_another)
    api.unlearn(first)
    row = load_file(tmp_path / "run" / "gradients" / "step-0" / "objective.safetensors")
    alone = api.unlearn(first.model_copy(update={"out": tmp_path / "alone"})).path
    same = load_file(alone / "gradients" / "step-0" / "objective.safetensors")
    assert all(torch.equal(row[name], same[name]) for name in same)


def test_ctrl_c_stops_after_the_step_and_tells_how_to_go_on(whole: Path, tmp_path: Path) -> None:
    file = _written(tmp_path, yaml.safe_load((whole / CONFIG).read_text(encoding="utf-8")))
    with _process("unlearn", file) as process:
        _wait_for(tmp_path / "run" / STEPS, 3, process)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130
    steps = sum("loss_objective" in line for line in read_lines(tmp_path / "run"))
    assert said.strip().split("\n")[-1] == (
        f"geffect: stopped after step {steps} of 7, whose state is kept; "
        f"continue with: geffect unlearn {tmp_path / 'run' / CONFIG} --resume"
    )
    assert "Traceback" not in said
    assert (tmp_path / "run" / "checkpoints" / f"checkpoint-{steps}").is_dir()
    _assert_same(api.unlearn(UnlearnConfig.read(file), resume=True).path, whole, 7)


def _written(folder: Path, recorded: dict[str, Any]) -> Path:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(recorded | {"out": str(folder / "run")}), encoding="utf-8")
    return file


def test_a_fit_goes_on_to_the_same_end(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(name: str) -> FinetuneConfig:
        return FinetuneConfig.read(
            model=str(start),
            train=["builtin:authors/forget[:12]"],
            out=tmp_path / name,
            epochs=3,
            batch_size=4,
            lora=2,
            lora_dropout=0.3,
            keep_dropout=True,
            learning_rate=1e-2,
            save_every=2,
            weight_decay=0.1,
        )

    straight = api.finetune(chosen("straight")).path
    for lines in (3, 8):
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            _stop_after(lines, patch)
            api.finetune(chosen(f"run-{lines}"))
        run = api.finetune(chosen(f"run-{lines}"), resume=True).path
        assert _lines(run) == _lines(straight)
        left, right = (load_file(each / "adapter_model.safetensors") for each in (run, straight))
        assert all(torch.equal(left[name], right[name]) for name in left)
        assert not (run / "checkpoints").exists()


@pytest.fixture(scope="module")
def unfinished(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that fell after its second checkpoint."""
    run = tmp_path_factory.mktemp("unfinished") / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        _stop_after(5, patch)
        api.unlearn(config(start, run, **SETTINGS))
    return run


@pytest.fixture
def stopped(unfinished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(unfinished, tmp_path / "run"))


FILES = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "model.safetensors"]
HARMS = ("gone", "cut", "garbled")
BROKEN = [(name, harm, (i + k) % 3 == 0) for i, name in enumerate(FILES) for k, harm in enumerate(HARMS)]


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        *[("rectifier.safetensors", harm) for harm in HARMS],
        *[(name, harm) if quick else exhaustive(name, harm) for name, harm, quick in BROKEN],
    ],
)
def test_a_broken_checkpoint_is_refused_and_the_one_before_serves(
    start: Path, whole: Path, stopped: Path, name: str, harm: str
) -> None:
    checkpoint = stopped / "checkpoints" / "checkpoint-4"
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).unlink()
    if harm != "gone":
        (checkpoint / name).write_bytes(content[:50] if harm == "cut" else b"\x00garbled" + content[9:])
    chosen, lines = config(start, stopped, **SETTINGS), _lines(stopped)
    with pytest.raises(GeffectError, match=rf"{name} in .*checkpoint-4 .* since it was written") as raised:
        api.unlearn(chosen, resume=True)
    assert "\n" not in str(raised.value)
    assert _lines(stopped) == lines
    checkpoint.rename(stopped / "aside")
    if name == "rectifier.safetensors" and harm == "gone":  # the repair is tried once
        _assert_same(api.unlearn(chosen, resume=True).path, whole, 7)


def test_a_bit_that_flipped_in_the_weights_is_noticed_by_whoever_loads_them(stopped: Path) -> None:
    file = stopped / "checkpoints" / "checkpoint-4" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    with pytest.raises(GeffectError, match=r"model.safetensors in .*checkpoint-4 has changed since it was written"):
        api.load_model(str(stopped))


def test_another_models_checkpoint_is_refused(start: Path, stopped: Path, tmp_path: Path) -> None:
    from geffect.models.builtin import make_tiny

    checkpoint = stopped / "checkpoints" / "checkpoint-4"
    other, _ = make_tiny(**(SHAPE | {"intermediate_size": 40}))
    other.save_pretrained(checkpoint)
    (checkpoint / "checksums.json").unlink()
    with pytest.raises(GeffectError, match=r"checksums in .*checkpoint-4/checksums.json cannot be read"):
        api.unlearn(config(start, stopped, **SETTINGS), resume=True)
    write_checksums(checkpoint)
    with pytest.raises(GeffectError, match=r"mlp.* in .*checkpoint-4 has the shape .*, and .* in this model"):
        api.unlearn(config(start, stopped, **SETTINGS), resume=True)


def test_a_checkpoint_under_another_steps_name_is_refused(start: Path, stopped: Path) -> None:
    (stopped / "checkpoints" / "checkpoint-4").rename(stopped / "checkpoints" / "checkpoint-5")
    with pytest.raises(GeffectError, match=r"checkpoint-5 holds the state of step 4"):
        api.unlearn(config(start, stopped, **SETTINGS), resume=True)


LIMITED = """
import resource, sys
from geffect.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes}, {bytes}))
sys.argv = ["geffect", "unlearn", {file!r}]
main()
"""


@pytest.mark.parametrize(("size", "steps"), [(200_000, 2), exhaustive(5_000, 0), exhaustive(3_000, None)])
def test_a_disk_without_room_ends_in_one_line_and_the_run_goes_on_later(
    whole: Path, tmp_path: Path, size: int, steps: int | None
) -> None:
    """No file may grow beyond: the weights (some 380 kB), already the first line, or even the environment."""
    file = _written(tmp_path, yaml.safe_load((whole / CONFIG).read_text(encoding="utf-8")))
    ended = subprocess.run(
        [sys.executable, "-c", LIMITED.format(bytes=size, file=str(file))], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2, ended.stderr
    last = ended.stderr.strip().split("\n")[-1]
    assert last.startswith(f"geffect: {tmp_path / 'run'} cannot be written to: ")
    assert last.endswith(". Free disk space or fix the path; then rerun with --resume if the run has begun.")
    assert "Traceback" not in ended.stderr
    if steps is None:
        assert not (tmp_path / "run").exists()
        return
    assert len(read_lines(tmp_path / "run")) == steps
    assert not list((tmp_path / "run").glob("checkpoints/*"))
    _assert_same(api.unlearn(UnlearnConfig.read(file), resume=True).path, whole, 7)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [1, exhaustive(20)])
def test_ended_while_it_writes_a_checkpoint_and_at_random_moments(count: int, tmp_path: Path) -> None:
    """By SIGKILL and by SIGTERM; a process of its own, since this one's threads do not fork."""
    command = [sys.executable, "-m", "tests.support.kills", "--count", str(count)]
    alone = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=alone)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for told in ("0: killed in a checkpoint", "0: stopped in a checkpoint"):
        assert told in ended.stdout
    assert ended.stdout.strip().endswith(f"{2 * count} of {2 * count} the same")
