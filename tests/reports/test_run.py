"""Runs, Grams and token effects that show themselves."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from matplotlib.text import Text

import geffect
from geffect import api
from geffect.core.effects import inner_by_label
from geffect.core.gram import Gram
from geffect.core.masks import mask_count
from geffect.core.token_effects import TokenEffects
from geffect.errors import GeffectError
from geffect.record.reader import read_lines
from geffect.record.schema import DONE, STEPS
from geffect.reports.plots.registry import PLOTS
from tests.conftest import config

TOGETHER: dict[str, dict[str, Any]] = {
    "g_effect": {},
    "cosine": {},
    "trade_off": {},
    "plane": {"step": 0},
    "prediction": {},
    "prediction_sums": {},
    "jaccard": {},
}
ALONE: dict[str, dict[str, Any]] = {"layers": {}, "gram": {}, "effects": {}, "conflicts": {}, "price": {}}
INSPECTED: dict[str, dict[str, Any]] = {"tokens": {"column": "embed"}, "points": {}}
EVALUATED = {"relearning"}  # drawn in tests/evaluation
LOCALIZED: dict[str, dict[str, Any]] = {"overlap": {}, "overlap_by_layer": {"share": 0.2}}


@pytest.fixture(scope="module")
def runs(start: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("runs")
    return {
        name: api.unlearn(
            config(start, path / name, rectifier=name, prediction=4, overlap=0.1, objective="ga + 0.1*gd")
        ).path
        for name in ("none", "gru")
    }


@pytest.fixture(scope="module")
def inspected(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record of a run's checkpoints, with tokens and points."""
    path = tmp_path_factory.mktemp("inspected")
    run = api.unlearn(config(start, path / "run", save_every=2)).path
    found = api.inspect(
        geffect.InspectConfig.read(checkpoints=[str(run)], out=path / "record", tokens=2, points=["wga"], batch_size=6)
    )
    return found[0].path


