"""The run directory: what is appended is read back, to nine digits, summed as asked, torn or garbled or whole."""

import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geffect.core.gram import Gram
from geffect.core.groups import SCHEMES, block_groups
from geffect.core.layers import Layout
from geffect.core.masks import Overlap, intersections, jaccard, pack, top_mask
from geffect.errors import GeffectError
from geffect.record.frames import read, read_overlap, read_steps
from geffect.record.reader import read_environment, read_lines
from geffect.record.schema import DONE, ENVIRONMENT, FORMAT, LOCK, METRICS, STEPS, refuse_existing
from geffect.record.writer import RunDirectory, describe, layout_to_json

NUM_BLOCKS = 4
LAYERS = ["embed", *(f"block_{i}" for i in range(NUM_BLOCKS)), "final_norm", "lm_head"]
LAYOUT = Layout({f"{layer}.{n}": layer for layer in LAYERS for n in "ab"}, dict.fromkeys(LAYERS, 1), NUM_BLOCKS)
LAYOUT = Layout(LAYOUT.layers, dict.fromkeys(LAYOUT.layers, 3), NUM_BLOCKS)
ROWS = ("objective", "forget", "retain")


def make_gram(seed: int, scale: float = 1.0) -> Gram:
    generator = torch.Generator().manual_seed(seed)
    rows = {name: scale * torch.randn(3, 5, dtype=torch.float64, generator=generator) for name in LAYOUT.layers}
    return Gram(ROWS, {name: row @ row.T for name, row in rows.items()})


def make_run(path: Path, grams: list[Gram]) -> Path:
    with RunDirectory(path) as run:
        run.create({"steps": len(grams)}, {"parameters": layout_to_json(LAYOUT)})
        for step, gram in enumerate(grams):
            run.append({"step": step, "gram": gram})
    return path


def make_overlap(seed: int) -> Overlap:
    """Overlaps of 17 entries a parameter; the first row is zero in every third parameter."""
    generator, values = torch.Generator().manual_seed(seed), {}
    for i, name in enumerate(LAYOUT.layers):
        masks = [pack(top_mask(row, 0.3)) for row in torch.randn(3, 17, generator=generator)]
        values[name] = intersections([None if i % 3 == 0 else masks[0], *masks[1:]])
    return Overlap(ROWS, 0.3, values)


def make_supported(path: Path, intersections: list[Overlap | None]) -> Path:
    run = make_run(path, [])
    for step, overlap in enumerate(intersections):
        RunDirectory.append(_at(run), {"step": 2 * step, "overlap": overlap})
    return run


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def test_the_inner_products_of_every_parameter_are_read_back(tmp_path: Path) -> None:
    grams = [make_gram(seed) for seed in range(3)]
    frame = read(make_run(tmp_path / "run", grams), by="parameter")
    assert list(frame.columns) == ["step", "parameter", "gradient", "other", "inner"]
    assert len(frame) == 3 * len(LAYOUT.layers) * 6
    for step, name, row, other, inner in frame.itertuples(index=False):
        expected = grams[step].values[name][ROWS.index(row), ROWS.index(other)].item()
        assert math.isclose(inner, expected, rel_tol=1e-8)


def test_each_unordered_pair_of_rows_is_there_once(tmp_path: Path) -> None:
    frame = read(make_run(tmp_path / "run", [make_gram(0)]), by="layer")
    pairs = [
        frozenset(pair) for pair in frame.loc[frame["layer"] == "embed", ["gradient", "other"]].to_numpy().tolist()
    ]
    assert len(pairs) == len(set(pairs)) == 6


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.floats(-12, 12), st.sampled_from(SCHEMES))
def test_parameters_sum_to_layers_to_groups_to_the_whole(seed: int, exponent: float, scheme: str) -> None:
    gram = make_gram(seed, 10**exponent)
    with folder() as path:
        run = make_run(path / "run", [gram])
        frames = {by: read(run, by, scheme) for by in ("parameter", "layer", "group")}
    groups = LAYOUT.groups(scheme)
    keys = ["step", "gradient", "other"]
    parameters = frames["parameter"]
    parameters = parameters.assign(
        layer=parameters["parameter"].map(LAYOUT.layers), group=parameters["parameter"].map(groups)
    )
    size = float(gram.total().diagonal().max())
    for by in ("layer", "group"):
        summed = parameters.groupby([*keys, by])["inner"].sum()
        found = frames[by].set_index([*keys, by])["inner"]
        pd.testing.assert_series_equal(found.sort_index(), summed.sort_index(), rtol=0, atol=1e-12 * size)
    total = gram.total()
    for by, frame in frames.items():
        for pair, rows in frame.groupby(keys):
            _, row, other = map(str, pair)
            expected = total[ROWS.index(row), ROWS.index(other)].item()
            assert abs(rows["inner"].sum() - expected) <= 1e-7 * size, by


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.sampled_from(["parameter", "layer", "group"]), st.sampled_from(SCHEMES))
def test_overlaps_are_read_back_summed_and_exact(seed: int, by: str, scheme: str) -> None:
    intersections = [make_overlap(seed), make_overlap(seed + 1)]
    groups = LAYOUT.groups(scheme)
    labels = {
        name: {"parameter": name, "layer": layer, "group": groups[name]}[by] for name, layer in LAYOUT.layers.items()
    }
    with folder() as path:
        frame = read_overlap(make_supported(path / "run", [*intersections]), by, scheme)
    expected = []
    for step, overlap in enumerate(intersections):
        for label in dict.fromkeys(labels.values()):
            counts = overlap.total(name for name in labels if labels[name] == label)
            for i, j in ((0, 1), (0, 2), (1, 2)):
                both, either = int(counts[i, j]), int(counts[i, i] + counts[j, j] - counts[i, j])
                expected.append((2 * step, label, ROWS[i], ROWS[j], both, either, 0.3, float(jaccard(counts)[i, j])))
    columns = ["step", by, "gradient", "other", "intersection", "union", "share", "jaccard"]
    pd.testing.assert_frame_equal(frame, pd.DataFrame(expected, columns=columns), check_exact=True)


