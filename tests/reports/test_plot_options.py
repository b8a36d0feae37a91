"""The options of plots: each changes what is drawn, or is refused; the data saved are those drawn."""

import logging
import shutil
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.image import imread

import geffect
from geffect import api
from geffect.errors import GeffectError
from geffect.reports import plots
from geffect.reports.plots.registry import PLOTS
from geffect.reports.run import Run, plot
from tests.conftest import Command, config
from tests.support.pictures import fits

pytestmark = pytest.mark.usefixtures("untouched_style")
OF_RUNS = [name for name, each in PLOTS.items() if not (each.localization or each.evaluation)]
RECORDED = [name for name in OF_RUNS if name not in ("tokens", "points")]


@pytest.fixture(scope="module")
def run(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that recorded all that plots of runs draw but single examples."""
    out = tmp_path_factory.mktemp("options") / "GA"
    more: dict[str, Any] = {
        "prediction": 4,
        "overlap": 0.1,
        "standard_errors": True,
        "batch_size": 2,
        "grad_accum_steps": 2,
        "steps": 4,
    }
    return api.unlearn(config(start, out, **more, target={"extra": "builtin:authors/heldout[:4]"}))


def lines_of(figure: Figure) -> list[Any]:
    return [line for axes in figure.axes for line in axes.lines]


def steps_of(figure: Figure) -> set[float]:
    return {float(x) for line in lines_of(figure) if line.get_label() == "total" for x in line.get_xdata()}


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_targets_groups_and_steps_are_what_is_drawn(run: Run) -> None:
    whole = run.plot()
    assert (len(whole.axes), labels(whole)[0], steps_of(whole)) == (2, "total", set(range(4)))
    figure = run.plot(targets="retain", groups="total,deep", steps="2:4")
    assert (len(figure.axes), labels(figure), steps_of(figure)) == (1, ["total", "deep"], {2, 3})
    assert run.plot(steps=(0, 1), targets=["retain"], groups=["total"]).axes[0].get_xlim()[1] < 1.5
    assert [axes.get_title() for axes in run.plot("effects", targets=["extra", "forget"]).axes] == ["forget", "extra"]
    assert len(run.plot("prediction", targets="retain").axes) == 1
    assert len(run.plot("layers", targets="forget").axes) == 2  # one map and its bar
    assert "step 3" in str(run.plot("gram", steps="1:3").axes[0].get_title())
    with pytest.raises(GeffectError, match=r"^'tail' is no layer group of the plot\. Choose among total, embed, "):
        run.plot(groups="tail")
    with pytest.raises(GeffectError, match=r"^'chat' is no target of the plot\. Choose among forget, retain"):
        run.plot(targets="chat")
    with pytest.raises(GeffectError, match=r"^No step from 9 to inf was measured\. The steps go from 0 to 3\.$"):
        run.plot("cosine", steps="9:")


def test_the_reading_in_nats_is_the_change_by_the_applied_update(run: Run) -> None:
    figure = run.plot(reading="nats", groups="total")
    effects = run.effects().groupby(["target", "step"])["effect"].sum()
    for axes, target in zip(figure.axes, ("forget", "retain"), strict=True):
        (line,) = [each for each in axes.lines if each.get_label() == "total"]
        np.testing.assert_allclose(np.asarray(line.get_ydata(), float), effects[target])
    assert "(nats a token)" in figure.get_supylabel()
    published = run.plot(reading="published")
    assert "nats a token per unit of learning rate" in published.get_supylabel()
    assert all(axes.collections for axes in published.axes), "two standard errors"
    assert "bands: two standard errors" in published.get_supxlabel()
    (mesh,) = [
        each
        for each in run.plot("layers", reading="nats", targets="forget").axes[0].collections
        if isinstance(each, QuadMesh)
    ]
    assert float(np.sum(np.asarray(mesh.get_array()))) == pytest.approx(effects["forget"].sum(), rel=1e-6)


def test_the_reader_says_the_scale_the_width_and_the_style(run: Run) -> None:
    for kind in ("g_effect", "effects", "prediction", "prediction_sums"):
        for scale in ("linear", "symlog"):
            assert {axes.get_yscale() for axes in run.plot(kind, scale=scale).axes} == {scale}
    assert run.plot("trade_off", scale="log").axes[0].get_xscale() == "log"
    with pytest.raises(GeffectError, match=r"shows values above 0 only"):
        run.plot(scale="log")
    assert run.plot(width="column").get_figwidth() == plots.ONE_COLUMN
    assert run.plot("cosine", width="page").get_figwidth() == plots.TWO_COLUMN
    assert tuple(run.plot("cosine", figsize=(5, 2)).get_size_inches()) == (5, 2)
    assert run.plot("cosine", style="ggplot").axes[0].get_facecolor() != run.plot("cosine").axes[0].get_facecolor()
    assert run.plot("cosine", style={"axes.labelsize": 11}).axes[0].yaxis.label.get_fontsize() == 11


def test_a_figure_of_one_panel_is_drawn_in_axes(run: Run) -> None:
    from matplotlib.figure import Figure as Plain

    left, right = Plain().subplots(1, 2)
    assert run.plot("cosine", ax=left) is left.figure
    assert run.plot(targets="forget", ax=right) is left.figure
    assert (left.get_ylabel(), len(right.lines) > 1) == ("cosine to the retain gradient", True)
    assert left.get_legend() is not None
    for kind in ("g_effect", "gram"):
        with pytest.raises(GeffectError, match=r"^The figure has several panels, and ax is one\."):
            run.plot(kind, ax=left)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"colour": 1}, r"There is no option 'colour' of a plot\. There are targets, groups, steps, reading, scale, "),
        ({"figsze": (1, 1)}, r"There is no option 'figsze' of a plot\. Did you mean figsize\? There are targets"),
        ({"groups": "deep"}, r"A plot of cosine takes no option groups\. It takes steps, width, figsize, labels, "),
        ({"dpi": 300}, r"A plot of cosine takes no option dpi\. It takes steps"),
        ({"scale": "cubic"}, r"scale is 'cubic'\. Write linear or symlog or log\.$"),
        ({"steps": "4:2"}, r"steps is '4:2'\. Write the first and the last step as A:B\.$"),
        ({"width": 3}, r"width is 3\. Write column or page\.$"),
        ({"labels": {"gone": "x"}}, r"There is no run 'gone' to label\. Name one of GA\.$"),
        ({"style": "no_style"}, r"style is 'no_style'\. Write a file, or one of .*ggplot"),
    ],
)
def test_an_option_that_cannot_be_honored_is_refused(run: Run, options: dict[str, Any], says: str) -> None:
    with pytest.raises(GeffectError, match="^" + says):
        run.plot("cosine", **options)


def test_the_command_writes_what_the_flags_say(run: Run, tmp_path: Path, invoke: Command) -> None:
    flags = ["--kind", "g_effect", "--groups", "total", "--targets", "retain", "--steps", "1:3", "--width", "column"]
    more = ["--format", "png,svg", "--dpi", "100", "--labels", "GA=ascent", "--out", tmp_path]
    written = invoke("plot", run.path, *flags, *more)
    assert written.code == 0, written.err
    assert written.out.split() == [str(tmp_path / f"g_effect.{kind}") for kind in ("png", "svg", "csv")]
    assert imread(tmp_path / "g_effect.png").shape[1] == 330
    data = pd.read_csv(tmp_path / "g_effect.csv")
    assert (list(data), list(data["step"]), set(data["run"])) == (
        ["step", "group", "retain", "± retain", "run"],
        [1, 2, 3],
        {"ascent"},
    )
    refused = invoke("plot", run.path, "--kind", "cosine", "--groups", "total", "--out", tmp_path / "no")
    assert (refused.code, "A plot of cosine takes no option groups" in refused.err) == (2, True)
    assert not (tmp_path / "no").exists()


def test_without_a_kind_plots_that_lack_the_option_are_left_out_with_a_line(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "geffect.reports")
    drawn = {path.stem for path in plot([run], tmp_path, groups="total,embed", format="png")}
    assert drawn == {"g_effect", "effects"}
    assert "not drawn of GA, for want of records or of an option: " in caplog.text
    assert ", cosine, " in caplog.text


def test_the_csv_is_what_is_drawn(run: Run, tmp_path: Path) -> None:
    """Every number of a line stands in the file beside the picture."""
    for kind in ("g_effect", "effects", "cosine", "trade_off", "jaccard"):
        figure = run.plot(kind)
        (_, csv) = plot([run], tmp_path, kind=kind, format="png")
        held = pd.read_csv(csv).select_dtypes("number").to_numpy().ravel()
        drawn = [line for line in lines_of(figure) if len(line.get_xdata()) > 2]
        assert kind == "trade_off" or len(drawn) > 1, kind
        for line in drawn:
            values = np.asarray(line.get_ydata(), float)
            assert np.isclose(values[:, None], held, rtol=1e-12).any(axis=1).all() or np.isnan(values).all(), kind


@pytest.mark.parametrize("kind", RECORDED)
def test_no_text_or_tick_label_touches_another_in_a_column(run: Run, kind: str) -> None:
    fits(run.plot(kind, width="column"))


@pytest.mark.parametrize("kind", [name for name in RECORDED if PLOTS[name].several])
def test_twelve_runs_are_drawn(run: Run, kind: str, tmp_path: Path) -> None:
    many = [Run(shutil.copytree(run.path, tmp_path / f"run{i:02}")) for i in range(12)]
    two = {"targets": "forget,retain"} if kind.startswith("prediction") else {}
    figure = many[0].plot(kind, *many[1:], **two)
    with matplotlib.rc_context(plots.STYLE):
        figure.draw_without_rendering()
    texts = {text.get_text() for axes in figure.axes for text in (axes.title, axes._left_title)}  # type: ignore[attr-defined]
    said = " ".join([
        *texts,
        *labels(figure),
        *(each.get_title().get_text() for axes in figure.axes if (each := axes.get_legend())),
    ])
    assert kind == "plane" or all(f"run{i:02}" in said for i in range(12))
    assert figure.get_figheight() <= 9.2


def test_the_list_names_the_options_of_every_plot(invoke: Command) -> None:
    listed = invoke("list", "plots").out
    assert "steps, targets, groups, reading, scale, width, figsize, labels, style" in listed
    assert set(geffect.__all__) >= {"plot", "Run"}
