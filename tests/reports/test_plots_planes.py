"""The gradients' plane and the rows' plane: coordinates are those of real vectors, points are the frame's."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.patches import Wedge
from matplotlib.text import Annotation

from geffect.core.effects import gram_at, plane_coordinates
from geffect.reports import plots
from tests.support.pictures import fits, same_bytes

Vectors = Mapping[str, np.ndarray]
pytestmark = pytest.mark.usefixtures("untouched_style")


def basis(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Two orthonormal vectors ``[2, n]`` of the plane, by numpy's QR with its signs turned the right way."""
    q, r = np.linalg.qr(np.stack([first, second], axis=1))
    turned: np.ndarray = (q * np.sign(np.diag(r))).T
    return turned


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
def test_coordinates_are_those_of_the_vectors(seed: int, scale: float) -> None:
    vectors = scale * np.random.default_rng(seed).normal(size=(5, 40))
    vectors[1] += (seed - 4) * vectors[0]  # acute, obtuse, close to either direction
    expected = vectors @ basis(vectors[0], vectors[1]).T
    found = plane_coordinates(vectors @ vectors.T)
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-10)
    assert found[1, 1] > 0 == found[0, 1]


def test_parallel_gradients_span_a_line_and_a_zero_one_nothing() -> None:
    first, other = np.array([3.0, 4.0]), np.array([1.0, 1.0])
    for factor in (-2.0, 0.5, 0.0):
        vectors = np.stack([first, factor * first, other])
        np.testing.assert_allclose(
            plane_coordinates(vectors @ vectors.T), np.array([[5, 0], [5 * factor, 0], [1.4, 0]])
        )
    vectors = np.stack([0 * first, first, other])
    assert np.isnan(plane_coordinates(vectors @ vectors.T)).all()


def record(run: str, vectors: Vectors, steps: Sequence[int] = (0,)) -> pd.DataFrame:
    """The vectors' inner products, summed over two groups of entries; pairs stand in either order."""
    names = list(vectors)
    rows = [
        (run, step, group, *((a, b) if i % 2 else (b, a)), float(vectors[a][part] @ vectors[b][part]))
        for step in steps
        for i, a in enumerate(names)
        for b in names[i:]
        for group, part in (("embed", slice(0, 3)), ("deep", slice(3, None)))
    ]
    return pd.DataFrame(rows, columns=["run", "step", "group", "gradient", "other", "inner"])


def vectors_of(seed: int, names: Sequence[str] = ("objective", "forget", "retain")) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=9) * (1 + i) for i, name in enumerate(names)}


def test_a_gram_sums_its_labels_and_is_symmetric() -> None:
    vectors = vectors_of(0)
    frame = record("one", vectors, (0, 4))
    gram = gram_at(frame, 4)
    expected = np.array([[vectors[str(a)] @ vectors[str(b)] for b in gram] for a in gram.index])
    np.testing.assert_allclose(gram, expected)
    assert gram_at(frame[frame["other"] != "retain"], 0).isna().any().any()
    with pytest.raises(ValueError, match=r"^No step is chosen; there are 0, 4"):
        gram_at(frame)


def tips(axes: Axes) -> list[tuple[float, ...]]:
    """Where the arrows end: forget, retain, then those of the runs."""
    arrows = [each for each in axes.texts if isinstance(each, Annotation) and each.arrow_patch is not None]
    assert all(tuple(each.xyann) == (0, 0) for each in arrows)
    return [tuple(map(float, each.xy)) for each in arrows]


def test_arrows_are_the_directions_in_the_plane_of_the_losses_gradients() -> None:
    vectors = vectors_of(3, ("objective", "rectified", "forget", "retain"))
    (axes,) = plots.g_effect_plane(record("one", vectors)).axes
    plane = basis(vectors["forget"], vectors["retain"])
    expected = [
        plane @ (vectors[row] / np.linalg.norm(vectors[row])) for row in ("forget", "retain", "objective", "rectified")
    ]
    np.testing.assert_allclose(tips(axes), expected, atol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(expected[:2], axis=1), 1)
    angle = np.degrees(np.arctan2(*expected[1][::-1]))
    assert axes.get_title() == f"gradients of the losses at {angle:.0f}°"


def test_gradient_ascent_points_straight_away_from_the_forget_gradient() -> None:
    vectors = vectors_of(1)
    (axes,) = plots.g_effect_plane(record("ga", vectors | {"objective": -vectors["forget"]})).axes
    np.testing.assert_allclose(tips(axes)[2], [-1, 0], atol=1e-12)