@pytest.fixture(scope="module")
def localized(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    domains = [f"{name}=builtin:domains/{name}[:3]" for name in ("privacy", "copyright")]
    out = tmp_path_factory.mktemp("localized") / "masks"
    return api.localize(geffect.LocalizeConfig.read(model=start, domain=domains, draws=1, out=out)).path


def test_a_summary_goes_from_the_first_evaluation_to_the_last(runs: dict[str, Path]) -> None:
    scores = [line["evaluation"] for line in read_lines(runs["gru"]) if "evaluation" in line]
    found = geffect.Run(runs["gru"]).summary()
    assert (found["objective"], found["rectifier"], found["finished"]) == ("ga + 0.1*gd", "gru", "yes")
    assert found["last step"] == "4 of 4"
    for name in ("forget", "retain", "heldout"):
        for kind in ("loss", "accuracy"):
            assert found[f"{name} {kind}"] == f"{scores[0][name][kind]:.3f} → {scores[-1][name][kind]:.3f}"


def test_a_run_that_goes_on_is_read_as_far_as_it_has_come(runs: dict[str, Path], tmp_path: Path) -> None:
    part = shutil.copytree(runs["none"], tmp_path / "part")
    (part / DONE).unlink()
    lines = (part / STEPS).read_text().splitlines(keepends=True)
    (part / STEPS).write_text("".join(lines[:2]) + lines[2][:9])
    found = geffect.Run(part).summary()
    assert (found["finished"], found["last step"]) == ("no", "1 of 4")
    assert len(geffect.Run(part).steps()) == 2


def test_a_rule_that_ended_a_run_is_told(runs: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(runs["none"], tmp_path / "copy")
    *before, last = read_lines(copy)
    lines = [*before, last | {"stopped": {"rule": "accuracy", "reason": "heldout accuracy fell"}}]
    (copy / STEPS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert geffect.Run(copy).summary()["stopped"] == "heldout accuracy fell"


def test_what_a_notebook_shows_is_escaped(runs: dict[str, Path], tmp_path: Path) -> None:
    place = shutil.copytree(runs["gru"], tmp_path / "<b>&")
    (place / "config.yaml").write_text("model: <script>\nobjective: a & b\n")
    shown = geffect.Run(place)._repr_html_()
    assert "&lt;b&gt;&amp;" in shown
    assert "&lt;script&gt;" in shown
    assert "a &amp; b" in shown
    assert "<script>" not in shown
    assert "<b>&" not in shown


def test_frames_are_those_of_the_readers(runs: dict[str, Path]) -> None:
    run, gram = geffect.Run(runs["gru"]), geffect.read(runs["gru"], "layer")
    pd.testing.assert_frame_equal(run.to_frame("layer"), gram)
    pd.testing.assert_frame_equal(run.g_effect("layer"), geffect.g_effect(gram, "rectified"))
    pd.testing.assert_frame_equal(run.g_effect("layer", "objective"), geffect.g_effect(gram, "objective"))
    pd.testing.assert_frame_equal(run.steps(), geffect.read_steps(runs["gru"]))
    last = run.evaluations().iloc[-1]
    assert (last["step"], last["set"]) == (4, "heldout")
    assert last["accuracy"] == read_lines(runs["gru"])[-1]["evaluation"]["heldout"]["accuracy"]


def test_the_cosine_is_that_of_the_whole_model(runs: dict[str, Path]) -> None:
    gram, found = geffect.read(runs["gru"]), geffect.Run(runs["gru"]).cosine()
    whole = {
        (a, b): inner_by_label(gram, a, b).groupby("step").sum()
        for a in ("objective", "rectified", "retain")
        for b in ("objective", "rectified", "retain")
    }
    for column, row in (("cosine", "objective"), ("rectified", "rectified")):
        expected = whole[row, "retain"] / (whole[row, row] * whole["retain", "retain"]) ** 0.5
        assert found[column].to_numpy() == pytest.approx(expected.to_numpy())
    assert geffect.Run(runs["none"]).cosine()["rectified"].isna().all()


@pytest.mark.usefixtures("untouched_style")
@pytest.mark.parametrize("kind", TOGETHER)
def test_runs_are_drawn_side_by_side(kind: str, runs: dict[str, Path]) -> None:
    figure = geffect.Run(runs["none"]).plot(kind, geffect.Run(runs["gru"]), **TOGETHER[kind])
    texts = {text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)}
    assert {"none", "gru"} <= texts or any("gru" in text for text in texts)
    assert_shows_itself(figure)


@pytest.mark.usefixtures("untouched_style")
@pytest.mark.parametrize("kind", ALONE)
def test_some_kinds_hold_one_run(kind: str, runs: dict[str, Path]) -> None:
    run = geffect.Run(runs["gru"])
    assert_shows_itself(run.plot(kind, **ALONE[kind]))
    with pytest.raises(GeffectError, match=f"A plot of {kind} shows one run, not 2"):
        run.plot(kind, geffect.Run(runs["none"]), **ALONE[kind])


@pytest.mark.usefixtures("untouched_style")
@pytest.mark.parametrize("kind", INSPECTED)
def test_tokens_and_points_are_drawn_of_an_inspection(kind: str, inspected: Path, runs: dict[str, Path]) -> None:
    assert_shows_itself(geffect.Run(inspected).plot(kind, **INSPECTED[kind]))
    with pytest.raises(GeffectError, match=f"{kind}\\.jsonl"):
        geffect.Run(runs["none"]).plot(kind, **INSPECTED[kind])


@pytest.mark.usefixtures("untouched_style")
@pytest.mark.parametrize("kind", LOCALIZED)
def test_overlaps_are_drawn_of_a_localization(kind: str, localized: Path, runs: dict[str, Path]) -> None:
    figure = geffect.Run(localized).plot(kind, **LOCALIZED[kind])
    share = LOCALIZED[kind].get("share", 0.1)
    labels = {axes.get_xlabel() for axes in figure.axes}
    assert f"Jaccard index of the top {100 * share:g} % of entries" in labels
    assert_shows_itself(figure)
    with pytest.raises(GeffectError, match="There is no localization in"):
        geffect.Run(runs["none"]).plot(kind, **LOCALIZED[kind])
    with pytest.raises(GeffectError, match="The frame has 0 rows"):
        geffect.Run(localized).plot(kind, share=0.7)


def test_a_localization_shows_itself(localized: Path) -> None:
    shown = geffect.Run(localized).summary()
    assert (shown["share"], shown["importance"], shown["finished"]) == ("0.1, 0.2", "mean_abs", "yes")
    assert "last step" not in shown
    found = geffect.read_localization(localized)
    frame = found.to_frame()
    assert list(frame.columns) == ["examples", "top 10 %", "top 20 %"]
    assert frame.index.tolist() == ["forget/privacy", "retain/privacy", "forget/copyright", "retain/copyright"]
    mask = found.at(0.1)["forget/privacy"]
    assert frame.loc["forget/privacy", "top 10 %"] == sum(map(mask_count, mask.values())) > 0
    assert repr(found).startswith("Localization(forget/privacy, retain/privacy")
    assert "top 20 %" in found._repr_html_()
    pd.testing.assert_frame_equal(geffect.Run(localized).overlap(), geffect.read_overlap(localized))


@pytest.mark.usefixtures("untouched_style")
def test_the_worst_rows_of_each_set_fit_the_picture(inspected: Path, tmp_path: Path) -> None:
    """Three rows of three sets are nine texts; a picture holds eight."""
    copy = shutil.copytree(inspected, tmp_path / "copy")
    lines = read_lines(copy, "tokens.jsonl")
    last = [line for line in lines if line["step"] == 4]
    more = [line | {"example": 90 + i} for i, line in enumerate(last) if last[i - 1]["set"] != line["set"]]
    assert len(last) + len(more) == 9
    (copy / "tokens.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, *more]))
    titles = {text.get_text() for text in geffect.Run(copy).plot("tokens").axes[0].texts}
    for line in last:
        assert f"{line['set']} example {line['example']}, step 4, along the objective" in titles
    assert sum(", step 4, " in title for title in titles) == 6


def assert_shows_itself(figure: Any) -> None:
    """A notebook draws it, and draws it alike twice."""
    png = figure._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert png == figure._repr_png_()


def test_what_cannot_be_drawn_is_refused(runs: dict[str, Path], start: Path, tmp_path: Path) -> None:
    with pytest.raises(GeffectError, match=r"There is no plot 'pie'\. Choose one of g_effect, "):
        geffect.Run(runs["gru"]).plot("pie")
    bare = geffect.Run(api.unlearn(config(start, tmp_path / "bare", steps=1, heldout=None)).path)
    for kind, says in (("trade_off", "a heldout set"), ("prediction", "has no prediction")):
        with pytest.raises(GeffectError, match=says):
            bare.plot(kind)
    with pytest.raises(GeffectError, match=r"There is no directory"):
        geffect.Run(tmp_path / "absent")


def test_a_fit_shows_itself_too(start: Path, tmp_path: Path) -> None:
    fitted = api.finetune(
        geffect.FinetuneConfig.read(
            model=str(start), train=["builtin:authors/heldout[:4]"], epochs=1, out=tmp_path / "fit"
        )
    ).path
    shown = geffect.Run(fitted)._repr_html_()
    assert "builtin:authors/heldout[:4]" in shown
    assert "→" in shown


def test_every_kind_is_tested() -> None:
    assert set(PLOTS) == {*TOGETHER, *ALONE, *INSPECTED, *LOCALIZED, *EVALUATED}


def test_an_inspection_is_a_run_like_any_other(inspected: Path) -> None:
    run = geffect.Run(inspected)
    found = run.summary()
    assert (found["objective"], found["last step"], found["finished"]) == ("ga", "4", "yes")
    assert run.evaluations()["step"].unique().tolist() == [0, 2, 4]
    found_at = run.checkpoints()
    assert found_at["step"].tolist() == [0, 2, 4]
    assert {"forget_loss", "unlearn", "± unlearn", "retain", "± retain", "cosine"} < set(found_at)
    pd.testing.assert_frame_equal(run.tokens(), geffect.read_tokens(inspected))
    pd.testing.assert_frame_equal(run.points(), geffect.read_points(inspected))
    pd.testing.assert_frame_equal(run.standard_errors(), geffect.read_standard_errors(inspected, "total"))


def test_the_gram_of_rows_at_hand() -> None:
    rows = {"a": {"w": torch.tensor([1.0, 2.0]), "v": torch.tensor([3.0])}, "b": {"w": torch.tensor([0.5, -1.0])}}
    gram = Gram.of(rows)
    assert gram.names == ("a", "b")
    assert gram.total().tolist() == [[14.0, -1.5], [-1.5, 1.25]]
    assert gram.values["v"].tolist() == [[9.0, 0.0], [0.0, 0.0]]


def test_a_gram_as_a_frame_and_in_a_notebook() -> None:
    gram = Gram.of({"<a>": {"w": torch.tensor([2.0]), "v": torch.tensor([1.0])}, "b": {"w": torch.tensor([3.0])}})
    assert gram.to_frame().to_dict("list") == {
        "parameter": ["w", "w", "w", "v", "v", "v"],
        "gradient": ["<a>", "<a>", "b"] * 2,
        "other": ["<a>", "b", "b"] * 2,
        "inner": [4, 6, 9, 1, 0, 0],
    }
    summed = gram.to_frame({"w": "block_0", "v": "block_0"}, "layer")
    assert (summed.columns[0], summed["inner"].tolist()) == ("layer", [5, 6, 9])
    assert "&lt;a&gt;" in gram._repr_html_()
    assert "<a>" not in gram._repr_html_()


def test_a_grams_frame_is_read_as_a_records(runs: dict[str, Path]) -> None:
    gram = Gram.of({
        name: {"w": torch.randn(5, generator=torch.Generator().manual_seed(seed))}
        for seed, name in enumerate(("objective", "forget", "retain"))
    })
    effects = geffect.g_effect(gram.to_frame({"w": "embed"}).assign(step=0))
    assert effects["unlearn"].tolist() == pytest.approx([float(gram.total()[0, 1])])


def test_token_effects_stand_under_the_tokens_own_position() -> None:
    total = torch.tensor([[0.0, -1.0, 2.0, 0.0], [3.0, 0.0, 0.0, 0.0]])
    found = TokenEffects(total, {"embed": total / 2, "deep": total / 2}, total != 0)
    frame = found.to_frame()
    assert list(frame) == ["example", "position", "labeled", "effect", "embed", "deep"]
    assert frame[frame["labeled"]][["example", "position", "effect", "deep"]].to_numpy().tolist() == [
        [0, 2, -1, -0.5],
        [0, 3, 2, 1],
        [1, 1, 3, 1.5],
    ]
    assert len(frame) == 6
    shown = found._repr_html_()
    assert shown.count("<tr") == 4  # two lines of names, two rows
    assert "<td>2</td>" in shown


def test_grams_and_effects_are_short_in_a_shell() -> None:
    gram = Gram.of({"a": {"w": torch.ones(2)}, "b": {"v": torch.ones(2)}})
    effects = TokenEffects(torch.ones(2, 3), {}, torch.ones(2, 3, dtype=torch.bool))
    assert repr(gram) == "Gram(a, b; 2 tensors)"
    assert repr(effects) == "TokenEffects(2 examples, 6 labeled tokens)"
