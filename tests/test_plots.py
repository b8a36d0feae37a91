"""Figures: what is drawn is what was handed in, and nothing global changes."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation

from geffect import plots

Draw = Callable[[pd.DataFrame], Figure]
DRAWS: list[Draw] = [plots.g_effect_curves, plots.cosine_curves, plots.trade_off]
BOTH = ["ascent", "projected"]
ENDS = ["embed", "deep"]
# one frame serves all three figures: each reads its own columns
COLUMNS = ["run", "step", "group", "unlearn", "retain", "cosine", "rectified", "forget_risk", "held_risk"]


def make(runs: Sequence[str] = BOTH, groups: Sequence[str] = ENDS, scale: int = 1) -> pd.DataFrame:
    """A row a run, step and group; ``scale`` is the factor of magnitude from step to step."""
    rows = []
    for i, run in enumerate(runs):
        for group in groups:
            for step in range(0, 50, 5):
                size = (i + 1 + groups.index(group)) * scale ** (step // 5)
                wave = float(np.sin(step + i))
                after = abs(wave) / 2 if run == "projected" else np.nan
                risks = (0.5 + step / (20 + i), 3 + step * (1 - i) / 30 + wave * (step > 0) / 50)
                rows.append((run, step, group, -size, size * wave, wave, after, *risks))
    return pd.DataFrame(rows, columns=COLUMNS)


def by_step(draw: Draw, runs: list[str] = BOTH) -> pd.DataFrame:
    """The frame a figure takes: one row a group only where groups are drawn."""
    return make(runs) if draw is plots.g_effect_curves else make(runs, groups=("embed",))


def lines(axes: Axes, label: str) -> list[Line2D]:
    return [line for line in axes.lines if line.get_label() == label]


def same(line: Line2D, rows: pd.DataFrame, x: str, y: str) -> None:
    np.testing.assert_array_equal(np.asarray(line.get_xydata()), rows[[x, y]].to_numpy(float))


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before
    assert plt.get_fignums() == []


@pytest.mark.parametrize("runs", [["one"], BOTH, list("abcd")])
def test_g_effects_drawn_are_the_frames(runs: list[str]) -> None:
    frame = make(runs)
    shuffled = frame.sample(frac=1, random_state=0).sort_values("run", kind="stable")
    panels = plots.g_effect_curves(shuffled).axes
    for run, *column in zip(runs, panels[: len(runs)], panels[len(runs) :], strict=True):
        assert column[0].get_title() == run
        for group, rows in frame[frame["run"] == run].groupby("group"):
            for axes, name in zip(column, ("unlearn", "retain"), strict=True):
                (line,) = lines(axes, str(group))
                same(line, rows, "step", name)
                assert line.get_color() == plots.GROUPS[str(group)]["c"]


def test_runs_keep_their_order_of_appearance() -> None:
    frame = make(["z", "a"])
    assert [axes.get_title() for axes in plots.g_effect_curves(frame).axes[:2]] == ["z", "a"]
    (axes,) = plots.trade_off(frame[frame["group"] == "embed"]).axes
    assert [lines(axes, run)[0].get_color() for run in "za"] == [look["c"] for look in plots.RUNS[:2]]


def test_one_legend_names_the_groups_once_in_fixed_order() -> None:
    figure = plots.g_effect_curves(make(groups=("tied", "lm_head", "embed")))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["embed", "lm_head", "tied"]
    assert all(axes.get_legend() is None for axes in figure.axes)


@pytest.mark.parametrize("scale", [1, 10])
def test_signed_axes_are_centred_and_shared_and_hold_the_data(scale: int) -> None:
    frame = make(scale=scale)
    panels = plots.g_effect_curves(frame).axes
    for row, name in ((panels[:2], "unlearn"), (panels[2:], "retain")):
        for axes in row:
            low, high = axes.get_ylim()
            assert low == -high
            assert high > frame[name].abs().max()
            assert axes.get_ylim() == row[0].get_ylim()
            assert any(set(np.ravel(line.get_ydata())) == {0} for line in axes.lines)


def test_symlog_only_where_magnitudes_spread_and_then_the_label_says_so() -> None:
    narrow, wide = (plots.g_effect_curves(make(scale=scale)).axes[0] for scale in (1, 10))
    assert (narrow.get_yscale(), wide.get_yscale()) == ("linear", "symlog")
    assert "symlog" in wide.get_ylabel()
    assert "symlog" not in narrow.get_ylabel()
    threshold = wide.yaxis.get_transform().linthresh  # type: ignore[attr-defined]
    assert np.log10(threshold) == round(np.log10(threshold))
    assert 0 < threshold <= make(scale=10)["unlearn"].abs().median()


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_degenerate_values_still_draw(value: float) -> None:
    frame = make().assign(unlearn=value, retain=value)
    figure = plots.g_effect_curves(frame)
    figure.draw_without_rendering()
    assert figure.axes[0].get_ylim() == (-1.3, 1.3)


def test_cosines_drawn_are_the_frames_before_solid_and_after_dashed() -> None:
    frame = make(groups=("embed",))
    figure = plots.cosine_curves(frame)
    (axes,) = figure.axes
    assert axes.get_ylim() == (-1, 1)
    for run, rows in frame.groupby("run"):
        before, after = lines(axes, str(run))
        same(before, rows, "step", "cosine")
        same(after, rows, "step", "rectified")
        assert (before.get_linestyle(), after.get_linestyle()) == ("-", "--")
    assert "conflict" in [text.get_text() for text in axes.texts]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*BOTH, "before", "rectified"]


def test_the_legend_of_runs_without_rectifier_has_no_dashes() -> None:
    figure = plots.cosine_curves(make(["ascent"], groups=("embed",)))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ascent"]


def test_paths_drawn_are_the_frames_from_one_start() -> None:
    frame = make(groups=("embed",))
    (axes,) = plots.trade_off(frame).axes
    for run, rows in frame.groupby("run"):
        (line,) = lines(axes, str(run))
        same(line, rows, "forget_risk", "held_risk")
    starts = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    np.testing.assert_array_equal([line.get_xydata() for line in starts], [[[0.5, 3.0]]])


def test_step_numbers_stand_at_their_points_and_apart() -> None:
    frame = make(groups=("embed",))
    (axes,) = plots.trade_off(frame).axes
    numbers = [text for text in axes.texts if isinstance(text, Annotation)]
    places = []
    for number in numbers:
        step = float(number.get_text().removeprefix("step "))
        points = frame.loc[frame["step"] == step, ["forget_risk", "held_risk"]].to_numpy().tolist()
        assert list(number.xy) in points
        places.append((axes.transData - axes.transAxes).transform(number.xy))
    assert [number.get_text() for number in numbers[:2]] == ["step 45", "45"]
    assert min(np.hypot(*(a - b)) for i, a in enumerate(places) for b in places[:i]) > 0.13


def test_risks_that_span_decades_get_log_axes_and_say_so() -> None:
    frame = make(groups=("embed",))
    (axes,) = plots.trade_off(frame.assign(forget_risk=frame["forget_risk"] ** 4)).axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    assert "log" in axes.get_xlabel()
    assert "log" not in axes.get_ylabel()


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("runs", [["one"], BOTH])
def test_every_outer_axis_is_labelled_and_no_text_leaves_the_page(draw: Draw, runs: list[str]) -> None:
    figure = draw(by_step(draw, runs))
    with matplotlib.rc_context(plots.STYLE):
        figure.draw_without_rendering()
    for axes in figure.axes:
        place = axes.get_subplotspec()
        assert place is not None
        assert bool(axes.get_xlabel()) == place.is_last_row()
        assert bool(axes.get_ylabel()) == place.is_first_col()
        for text in (axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts):
            box = text.get_window_extent()
            assert not text.get_text() or (figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1)
            assert not text.get_text() or (figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1)
    assert figure.get_figwidth() in {plots.ONE_COLUMN, plots.TWO_COLUMN}


@pytest.mark.parametrize("draw", DRAWS)
def test_a_missing_column_is_one_line_with_expected_and_found(draw: Draw) -> None:
    line = r"^expected columns .*step.*; found 40 rows of \['run', 'group'[^\n]*$"
    with pytest.raises(ValueError, match=line):
        draw(make().drop(columns="step"))


@pytest.mark.parametrize("draw", DRAWS)
def test_an_empty_frame_is_one_line(draw: Draw) -> None:
    with pytest.raises(ValueError, match=r"^expected columns .*; found 0 rows of \['run', [^\n]*$"):
        draw(make().head(0))
    with pytest.raises(ValueError, match=r"found 0 rows of \[\]; [^\n]*$"):
        draw(pd.DataFrame())


@pytest.mark.parametrize(("draw", "most"), [*zip(DRAWS, (4, 6, 6), strict=True)])
def test_too_many_runs_are_refused(draw: Draw, most: int) -> None:
    draw(by_step(draw, list("abcdef"[:most])))
    with pytest.raises(ValueError, match=rf"^expected at most {most} runs in a picture; found {most + 1}: a, b"):
        draw(by_step(draw, list("abcdefg"[: most + 1])))


def test_an_unknown_group_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^expected groups among embed, .*; found \['tail'\]; [^\n]*$"):
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
        "import sys; from pathlib import Path; import pandas as pd; from geffect import plots\n"
        "frame = pd.read_csv(sys.argv[1])\n"
        "plots.save(plots.g_effect_curves(frame), Path(sys.argv[2]), frame)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    root = Path(plots.__file__).parents[1]
    subprocess.run([sys.executable, "-B", "-c", code, here[2], tmp_path / "there"], check=True, cwd=root)
    for path in here:
        assert path.read_bytes() == (tmp_path / f"there{path.suffix}").read_bytes()


def test_saved_files_carry_no_date_or_software_and_embed_type_42(tmp_path: Path) -> None:
    frame = make()
    png, pdf, _ = plots.save(plots.g_effect_curves(frame), tmp_path / "figure", frame)
    assert b"Software" not in png.read_bytes()
    text = pdf.read_bytes()
    assert not any(word in text for word in (b"CreationDate", b"Producer", b"Creator", b"/Type3"))
    assert b"/FontFile2" in text  # the TrueType programme that a type 42 font is


def test_saved_data_reads_back_exactly(tmp_path: Path) -> None:
    frame = make().assign(unlearn=lambda rows: rows["unlearn"] / 3)
    *_, csv = plots.save(plots.g_effect_curves(frame), tmp_path / "figure", frame)
    pd.testing.assert_frame_equal(pd.read_csv(csv), frame, check_exact=True)
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
