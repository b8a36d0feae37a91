"""The built-in models whose weights the package holds: they know their sets, are of today's recipe, or are fitted."""

import json
from pathlib import Path

import pytest
import torch

import geffect
from geffect.api import builtin_tiny, fit_builtin
from geffect.errors import GeffectError
from geffect.models import builtin
from geffect.models.builtin import BUILT_IN, SHIPPED, load_fitted, weights_file

QWEN2 = "builtin:tiny-domains-qwen2"


def accuracy(name: str, spec: str) -> float:
    """The share of a set's labeled tokens that a model finds most likely."""
    loaded = geffect.load_model(name, device="cpu")
    batch = geffect.collate(geffect.encode_set(loaded.tokenizer, geffect.load_set(spec)), loaded.tokenizer.pad_token_id)
    labels = batch["labels"][:, 1:]
    with torch.no_grad():
        logits = loaded.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    return float((logits.argmax(-1) == labels)[labels != -100].float().mean())


@pytest.mark.parametrize(("name", "spec"), [(name, spec) for name in SHIPPED for spec in BUILT_IN[name].sets])
def test_a_built_in_model_knows_its_sets(name: str, spec: str) -> None:
    assert accuracy(name, spec) > 0.99


@pytest.mark.parametrize("name", SHIPPED)
def test_the_weights_are_of_todays_recipe_and_the_cache_has_their_bits(name: str) -> None:
    fitted = load_fitted(name)
    assert fitted is not None, "run python -m analysis.built_in"
    model, cached = fitted[0].state_dict(), geffect.load_model(name, device="cpu").model.state_dict()
    assert {key: tensor.dtype for key, tensor in cached.items()} == dict.fromkeys(model, torch.float32)
    assert [key for key in model if not torch.equal(model[key], cached[key])] == []
    assert all(torch.equal(tensor, tensor.bfloat16().float()) for tensor in model.values())


def test_without_a_file_or_with_another_recipe_or_vocabulary_a_model_is_to_be_fitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert load_fitted(QWEN2) is None
    with monkeypatch.context() as patch:
        patch.setitem(BUILT_IN, builtin.TINY, BUILT_IN[builtin.TINY]._replace(recipe={"epochs": 2}))
        assert load_fitted() is None
    with monkeypatch.context() as patch:
        patch.setattr(builtin, "VOCABULARY", 1500)
        assert load_fitted() is None
    assert load_fitted() is not None


def test_what_is_fitted_is_a_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe cut to one epoch: nothing is held of that, so it runs."""
    monkeypatch.setenv("GEFFECT_CACHE", str(tmp_path))
    short = {**BUILT_IN[builtin.TINY].recipe, "epochs": 1}
    monkeypatch.setitem(BUILT_IN, builtin.TINY, BUILT_IN[builtin.TINY]._replace(recipe=short))
    path = builtin_tiny()
    assert (path / "DONE").exists()
    assert json.loads((path / "metrics.json").read_text(encoding="utf-8"))["end"]["step"] == 10
    assert {file.name for file in path.iterdir()} >= {"model.safetensors", "tokenizer.json", "steps.jsonl"}
    assert not {"init", "fit"} & {file.name for file in path.iterdir()}


def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tmp_path / "tiny.safetensors"
    damaged.write_bytes(weights_file().read_bytes()[:-8])
    monkeypatch.setattr(builtin, "weights_file", lambda name: damaged)
    with pytest.raises(GeffectError, match=r"cannot be read.*Install geffect again"):
        load_fitted()


@pytest.mark.exhaustive
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", BUILT_IN)
def test_every_recipe_fits_its_sets(name: str, tmp_path: Path) -> None:
    fit_builtin(name, tmp_path)
    end = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["end"]
    assert {spec for spec in BUILT_IN[name].sets if end[spec]["accuracy"] > 0.99} == set(BUILT_IN[name].sets)