@pytest.mark.parametrize("degrees", [30, 120, 175])
def test_the_wedge_holds_what_forgets_and_does_no_harm(degrees: float) -> None:
    forget, retain = np.array([1.0, 0, 0, 0]), np.array([np.cos(a := np.radians(degrees)), np.sin(a), 0, 0])
    figure = plots.g_effect_plane(record("x", {"forget": forget, "retain": retain, "objective": -forget}))
    fits(figure)
    (wedge,) = [each for each in figure.axes[0].patches if isinstance(each, Wedge)]
    for turn in np.radians(np.arange(0.5, 360)):
        direction = np.array([np.cos(turn), np.sin(turn), 0, 0])
        inside = wedge.theta1 < np.degrees(turn) < wedge.theta2
        assert inside == (direction @ forget < 0 <= direction @ retain)


def test_runs_share_a_plane_only_where_the_losses_gradients_stand_alike() -> None:
    one, other = vectors_of(0), vectors_of(5)
    alike = pd.concat([record("a", one), record("b", one | {"objective": other["objective"]})])
    figure = plots.g_effect_plane(alike)
    assert len(figure.axes) == 1
    assert len(tips(figure.axes[0])) == 4
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    figure = plots.g_effect_plane(pd.concat([alike, record("c", other)]))
    assert [axes.get_title().split("\n")[0] for axes in figure.axes] == ["a", "b", "c"]
    assert [len(tips(axes)) for axes in figure.axes] == [3, 3, 3]


@pytest.mark.parametrize(
    ("vectors", "says"),
    [
        (vectors_of(0) | {"forget": np.zeros(9)}, "The gradient of a loss is zero in x"),
        (vectors_of(0, ("objective", "forget")), "x has no gradient retain"),
    ],
)
def test_a_plane_needs_both_losses_gradients(vectors: Vectors, says: str) -> None:
    with pytest.raises(ValueError, match=rf"^{says}[^\n]*$"):
        plots.g_effect_plane(record("x", vectors))


def test_more_planes_than_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^A figure shows at most 16 runs, not 17"):
        plots.g_effect_plane(pd.concat([record(f"r{i}", vectors_of(i)) for i in range(17)]))


def test_the_plane_fits_on_a_page_and_is_saved_alike(tmp_path: Path) -> None:
    frame = pd.concat([record(f"npo(beta={i})", vectors_of(i)) for i in range(5)])
    first, again = (plots.g_effect_plane(frame) for _ in range(2))
    fits(first)
    same_bytes(first, again, tmp_path)


NPO = "npo(beta=0.1)"


def points(steps: Sequence[int] = (0, 5, 10), rows: int = 30, scale: float = 1.0) -> pd.DataFrame:
    """Weights fall by step from 1; effects grow."""
    generator = np.random.default_rng(0)
    found = [
        (
            step,
            row,
            -(scale**step) * abs(generator.normal()),
            scale**step * generator.normal(),
            1.0,
            0.5,
            9,
            1 / (1 + step * generator.uniform(0.1, 0.5)),
            1.0 + step / 10,
        )
        for step in steps
        for row in range(rows)
    ]
    names = ["step", "example", "unlearn", "retain", "nll", "reference_nll", "num_tokens", NPO, "wga"]
    return pd.DataFrame(found, columns=names)


def panels(figure: Figure) -> dict[str, Axes]:
    return {axes.get_title(): axes for axes in figure.axes}


def test_every_row_stands_in_the_panel_of_its_weight() -> None:
    frame = points()
    frame.loc[3, NPO], frame.loc[4, NPO] = 1.0000002, 1.7  # 1 but for rounding; above
    drawn = panels(plots.point_plane(frame, NPO))
    weights = frame[NPO].round(6)
    edges = [-np.inf, 0.2, 0.4, 0.6, 0.8, 1.0, np.inf]
    names = ["0 to 0.2", "0.2 to 0.4", "0.4 to 0.6", "0.6 to 0.8", "0.8 to 1", "above 1"]
    for low, high, name in zip(edges, edges[1:], names, strict=False):
        own = frame[(low < weights) & (weights <= high)][["unlearn", "retain"]].to_numpy()
        if len(own):
            rest, inside, *_ = [
                line for line in drawn.pop(f"weight {name} (n = {len(own)})").lines if line.get_linestyle() == "None"
            ]
            np.testing.assert_array_equal(np.asarray(inside.get_xydata()), own)
            assert len(np.asarray(rest.get_xydata())) == len(frame) - len(own)
    assert not drawn


