"""Runs at equal forgetting: read off by hand, paired by row, and every setting that differs is told."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geffect import api
from geffect.errors import GeffectError
from geffect.record.frames import read_steps
from geffect.record.reader import read_lines
from geffect.reports.compare import at_forget_loss, compare, differences, named
from geffect.reports.run import Run
from tests.conftest import Command, config


@pytest.fixture(scope="module")
def runs(known: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("aligned")
    changes: dict[str, dict[str, Any]] = {"ga": {}, "gru": {"rectifier": "gru", "seed": 1}}
    return {
        name: api.unlearn(config(known, home / name, evaluate_every=1, steps=6, **each)).path
        for name, each in changes.items()
    }


@pytest.mark.parametrize(
    ("at", "value"), [(1.0, 10.0), (2.0, 20.0), (2.5, 17.5), (3.0, 15.0), (3.5, 26.0), (0.5, math.nan), (9.0, math.nan)]
)
def test_a_level_is_read_off_where_it_is_first_reached(at: float, value: float) -> None:
    run = pd.DataFrame({"forget_loss": [1.0, 2.0, 3.0, 2.5, 5.0], "heldout_loss": [10.0, 20.0, 15.0, 0.0, 65.0]})
    assert at_forget_loss(run, "heldout_loss", at) == pytest.approx(value, nan_ok=True)


@given(st.lists(st.floats(0, 10), min_size=2, max_size=8), st.floats(0, 10))
def test_the_forget_loss_read_off_is_the_level(losses: list[float], at: float) -> None:
    run = pd.DataFrame({"forget_loss": losses})
    found = at_forget_loss(run, "forget_loss", at)
    reached = any(each >= at for each in losses) and losses[0] <= at
    assert found == pytest.approx(at) if reached else math.isnan(found)


def test_rows_of_an_evaluation_add_up(runs: dict[str, Path]) -> None:
    for line in read_lines(runs["ga"]):
        for name, scores in line["evaluation"].items():
            rows = line["evaluation_examples"][name]
            assert sum(rows["nll"]) / sum(rows["tokens"]) == pytest.approx(scores["loss"], abs=1e-6)


def test_runs_at_the_same_forget_loss(runs: dict[str, Path]) -> None:
    rows = {str(row["run"]): row for row in compare(runs).to_dict("records")}
    steps = {name: read_steps(path) for name, path in runs.items()}
    level = min(each["forget_loss"].max() for each in steps.values())
    for name, curve in steps.items():
        held = at_forget_loss(curve, "heldout_loss", level)
        assert rows[name]["heldout loss"] == pytest.approx(held)
        assert rows[name]["harm"] == pytest.approx(held - curve["heldout_loss"].iloc[0])
        assert rows[name]["gained"] == pytest.approx(level - curve["forget_loss"].iloc[0])
    more = rows["gru"]["heldout loss"] - rows["ga"]["heldout loss"]
    assert rows["gru"]["more harm"] == pytest.approx(more, abs=1e-5)
    assert rows["gru"]["low"] < more < rows["gru"]["high"]
    assert [rows["ga"][each] for each in ("more harm", "low", "high")] == [0, 0, 0]


def test_a_paired_interval_is_a_bootstrap_over_rows() -> None:
    from geffect.reports.compare import _paired

    rng = np.random.default_rng(1)
    tokens, noise = np.full(200, 10), rng.normal(2.0, 5.0, 200)
    shared = rng.normal(0, 100, 200)  # what both runs do to a row cancels
    found = _paired((shared + noise, tokens), (shared, tokens), 0)
    error = noise.std(ddof=1) / 10 / math.sqrt(200)
    assert found["more harm"] == pytest.approx(noise.mean() / 10)
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_a_run_that_never_gets_there_has_no_numbers(runs: dict[str, Path]) -> None:
    frame = compare(runs, at=1e6)
    assert frame.drop(columns=["run", "forget loss", "gained"]).isna().all(axis=None)


def test_every_setting_that_differs_is_told(runs: dict[str, Path]) -> None:
    frame = differences(runs)
    assert set(frame.index) == {"rectifier", "seed"}
    assert frame.T["rectifier"].tolist() == ["none", "gru"]


def test_the_command_prints_both_tables(runs: dict[str, Path], invoke: Command) -> None:
    told = invoke("compare", *runs.values()).out
    assert "gained per harm" in told.replace("\n", " ")
    assert "rectifier" in told
    both = json.loads(invoke("compare", *runs.values(), "--json").out)
    assert both["runs"][1]["run"] == "gru"
    assert both["differences"]["seed"] == {"ga": "0", "gru": "1"}


def test_one_run_is_named_without_a_list_and_compared_with_nothing(runs: dict[str, Path], invoke: Command) -> None:
    assert named(runs["ga"]) == named([Run(runs["ga"])]) == {"ga": runs["ga"]}
    ended = invoke("compare", runs["ga"])
    assert ended.code == 2 and "There is nothing to compare" in ended.err and "--simulate" in ended.err


def test_what_cannot_be_compared(runs: dict[str, Path], known: Path, tmp_path: Path) -> None:
    with pytest.raises(GeffectError, match=r"is not above the start's"):
        compare(runs, at=0.0)
    other = api.unlearn(
        config(known, tmp_path / "other", heldout="builtin:authors/heldout[6:12]", evaluate_every=1)
    ).path
    with pytest.raises(GeffectError, match="evaluated on different heldout examples"):
        compare(runs | {"other": other})
    assert differences(runs | {"other": other}).T["heldout"].tolist()[2] == "builtin:authors/heldout[6:12]"
    with pytest.raises(GeffectError, match=r"There is no steps.jsonl"):
        compare({"nowhere": tmp_path / "nowhere"})