def test_the_line_holds_whole_numbers_in_the_tables_order(tmp_path: Path) -> None:
    overlap = make_overlap(0)
    (line,) = read_lines(make_supported(tmp_path / "run", [overlap]))
    assert list(line["overlap"]) == ["share", "gradients", "values"]
    assert (line["overlap"]["share"], line["overlap"]["gradients"]) == (0.3, list(ROWS))
    for counts, written in zip(overlap.values.values(), line["overlap"]["values"], strict=True):
        assert written == [int(counts[i, j]) for i in range(3) for j in range(i, 3)]
        assert all(isinstance(each, int) for each in written)


def test_an_empty_union_has_no_jaccard_index(tmp_path: Path) -> None:
    nothing = Overlap(ROWS, 0.1, {name: torch.zeros(3, 3, dtype=torch.int64) for name in LAYOUT.layers})
    frame = read_overlap(make_supported(tmp_path / "run", [nothing]))
    assert frame["jaccard"].isna().all()
    assert (frame[["intersection", "union"]] == 0).all(axis=None)


def test_steps_without_supports_are_passed_over(tmp_path: Path) -> None:
    run = make_supported(tmp_path / "run", [None, make_overlap(0)])
    assert set(read_overlap(run)["step"]) == {2}
    assert list(read_steps(run).columns) == ["step"]


def test_a_run_without_supports_is_refused_with_the_flag(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [make_gram(0)])
    with pytest.raises(GeffectError, match=r"has no overlaps\. [^\n]*--overlap 0\.1\.$"):
        read_overlap(run)
    with pytest.raises(GeffectError, match=r"by is 'head'\. Choose one of parameter, layer, group"):
        read_overlap(run, "head")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_groups_are_those_of_the_scheme(scheme: str, tmp_path: Path) -> None:
    found = read(make_run(tmp_path / "run", [make_gram(0)]), "group", scheme)["group"]
    assert list(dict.fromkeys(found)) == list(
        dict.fromkeys(["embed", *block_groups(NUM_BLOCKS, scheme), "deep", "lm_head"])
    )


def test_numbers_that_are_not_finite_become_null_and_are_read_as_nan(tmp_path: Path) -> None:
    gram = make_gram(0)
    gram.values["embed.a"][0, 1] = gram.values["embed.a"][1, 0] = float("inf")
    run = make_run(tmp_path / "run", [gram])
    last = {"step": 1, "loss": float("nan"), "evaluation": {"heldout": {"loss": float("-inf")}}, "diverged": "heldout"}
    RunDirectory.append(_at(run), last)
    assert all(word not in (run / STEPS).read_text() for word in ("NaN", "Infinity"))
    frame = read(run, by="layer")
    broken = frame[frame["inner"].isna()]
    assert broken[["layer", "gradient", "other"]].to_numpy().tolist() == [["embed", "objective", "forget"]]
    assert read_steps(run)[["loss", "heldout_loss"]].isna().all().all()


def _at(path: Path) -> RunDirectory:
    """A run directory that is there already."""
    run = object.__new__(RunDirectory)
    run.path = path
    return run


