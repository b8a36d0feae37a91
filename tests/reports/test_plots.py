"""Figures: what is drawn is what was handed in, and nothing global changes."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from packaging.version import Version

from geffect.reports import plots

Draw = Callable[[pd.DataFrame], Figure]
DRAWS: list[Draw] = [plots.g_effect_curves, plots.cosine_curves, plots.trade_off]
# how to read every digit: pandas 3.1 always does, and deprecates saying so
EXACT: dict[str, Any] = {} if Version(pd.__version__) >= Version("3.1") else {"float_precision": "round_trip"}
BOTH = ["ascent", "projected"]
ENDS = ["embed", "deep"]
# one frame serves all three figures: each reads its own columns
COLUMNS = ["run", "step", "group", "unlearn", "retain", "cosine", "rectified", "forget_loss", "heldout_loss"]


def make(runs: Sequence[str] = BOTH, groups: Sequence[str] = ENDS, scale: int = 1) -> pd.DataFrame:
    """A row a run, step and group; ``scale`` is the factor of magnitude from step to step."""
    rows = []
    for i, run in enumerate(runs):
        for group in groups:
            for step in range(0, 50, 5):
                size = (i + 1 + groups.index(group)) * scale ** (step // 5)
                wave = float(np.sin(step + i))
                after = abs(wave) / 2 if run == "projected" else np.nan
                losses = (0.5 + step / (20 + i), 3 + step * (1 - i) / 30 + wave * (step > 0) / 50)
                rows.append((run, step, group, -size, size * wave, wave, after, *losses))
    return pd.DataFrame(rows, columns=COLUMNS)


def by_step(draw: Draw, runs: list[str] = BOTH) -> pd.DataFrame:
    """The frame a figure takes: one row a group only where groups are drawn."""
    return make(runs) if draw is plots.g_effect_curves else make(runs, groups=("embed",))


def lines(axes: Axes, label: str) -> list[Line2D]:
    return [line for line in axes.lines if line.get_label() == label]


def same(line: Line2D, rows: pd.DataFrame, x: str, y: str) -> None:
    np.testing.assert_array_equal(np.asarray(line.get_xydata()), rows[[x, y]].to_numpy(float))


pytestmark = pytest.mark.usefixtures("untouched_style")


def test_runs_keep_their_order_of_appearance() -> None:
    frame = make(["z", "a"])
    assert [axes.get_title(loc="left") for axes in plots.g_effect_curves(frame).axes[::2]] == ["z", "a"]
    (axes,) = plots.trade_off(frame[frame["group"] == "embed"]).axes
    assert [lines(axes, run)[0].get_color() for run in "za"] == [look["c"] for look in plots.RUNS[:2]]


def test_one_legend_names_the_groups_once_in_fixed_order() -> None:
    figure = plots.g_effect_curves(make(groups=("tied", "lm_head", "embed")))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["embed", "lm_head", "tied"]
    assert all(axes.get_legend() is None for axes in figure.axes)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("scale", ["linear", "symlog"])
def test_degenerate_values_still_draw(value: float, scale: str) -> None:
    figure = plots.g_effect_curves(make().assign(unlearn=value, retain=value), scale=scale)
    figure.draw_without_rendering()
    low, high = figure.axes[0].get_ylim()
    assert low < 0 < high


def test_cosines_drawn_are_the_frames_before_solid_and_after_dashed() -> None:
    frame = make(groups=("embed",))
    figure = plots.cosine_curves(frame)
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    assert -1 <= low < frame["cosine"].min() + 0.01 < frame["cosine"].max() - 0.01 < high <= 1
    for run, rows in frame.groupby("run"):
        before, after = lines(axes, str(run))
        same(before, rows, "step", "cosine")
        same(after, rows, "step", "rectified")
        assert (before.get_linestyle(), after.get_linestyle()) == ("-", "--")
    assert axes.get_xlabel().endswith("shaded: conflict")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*BOTH, "before", "rectified"]


def test_the_legend_of_runs_without_rectifier_has_no_dashes() -> None:
    figure = plots.cosine_curves(make(["ascent"], groups=("embed",)))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ascent"]


def test_paths_drawn_are_the_frames_from_one_start() -> None:
    frame = make(groups=("embed",))
    (axes,) = plots.trade_off(frame).axes
    for run, rows in frame.groupby("run"):
        (line,) = lines(axes, str(run))
        same(line, rows, "forget_loss", "heldout_loss")
    starts = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    np.testing.assert_array_equal([line.get_xydata() for line in starts], [[[0.5, 3.0]]])


def test_step_numbers_stand_at_their_points_and_apart() -> None:
    frame = make(groups=("embed",))
    (axes,) = plots.trade_off(frame).axes
    numbers = [text for text in axes.texts if isinstance(text, Annotation)]
    places = []
    for number in numbers:
        step = float(number.get_text().removeprefix("step "))
        points = frame.loc[frame["step"] == step, ["forget_loss", "heldout_loss"]].to_numpy().tolist()
        assert list(number.xy) in points
        places.append((axes.transData - axes.transAxes).transform(number.xy))
    assert [number.get_text() for number in numbers[:2]] == ["step 45", "45"]
    assert min(np.hypot(*(a - b)) for i, a in enumerate(places) for b in places[:i]) > 0.13


@pytest.mark.parametrize("scale", ["linear", "symlog", "log"])
def test_losses_have_the_scale_that_is_asked_for_and_say_so(scale: str) -> None:
    (axes,) = plots.trade_off(make(groups=("embed",)), scale).axes
    assert (axes.get_xscale(), axes.get_yscale()) == (scale, scale)
    assert all((f", {scale}" in label) == (scale != "linear") for label in (axes.get_xlabel(), axes.get_ylabel()))
    with pytest.raises(ValueError, match=r"shows values above 0 only, and some here are not\. Use symlog\.$"):
        plots.trade_off(make(groups=("embed",)).assign(forget_loss=0.0), "log")


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("runs", [["one"], BOTH])
def test_every_outer_axis_is_labeled_and_no_text_leaves_the_page(draw: Draw, runs: list[str]) -> None:
    figure = draw(by_step(draw, runs))
    with matplotlib.rc_context(plots.STYLE):
        figure.draw_without_rendering()
    for axes in figure.axes:
        assert bool(axes.get_xlabel()) != bool(figure.get_supxlabel())
        assert bool(axes.get_ylabel()) != bool(figure.get_supylabel())
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts):
            box = text.get_window_extent()
            assert not text.get_text() or (figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1)
            assert not text.get_text() or (figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1)
    assert figure.get_figwidth() in {plots.ONE_COLUMN, plots.TWO_COLUMN}


@pytest.mark.parametrize("draw", DRAWS)
def test_a_missing_column_is_one_line_with_expected_and_found(draw: Draw) -> None:
    line = r"^The frame has 40 rows of \['run', 'group'[^\n]*; the figure needs [^\n]*step[^\n]*$"
    with pytest.raises(ValueError, match=line):
        draw(make().drop(columns="step"))


@pytest.mark.parametrize("draw", DRAWS)
def test_an_empty_frame_is_one_line(draw: Draw) -> None:
    with pytest.raises(ValueError, match=r"^The frame has 0 rows of \['run', [^\n]*; the figure needs [^\n]*$"):
        draw(make().head(0))
    with pytest.raises(ValueError, match=r"The frame has 0 rows of \[\]; [^\n]*$"):
        draw(pd.DataFrame())


@pytest.mark.parametrize("draw", DRAWS)
def test_twelve_runs_have_a_panel_each_and_seventeen_are_refused(draw: Draw) -> None:
    figure = draw(by_step(draw, list("abcdefghijkl")))
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes]
    assert [title for title in titles if title] == list("abcdefghijkl")
    with pytest.raises(ValueError, match=r"^A figure shows at most 16 runs, not 17: a, b"):
        draw(by_step(draw, list("abcdefghijklmnopq")))


def test_an_unknown_group_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^tail is no layer group\. Sum by group: embed, [^\n]*$"):
        plots.g_effect_curves(make(groups=("embed", "tail")))


@pytest.mark.parametrize("draw", DRAWS)
def test_save_writes_the_same_bytes_twice_and_nothing_else(draw: Draw, tmp_path: Path) -> None:
    frame = by_step(draw)
    figure = draw(frame)
    target = tmp_path / "new" / "folder" / "lr0.5"
    first = plots.save(figure, target, frame)
    assert [path.name for path in first] == ["lr0.5.png", "lr0.5.pdf", "lr0.5.csv"]
    assert sorted(first[0].parent.iterdir()) == sorted(first)
    bytes_of = [path.read_bytes() for path in first]
    figure.savefig(tmp_path / "small.png", dpi=50)  # drawing it in between moves nothing
    for again in (figure, draw(frame)):  # the same object, and one built anew; the old files are replaced
        assert [path.read_bytes() for path in plots.save(again, target, frame)] == bytes_of


def test_a_users_settings_change_no_figure(tmp_path: Path) -> None:
    frame = make()
    theme: dict[Any, Any] = {"font.size": 20, "axes.grid": True, "axes.facecolor": "0.2", "xtick.major.size": 0}
    plain = plots.save(plots.g_effect_curves(frame), tmp_path / "plain", frame)
    with matplotlib.rc_context({**theme, "font.family": "serif", "savefig.bbox": "tight"}):
        themed = plots.save(plots.g_effect_curves(frame), tmp_path / "themed", frame)
    assert [path.read_bytes() for path in themed] == [path.read_bytes() for path in plain]


def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    frame = make()
    here = plots.save(plots.g_effect_curves(frame), tmp_path / "here", frame)
    code = (
        "import sys; from pathlib import Path; import pandas as pd; from geffect.reports import plots\n"
        f"frame = pd.read_csv(sys.argv[1], **{EXACT})\n"
        "plots.save(plots.g_effect_curves(frame), Path(sys.argv[2]), frame)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    root = Path(plots.__file__).parents[2]
    subprocess.run([sys.executable, "-B", "-c", code, here[2], tmp_path / "there"], check=True, cwd=root)
    for path in here:
        assert path.read_bytes() == (tmp_path / f"there{path.suffix}").read_bytes()


def test_saved_files_carry_no_date_or_software_and_embed_type_42(tmp_path: Path) -> None:
    frame = make()
    png, pdf, _ = plots.save(plots.g_effect_curves(frame), tmp_path / "figure", frame)
    assert b"Software" not in png.read_bytes()
    text = pdf.read_bytes()
    assert not any(word in text for word in (b"CreationDate", b"Producer", b"Creator", b"/Type3"))
    assert b"/FontFile2" in text  # the TrueType program that a type 42 font is


def test_saved_data_reads_back_exactly(tmp_path: Path) -> None:
    frame = make().assign(unlearn=lambda rows: rows["unlearn"] / 3)
    *_, csv = plots.save(plots.g_effect_curves(frame), tmp_path / "figure", frame)
    pd.testing.assert_frame_equal(pd.read_csv(csv, **EXACT), frame, check_exact=True)
    assert b"\r" not in csv.read_bytes()


def test_a_failed_save_changes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = make()
    figure = plots.g_effect_curves(frame)
    old = {path: path.read_bytes() for path in plots.save(figure, tmp_path / "figure", frame)}

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(OSError, match="no space"):
        plots.save(plots.g_effect_curves(make(scale=10)), tmp_path / "figure", frame)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == old


def overlaps(runs: Sequence[str] = BOTH) -> pd.DataFrame:
    """Two pairs of rows, a row a run, step, group and pair."""
    rows = [
        (run, step, group, row, other, (1 + i + ENDS.index(group)) / (10 + step) + (row == "objective") / 2)
        for i, run in enumerate(runs)
        for step in range(0, 50, 5)
        for group in ENDS
        for row, other in (("forget", "retain"), ("objective", "forget"))
    ]
    return pd.DataFrame(rows, columns=["run", "step", "group", "gradient", "other", "jaccard"])


def prediction(runs: Sequence[str] = BOTH, scale: float = 0.5) -> pd.DataFrame:
    """The update's reading is right to a tenth; the gradient's is off by a factor."""
    rows = []
    for i, run in enumerate(runs):
        for step in range(20):
            for target, sign in (("forget", 1), ("retain", (-1) ** step)):
                measured = sign * (1 + i + np.sin(step)) / 10
                rows.append((run, step, target, "gradient", scale * measured, measured))
                rows.append((run, step, target, "update", 1.1 * measured, measured))
    return pd.DataFrame(rows, columns=["run", "step", "target", "reading", "predicted", "measured"])


def runs_of(objectives: int, rectifiers: Sequence[str] = ("none", "gru"), seeds: int = 3) -> pd.DataFrame:
    rows = [
        (f"o{i}", rectifier, seed, step, 0.5 + i + step * (1 + seed), 1 - step * (3 - j) / 100, 1 - step / 50)
        for i in range(objectives)
        for j, rectifier in enumerate(rectifiers)
        for seed in range(seeds)
        for step in range(0, 20, 5)
    ]
    names = ["objective", "rectifier", "seed", "step", "forget_loss", "heldout_accuracy", "forget_accuracy"]
    return pd.DataFrame(rows, columns=names)


@pytest.mark.parametrize("runs", [["one"], BOTH])
@pytest.mark.parametrize("pair", [("retain", "forget"), ("forget", "retain")])
def test_overlaps_drawn_are_the_frames_against_chance(runs: list[str], pair: tuple[str, str]) -> None:
    frame = overlaps(runs)
    panels = plots.jaccard_curves(frame, *pair, 0.1).axes
    chosen = frame[(frame["gradient"] == "forget") & (frame["other"] == "retain")]
    for run, axes in zip(runs, panels, strict=True):
        for group in ENDS:
            (line,) = lines(axes, group)
            same(line, chosen[(chosen["run"] == run) & (chosen["group"] == group)], "step", "jaccard")
        (chance,) = lines(axes, "chance")
        assert (chance.get_ydata()[0], chance.get_linestyle()) == (pytest.approx(0.1 / 1.9), "--")  # type: ignore[index]
        assert axes.get_ylim() == pytest.approx((0, min(1, 1.1 * chosen["jaccard"].max())))
        assert axes.get_ylim()[1] > chosen["jaccard"].max()
    (legend,) = panels[0].figure.legends
    assert legend.get_texts()[-1].get_text() == "chance, 0.053"
    assert "largest 10 %" in panels[0].get_ylabel() + panels[0].figure.get_supylabel()


def test_overlaps_need_no_run_and_may_be_unknown() -> None:
    frame = overlaps(["one"]).drop(columns="run")
    frame.loc[frame["group"] == "deep", "jaccard"] = np.nan
    (axes,) = plots.jaccard_curves(frame, "forget", "retain", 0.1).axes
    assert axes.get_title() == ""
    plots.jaccard_curves(frame.assign(jaccard=np.nan), "forget", "retain", 0.1)


def test_an_unknown_pair_of_gradients_is_refused() -> None:
    line = r"^There are no overlaps of forget and rectified\. Name two of forget, objective, retain\.$"
    with pytest.raises(ValueError, match=line):
        plots.jaccard_curves(overlaps(), "forget", "rectified", 0.1)


@pytest.mark.parametrize("runs", [["one"], BOTH])
def test_changes_drawn_are_the_frames_on_one_scale(runs: list[str]) -> None:
    frame = prediction(runs)
    panels = iter(plots.prediction_plane(frame).axes)
    for run in runs:
        for target in ("forget", "retain"):
            axes = next(panels)
            cell = frame[(frame["run"] == run) & (frame["target"] == target)]
            for reading, rows in cell.groupby("reading"):
                (line,) = [each for each in axes.lines if each.get_label() == reading]
                same(line, rows, "predicted", "measured")
                assert (line.get_linestyle(), line.get_color()) == ("None", plots.READINGS[str(reading)]["c"])
            assert axes.get_xlim() == axes.get_ylim()
            low, high = axes.get_xlim()
            assert low < min(0, cell[["predicted", "measured"]].min().min())
            assert high > max(0, cell[["predicted", "measured"]].max().max())
            (diagonal,) = [each for each in axes.lines if each.get_linestyle() == "--"]
            np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())


def test_r_squared_is_of_the_prediction_as_it_stands() -> None:
    frame = prediction(["one"])
    frame.loc[3, "predicted"] = np.nan
    legend = plots.prediction_plane(frame).axes[0].get_legend()
    assert legend is not None
    assert legend.get_title().get_text() == "forget loss"
    for text, reading in zip(legend.get_texts(), ("gradient", "update"), strict=True):
        rows = frame[(frame["target"] == "forget") & (frame["reading"] == reading)].dropna()
        errors, measured = rows["measured"] - rows["predicted"], rows["measured"]
        expected = 1 - (errors**2).sum() / ((measured - measured.mean()) ** 2).sum()
        assert text.get_text() == f"R² = {expected:.3f}".replace("-", "−")


@pytest.mark.parametrize("scale", ["linear", "symlog"])
def test_predictions_have_the_scale_that_is_asked_for_in_every_panel(scale: str) -> None:
    figure = plots.prediction_plane(prediction(scale=1e4), scale)
    assert {(axes.get_xscale(), axes.get_yscale()) for axes in figure.axes} == {(scale, scale)}
    assert all(axes.get_xlim() == axes.get_ylim() for axes in figure.axes)
    assert ("symlog" in figure.get_supxlabel()) == ("symlog" in figure.get_supylabel()) == (scale == "symlog")


@pytest.mark.parametrize("scale", [0.5, 1e4])
def test_sums_drawn_are_the_frames_from_the_first_step_on(scale: float) -> None:
    frame = prediction(["one"], scale).sample(frac=1, random_state=0)
    frame.loc[frame["step"] == 4, "predicted"] = np.nan  # adds nothing
    for axes, target in zip(plots.prediction_sums(frame).axes, ("forget", "retain"), strict=True):
        cell = frame[frame["target"] == target].sort_values("step").fillna(0)
        update = cell[cell["reading"] == "update"]
        drawn = {"gradient": cell[cell["reading"] == "gradient"]["predicted"], "update": update["predicted"]}
        for name, changes in (drawn | {"measured": update["measured"]}).items():
            (line,) = lines(axes, name)
            np.testing.assert_allclose(np.asarray(line.get_ydata(), float), changes.cumsum(), rtol=1e-12)
            np.testing.assert_array_equal(line.get_xdata(), range(20))
            low, high = axes.get_ylim()
            assert low < min(0, changes.cumsum().min()) <= max(0, changes.cumsum().max()) < high


@pytest.mark.parametrize("draw", [plots.prediction_plane, plots.prediction_sums])
def test_one_reading_of_one_loss_is_enough_and_nothing_may_happen(draw: Draw) -> None:
    frame = prediction(["one"]).drop(columns="run")
    assert len(draw(frame[(frame["target"] == "retain") & (frame["reading"] == "update")]).axes) == 1
    for value in (0.0, np.nan):
        draw(frame.assign(predicted=value, measured=value))


@pytest.mark.parametrize("draw", [plots.prediction_plane, plots.prediction_sums])
def test_any_targets_are_drawn_and_an_unknown_reading_is_refused(draw: Draw) -> None:
    frame = prediction(["one"])
    named = frame.assign(target=frame["target"].map({"forget": "math", "retain": "chat"}))
    assert len(draw(named).axes) == 2
    with pytest.raises(ValueError, match=r"^applied is no reading of a prediction check\. [^\n]*$"):
        draw(frame.assign(reading="applied"))
    many = pd.concat([frame.assign(target=f"target {i}") for i in range(5)])
    with pytest.raises(ValueError, match=r"at most 4 targets"):
        draw(many)


@pytest.mark.parametrize("x", ["forget_loss", "forget_accuracy"])
@pytest.mark.parametrize("objectives", [1, 3, 6, 16])
def test_a_panel_an_objective_with_a_line_a_seed_and_one_for_the_mean(x: str, objectives: int) -> None:
    frame = runs_of(objectives)
    panels = plots.trade_off_grid(frame.sample(frac=1, random_state=0).sort_values("objective"), x).axes
    assert [axes.get_title() for axes in panels] == sorted(frame["objective"].unique())
    for axes in panels:
        assert (axes.get_xlim(), axes.get_ylim()) == (panels[0].get_xlim(), panels[0].get_ylim())
        cell = frame[frame["objective"] == axes.get_title()]
        drawn = [np.asarray(line.get_xydata()).tolist() for line in axes.lines]
        for _, run in cell.groupby("rectifier"):
            for _, path in run.groupby("seed"):
                assert path[[x, "heldout_accuracy"]].to_numpy().tolist() in drawn
            mean = run.groupby("step")[[x, "heldout_accuracy"]].mean().to_numpy()
            assert any(np.shape(each) == mean.shape and np.allclose(each, mean) for each in drawn)


def test_the_axis_of_a_loss_may_be_logarithmic_an_accuracys_never() -> None:
    frame = runs_of(1).assign(forget_loss=lambda f: 0.01 * 2.0 ** f["step"], forget_accuracy=lambda f: 0.5 ** f["step"])
    for x, scale in (("forget_loss", "log"), ("forget_accuracy", "linear")):
        figure = plots.trade_off_grid(frame, x)
        assert figure.axes[0].get_xscale() == scale
        assert (", log" in figure.axes[0].get_xlabel()) == (scale == "log")


def test_the_mean_stops_where_the_first_seed_does() -> None:
    frame = runs_of(1, ("none",))
    (axes,) = plots.trade_off_grid(frame[(frame["seed"] > 0) | (frame["step"] < 10)]).axes
    thick = [line for line in axes.lines if line.get_linewidth() > 1.2]
    assert [len(line.get_xydata()) for line in thick] == [2]  # type: ignore[arg-type]


def test_the_grids_legend_has_what_is_drawn_with_no_rectifier_first() -> None:
    for seeds, extra in ((3, ["one seed"]), (1, [])):
        figure = plots.trade_off_grid(runs_of(2, ("gru", "none"), seeds))
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == ["none", "gru", *extra, "start"]


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (runs_of(17), "A figure shows at most 16 objectives, not 17"),
        (runs_of(1, list("abcdefg")), "A figure shows at most 6 rectifiers, not 7"),
        (runs_of(1).assign(heldout_accuracy=np.nan), "No evaluation has forget_loss and heldout_accuracy"),
        (
            runs_of(1).drop(columns="seed"),
            r"The frame has 24 rows of [^\n]*needs objective, rectifier, seed, step, forget_loss, heldout_accuracy",
        ),
    ],
)
def test_what_the_grid_cannot_draw_is_refused(frame: pd.DataFrame, says: str) -> None:
    with pytest.raises(ValueError, match=rf"^{says}[^\n]*$"):
        plots.trade_off_grid(frame)
    with pytest.raises(ValueError, match=r"There is no x 'loss'\. Choose one of forget_loss, forget_accuracy"):
        plots.trade_off_grid(frame, "loss")


def board(methods: int) -> pd.DataFrame:
    """Of every method's mean at one level; the last objective never reached it."""
    frame = runs_of(methods).groupby(["objective", "rectifier"], sort=False)["heldout_accuracy"].mean()
    rows = frame.rename("mean").reset_index()
    rows.loc[rows["objective"] == f"o{methods - 1}", "mean"] = np.nan
    rows["mean"] += np.arange(len(rows)) / 100
    return rows.assign(low=rows["mean"] - 0.02, high=rows["mean"] + 0.01)


