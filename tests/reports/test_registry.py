"""One table of plots: what it holds is drawn by `Run.plot`, the command and the page, and a user's plot with it."""

import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import matplotlib.figure
import pandas as pd
import pytest

import geffect
from geffect import api
from geffect.config import ReportConfig
from geffect.errors import GeffectError
from geffect.record.schema import STEPS
from geffect.reports.plots.registry import PLOTS, find_plot
from geffect.reports.run import Run, plot
from tests.conftest import Command, config


@pytest.fixture(scope="module")
def runs(start: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    path = tmp_path_factory.mktemp("drawn")
    settings = {"with": {}, "without": {"heldout": None}}
    return {name: api.unlearn(config(start, path / name, **extra)).path for name, extra in settings.items()}


@pytest.fixture
def losses() -> Iterator[None]:
    """A user's plot, ten lines from outside the package."""

    @geffect.register_plot("losses", geffect.Run.evaluations, title="Losses", several=True)
    def losses(frame: pd.DataFrame) -> matplotlib.figure.Figure:
        """Draw every set's loss by step.

        One line a run and set.
        """
        figure = matplotlib.figure.Figure()
        axes = figure.subplots()
        for (run, name), rows in frame.groupby(["run", "set"]):
            axes.plot(rows["step"], rows["loss"], label=f"{run}: {name}")
        return figure

    yield
    del PLOTS["losses"]


@pytest.mark.usefixtures("losses")
def test_a_users_plot_is_drawn_everywhere(runs: dict[str, Path], tmp_path: Path, invoke: Command) -> None:
    one, two = (Run(path) for path in runs.values())
    lines = one.plot("losses", two).axes[0].lines
    assert [line.get_label() for line in lines][:2] == ["with: forget", "with: heldout"]
    assert len(lines) == 5

    drawn = invoke("plot", *runs.values(), "--out", tmp_path / "drawn").out.split()
    assert {str(tmp_path / "drawn" / f"losses.{kind}") for kind in ("png", "pdf", "csv")} <= set(drawn)
    rows = pd.read_csv(tmp_path / "drawn" / "losses.csv")
    assert set(rows["run"]) == {"with", "without"}
    assert list(rows) == ["step", "set", "loss", "accuracy", "run"]

    listed = invoke("list", "plots").out
    assert re.search(r"^losses +Draw every set's loss by step\.$", listed, re.MULTILINE)

    page = api.report(ReportConfig.read(None, runs=list(runs.values()), out=tmp_path / "page.html")).path
    text = page.read_text(encoding="utf-8")
    assert text.count("<figcaption><h3>Losses</h3></figcaption>") == 3, "side by side, and of each run"
    assert "Losses, of with, without. Draw every set&#39;s loss by step." in text


@pytest.mark.usefixtures("losses")
def test_a_name_is_taken_once(runs: dict[str, Path]) -> None:
    for name, problem in {"losses": "taken", "g_effect": "taken", "../figure": "no word"}.items():
        with pytest.raises(GeffectError, match=f"The name '{name}' is {problem}"):
            geffect.register_plot(name, geffect.Run.steps)
    with pytest.raises(GeffectError, match=r"There is no plot 'pie'\. Choose one of g_effect, .*, losses"):
        find_plot("pie")


def left_out(caplog: pytest.LogCaptureFixture) -> set[str]:
    """The plots that the one line of log names."""
    (line,) = [each.getMessage() for each in caplog.records if each.getMessage().startswith("not drawn of ")]
    return set(line.partition(" option: ")[2].partition(";")[0].split(", "))


@pytest.mark.parametrize("several", [False, True])
def test_what_was_not_recorded_is_skipped_with_a_line_and_named_it_says_why(
    several: bool, runs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = list(runs.values()) if several else [runs["without"]]
    caplog.set_level(logging.INFO, "geffect.reports")
    names = {path.stem for path in plot(paths, tmp_path)}
    skipped = ["prediction", "prediction_sums", "jaccard"]
    skipped += [] if several else ["trade_off", "tokens", "points", "effects", "price"]
    assert left_out(caplog) == set(skipped)
    lines = [record.getMessage() for record in caplog.records]
    alone = "layers, gram, effects, conflicts, price, tokens, points show one run: name each run by itself for them"
    assert (alone in lines) == several
    assert len(lines) == 1 + 2 * several, "of several runs one is left out of the trade-off, with a line"
    with pytest.raises(GeffectError, match=r"has no prediction\. Run geffect unlearn with --prediction 16, or monitor"):
        plot(paths, tmp_path, kind="prediction")
    assert not names & set(skipped)
    drawable = {"g_effect", "cosine", "plane-3"} | ({"trade_off"} if several else {"layers", "conflicts", "gram-3"})
    assert names == drawable


def test_a_run_without_what_others_have_is_left_out_and_named(
    runs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written = plot(list(runs.values()), tmp_path)
    assert set(pd.read_csv(tmp_path / "trade_off.csv")["run"]) == {"with"}
    assert tmp_path / "trade_off.png" in written
    why = f"{runs['without']} has no evaluations of a forget and a heldout set"
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        f"trade_off is drawn without without: {why}. Draw another plot."
    ]
    caplog.clear()
    assert Run(runs["with"]).plot("trade_off", Run(runs["without"])).axes
    assert len(caplog.records) == 1


def test_the_page_says_what_it_leaves_out(
    runs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "geffect.reports")
    page = api.report(ReportConfig.read(None, runs=[runs["without"]], out=tmp_path / "page.html")).path
    assert left_out(caplog) == {"trade_off", "prediction_sums", "points", "effects", "price"}
    text = page.read_text(encoding="utf-8")
    shown = {plot.title for plot in PLOTS.values() if f"<h3>{plot.title.replace(chr(39), '&#39;')}</h3>" in text}
    assert shown == {PLOTS[name].title for name in ("g_effect", "cosine", "conflicts", "plane")}


def test_runs_without_a_common_step_need_one_named(
    runs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = (runs["with"] / STEPS).read_text(encoding="utf-8").splitlines(keepends=True)
    parts = {"first": text[:2], "last": text[2:]}
    for name, lines in parts.items():
        (shutil.copytree(runs["with"], tmp_path / name) / STEPS).write_text("".join(lines), encoding="utf-8")
    caplog.set_level(logging.INFO, "geffect.reports")
    assert "plane" not in {path.stem for path in plot([tmp_path / name for name in parts], tmp_path / "drawn")}
    assert "plane" in left_out(caplog)
    with pytest.raises(GeffectError, match="No step is chosen"):
        plot([tmp_path / name for name in parts], tmp_path / "drawn", kind="plane")


def test_seventeen_runs_are_too_many_and_every_plot_says_so(
    runs: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "geffect.reports")
    many = [shutil.copytree(runs["with"], tmp_path / f"run{i}") for i in range(17)]
    with pytest.raises(GeffectError, match="A figure shows at most 16 runs, not 17: run0, "):
        plot(many, tmp_path / "drawn")
    assert left_out(caplog) >= {"g_effect", "cosine", "trade_off", "plane"}


def test_a_damaged_record_is_refused_not_skipped(runs: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(runs["with"], tmp_path / "copy")
    text = (copy / STEPS).read_text(encoding="utf-8")
    (copy / STEPS).write_text(text.replace('"step": 1', '"step": -1'), encoding="utf-8")
    with pytest.raises(GeffectError, match="is not as geffect writes it"):
        plot([copy])
    with pytest.raises(GeffectError, match="is not as geffect writes it"):
        Run(runs["with"]).plot("cosine", Run(copy))


def test_layer_groups_follow_the_scheme(start: Path, runs: dict[str, Path], tmp_path: Path) -> None:
    drawn = {}
    for scheme in ("thirds", "paper_script"):
        plot([runs["with"]], tmp_path / scheme, scheme)
        drawn[scheme] = pd.read_csv(tmp_path / scheme / "g_effect.csv")
        expected = geffect.g_effect(geffect.read(runs["with"], "group", scheme))
        of_groups = drawn[scheme][drawn[scheme]["group"] != "total"]
        assert list(of_groups["unlearn"]) == pytest.approx(list(expected["unlearn"]))
    assert not drawn["thirds"].equals(drawn["paper_script"])
    texts = [text.get_text() for text in Run(runs["with"]).plot(scheme="paper_script").legends[0].get_texts()]
    assert texts == list(dict.fromkeys(drawn["paper_script"]["group"]))
    assert texts[0] == "total"


def test_every_built_in_plot_has_words_for_the_list_and_the_page() -> None:
    assert all((each.draw.__doc__ or "").startswith("Draw ") for each in PLOTS.values())
    assert all(bool(each.title) == bool(each.caption) for each in PLOTS.values())
    assert {name for name, each in PLOTS.items() if each.localization} == {"overlap", "overlap_by_layer"}
