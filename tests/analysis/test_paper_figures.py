"""The scripts of the papers' figures: what they run, what they draw, and what they say of the papers' findings."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure

from analysis import geffect_claims, geffect_paper, gru_paper
from analysis.geffect_settings import Study, tiny
from analysis.runs import ensure
from geffect.errors import GeffectError
from geffect.reports import plots
from tests.support.pictures import fits, same_bytes

ROOT = Path(__file__).resolve().parents[2]
Drawn = dict[str, tuple[Figure, pd.DataFrame]]
SMALL: dict[str, Any] = {
    "forget": "builtin:authors/forget[:8]",
    "retain": "builtin:authors/retain[:8]",
    "heldout": "builtin:authors/heldout[:4]",
    "batch_size": 4,
    "learning_rate": 1e-3,
    "steps": 2,
    "save_every": 1,
    "diagnose_every": 2,
    "evaluate_every": 2,
}
METHODS = {"GA": "ga", "NPO": "npo", "TNPO": "tnpo", "GA + GD": "ga + gd"}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Name → every figure that is saved, with its data."""
    found: Drawn = {}
    save = plots.save

    def keep(figure: Figure, path: Path, data: pd.DataFrame) -> list[Path]:
        found[path.name] = figure, data
        return save(figure, path, data)

    monkeypatch.setattr(plots, "save", keep)
    return found


