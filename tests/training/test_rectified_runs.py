"""Runs by every rectifier that combines or replaces gradients: the record, and what a checkpoint carries."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from geffect import api
from geffect.config import UnlearnConfig
from geffect.core.effects import inner_by_label
from geffect.errors import GeffectError
from geffect.record.frames import read
from geffect.record.reader import read_environment, read_lines
from geffect.record.schema import CONFIG
from geffect.training.checkpoints import RECTIFIER, load_rectifier
from tests.conftest import config

RULES = (
    "pcgrad(alpha=0.5)",
    "pcgrad(scope=layer)",
    "blur",
    "ngdiff(scope=parameter)",
    "hamu(gain=0.4)",
    "gem(memory=3)",
    "gem(memory=2, space=both, scope=layer)",
    "sago",
    "disruption",
    "gru(metric=adam, space=both)",
    "gu(memory=2, tolerance=1e-4)",
    "orthograd(examples=3, scope=group)",
)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"rectifier": "gru(metric=adam)", "optimizer": "sgd"},
            "reads Adam's second moments, which --optimizer sgd has",
        ),
        ({"rectifier": "gu", "optimizer": "adafactor"}, "reads Adam's second moments"),
        ({"rectifier": "gem(memory=5)"}, "remembers 5 steps, and this run has 4. Write memory=4"),
        ({"rectifier": "consistent"}, "compares an objective on the forget sets of several domains"),
        ({"rectifier": "orthograd", "shard": True}, "--shard has no single examples' gradients"),
        ({"objective": "sam(npo)", "shard": True}, "--shard has no weights that sam moves"),
        ({"objective": "sam(npo) + ga"}, "has terms on the forget set beside sam"),
        ({"objective": "ga + sam(gd)"}, "sam takes a plain term on the forget set, not GD"),
        ({"objective": "sam(sam(npo))"}, "sam takes a plain term on the forget set, not SAM"),
        ({"objective": "sam(npo, rho=0)"}, "rho of sam is 0"),
    ],
    ids=str,
)
def test_what_a_run_cannot_give_is_refused(start: Path, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(GeffectError) as refused:
        config(start, tmp_path / "run", **changes)
    assert says in str(refused.value)


def test_sam_trains_with_accumulation_an_adapter_and_gru(start: Path, tmp_path: Path) -> None:
    """The adapter's weights alone move; the run differs from one without."""
    settings: dict[str, Any] = {"lora": 2, "grad_accum_steps": 2, "steps": 3, "rectifier": "gru"}
    lines = {
        text: read_lines(api.unlearn(config(start, tmp_path / name, objective=text, **settings)).path)
        for name, text in {"plain": "npo + gd", "sam": "sam(npo, rho=1) + gd"}.items()
    }
    plain, sam = ([line["loss_forget"] for line in each if "loss_forget" in line] for each in lines.values())
    assert sam[0] == pytest.approx(plain[0], rel=1e-6)  # the same weights, and the loss of these
    objectives = [each[0]["loss_objective"] for each in lines.values()]
    assert objectives[1] > objectives[0] + 1e-6 or sam[1:] != plain[1:]


@pytest.mark.parametrize("text", RULES)
def test_a_run_by_every_rule_is_recorded(start: Path, tmp_path: Path, text: str) -> None:
    settings: dict[str, Any] = {"rectifier": text, "steps": 3, "prediction": 4, "save_gradients": ["rectified"]}
    run = api.unlearn(config(start, tmp_path / "run", **settings))
    frame = read(run.path)
    assert {"objective", "forget", "retain", "rectified", "update", "applied"} <= set(frame["gradient"])
    assert UnlearnConfig.read(run.path / CONFIG).rectifier.text == text
    lines = [line for line in read_lines(run.path) if "gram" in line]
    residuals = [line["kkt_residual"] for line in lines if "kkt_residual" in line]
    assert len(residuals) == (3 if text.startswith("gem") else 0)
    assert max(residuals, default=0.0) <= 1e-10
    corrected = [line["update_kkt_residual"] for line in lines if "update_kkt_residual" in line]
    assert len(corrected) == (3 if "gem(memory=2, space=both" in text or text.startswith("gu(") else 0)
    assert max(corrected, default=0.0) <= 1e-10
    assert run.targets == ["forget", "retain"]
    assert len(run.cosine()) == 3 and not run.cosine().isna().any(axis=None)
    pairs = (("rectified", "retain"), ("rectified", "rectified"), ("retain", "retain"))
    product, ours, theirs = (inner_by_label(frame, *pair).groupby("step").sum() for pair in pairs)
    if not text.startswith(("blur", "hamu", "gu", "gru")):
        assert (product >= -1e-6 * (ours * theirs) ** 0.5).all()


def test_gem_s_memories_are_in_the_checkpoint_by_age(start: Path, tmp_path: Path) -> None:
    chosen = config(start, tmp_path / "run", rectifier="gem(memory=3)", steps=3, save_every=1)
    run = api.unlearn(chosen).path
    names = read_environment(run)["parameters"]["names"]
    first, second = (load_file(run / "checkpoints" / f"checkpoint-{step}" / RECTIFIER) for step in (1, 2))
    assert set(first) == {f"retain_0/{name}" for name in names}
    assert set(second) == {f"retain_{age}/{name}" for age in (0, 1) for name in names}
    assert all(torch.equal(first[f"retain_0/{name}"], second[f"retain_1/{name}"]) for name in names)


def test_an_average_that_was_saved_without_its_name_is_read(start: Path, tmp_path: Path) -> None:
    model = api.load_model(str(start)).model
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    save_file({name: torch.full_like(p, 2.0) for name, p in parameters.items()}, tmp_path / RECTIFIER)
    state = load_rectifier(tmp_path, parameters)
    assert set(state) == {"retain_average"}
    assert set(state["retain_average"]) == set(parameters)


def test_only_a_gradient_that_a_run_has_is_saved(start: Path, tmp_path: Path) -> None:
    with pytest.raises(GeffectError, match="has no gradient retain_average to save"):
        config(start, tmp_path / "run", rectifier="pcgrad", save_gradients=["retain_average"])


def test_a_rule_in_python_is_written_as_text(start: Path, tmp_path: Path) -> None:
    from geffect.rectifiers.combined import HAMU

    run = api.unlearn(config(start, tmp_path / "run", rectifier=HAMU(gain=0.4), steps=1)).path
    assert yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))["rectifier"] == "hamu(gain=0.4)"
