"""Heat maps by layer and of a Gram: every cell is the frame's, the scale is centered on zero."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.figure import Figure

from geffect.core.gram import Gram
from geffect.reports import plots
from tests.support.pictures import fits, same_bytes

LAYERS = ["embed", *(f"block_{i}" for i in range(12)), "final_norm", "lm_head"]
pytestmark = pytest.mark.usefixtures("untouched_style")


def make(layers: Sequence[str] = LAYERS, steps: Sequence[int] = range(10), wide: bool = False) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    rows = [(step, layer, *generator.normal(size=2)) for step in steps for layer in layers]
    frame = pd.DataFrame(rows, columns=["step", "layer", "unlearn", "retain"])
    return frame.assign(unlearn=frame["unlearn"] * np.where(frame["layer"] == "embed", 1e4, 1)) if wide else frame


def meshes(figure: Figure) -> list[QuadMesh]:
    return [each for axes in figure.axes[:2] for each in axes.collections if isinstance(each, QuadMesh)]


def cells(mesh: QuadMesh) -> np.ndarray:
    return np.ma.filled(np.ma.asarray(mesh.get_array(), dtype=float), np.nan)


def test_cells_are_the_frames_from_the_embedding_down_to_the_head() -> None:
    frame = make().sample(frac=1, random_state=1)
    figure = plots.layer_heat_map(frame)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == LAYERS
    for mesh, side in zip(meshes(figure), ("unlearn", "retain"), strict=True):
        table = frame.pivot(index="layer", columns="step", values=side).loc[LAYERS]
        np.testing.assert_array_equal(cells(mesh), table)


def test_both_sides_share_one_scale_centered_on_zero_and_the_bar_says_how() -> None:
    for wide in (False, True):
        frame = make(wide=wide)
        figure = plots.layer_heat_map(frame, "symlog" if wide else "linear")
        top = frame[["unlearn", "retain"]].abs().max().max()
        assert {mesh.get_clim() for mesh in meshes(figure)} == {(-top, top)}
        assert np.asarray(meshes(figure)[0].norm(np.zeros(1))).item() == pytest.approx(0.5)
        label = figure.axes[2].get_xlabel()
        assert ("symlog, linear within ±" in label) == wide
        assert "nats a token per unit of learning rate" in label


def test_cells_above_zero_bear_a_dot_where_there_is_room() -> None:
    frame = make()
    for axes, side in zip(plots.layer_heat_map(frame).axes[:2], ("unlearn", "retain"), strict=True):
        (dots,) = [each for each in axes.collections if isinstance(each, PathCollection)]
        table = frame.pivot(index="layer", columns="step", values=side).loc[LAYERS]
        places = {(table.columns[round(x)], LAYERS[int(y)]) for x, y in np.asarray(dots.get_offsets())}
        assert places == {(step, layer) for layer in LAYERS for step in table.columns if float(table[step][layer]) > 0}
    assert list(plots.layer_heat_map(make(steps=[0, 5, 15])).axes[0].get_xticks()) == [0, 5, 15]
    crowded = plots.layer_heat_map(make(steps=range(200)))
    assert not [each for each in crowded.axes[0].collections if isinstance(each, PathCollection)]


def test_steps_far_apart_are_drawn_so_and_what_is_missing_is_unknown() -> None:
    frame = make(["lm_head", "tied", "block_10", "block_9"], steps=[0, 10, 40])
    figure = plots.layer_heat_map(frame.iloc[1:])
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["block_9", "block_10", "lm_head", "tied"]
    mesh = meshes(figure)[0]
    np.testing.assert_array_equal(np.asarray(mesh.get_coordinates())[0, :, 0], [-5, 5, 25, 55])
    assert np.argwhere(np.isnan(cells(mesh))).tolist() == [[2, 0]]


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_nothing_but_zeros_still_draws(value: float) -> None:
    fits(plots.layer_heat_map(make().assign(unlearn=value, retain=value)))


@pytest.mark.parametrize("frame", [make(["embed"], [3]), make(wide=True), make([f"block_{i}" for i in range(80)])])
def test_the_map_fits_on_a_page(frame: pd.DataFrame) -> None:
    figure = plots.layer_heat_map(frame)
    fits(figure)
    boxes = [text.get_window_extent() for text in figure.axes[0].get_yticklabels()]
    assert not any(one.overlaps(two) for one, two in pairwise(boxes))


def test_two_runs_in_one_map_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^The frame has two rows of step, layer = 0, embed\. [^\n]*$"):
        plots.layer_heat_map(pd.concat([make(), make()]))
    with pytest.raises(ValueError, match=r"^The frame has 0 rows of .*needs step, layer, unlearn, retain\."):
        plots.layer_heat_map(make().iloc[:0])


VECTORS = {"objective": [3.0, 4.0, 0.0], "forget": [-3.0, -4.0, 0.0], "retain": [0.0, 2.0, 0.0], "zero": [0.0] * 3}


def record(step: int, scale: float = 1.0) -> pd.DataFrame:
    """Two groups: the first number of each vector, and the others."""
    names = list(VECTORS)
    rows = [
        (step, group, a, b, scale * float(np.dot(VECTORS[a][part], VECTORS[b][part])))
        for i, a in enumerate(names)
        for b in names[i:]
        for group, part in (("embed", slice(0, 1)), ("deep", slice(1, 3)))
    ]
    return pd.DataFrame(rows, columns=["step", "group", "gradient", "other", "inner"])


def test_cosines_and_norms_are_those_of_the_vectors() -> None:
    matrix = torch.tensor(list(VECTORS.values()), dtype=torch.float64)
    whole = Gram(tuple(VECTORS), {"w": matrix @ matrix.T})
    two = pd.concat([record(0, 5), record(7)])
    for figure in (plots.gram_heat_map(whole), plots.gram_heat_map(record(7)), plots.gram_heat_map(two, 7)):
        found = cells(meshes(figure)[0])
        np.testing.assert_allclose(found[:3, :3], [[1, -1, 0.8], [-1, 1, -0.8], [0.8, -0.8, 1]], atol=1e-12)
        assert np.isnan(found[3]).all()
        texts = [text.get_text() for text in figure.axes[0].texts]
        assert texts[:4] == ["1", "−1.00", "0.80", "–"]
        assert texts[16:] == ["5", "5", "2", "0", "norm"]
        assert meshes(figure)[0].get_clim() == (-1, 1)
        fits(figure)
    assert plots.gram_heat_map(two, 7).axes[0].get_title() == "step 7"


def test_a_step_must_be_chosen_and_be_there() -> None:
    two = pd.concat([record(0), record(7)])
    with pytest.raises(ValueError, match=r"^No step is chosen; there are 0, 7"):
        plots.gram_heat_map(two)
    with pytest.raises(ValueError, match=r"^There is no step 3; there are 0, 7"):
        plots.gram_heat_map(two, 3)
    names = tuple(map(str, range(13)))
    with pytest.raises(ValueError, match=r"^A figure shows at most 12 gradients, not 13"):
        plots.gram_heat_map(Gram(names, {"w": torch.eye(13, dtype=torch.float64)}))


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    same_bytes(plots.layer_heat_map(make()), plots.layer_heat_map(make()), tmp_path / "layers")
    same_bytes(plots.gram_heat_map(record(0)), plots.gram_heat_map(record(0)), tmp_path / "gram")