def bands(objectives: int) -> pd.DataFrame:
    frame = runs_of(objectives, seeds=1).rename(columns={"heldout_accuracy": "mean"})
    return frame.assign(low=frame["mean"] - 0.1, high=frame["mean"] + 0.05).drop(columns=["seed", "step"])


def test_a_leaderboard_is_sorted_and_marks_each_mean_in_its_interval() -> None:
    frame = board(5)
    (axes,) = plots.leaderboard(frame, "kept").axes
    names = [text.get_text() for text in axes.get_yticklabels()]
    best = frame.groupby("objective")["mean"].max()
    assert names[0] == "o4"  # never reached it
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert [list(line.get_ydata()) for line in hollow] == [[pytest.approx(-0.1625)], [pytest.approx(0.1625)]]  # type: ignore[arg-type]
    figure = axes.get_figure()
    assert figure is not None
    assert figure.legends[0].get_texts()[-1].get_text() == "never got there"
    assert list(best[names[1:]]) == sorted(best.dropna())
    for container, rectifier in zip(axes.containers, ("none", "gru"), strict=True):
        line, _, (bars,) = container.lines  # type: ignore[attr-defined]
        rows = frame[frame["rectifier"] == rectifier].set_index("objective").loc[names]
        np.testing.assert_allclose(np.asarray(line.get_xdata(), float), rows["mean"])
        ends = np.array([segment[:, 0] for segment in bars.get_segments() if len(segment)])
        np.testing.assert_allclose(ends, rows[["low", "high"]].dropna())
    with pytest.raises(ValueError, match="No method forgets as much as the level"):
        plots.leaderboard(frame.assign(mean=np.nan), "kept")


