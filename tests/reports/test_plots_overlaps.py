"""Figures of overlaps and of what freezing them brings: what is drawn is what was handed in."""

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from geffect.reports import plots

FOUR = ["privacy unlearn", "privacy retention", "copyright unlearn", "copyright retention"]
LAYERS = ["embed", *(f"block_{i}" for i in range(32)), "final_norm", "lm_head"]


def pairs(rows: Sequence[str], top: float = 0.6, seed: int = 0) -> pd.DataFrame:
    couples = list(combinations(rows, 2))
    frame = pd.DataFrame(couples, columns=["gradient", "other"])
    return frame.assign(jaccard=np.random.default_rng(seed).uniform(0.02, top, len(couples)))


def layered(layers: Sequence[str], rows: Sequence[str] = FOUR) -> pd.DataFrame:
    frames = [pairs(rows, seed=i).assign(layer=layer) for i, layer in enumerate(layers)]
    return pd.concat(frames, ignore_index=True)


def sweep(
    masks: Sequence[str] = ("unlearning mask", "retention mask"), seeds: int = 3, domains: int = 2
) -> pd.DataFrame:
    rows = [
        (mask, share, f"domain {d}", 80 + 20 * share + d + seed, 60 + 50 * share - 3 * d - seed * share, seed)
        for mask in masks
        for share in (0.3, 0.05, 0.1)
        for d in range(domains)
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows, columns=["which", "share", "domain", "unlearn_success", "retention_success", "seed"])


def mesh_of(figure: Figure) -> QuadMesh:
    (mesh,) = [each for each in figure.axes[0].collections if isinstance(each, QuadMesh)]
    return mesh


def drawn(figure: Figure) -> np.ndarray:
    return np.ma.filled(np.ma.asarray(mesh_of(figure).get_array(), dtype=float), np.nan)


pytestmark = pytest.mark.usefixtures("untouched_style")


@pytest.mark.parametrize("size", [2, 4, 10, 12])
def test_the_matrix_is_the_frames_in_whatever_order_a_pair_stands(size: int) -> None:
    rows = [f"r{i}" for i in range(size)]
    frame = pairs(rows)
    turned = frame.copy()
    turned.loc[1::2, ["gradient", "other"]] = turned.loc[1::2, ["other", "gradient"]].to_numpy()
    figure, again = plots.jaccard_matrix(frame, 0.1), plots.jaccard_matrix(turned, 0.1)
    matrix, names = drawn(figure), [label.get_text() for label in again.axes[0].get_yticklabels()]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == rows
    for _, (row, other, value) in frame.iterrows():
        assert matrix[rows.index(row), rows.index(other)] == matrix[rows.index(other), rows.index(row)] == value
        assert drawn(again)[names.index(row), names.index(other)] == value


def test_every_cell_has_its_number_that_stands_out_from_it() -> None:
    frame = pairs(FOUR)
    frame.loc[0, "jaccard"] = np.nan
    figure = plots.jaccard_matrix(frame, 0.1)
    matrix = drawn(figure)
    assert len(figure.axes[0].texts) == 16
    for text in figure.axes[0].texts:
        j, i = (int(place) for place in text.get_position())
        value = matrix[i, j]
        assert text.get_text() == ("1" if i == j else "–" if np.isnan(value) else f"{value:.2f}")
        if np.isfinite(value) and i != j:
            fill = np.mean(mesh_of(figure).to_rgba(value)[:3])
            assert abs(fill - np.mean(to_rgb(text.get_color()))) > 0.3


def test_the_diagonal_is_neutral_and_takes_no_color() -> None:
    figure = plots.jaccard_matrix(pairs(FOUR, top=0.3), 0.1)
    low, high = mesh_of(figure).get_clim()
    assert low == 0
    assert high == pytest.approx(0.3)
    assert np.isnan(np.diag(drawn(figure))).all()
    grays = [patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle) and patch.get_fill()]
    assert [patch.get_xy() for patch in grays] == [(i, i) for i in range(4)]
    assert all(len(set(to_rgb(patch.get_facecolor()))) == 1 for patch in grays)


@pytest.mark.parametrize(("top", "share"), [(0.03, 0.1), (0.6, 0.1), (1.0, 0.2), (0.5, 0.9)])
def test_the_scale_holds_chance_and_every_number(top: float, share: float) -> None:
    for figure in (
        plots.jaccard_matrix(pairs(FOUR, top), share),
        plots.jaccard_by_layer(pairs(FOUR, top).assign(layer="embed"), share),
    ):
        level, bar = share / (2 - share), figure.axes[1]
        (chance,) = [line for line in bar.lines if line.get_label() == "chance"]
        assert set(np.ravel(chance.get_xdata())) == {level}
        assert [text.get_text() for text in bar.texts] == [f"chance {level:.3f}"]
        assert bar.get_xlabel() == f"Jaccard index of the top {100 * share:g} % of entries"
        assert bar.get_xlim() == mesh_of(figure).get_clim()
        assert max(level, np.nanmax(drawn(figure))) <= mesh_of(figure).get_clim()[1] <= 1


