"""Tables and pictures of runs."""

from pathlib import Path

import pandas as pd
import pytest

from geffect import api
from geffect.errors import GeffectError
from geffect.reports.compare import summarize
from geffect.reports.run import plot
from tests.conftest import config


@pytest.fixture(scope="module")
def runs(start: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    path = tmp_path_factory.mktemp("runs")
    return [api.unlearn(config(start, path / name, rectifier=name)).path for name in ("none", "gru")]


def test_the_table_sums_what_the_record_holds(runs: list[Path]) -> None:
    from geffect.core.effects import inner_by_label
    from geffect.record.frames import read
    from geffect.record.reader import read_lines

    table = summarize(runs)
    none, gru = table.to_dict(orient="records")
    assert (none["run"], gru["run"]) == ("none", "gru")
    assert none["Σe_u"] == pytest.approx(inner_by_label(read(runs[0]), "forget", "objective").sum())
    assert gru["Σe_r"] == pytest.approx(inner_by_label(read(runs[1]), "retain", "rectified").sum())
    assert table["conflict"].between(0, 1).all()
    assert none["forget loss"] == read_lines(runs[0])[-1]["evaluation"]["forget"]["loss"]


def test_pictures_come_with_the_data_drawn(runs: list[Path], tmp_path: Path) -> None:
    written = plot(runs, tmp_path)
    assert {p.name for p in written} == {
        f"{name}.{kind}" for name in ("g_effect", "cosine", "trade_off", "plane-3") for kind in ("png", "pdf", "csv")
    }
    drawn = pd.read_csv(tmp_path / "g_effect.csv")
    assert set(drawn["run"]) == {"none", "gru"}
    assert set(drawn["group"]) == {"total", "embed", "shallow", "middle", "deep", "lm_head"}
    cosines = pd.read_csv(tmp_path / "cosine.csv")
    assert (cosines["rectified"].isna() == (cosines["run"] == "none")).all()


def test_runs_that_share_a_name_are_told_apart(start: Path, runs: list[Path], tmp_path: Path) -> None:
    twin = api.unlearn(config(start, tmp_path / "none", steps=1)).path
    assert summarize([runs[0], twin])["run"].tolist() == [str(runs[0]), str(twin)]


def test_a_run_without_a_held_set_has_no_trade_off_plane(start: Path, tmp_path: Path) -> None:
    run = api.unlearn(config(start, tmp_path / "run", steps=1, heldout=None)).path
    assert {p.stem for p in plot([run])} == {"g_effect", "layers", "cosine", "conflicts", "gram-0", "plane-0"}
    assert "retain loss" in summarize([run])


def test_a_fit_has_nothing_to_draw(start: Path, tmp_path: Path) -> None:
    from geffect.config import FinetuneConfig

    run = api.finetune(
        FinetuneConfig.read(model=str(start), train=["builtin:authors/heldout[:4]"], epochs=1, out=tmp_path / "fit")
    ).path
    with pytest.raises(GeffectError, match="measured step"):
        plot([run])