def test_scores_are_columns_and_grams_are_not(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.append({"step": 0, "lr": [0.1], "evaluation": {"forget": {"loss": 1.5, "accuracy": 0.5}}, "gram": make_gram(0)})
    run.append({"step": 1, "loss": 2.0})
    frame = read_steps(tmp_path)
    assert set(frame.columns) == {"step", "lr", "forget_loss", "forget_accuracy", "loss"}
    assert frame["forget_loss"].tolist()[0] == 1.5
    assert np.isnan(frame["forget_loss"].tolist()[1])
    assert frame["loss"].tolist()[1] == 2.0


@settings(deadline=None)
@given(st.data())
def test_a_torn_last_line_is_dropped(data: st.DataObject) -> None:
    lines = [{"format": FORMAT, "step": step, "text": "é漢"} for step in range(3)]
    whole = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    cut = data.draw(st.integers(0, len(whole)))
    with folder() as path:
        (path / STEPS).write_bytes(whole[:cut])
        assert read_lines(path) == lines[: whole[:cut].count(b"\n")]


@settings(deadline=None)
@given(st.integers(0, 3), st.sampled_from([b"", b"{", b'{"step": 1}}', b"1", b"[]", b"null", b"\xff\xff", b'"\xe9"']))
def test_a_garbled_line_is_named(number: int, garbage: bytes) -> None:
    lines = [json.dumps({"format": FORMAT, "step": step}).encode() for step in range(4)]
    lines[number] = garbage
    with folder() as path:
        (path / STEPS).write_bytes(b"\n".join(lines) + b"\n")
        with pytest.raises(
            GeffectError,
            match=rf"steps\.jsonl is not as geffect writes it: [^\n]* in line {number + 1}\. |has no format",
        ):
            read_lines(path)


def test_every_line_is_on_disk_when_append_returns(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in range(3):
        run.append({"step": step})
        assert [line["step"] for line in read_lines(tmp_path)] == list(range(step + 1))


def test_done_is_written_after_the_metrics_or_not_at_all(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(TypeError):
        run.finish({"loss": object()})
    assert not (tmp_path / DONE).exists()
    run.finish({"loss": 1.0, "accuracy": float("nan")})
    assert json.loads((tmp_path / METRICS).read_text()) == {"format": FORMAT, "loss": 1.0, "accuracy": None}
    assert (tmp_path / DONE).exists()


def test_a_new_or_empty_directory_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "new" / "deep"):
        with RunDirectory(path) as run:
            run.create({}, {})
        assert read_environment(path) == {}


def test_a_start_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for path in (tmp_path / "mine", tmp_path / "new" / "deep"):
        with pytest.raises(KeyboardInterrupt), RunDirectory(path):
            assert (path / LOCK).exists()
            raise KeyboardInterrupt
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]


def test_a_killed_start_below_leaves_the_directory_free(tmp_path: Path) -> None:
    (tmp_path / "run" / "ga").mkdir(parents=True)
    (tmp_path / "run" / "ga" / LOCK).touch()
    refuse_existing(tmp_path / "run")


def test_what_exists_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes").write_text("mine")
    for path in (tmp_path / "run", tmp_path / "run" / "notes"):
        with pytest.raises(GeffectError, match=r"--out .*run.* exists already\. Choose another name"):
            RunDirectory(path)
    assert (tmp_path / "run" / "notes").read_text() == "mine"


def test_a_directory_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(GeffectError, match=r"--out .*run cannot be made: .*notes is no directory"):
        refuse_existing(tmp_path / "notes" / "run")


@pytest.mark.parametrize("text", [None, b"", b"[]", b"{", b"\xff"])
def test_a_directory_that_is_no_run_is_refused(text: bytes | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / ENVIRONMENT).write_bytes(text)
    with pytest.raises(GeffectError, match=r"^There is no (environment\.json of a )?run in [^\n]*$|has no format"):
        read(tmp_path)


def test_a_run_without_a_record_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [])
    for reader in (read, read_steps):
        with pytest.raises(GeffectError, match=r"There is no steps\.jsonl in"):
            reader(run)
    RunDirectory.append(_at(run), {"step": 0, "loss": 1.0})
    with pytest.raises(GeffectError, match="has no measured step"):
        read(run)


@pytest.mark.parametrize(("by", "says"), [("head", r"by is 'head'\. Choose one of parameter, layer, group")])
def test_an_unknown_sum_is_refused(by: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(GeffectError, match=says):
        read(make_run(tmp_path / "run", [make_gram(0)]), by)


def test_the_layout_is_written_as_columns_of_one_length() -> None:
    table: dict[str, Any] = layout_to_json(LAYOUT)
    assert table["num_blocks"] == NUM_BLOCKS
    assert dict(zip(table["names"], table["layers"], strict=True)) == LAYOUT.layers
    assert dict(zip(table["names"], table["numel"], strict=True)) == LAYOUT.numel


def test_the_revision_is_that_of_the_source_tree() -> None:
    checkout = (Path(__file__).resolve().parents[2] / ".git").exists()
    assert bool(describe()["git"]) == checkout