def test_groups_stand_together_and_are_framed() -> None:
    within = (["r3", "r0"], ["r2", "r4"])
    axes = plots.jaccard_matrix(pairs([f"r{i}" for i in range(5)]), 0.1, within).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["r3", "r0", "r2", "r4", "r1"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["r3", "r0", "r2", "r4", "r1"]
    frames = [each for each in axes.patches if isinstance(each, Rectangle) and not each.get_fill()]
    assert [(each.get_xy(), each.get_width()) for each in frames] == [((0, 0), 2), ((2, 2), 2)]


@pytest.mark.parametrize("layers", [["one"], LAYERS[:9], LAYERS, [str(i) for i in range(40)]])
def test_layers_run_along_x_and_pairs_along_y(layers: list[str]) -> None:
    frame = layered(layers)
    frame.loc[2, "jaccard"] = np.nan
    figure = plots.jaccard_by_layer(frame.drop(index=len(frame) - 1), 0.1)
    expected = frame["jaccard"].to_numpy(copy=True)
    expected[-1] = np.nan  # a pair that a layer lacks is unknown
    if len(layers) > 1:
        np.testing.assert_array_equal(drawn(figure), expected.reshape(len(layers), 6).T)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[:2] == ["privacy unlearn ∩ privacy retention", "privacy unlearn ∩ copyright unlearn"]
    places = figure.axes[0].get_xticks() - 0.5
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [layers[int(i)] for i in places]


def test_dense_layers_are_named_every_so_many() -> None:
    axes = plots.jaccard_by_layer(layered([f"block_{i}" for i in range(80)], FOUR[:2]), 0.1).axes[0]
    assert 20 <= len(axes.get_xticks()) <= 40


def test_nothing_known_still_draws() -> None:
    plots.jaccard_matrix(pairs(FOUR).assign(jaccard=np.nan), 0.1)
    plots.jaccard_by_layer(layered(["embed"]).assign(jaccard=np.nan), 0.1)
    plots.success_sweep(sweep().assign(unlearn_success=np.nan))


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_line_a_domain_is_the_mean_over_seeds_in_a_band_of_all(seeds: int) -> None:
    frame = sweep(seeds=seeds)
    panels = iter(plots.success_sweep(frame).axes)
    for mask in ("unlearning mask", "retention mask"):
        for column, label in (("unlearn_success", "unlearn"), ("retention_success", "retention")):
            axes = next(panels)
            assert axes.get_xlabel() == f"{mask}: share of entries (%)"
            assert axes.get_ylabel() == f"{label} success (%)"
            for line, band in zip(axes.lines, axes.collections, strict=True):
                cell = frame[(frame["which"] == mask) & (frame["domain"] == line.get_label())]
                by_share = cell.groupby("share")[column]
                expected = np.stack([[5, 10, 30], by_share.mean()], 1)
                np.testing.assert_allclose(np.asarray(line.get_xydata()), expected)
                assert len(band.get_paths()) == (seeds > 1)  # one seed has no band
                for path in band.get_paths():
                    corners = np.asarray(path.vertices, float)[:, 1]
                    assert (corners.min(), corners.max()) == pytest.approx((cell[column].min(), cell[column].max()))


def test_the_band_is_named_where_there_is_one() -> None:
    for seeds, extra in ((1, []), (3, ["lowest to highest seed"])):
        (legend,) = plots.success_sweep(sweep(seeds=seeds)).legends
        assert [text.get_text() for text in legend.get_texts()] == ["domain 0", "domain 1", *extra]


FIGURES: dict[str, Callable[[], Figure]] = {
    "matrix of 2": lambda: plots.jaccard_matrix(pairs(["forget", "retain"]), 0.1),
    "matrix of 4": lambda: plots.jaccard_matrix(pairs(FOUR), 0.1, [FOUR[:2], FOUR[2:]]),
    "matrix of 6": lambda: plots.jaccard_matrix(pairs(["objective", "rectified", *FOUR]), 0.01),
    "matrix of 10": lambda: plots.jaccard_matrix(pairs([f"the row {i}" for i in range(10)], 0.99), 0.1),
    "1 layer": lambda: plots.jaccard_by_layer(layered(["tied"], FOUR[:2]), 0.1),
    "9 layers": lambda: plots.jaccard_by_layer(layered(LAYERS[-9:], ["forget", "retain", "objective"]), 0.1),
    "13 layers": lambda: plots.jaccard_by_layer(layered(LAYERS[:13]), 0.1),
    "35 layers": lambda: plots.jaccard_by_layer(layered(LAYERS), 0.1),
    "80 layers": lambda: plots.jaccard_by_layer(layered([f"block_{i}" for i in range(80)], FOUR[:2]), 0.1),
    "sweep": lambda: plots.success_sweep(sweep()),
    "sweep of one": lambda: plots.success_sweep(sweep(["unlearning mask"], 1, 6)),
}


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_leaves_the_page_or_lies_on_another(name: str) -> None:
    figure = FIGURES[name]()
    with matplotlib.rc_context(plots.STYLE):
        figure.draw_without_rendering()
    texts = [text for axes in figure.axes for text in (axes.xaxis.label, axes.yaxis.label, *axes.texts)]
    ticks = [text for axes in figure.axes for text in (*axes.get_xticklabels(), *axes.get_yticklabels())]
    inside = [text for text in ticks if text.get_text() and text.get_visible()] if "sweep" not in name else []
    whole = [text for text in (*texts, *inside) if text.get_text() and text.get_visible()]
    boxes = [each.get_window_extent() for each in (*whole, *figure.legends)]
    for i, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:i])
    assert figure.get_figwidth() in {plots.ONE_COLUMN, plots.TWO_COLUMN}