@pytest.mark.parametrize("objectives", [1, 6])
def test_bands_hold_their_lines(objectives: int) -> None:
    frame = bands(objectives)
    panels = plots.trade_off_bands(frame, "kept").axes
    assert [axes.get_title() for axes in panels] == list(frame["objective"].unique())
    for axes in panels:
        cell = frame[frame["objective"] == axes.get_title()]
        for line, band, rectifier in zip(axes.lines, axes.collections, ("none", "gru"), strict=True):
            rows = cell[cell["rectifier"] == rectifier]
            np.testing.assert_allclose(np.asarray(line.get_xydata()), rows[["forget_loss", "mean"]])
            corners = np.asarray(band.get_paths()[0].vertices, float)
            for column in ("low", "high"):
                assert {tuple(each) for each in rows[["forget_loss", column]].round(9).to_numpy()} <= {
                    tuple(each) for each in np.round(corners, 9)
                }
    with pytest.raises(ValueError, match="at most 16 objectives, not 17"):
        plots.trade_off_bands(bands(17), "kept")


LATER: dict[str, Callable[[], Figure]] = {
    **{f"board of {n}": lambda n=n: plots.leaderboard(board(n), "kept\nat 3 nats") for n in (2, 16)},  # type: ignore[misc]
    **{f"bands of {n}": lambda n=n: plots.trade_off_bands(bands(n), "kept") for n in (1, 5, 16)},  # type: ignore[misc]
    "jaccard": lambda: plots.jaccard_curves(overlaps(), "forget", "retain", 0.1),
    "jaccard of one": lambda: plots.jaccard_curves(overlaps(["one"]), "forget", "retain", 0.1),
    "plane": lambda: plots.prediction_plane(prediction()),
    "plane of one": lambda: plots.prediction_plane(prediction(["one"])),
    "wide plane": lambda: plots.prediction_plane(prediction(["one"], 1e4)),
    "sums": lambda: plots.prediction_sums(prediction()),
    "wide sums": lambda: plots.prediction_sums(prediction(["one"], 1e4)),
    **{f"grid of {n}": lambda n=n: plots.trade_off_grid(runs_of(n)) for n in (1, 2, 5, 13, 16)},  # type: ignore[misc]
}


