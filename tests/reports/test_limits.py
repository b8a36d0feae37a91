"""Limits on a run's losses, and how a run that is being trained stands: from the API and the command line."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import geffect
from geffect.errors import GeffectError
from geffect.monitoring.monitor import Monitor
from geffect.record.schema import STEPS
from geffect.reports.live import Live
from tests.conftest import Command
from tests.support.cases import llama
from tests.support.rows import made_rows, nats, padded

SETS = {"math": made_rows([7, 5, 9], 0), "forget": made_rows([6, 8], 1)}


def train(out: Path, steps: int = 3) -> Path:
    """Raise the loss of ``forget`` in a few monitored steps."""
    model: Any = llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Monitor(model, SETS, optimizer=optimizer, out=out):
        for _ in range(steps):
            (-nats(model, padded(SETS["forget"])).mean()).backward()
            optimizer.step()
            optimizer.zero_grad()
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("limits") / "run")


def test_a_limit_is_kept_just_where_the_rise_is_within_it(run: Path) -> None:
    losses = geffect.read_steps(run)
    rise = {name: losses[f"{name}_loss"].iloc[-1] - losses[f"{name}_loss"].iloc[0] for name in SETS}
    assert rise["forget"] > 0
    for name in SETS:
        for limit, kept in ((rise[name] + 1e-9, True), (rise[name] - 1e-9, False)):
            (verdict,) = geffect.check(run, {name: limit})
            assert verdict.kept is kept
            assert verdict.rise == pytest.approx(rise[name])
    for limit, kept in ((rise["forget"] - 1e-9, True), (rise["forget"] + 1e-9, False)):
        (verdict,) = geffect.check(run, min_forget=limit)
        assert verdict.kept is kept


def test_a_loss_that_is_not_finite_breaks_every_limit_on_harm(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    for file in (each for each in run.iterdir() if each.is_file()):
        (copy / file.name).write_bytes(file.read_bytes())
    *lines, last = (copy / STEPS).read_text().splitlines()
    line = json.loads(last)
    line["evaluation"]["math"]["loss"], line["diverged"] = None, "no finite loss of math"
    line.pop("evaluation_examples")
    (copy / STEPS).write_text("\n".join([*lines, json.dumps(line)]) + "\n")
    (verdict,) = geffect.check(copy, {"math": 1e9})
    assert not verdict.kept
    assert "is not finite any more" in verdict.sentence


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "There is no limit"),
        ({"max_harm": {"chat": 1.0}}, "did not evaluate chat. Name one of math, forget"),
        ({"max_harm": {"math": math.nan}}, "limit of math is nan"),
    ],
    ids=str,
)
def test_limits_that_cannot_be_checked_are_refused(run: Path, given: dict[str, Any], told: str) -> None:
    with pytest.raises(GeffectError, match=told):
        geffect.check(run, **given)


def test_the_command_says_it_in_words_and_by_its_exit_code(run: Path, invoke: Command) -> None:
    ended = invoke("check", str(run), "--max-harm", "math=9", "--min-forget", "0.001")
    assert ended.code == 0
    assert ended.out.count("kept") == 2
    assert "math: its loss " in ended.out
    broken = invoke("check", str(run), "--max-harm", "forget=0.0001", "--json")
    assert broken.code == 1
    (verdict,) = json.loads(broken.out)
    assert (verdict["name"], verdict["kept"], verdict["limit"]) == ("forget", False, 0.0001)
    for wrong in (["--max-harm", "math"], ["--max-harm", "math=much"], ["--max-harm", "=1"], []):
        assert invoke("check", str(run), *wrong).code == 2
    assert invoke("check", str(run), "--max-harm", "math=1", "--max-harm", "math=2").code == 2


def test_a_run_is_followed_line_by_line(tmp_path: Path) -> None:
    """Each look reads what is new; a torn line waits for its end; effects are those of the record."""
    whole = train(tmp_path / "whole", steps=4)
    effects = geffect.read_effects(whole)
    text = (whole / STEPS).read_text().splitlines(keepends=True)
    (whole / STEPS).write_text(text[0] + text[1][:50])
    (whole / "DONE").unlink()
    live = Live(whole)
    seen = [live.look()]
    for i in (1, 2, 3):
        (whole / STEPS).write_text("".join(text[: i + 1]) + ("" if i == 3 else text[i + 1][:50]))
        seen.append(live.look())
    (whole / STEPS).write_text("".join(text[:2]))  # resumed from its second step
    assert live.look().step == 1
    (whole / STEPS).write_text("".join(text[:4]))
    assert live.look().step == 3
    (whole / "DONE").touch()
    assert [view.step for view in seen] == [0, 1, 2, 3]
    assert live.look().finished
    losses = geffect.read_steps(whole)
    for view in seen:
        assert [each.name for each in view.sets] == list(SETS)
        for each in view.sets:
            own = effects[(effects["step"] == view.step) & (effects["target"] == each.name)]
            assert each.effect == pytest.approx(own["effect"].sum(), rel=1e-6)
            assert each.by_group == pytest.approx(own.set_index("group")["effect"].to_dict())
            assert each.start == losses[f"{each.name}_loss"].iloc[0]
            assert each.loss == losses[f"{each.name}_loss"].iloc[view.step or 0]


def test_of_several_runs_the_newest_is_followed(tmp_path: Path) -> None:
    first, second = train(tmp_path / "logs" / "a", steps=1), train(tmp_path / "logs" / "deep" / "b", steps=2)
    for age, each in ((100, second), (0, first)):
        times = (time.time() - age, time.time() - age)
        os.utime(each / STEPS, times)
    assert Live(tmp_path / "logs").path == first
    os.utime(second / STEPS)
    os.utime(first / STEPS, (0, 0))
    assert Live(tmp_path / "logs").look().step == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(GeffectError, match=r"There is no run in .*, which has no environment\.json"):
        Live(tmp_path / "empty")


def test_the_live_view_fits_80_columns(run: Path, invoke: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ended = invoke("monitor", str(run), "--once")
    assert ended.code == 0
    assert max(map(len, ended.out.splitlines())) <= 80
    assert "…" not in ended.out.partition("\n")[2]
    assert all(name in ended.out for name in (*SETS, "effect", "lm_head", "above 0: harm"))


def test_a_report_needs_no_forget_set(tmp_path: Path, invoke: Command) -> None:
    """A monitored training of any targets: scores, effects and conflicts stand on the page, and no G-effect's map."""
    model: Any = llama()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    targets = {"math": SETS["math"], "chat": SETS["forget"]}
    with Monitor(model, targets, optimizer=optimizer, out=tmp_path / "run"):
        for _ in range(3):
            nats(model, padded(SETS["math"])).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    ended = invoke("report", str(tmp_path / "run"), "--out", str(tmp_path / "page.html"))
    assert ended.code == 0, ended.err
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for text in ("What each step does to each target", "Which targets pull apart", "no set is called forget"):
        assert text in page
    assert "Layers by step" not in page