@pytest.mark.parametrize("name", ["matrix of 4", "35 layers", "sweep"])
def test_figures_are_saved_with_the_same_bytes_twice(name: str, tmp_path: Path) -> None:
    first, again = (plots.save(FIGURES[name](), tmp_path / each, sweep()) for each in ("first", "again"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


def matrix(frame: pd.DataFrame) -> Figure:
    return plots.jaccard_matrix(frame, 0.1)


def by_layer(frame: pd.DataFrame) -> Figure:
    return plots.jaccard_by_layer(frame, 0.1)


TWICE = layered(["embed", "embed"])
TURNED = pd.concat([pairs("ab"), pairs("ba")])


@pytest.mark.parametrize(
    ("draw", "frame", "says"),
    [
        (matrix, pairs("ab").head(0), r"The frame has 0 rows of \['gradient'[^\n]*needs gradient, other, jaccard"),
        (
            matrix,
            pairs("ab").drop(columns="jaccard"),
            r"The frame has 1 rows of \['gradient', 'other'\]; the figure needs gradient, other, jaccard",
        ),
        (matrix, TURNED, "The frame has two rows of gradient, other = a, b"),
        (matrix, pairs("aa"), "The frame pairs a with itself"),
        (matrix, pairs("abcdefghijklm"), "A figure shows at most 12 gradients, not 13: a, b"),
        (by_layer, pairs("ab"), r"The frame has 1 rows of [^\n]*needs layer, gradient, other, jaccard"),
        (
            by_layer,
            TWICE,
            "The frame has two rows of layer, gradient, other = embed, privacy unlearn, privacy retention",
        ),
        (by_layer, layered(["embed"], "abcdefghijklm"), "A figure shows at most 12 gradients, not 13"),
        (plots.success_sweep, pd.DataFrame(), r"The frame has 0 rows of \[\]; the figure needs which, share, "),
        (
            plots.success_sweep,
            sweep().drop(columns="seed"),
            r"The frame has 36 rows of [^\n]*needs which, share, [^\n]*, seed",
        ),
        (
            plots.success_sweep,
            sweep().assign(seed=0),
            "The frame has two rows of which, share, domain, seed = unlearning mask, 0.3",
        ),
        (plots.success_sweep, sweep("abcde"), "A figure shows at most 4 masks, not 5"),
        (plots.success_sweep, sweep(domains=7), "A figure shows at most 6 domains, not 7"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(
    draw: Callable[[pd.DataFrame], Figure], frame: pd.DataFrame, says: str
) -> None:
    with pytest.raises(ValueError, match=rf"^{says}[^\n]*$"):
        draw(frame)


@pytest.mark.parametrize("within", [[["a", "z"]], [["a", "b"], ["b", "c"]]])
def test_groups_of_unknown_or_shared_rows_are_refused(within: list[list[str]]) -> None:
    with pytest.raises(
        ValueError, match=r"^The groups \[\['a'[^\n]* share a gradient, or name none of a, b, c\. [^\n]*$"
    ):
        plots.jaccard_matrix(pairs("abc"), 0.1, within)
