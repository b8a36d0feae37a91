"""The format: every file tells it, another is refused, ``docs/record.md`` defines each key, one package reads it."""

import ast
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import geffect
from geffect import api
from geffect.config import InspectConfig
from geffect.errors import GeffectError
from geffect.measurement.measurement import Measured
from geffect.record import schema
from geffect.record.frames import read_points, read_steps, read_tokens
from geffect.record.reader import each_line, grams, keep_lines, read_config, read_lines, read_metrics, step_lines
from geffect.record.schema import CONFIG, ENVIRONMENT, FORMAT, METRICS, POINTS, STEPS, TOKENS
from geffect.record.writer import append_line
from tests.conftest import config

ROOT = Path(__file__).resolve().parents[2]
RAW = {"read_lines", "each_line", "read_environment"}
OPEN = re.compile(r"norm_\w+|loss_[\w/]+|(term|multiplier)_\d+")  # of any gradient, split or term


@pytest.fixture(scope="module")
def run(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("format") / "run"
    settings: dict[str, Any] = {"steps": 2, "save_every": 2, "prediction": 2, "overlap": 0.1, "standard_errors": True}
    return api.unlearn(
        config(start, out, rectifier="gru", grad_accum_steps=2, stop="accuracy(share=0.01)", **settings)
    ).path


@pytest.fixture(scope="module")
def inspected(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("format") / "record"
    return api.inspect(
        InspectConfig.read(None, checkpoints=[str(run)], out=out, tokens=1, points=["npo"], batch_size=4)
    )[0].path


def _keys(path: Path) -> Iterator[str]:
    for file in (STEPS, TOKENS, POINTS):
        if (path / file).exists():
            for line in (path / file).read_text(encoding="utf-8").splitlines():
                yield from json.loads(line)
    for file in (ENVIRONMENT, METRICS):
        content = json.loads((path / file).read_text(encoding="utf-8"))
        yield from content
        yield from content.get("batch", {})


def test_every_key_that_is_written_is_defined(run: Path, inspected: Path) -> None:
    defined = set(re.findall(r"`([\w/]+)`", (ROOT / "docs" / "record.md").read_text(encoding="utf-8")))
    written = {*_keys(run), *_keys(inspected)}
    assert {"prediction", "overlap", "standard_errors", "gram", "evaluation_examples"} <= written
    assert {key for key in written if not OPEN.fullmatch(key)} <= defined


@pytest.mark.parametrize(
    ("file", "reader"),
    [
        (CONFIG, read_config),
        (STEPS, step_lines),
        (STEPS, read_steps),
        (METRICS, read_metrics),
        (TOKENS, read_tokens),
        (POINTS, read_points),
        (ENVIRONMENT, geffect.Run),
    ],
)
def test_each_file_by_itself_is_refused_in_another_format(inspected: Path, file: str, reader: Any) -> None:
    whole = (inspected / file).read_text(encoding="utf-8")
    other = re.sub(rf'("format": |# geffect format ){FORMAT}', r"\g<1>1", whole)
    assert other != whole
    try:
        (inspected / file).write_text(other, encoding="utf-8")
        with pytest.raises(
            GeffectError, match=rf"{file} has format 1 \(written by geffect .*this geffect reads format 3"
        ):
            reader(inspected)
    finally:
        (inspected / file).write_text(whole, encoding="utf-8")
    reader(inspected)


class Largest:
    """A measurement as an extension of the package would make it."""

    def to_record(self) -> dict[str, Any]:
        return {"gradients": ["objective"], "values": [[0.5]]}


def test_a_new_measurement_needs_a_check_and_a_reader_alone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check_part(part: Any, _: object) -> None:
        schema.check(part["gradients"] == ["objective"], "other gradients")

    for table in (schema.STRUCTURES, schema.CHECKS):
        monkeypatch.setitem(table, "largest", check_part)
    path = Path(shutil.copytree(run, tmp_path / "run"))
    append_line(path / STEPS, {"step": 9} | Measured({"ratio": 0.5}, parts={"largest": Largest()}).line())
    assert read_lines(path)[-1]["largest"] == Largest().to_record()
    steps = read_steps(path)
    assert steps["ratio"].iloc[-1] == 0.5 and "largest" not in steps
    append_line(path / STEPS, {"step": 10, "largest": {"gradients": []}})
    with pytest.raises(GeffectError, match="other gradients in line"):
        read_steps(path)


def test_nobody_outside_the_package_imports_a_reader_of_raw_lines() -> None:
    for path in (*(ROOT / "geffect").rglob("*.py"), *(ROOT / "analysis").rglob("*.py")):
        if path.parent.name == "record":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("geffect.record"):
                assert not RAW & {each.name for each in node.names}, path


def test_only_the_writer_writes(run: Path) -> None:
    """No other file of the package opens a file to write or renames one; where others do, it is not into a run."""
    for path in sorted((ROOT / "geffect" / "record").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if path.name != "writer.py":
            assert not re.search(r"write_(text|bytes)\(|\.open\(\"[wa]|fsync|\.replace\(\w+\)$", text), path
    assert not list(run.rglob("*.partial"))


def test_lines_that_are_kept_are_those_of_the_file(run: Path, tmp_path: Path) -> None:
    """One parse for all readers, the same bits, and another one once the file has changed."""
    copy = shutil.copytree(run, tmp_path / "copy")
    apart = geffect.read(copy), read_steps(copy), geffect.read_overlap(copy), grams(copy)
    with keep_lines():
        together = geffect.read(copy), read_steps(copy), geffect.read_overlap(copy), grams(copy)
        with keep_lines():  # as a report draws its pictures
            assert next(each_line(copy)) is next(each_line(copy))
        lines = (copy / STEPS).read_bytes().splitlines(keepends=True)
        (copy / STEPS).write_bytes(b"".join(lines[:-1]))
        assert len(read_steps(copy)) == len(lines) - 1
    for one, other in zip(apart[:3], together[:3], strict=True):
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    totals = [torch.stack([gram.total() for _, gram in each[3]]) for each in (apart, together)]
    assert torch.equal(*totals)
    assert next(each_line(copy)) is not next(each_line(copy))
