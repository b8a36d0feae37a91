"""geffect unlearn on shards: two or four processes hold a part of the model each, and make the run of one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from geffect import api
from geffect.config import LocalizeConfig
from geffect.models.builtin import make_tiny
from geffect.record.frames import read, read_overlap
from geffect.record.reader import read_lines
from tests.conftest import SHAPE, exhaustive
from tests.support.sharded import DOMAINS, METHODS, STEPS, run
from tests.training.test_distributed import whole

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A start whose head is its embedding."""
    path = tmp_path_factory.mktemp("tied")
    for part in make_tiny(**SHAPE, tie_word_embeddings=True):
        part.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def masks(tied: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What GRAIL freezes."""
    settings = {"model": str(tied), "dtype": "float64", "out": tmp_path_factory.mktemp("localized") / "masks"}
    return api.localize(LocalizeConfig.read(**(settings | DOMAINS))).path


SAMPLE = ("npo", "grail", "lora")  # of `METHODS`; make test-all runs the others, too, and four processes


@pytest.fixture(scope="module", params=[2, exhaustive(4)])
def size(request: pytest.FixtureRequest) -> int:
    """The number of processes; each step has four examples."""
    return int(request.param)


@pytest.fixture(scope="module")
def several(
    size: int, tied: Path, masks: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Path:
    """The methods that are tested, in several processes."""
    items: list[Any] = [each for each in request.session.items if each.path == request.path]
    tests = (each.callspec.params for each in items)
    methods = dict.fromkeys(str(params["name"]) for params in tests if params.get("size") == size)
    out = tmp_path_factory.mktemp("several")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    found = subprocess.run(
        [*command, "-m", "tests.support.sharded", str(tied), str(masks), str(out), str(4 // size), *methods],
        cwd=ROOT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    assert found.returncode == 0, found.stderr[:5000]
    return out


@pytest.mark.parametrize("name", [name if name in SAMPLE else exhaustive(name) for name in METHODS])
def test_shards_make_the_run_of_one(
    name: str, size: int, several: Path, tied: Path, masks: Path, tmp_path: Path
) -> None:
    """Gram, update, masks, prediction and weights after seven steps in float64; and what each process holds."""
    one = run(name, tied, masks, tmp_path, grad_accum_steps=2)
    left, right = (whole(read(path, "parameter")) for path in (one, several / name))
    assert len(left) > 100
    assert set(read(several / name, "layer")["layer"]) >= {"block_0", "block_2"}
    pd.testing.assert_series_equal(right, left, rtol=1e-7, atol=1e-8 * left.abs().max())  # a record keeps nine digits
    if METHODS[name].get("overlap"):
        counted, again = (whole(read_overlap(path, by="parameter"), "intersection") for path in (one, several / name))
        pd.testing.assert_series_equal(again, counted)
    for own, other in zip(read_lines(one), read_lines(several / name), strict=True):
        predictions: list[Any] = [line.get("prediction", {}) for line in (own, other)]
        for loss, numbers in predictions[0].items():
            assert predictions[1][loss] == pytest.approx(numbers, rel=1e-7)
        assert other.get("clip", 1.0) == pytest.approx(own.get("clip", 1.0), rel=1e-7)
    _same_files(one, several / name)
    whole_bytes = json.loads((tmp_path / f"{name}-0.json").read_text())
    shares = [json.loads((several / f"{name}-{rank}.json").read_text()) for rank in range(size)]
    if name != "lora":  # its factors have two rows, which four processes cannot share
        assert max(shares) <= 1.1 * whole_bytes / size


def _same_files(one: Path, two: Path) -> None:
    """A checkpoint of shards holds what one process writes, under the same names."""
    last = Path("checkpoints") / f"checkpoint-{STEPS}"
    files = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert files == sorted(path.relative_to(two) for path in two.rglob("*.safetensors"))
    for file in files:
        before, after = load_file(one / file), load_file(two / file)
        assert before.keys() == after.keys()
        for key, tensor in before.items():
            unequal = f"{file}: {key}: {(after[key] - tensor).abs().max():.2e}"
            # AdamW divides a gradient of about 0 by its own size, so that its rounding counts
            torch.testing.assert_close(after[key], tensor, rtol=1e-9, atol=1e-8, msg=unequal)
    own, other = (torch.load(path / last / "optimizer.pt")["state"] for path in (one, two))
    for place, each in own.items():
        torch.testing.assert_close(other[place], each, rtol=1e-9, atol=1e-9)