def test_a_contour_holds_its_share_of_a_ranges_points_and_few_points_have_none() -> None:
    frame = points(rows=60)
    for name, axes in panels(plots.point_plane(frame, NPO)).items():
        contours = [each for each in axes.collections if isinstance(each, ContourSet)]
        inside = np.asarray(axes.lines[3].get_xydata())
        assert bool(contours) == (len(inside) >= 20), name
        for contour, share in zip(contours, (0.5, 0.9), strict=False):
            held = np.zeros(len(inside), dtype=bool)
            for polygon in contour.get_paths()[0].to_polygons():
                held ^= [bool(each) for each in _within(np.asarray(polygon), inside)]
            assert held.mean() == pytest.approx(share, abs=0.08)


def _within(polygon: np.ndarray, inside: np.ndarray) -> np.ndarray:
    from matplotlib.path import Path as Outline

    return Outline(polygon).contains_points(inside)


@pytest.mark.parametrize(("scale", "kind"), [(1.0, "linear"), (3.0, "symlog")])
def test_all_panels_share_axes_that_hold_zero_and_say_their_scale(scale: float, kind: str) -> None:
    frame = points(scale=scale)
    figure = plots.point_plane(frame, NPO, kind)
    fits(figure)
    for axes in figure.axes:
        assert (axes.get_xscale(), axes.get_yscale()) == (kind, kind)
        assert axes.get_xlim()[0] < frame["unlearn"].min() <= 0 < axes.get_xlim()[1]
        assert axes.get_ylim()[0] < frame["retain"].min() < 0 < frame["retain"].max() < axes.get_ylim()[1]
    assert ("symlog" in figure.get_supxlabel()) == ("symlog" in figure.get_supylabel()) == (kind == "symlog")
    assert NPO in figure.get_supxlabel()


def test_points_on_a_line_have_no_density_and_are_drawn_as_they_are() -> None:
    frame = points((0,)).assign(unlearn=1.0, retain=2.0)
    (axes,) = plots.point_plane(frame, NPO).axes
    assert not [each for each in axes.collections if isinstance(each, ContourSet)]


def test_rows_without_a_number_are_left_out_and_nothing_else_is_refused() -> None:
    frame = points((0,))
    frame.loc[0, "unlearn"] = np.nan
    assert list(panels(plots.point_plane(frame, NPO))) == ["weight 0.8 to 1 (n = 29)"]
    with pytest.raises(ValueError, match="No example has finite unlearn, retain and "):
        plots.point_plane(frame.assign(retain=np.nan), NPO)
    with pytest.raises(ValueError, match=r"^The frame has 30 rows of .*needs unlearn, retain, tnpo"):
        plots.point_plane(frame, "tnpo")


def test_weights_are_means_in_a_band_of_their_standard_errors() -> None:
    frame = points()
    figure = plots.weight_curves(frame)
    fits(figure)
    (axes,) = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [NPO, "wga"]
    (line,) = [each for each in axes.lines if each.get_label() == NPO]
    by_step = frame.groupby("step")[NPO]
    mean: pd.Series[float] = by_step.mean()
    error: pd.Series[float] = by_step.std(ddof=1) / np.sqrt(by_step.size())
    np.testing.assert_allclose(np.asarray(line.get_xydata()), mean.reset_index())
    corners = np.asarray(axes.collections[0].get_paths()[0].vertices)
    for edge in (mean - 2 * error, mean + 2 * error):
        for point in edge.reset_index().to_numpy():
            assert np.isclose(corners, point).all(axis=1).any()
    assert axes.get_ylim()[0] == 0


def test_one_row_a_step_has_no_band_and_weights_may_be_chosen() -> None:
    (axes,) = plots.weight_curves(points(rows=1), ["wga"]).axes
    assert [line.get_label() for line in axes.lines if line.get_label() in (NPO, "wga")] == ["wga"]
    with pytest.raises(ValueError, match=r"^There are 0 columns of weights in .*one to 6"):
        plots.weight_curves(points().drop(columns=[NPO, "wga"]))


def test_the_points_are_saved_alike(tmp_path: Path) -> None:
    same_bytes(plots.point_plane(points(), NPO), plots.point_plane(points(), NPO), tmp_path / "plane")
    same_bytes(plots.weight_curves(points()), plots.weight_curves(points()), tmp_path / "weights")