@pytest.mark.parametrize("name", LATER)
def test_no_text_or_legend_leaves_the_page_or_lies_on_another(name: str) -> None:
    figure = LATER[name]()
    with matplotlib.rc_context(plots.STYLE):
        figure.draw_without_rendering()
    texts = [text for axes in figure.axes for text in (axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts)]
    legends = [legend for axes in figure.axes if (legend := axes.get_legend()) is not None] + figure.legends
    whole = [text for text in texts + figure.texts if text.get_text()]
    boxes = [each.get_window_extent() for each in (*whole, *legends)]
    for i, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:i])
    assert figure.get_figwidth() in {plots.ONE_COLUMN, plots.TWO_COLUMN}


@pytest.mark.parametrize("name", ["jaccard", "plane of one", "sums", "grid of 2", "board of 2", "bands of 1"])
def test_the_later_figures_are_saved_with_the_same_bytes_twice(name: str, tmp_path: Path) -> None:
    first, again = (plots.save(LATER[name](), tmp_path / each, make()) for each in ("first", "again"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_effects_are_drawn_by_target_with_their_total(count: int) -> None:
    steps, groups = range(6), ["embed", "shallow", "lm_head"]
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        [(s, g, f"target {t}", random.normal()) for t in range(count) for s in steps for g in groups],
        columns=["step", "group", "target", "effect"],
    )
    totals = frame.groupby(["target", "step"], sort=False)["effect"].sum().reset_index().assign(group="total")
    figure = plots.effect_curves(pd.concat([totals, frame]))
    assert [axes.get_title() for axes in figure.axes] == [f"target {t}" for t in range(count)]
    for axes, (_, rows) in zip(figure.axes, frame.groupby("target"), strict=True):
        (total,) = [line for line in axes.lines if line.get_label() == "total"]
        np.testing.assert_allclose(np.asarray(total.get_ydata(), float), rows.groupby("step")["effect"].sum())
        low, high = axes.get_ylim()
        assert low < min(0, frame["effect"].min()) <= max(0, frame["effect"].max()) < high
    with pytest.raises(ValueError, match="at most 16 targets"):
        plots.effect_curves(pd.concat([frame.assign(target=f"t{i}") for i in range(17)]))


def test_conflicts_are_the_frames_cosines() -> None:
    layers = ["embed", *(f"block_{i}" for i in range(6)), "lm_head"]
    pairs = [("math", "chat"), ("math", "code"), ("chat", "code")]
    values = np.random.default_rng(0).uniform(-1, 1, (3, 1 + len(layers)))
    frame = pd.DataFrame(
        [(layer, *pair, values[i, j]) for i, pair in enumerate(pairs) for j, layer in enumerate(["whole", *layers])],
        columns=["layer", "target", "other", "cosine"],
    )
    figure = plots.conflict_map(frame.sample(frac=1, random_state=0).sort_values(["target"], ascending=False))
    whole, by_layer = figure.axes[:2]
    assert [label.get_text() for label in by_layer.get_xticklabels()] == layers
    labels = [label.get_text() for label in whole.get_yticklabels()]
    order = [labels.index(f"{a} · {b}") for a, b in pairs]
    for axes, expected in ((whole, values[:, :1]), (by_layer, values[:, 1:])):
        (mesh,) = [each for each in axes.collections if hasattr(each, "get_array") and each.get_array() is not None]
        np.testing.assert_array_equal(np.asarray(mesh.get_array())[order], expected)