@pytest.fixture(scope="module")
def study(known: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Two steps of four objectives, and RMU at one layer."""
    layers = {f"layer {layer}, c = 20": f"rmu(layer={layer}, c=20)" for layer in (1,)}
    base = SMALL | {"model": str(known)}
    return Study(tmp_path_factory.mktemp("paper"), base, METHODS, (1, 2), (0, 1), 2, False, layers)


def test_figures_have_their_panels_and_the_csv_is_what_was_drawn(study: Study, drawn: Drawn, tmp_path: Path) -> None:
    geffect_paper.main(study, tmp_path)
    panels = {
        "figure3": 6,
        "figure4": 6,
        "figure3_column": 6,
        "figure4_column": 6,
        "figure3b": 12,
        "figure1": 1,
        "figure1_later": 4,
        "figure5a": 1,
        "figure5c": 2,
        "layers_GA": 3,
        "layers_NPO": 3,
    }
    assert {name: len(figure.axes) for name, (figure, _) in drawn.items() if name in panels} == panels
    assert set(drawn) == {*panels, "figure5b"}
    for name, (figure, frame) in drawn.items():
        fits(figure)
        assert figure.get_supxlabel() or any(axes.get_xlabel() for axes in figure.axes), name
        assert figure.get_supylabel() or any(axes.get_ylabel() for axes in figure.axes) or "layers" in name
        read = pd.read_csv(tmp_path / f"{name}.csv")
        pd.testing.assert_frame_equal(read, frame.reset_index(drop=True), check_dtype=False, rtol=1e-12)
    effects = geffect_paper.effects(geffect_paper.records(study))
    pd.testing.assert_frame_equal(drawn["figure4"][1], effects[effects["run"].isin(["GA", "NPO", "GA + GD"])])
    claims = pd.read_csv(tmp_path / "claims.csv")
    assert set(claims["agrees"]) <= {"yes", "no", "—"}
    assert claims["measured"].str.contains(r"\d").all()
    assert str(study.runs) not in (tmp_path / "configs.yaml").read_text(encoding="utf-8")


def test_records_hold_standard_errors_at_every_checkpoint_and_are_reused_without_weights(study: Study) -> None:
    found = geffect_paper.records(study)
    table = geffect_paper.at_all(found)
    assert table.groupby("run")["step"].apply(list).to_dict() == {name: [0, 1, 2] for name in METHODS}
    assert (table[["± unlearn", "± retain"]] > 0).all(axis=None)
    before = {path: (path / "DONE").stat().st_mtime_ns for path in found.values()}
    assert not [folder for path in found.values() for folder in geffect_paper.run_of(path).glob("checkpoints/*")]
    geffect_paper.records(study)
    assert {path: (path / "DONE").stat().st_mtime_ns for path in before} == before


def test_a_record_of_other_settings_is_refused(study: Study) -> None:
    geffect_paper.records(study)
    other = Study(
        study.runs, study.base | {"retain": "builtin:authors/retain[:6]"}, study.methods, (1, 2), (0, 1), 2, False, {}
    )
    with pytest.raises(GeffectError, match="retain"):
        geffect_paper.records(other)


def test_an_inspection_that_was_stopped_goes_on(study: Study) -> None:
    (record, *_) = geffect_paper.records(study).values()
    lines = (record / "steps.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    other = study.runs / "begun"
    shutil.copytree(record, other)
    (other / "DONE").unlink()
    config = yaml.safe_load((other / "config.yaml").read_text(encoding="utf-8")) | {"out": str(other)}
    (other / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with pytest.raises(GeffectError, match="checkpoint"):  # their weights are gone: it is gone on with, not begun anew
        ensure([config], "inspect")
    assert (other / "steps.jsonl").read_text(encoding="utf-8") == "".join(lines)
    assert not (study.runs / "begun.stopped-0").exists()


def test_gru_is_drawn_step_by_step(known: Path, drawn: Drawn, tmp_path: Path) -> None:
    base = SMALL | {"model": str(known), "diagnose_every": 1, "evaluate_every": 1}
    base.pop("save_every")
    settings = gru_paper.settings(tmp_path / "runs", base)
    paths = dict(zip(gru_paper.cells(), ensure(settings), strict=True))
    frame = gru_paper.draw(paths, tmp_path / "out")
    assert set(drawn) == {"heldout_rise_by_cosine", "heldout_accuracy_by_cosine", "cosine", "trade_off"}
    for name, (figure, data) in drawn.items():
        fits(figure)
        read = pd.read_csv(tmp_path / "out" / f"{name}.csv")
        np.testing.assert_allclose(read["step"], data["step"])
    assert [axes.get_title() for axes in drawn["heldout_rise_by_cosine"][0].axes] == ["without rectifier", "with GRU"]
    assert len(drawn["trade_off"][0].axes) == len(gru_paper.OBJECTIVES)
    first = frame[(frame["run"] == "GA") & (frame["rectifier"] == "none")].set_index("step")
    assert first["heldout_rise"][1] == first["heldout_loss"][2] - first["heldout_loss"][1]
    assert first["cosine"].isna().to_list() == [False, False, True]
    table = gru_paper.tabulate(frame)
    assert len(table) == len(gru_paper.cells())
    after = frame[frame["rectifier"] == "GRU"].dropna(subset=["cosine"])
    assert (after["rectified"] >= after["cosine"] - 1e-6).all()


def steps() -> pd.DataFrame:
    """Two objectives of six steps, without and with a rectifier that adds 0.3 to every cosine."""
    rows = [
        (
            run,
            rectifier,
            step,
            cosine := -0.9 + 0.2 * step + place,
            cosine + 0.3 if rectifier != "none" else np.nan,
            0.1 * step,
            1 - 0.1 * step,
        )
        for place, run in enumerate(("GA", "NPO"))
        for rectifier in ("none", "gru")
        for step in range(6)
    ]
    names = ["run", "rectifier", "step", "cosine", "rectified", "heldout_rise", "heldout_accuracy"]
    return pd.DataFrame(rows, columns=names).assign(cosine=lambda f: f["cosine"].clip(-1, 0.6))


@pytest.mark.usefixtures("untouched_style")
@pytest.mark.parametrize("y", ["heldout_rise", "heldout_accuracy"])
def test_every_step_stands_at_what_it_descended(y: str, tmp_path: Path) -> None:
    frame = steps()
    figure = plots.retain_by_cosine(frame, y)
    for axes, rectifier in zip(figure.axes, ("none", "gru"), strict=True):
        filled = [
            line for line in axes.lines if line.get_linestyle() == "None" and line.get_markerfacecolor() != "none"
        ]
        own = frame[frame["rectifier"] == rectifier]
        x = own["cosine"] if rectifier == "none" else own["rectified"]
        points = np.concatenate([np.asarray(line.get_xydata()) for line in filled])
        np.testing.assert_allclose(points, np.column_stack([x, own[y]]))
    fits(figure)
    same_bytes(figure, plots.retain_by_cosine(frame, y), tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda f: f.drop(columns="rectified"), "the figure needs"),
        (lambda f: f.assign(cosine=np.nan), "No step has a cosine"),
        (lambda f: f.assign(run=range(len(f))), "at most 6 runs"),
        (lambda f: f.assign(rectifier=range(len(f))), "at most 4 rectifiers"),
    ],
)
def test_what_cannot_be_drawn_by_cosine_is_refused(change: Callable[[pd.DataFrame], pd.DataFrame], match: str) -> None:
    with pytest.raises(GeffectError, match=match):
        plots.retain_by_cosine(change(steps()))
    with pytest.raises(GeffectError, match="There is no y"):
        plots.retain_by_cosine(steps(), "heldout_loss")


def groups(retain: float, deep: float = 1.0) -> pd.DataFrame:
    """GA's effects at four checkpoints, the retain side a multiple of the unlearn side."""
    sizes = {"embed": 0.01, "shallow": 3.0, "middle": 2.0, "deep": deep, "lm_head": 4.0}
    rows = [(step, group, -size * step, -size * step * retain) for step in range(4) for group, size in sizes.items()]
    return pd.DataFrame(rows, columns=["step", "group", "unlearn", "retain"])


def test_findings_on_ascent_agree_and_disagree_by_their_rules() -> None:
    agreeing = list(geffect_claims.ascent({"GA": groups(0.5)}))
    assert [claim.agrees for claim in agreeing] == ["yes"] * 4
    assert "correlation 1.000" in agreeing[0].measured
    opposite, deeper = (list(geffect_claims.ascent({"GA": frame})) for frame in (groups(-0.5), groups(0.5, 9.0)))
    assert [claim.agrees for claim in opposite] == ["no", "yes", "yes", "yes"]
    assert [claim.agrees for claim in deeper][1] == "no"


@pytest.mark.parametrize(("kl", "agrees"), [(1.0, "yes"), (2.0, "no"), (None, "—")])
def test_the_best_regularizer_is_that_of_the_lowest_held_loss(kl: float | None, agrees: str) -> None:
    def path(heldout: float, forget: float = 6.0) -> pd.DataFrame:
        return pd.DataFrame({"step": [0, 5], "forget_loss": [0.0, forget], "heldout_loss": [0.0, 2 * heldout]})

    table = {"GA": path(3.0), "GA + GD": path(1.5), "GA + KL": path(1.0, 1.0) if kl is None else path(kl)}
    (claim,) = geffect_claims.regularizers(table)
    assert claim.agrees == agrees
    assert "GA + GD 1.500" in claim.measured


@pytest.mark.parametrize(("last", "agrees"), [(0.1, ["yes", "no"]), (-2.0, ["no", "no"]), (2.0, ["yes", "yes"])])
def test_po_is_held_against_twice_the_standard_error(last: float, agrees: list[str]) -> None:
    frame = pd.DataFrame({
        "step": [0, 4, 10],
        "unlearn": [0.0, -1.0, last],
        "± unlearn": 0.3,
        "forget_loss": [0.0, 1.0, 2.0],
    })
    assert [claim.agrees for claim in geffect_claims.later({"PO": frame})] == agrees


@pytest.mark.parametrize(("sign", "agrees"), [(1, "yes"), (-1, "no")])
def test_weights_are_held_against_the_retain_effect(sign: int, agrees: str) -> None:
    weight = np.linspace(0.01, 0.99, 40)
    effect = -(1 - weight) if sign > 0 else -weight
    frame = pd.DataFrame({"step": 1, "example": range(40), "unlearn": effect, "retain": effect, "npo": weight})
    assert [claim.agrees for claim in geffect_claims.weights(frame)] == [agrees, agrees]


def test_figure_scripts_import_no_torch() -> None:
    code = (
        "import sys; from analysis import geffect_paper, gru_paper, runs;"
        "assert not {'torch', 'transformers', 'matplotlib', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_make_figures_runs_the_scripts_of_minutes_and_the_real_ones_need_data() -> None:
    told = subprocess.run(["make", "-n", "figures"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for script in ("demo_figures", "prediction_study", "gru_paper", "geffect_paper"):
        assert f"python -m analysis.{script}\n" in told
    assert "--real" not in told
    refused = subprocess.run(["make", "check-data", "DATA=nowhere"], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "expected DATA=folder that holds tofu, found 'nowhere'" in refused.stderr
    wanted = subprocess.run(["make", "-n", "figures-real", "DATA=x"], cwd=ROOT, capture_output=True, text=True).stdout
    assert "analysis.geffect_paper --real runs/start x" in wanted


def test_the_tiny_study_ends_at_its_last_checkpoint() -> None:
    study = tiny(Path("runs"))
    assert max(study.at) == study.base["steps"]
    assert study.later in study.at
    assert {study.zoom[1], *study.at} == set(study.at)
    assert len(study.methods) <= 16
