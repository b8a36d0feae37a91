"""A model's files against one another: nothing is left out, drawn at random, or read from elsewhere."""

import json
import logging
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from geffect.errors import GeffectError
from geffect.models.builtin import make_tiny
from geffect.models.load import add_lora, load, outline, quiet_transformers
from geffect.models.tokenizers import vocabulary_size
from tests.models.test_models import IDS, SHAPE, TOKENIZER, edit, logits, save

Change = Callable[[Path], object]
WEIGHTS, ADAPTER, INDEX = "model.safetensors", "adapter_model.safetensors", "model.safetensors.index.json"
ROWS = make_tiny(**SHAPE)[0].get_input_embeddings().weight.shape[0]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("base") / "model", make_tiny(**SHAPE)[0])


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    model = add_lora(load(str(base)).model, 2, 0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.constant_(parameter, 0.1)
    return save(base.parent / "adapter", model)


def changed(source: Path, tmp_path: Path, change: Change) -> str:
    shutil.copytree(source, tmp_path / "changed")
    change(tmp_path / "changed")
    return str(tmp_path / "changed")


def tensors(change: Callable[[dict[str, Tensor]], object], name: str = WEIGHTS) -> Change:
    def do(path: Path) -> None:
        found = load_file(path / name)
        change(found)
        save_file(found, path / name, metadata={"format": "pt"})

    return do


def config(**changes: Any) -> Change:
    return lambda path: edit(path / "config.json", **changes)


def settings(**changes: Any) -> Change:
    return lambda path: edit(path / "adapter_config.json", **changes)


def shards(change: Callable[[Path, dict[str, str]], object] = lambda *_: None) -> Change:
    """The weights in two files; what the index says of them may then be changed."""

    def do(path: Path) -> None:
        whole = load_file(path / WEIGHTS)
        (path / WEIGHTS).unlink()
        places: dict[str, str] = {}
        for number, names in enumerate((sorted(whole)[:5], sorted(whole)[5:]), start=1):
            file = f"model-{number:05}-of-00002.safetensors"
            save_file({name: whole[name] for name in names}, path / file, metadata={"format": "pt"})
            places |= dict.fromkeys(names, file)
        change(path, places)
        content = {"metadata": {"total_size": 1}, "weight_map": places}
        (path / INDEX).write_text(json.dumps(content), encoding="utf-8")

    return do


def outside(path: Path, places: dict[str, str], *, prefix: str = "../") -> None:
    shutil.move(path / "model-00002-of-00002.safetensors", path.parent / "other.safetensors")
    for name, file in places.items():
        places[name] = f"{prefix}other.safetensors" if "00002-of" in file else file


def twice(name: str, text: str) -> Change:
    def do(path: Path) -> None:
        content = (path / name).read_text(encoding="utf-8")
        (path / name).write_text(content.replace("{", "{" + text, 1), encoding="utf-8")

    return do


# full weights

BROKEN: dict[str, tuple[Change, str]] = {
    "fewer layers in the file": (config(num_hidden_layers=3), r"lacks the weights model\.layers\.2\..* and 8"),
    "more layers in the file": (
        config(num_hidden_layers=1),
        r"has the weights model\.layers\.1\..* and 8 more, for which its conf",
    ),
    "a surplus tensor": (
        tensors(lambda w: w.update({"v_head.weight": torch.ones(2)})),
        r"has the weights v_head\.weight, for which",
    ),
    "a missing tensor": (tensors(lambda w: w.pop("model.norm.weight")), r"lacks the weights model\.norm\.weight\."),
    "another shape": (
        config(vocab_size=2000),
        r"weight in .* has shape \(\d+, 32\), and its configuration says \(2000, 32\)\.",
    ),
    "far more than the file": (
        config(hidden_size=10**7),
        r"config\.json of .* describes \d+ parameters, but its weight files have",
    ),
    "a vocabulary of billions": (config(vocab_size=10**9), r"describes \d+ parameters, but its weight files have"),
    "no layers": (config(num_hidden_layers=0), "num_hidden_layers in .* is 0, not from 1 to 2048"),
    "negative layers": (config(num_hidden_layers=-1), "num_hidden_layers in .* is -1, not from 1 to 2048"),
    "a million layers": (config(num_hidden_layers=10**6), "is 1000000, not"),
    "layers without end": (config(num_hidden_layers=10**30), "from 1 to 2048"),
    "layers as 1e9": (config(num_hidden_layers=1e9), "from 1 to 2048"),
    "layers within a part": (config(text_config={"n_layer": 10**9}), "n_layer in .* from 1 to 2048"),
    "experts without end": (config(num_local_experts=10**9), "num_local_experts in .* from 0 to 2048"),
    "a shard elsewhere": (shards(outside), r"names a weight file outside .*: '\.\./other\.safetensors'"),
    "a shard that is missing": (
        shards(lambda _, places: places.update(x="model-00003-of-00003.safetensors")),
        "is missing in .*index.json names it",
    ),
    "a shard that no index names": (
        shards(lambda _, places: [places.pop(k) for k in list(places) if "00002-of" in places[k]]),
        r"model-00002.* would not be read, only those that .* names",
    ),
    "a tensor that is in no shard": (
        shards(lambda _, places: places.update(x="model-00001-of-00002.safetensors")),
        "x is not in model-00001.*json has it",
    ),
    "shards beside whole weights": (
        lambda path: shutil.copy(path / WEIGHTS, path / "model-00001-of-00002.safetensors"),
        "model-00001.* would not be read, only model.safetensors",
    ),
    "an index that is none": (
        lambda path: (path / INDEX).write_text('{"weight_map": []}'),
        "has no weight_map of tensors",
    ),
    "a key twice": (twice("config.json", '"num_hidden_layers": 1,'), "'num_hidden_layers' twice .* in config.json"),
    "a key twice in the tokenizer's": (twice("tokenizer_config.json", '"eos_token": "a", "eos_token": "b",'), "twice"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_weights_that_are_not_the_configurations_are_refused(case: str, base: Path, tmp_path: Path) -> None:
    change, says = BROKEN[case]
    spec, began = changed(base, tmp_path, change), time.perf_counter()
    with pytest.raises(GeffectError, match=rf"\A[^\n]*{says}"):
        load(spec)
    assert time.perf_counter() - began < 5


def test_absolute_paths_in_an_index_are_refused(base: Path, tmp_path: Path) -> None:
    spec = changed(base, tmp_path, shards(lambda path, places: outside(path, places, prefix=f"{path.parent}/")))
    for reader in (load, outline):
        with pytest.raises(GeffectError, match=r"names a weight file outside"):
            reader(spec)


HARMLESS: dict[str, Change] = {
    "as it was": lambda _: None,
    "in shards": shards(),
    "with rotary buffers": tensors(
        lambda w: w.update({f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(8) for i in range(2)})
    ),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_the_same_weights_load_however_they_lie(case: str, base: Path, tmp_path: Path) -> None:
    found = logits(load(changed(base, tmp_path, HARMLESS[case])).model)
    assert torch.equal(found, logits(load(str(base)).model))


def test_a_tied_head_may_be_saved_or_not(tmp_path: Path) -> None:
    model = make_tiny(tie_word_embeddings=True, **SHAPE)[0]
    path = save(tmp_path / "tied", model)
    assert "lm_head.weight" not in load_file(path / WEIGHTS)
    expected = logits(load(str(path)).model)
    tensors(lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))(path)
    assert torch.equal(logits(load(str(path)).model), expected)


# adapters

HARMED: dict[str, tuple[Change, str]] = {
    "a missing tensor": (tensors(lambda w: w.pop(max(w)), ADAPTER), r"lacks the weights base_model\..*lora_"),
    "all renamed": (
        tensors(lambda w: [w.update({f"x.{k}": w.pop(k)}) for k in list(w)], ADAPTER),
        "lacks the weights base_model.* and 27 more",
    ),
    "one renamed": (
        tensors(lambda w: w.update({min(w) + "s": w.pop(min(w))}), ADAPTER),
        r"lacks the weights base_model.*weight\.",
    ),
    "a surplus tensor": (
        tensors(lambda w: w.update({"base_model.model.x.lora_A.weight": torch.ones(2, 2)}), ADAPTER),
        r"x\.lora_A",
    ),
    "no tensor": (lambda path: save_file({}, path / ADAPTER), "lacks the weights base_model.* and 27 more"),
    "another shape": (tensors(lambda w: w.update({min(w): torch.ones(3, 3)}), ADAPTER), "size mismatch for base_model"),
    "another rank": (settings(r=3), "size mismatch for base_model"),
    "a rank that fills the memory": (settings(r=10**9), "size mismatch for base_model"),
    "fewer target modules": (settings(target_modules=["q_proj"]), "for which its configuration has no place"),
    "target modules that match nothing": (settings(target_modules=["nix"]), "'nix'"),
    "a pattern without end": (settings(target_modules=r"((.*)*)*(.+)+_proj\d$"), "is not matched within 5 seconds"),
    "a pattern that is none": (settings(target_modules="((("), "target_modules in adapter_config.json is no pattern"),
    "a module saved whole that is not": (
        settings(modules_to_save=["lm_head"]),
        r"lacks the weights base_model\.model\.lm_head",
    ),
    "a key twice": (twice("adapter_config.json", '"r": 3,'), "'r' twice"),
}


@pytest.mark.parametrize("case", HARMED)
def test_an_adapter_that_is_not_whole_is_refused(case: str, adapter: Path, tmp_path: Path) -> None:
    change, says = HARMED[case]
    spec = changed(adapter, tmp_path, change)
    for reader in (load, outline) if case != "a pattern without end" else (outline,):  # a dry run refuses it too
        with pytest.raises(GeffectError, match=rf"\A[^\n]*{says}"):
            reader(spec)


@pytest.mark.parametrize("key", ["target_modules", "modules_to_save", "alpha_pattern", "rank_pattern"])
def test_settings_of_an_adapter_that_match_no_layer_are_told(
    key: str, adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    known = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["target_modules"]
    value = {"nix": 8} if key.endswith("pattern") else [*(known if key == "target_modules" else []), "nix"]
    spec = changed(adapter, tmp_path, settings(**{key: value}))
    with caplog.at_level(logging.WARNING):
        found = load(spec).model
    assert f"{key} of the adapter in {spec} match no layer of its base: nix" in caplog.text
    assert torch.equal(logits(found), logits(load(str(adapter)).model))


def test_an_adapter_as_it_was_saved_is_told_nothing_of(adapter: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="geffect"):
        load(str(adapter))
    assert not caplog.records


def resized(path: Path, size: int, *, tied: bool, save_both: bool, **changes: Any) -> tuple[Any, Path]:
    """An adapter on a base whose vocabulary was resized first, and the model it was saved from."""
    from peft import LoraConfig, get_peft_model

    origin = save(path / "origin", make_tiny(tie_word_embeddings=tied, **SHAPE)[0])
    model = load(str(origin)).model
    model.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.01)  # tokens that were there have moved too
    settled = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", **changes)
    with quiet_transformers(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
        adapted = get_peft_model(model, settled)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            nn.init.constant_(parameter, 0.1)
    with quiet_transformers():
        adapted.save_pretrained(path / "adapter", save_embedding_layers=save_both)
    TOKENIZER.save_pretrained(path / "adapter")
    edit(path / "adapter" / "adapter_config.json", base_model_name_or_path=str(origin))
    return adapted.eval(), path / "adapter"


RESIZED: dict[str, dict[str, Any]] = {
    "saved beside": {"tied": False, "save_both": True},
    "saved beside, tied": {"tied": True, "save_both": True},
    "trained whole": {"tied": False, "save_both": False, "modules_to_save": ["embed_tokens", "lm_head"]},
}


@pytest.mark.parametrize("size", [ROWS + 11, ROWS - 59])
@pytest.mark.parametrize("case", RESIZED)
def test_an_adapter_may_bring_a_vocabulary_of_its_own(
    case: str, size: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapted, path = resized(tmp_path, size, **RESIZED[case])
    with caplog.at_level(logging.INFO):
        found = load(str(path)).model
    assert f"the adapter brings a vocabulary of {size} tokens; its base has {ROWS}" in caplog.text
    assert torch.equal(logits(found), logits(adapted)) and logits(found).shape == (1, IDS.shape[1], size)
    outlined = outline(str(path))[0]
    assert vocabulary_size(outlined) == vocabulary_size(found) == size
    assert {n: p.shape for n, p in outlined.named_parameters()} == {n: p.shape for n, p in found.named_parameters()}


@pytest.mark.parametrize("tied", [False, True])
def test_half_of_a_new_vocabulary_is_refused(tied: bool, tmp_path: Path) -> None:
    """The rows of the head would be drawn at random."""
    _, path = resized(tmp_path, ROWS + 11, tied=tied, save_both=False, modules_to_save=["embed_tokens"])
    with pytest.raises(
        GeffectError, match=r"does not have embedding and head of one new size: .*lm_head of no tokens\."
    ):
        load(str(path))
