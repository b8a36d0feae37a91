"""Models by name: what a name stands for, what is loaded, what an outline tells beforehand, and the cache."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from geffect.errors import GeffectError
from geffect.models.builtin import make_tiny, make_tokenizer
from geffect.models.cache import MANIFEST, cache_home, cached_directory, file_sha256, weights_sha256
from geffect.models.load import DTYPES, Loaded, add_lora, load, outline, quiet_transformers, resolve

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
IDS = torch.tensor([[5, 9, 200, 31, 7]])
TOKENIZER = make_tokenizer()


def save(path: Path, model: Any) -> Path:
    with quiet_transformers():
        model.save_pretrained(path)
    TOKENIZER.save_pretrained(path)
    return path


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A model directory of this test's own."""
    return save(tmp_path / "model", make_tiny(**SHAPE)[0])


@pytest.fixture
def adapter(directory: Path) -> Path:
    """An adapter on it that does something."""
    model = add_lora(load(str(directory)).model, 2, 0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.constant_(parameter, 0.1)
    return save(directory.parent / "adapter", model)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found


def table(model: Any) -> dict[str, tuple[tuple[int, ...], bool]]:
    return {name: (tuple(p.shape), p.requires_grad) for name, p in model.named_parameters()}


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(content), encoding="utf-8")


# names


def test_a_directory_stands_for_itself(directory: Path, adapter: Path) -> None:
    assert resolve(str(directory)) == directory
    assert resolve(str(adapter)) == adapter


@pytest.mark.parametrize("file", ["config.json", "adapter_config.json"])
def test_a_run_stands_for_its_last_whole_checkpoint(file: str, tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-11", "checkpoint-x", ".partial"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / file).touch()
    (tmp_path / "checkpoints" / "checkpoint-12").mkdir()
    assert resolve(str(tmp_path)) == tmp_path / "checkpoints" / "checkpoint-11"


def test_a_fitted_run_stands_for_itself_and_not_for_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "checkpoints" / "checkpoint-2"):
        (folder / "config.json").touch()
    assert resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("spec", ["gpt2", "org/name", "org.x/name-1_b.2"])
def test_a_hub_id_stands_for_itself(spec: str) -> None:
    assert resolve(spec) == spec


def test_a_directory_goes_before_a_hub_id_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "config.json").touch()
    assert resolve("org/name") == (tmp_path / "org" / "name").resolve()


@pytest.mark.parametrize(
    "spec", ["builtin:other", "builtin:tiny", "./absent", "/absent", "~/absent", "a/b/c", "a b", ""]
)
def test_what_names_no_model_is_refused(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(
        GeffectError,
        match=r"^There is no (model '[^\n]* Name one of builtin:tiny, .*, smollm2|config\.json, .* in \. )[^\n]*$",
    ):
        resolve(spec)


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    with pytest.raises(GeffectError, match=r"There is no config\.json, adapter_config\.json or checkpoint in "):
        resolve(str(tmp_path))


def test_a_gguf_file_that_is_absent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GeffectError, match=r"There is no GGUF file at "):
        resolve(f"gguf:{tmp_path / 'absent.gguf'}")


# loading


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("asked", DTYPES)
def test_the_dtype_is_the_one_asked_for_and_the_weights_are_the_files(stored: str, asked: str, tmp_path: Path) -> None:
    model, _ = make_tiny(**SHAPE)
    model.to(DTYPES[stored])
    loaded = load(str(save(tmp_path, model)), asked).model
    for (name, found), expected in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert found.dtype == DTYPES[asked], name
        assert torch.equal(found, expected.to(DTYPES[asked])), name


def test_where_a_model_came_from_is_known(directory: Path) -> None:
    loaded = load(str(directory))
    assert (loaded.source, loaded.sha256) == (str(directory), weights_sha256(directory))
    assert loaded.tokenizer("a b")["input_ids"] == TOKENIZER("a b")["input_ids"]


def test_a_run_is_loaded_from_its_last_checkpoint(tmp_path: Path) -> None:
    models = {step: make_tiny(step, **SHAPE)[0] for step in (9, 10, 11)}
    for step, model in models.items():
        save(tmp_path / "checkpoints" / f"checkpoint-{step}", model)
    assert torch.equal(logits(load(str(tmp_path)).model), logits(models[11]))


def test_an_adapter_alone_is_trainable_and_computes_what_it_did(adapter: Path, directory: Path) -> None:
    loaded = load(str(adapter))
    assert {name for name, p in loaded.model.named_parameters() if p.requires_grad} == {
        name for name, _ in loaded.model.named_parameters() if "lora_" in name
    }
    again = add_lora(load(str(directory)).model, 2, 0)
    for name, parameter in again.named_parameters():
        if "lora_B" in name:
            nn.init.constant_(parameter, 0.1)
    torch.testing.assert_close(logits(loaded.model), logits(again), rtol=0, atol=1e-6)
    assert loaded.sha256 not in {None, weights_sha256(adapter), weights_sha256(directory)}  # of both


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_base_of_an_adapter_has_the_dtype_asked_for(dtype: str, adapter: Path) -> None:
    model = load(str(adapter), dtype).model
    assert {p.dtype for name, p in model.named_parameters() if "lora_" not in name} == {DTYPES[dtype]}


def test_an_unknown_dtype_is_refused(directory: Path) -> None:
    with pytest.raises(GeffectError, match=r"There is no dtype 'int8'. Choose one of float32, bfloat16, float64."):
        load(str(directory), "int8")


def no_weights(path: Path) -> None:
    (path / "model.safetensors").unlink()


def garbled_weights(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"garbage")


def cut_weights(path: Path) -> None:
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:-100])


def more_blocks(path: Path) -> None:
    edit(path / "config.json", num_hidden_layers=3)


def other_shape(path: Path) -> None:
    edit(path / "config.json", intermediate_size=64)


def config_of(text: str) -> Callable[[Path], None]:
    def breaks(path: Path) -> None:
        (path / "config.json").write_text(text, encoding="utf-8")

    return breaks


def garbled_tokenizer(path: Path) -> None:
    (path / "tokenizer.json").write_text("garbage", encoding="utf-8")


def no_tokenizer(path: Path) -> None:
    for file in path.glob("tokenizer*"):
        file.unlink()


def pickled_weights(path: Path) -> None:
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    no_weights(path)


WEIGHTS = (no_weights, garbled_weights, cut_weights, more_blocks, other_shape, pickled_weights)
CONFIGS = {
    "garbage": config_of("garbage"),
    "a list": config_of("[1]"),
    "null": config_of("null"),
    "empty": config_of("{}"),
    "another type": config_of('{"model_type": "nothing-like-it"}'),
    "text for a number": config_of('{"model_type": "llama", "hidden_size": "wide"}'),
    "garbled tokenizer": garbled_tokenizer,
    "no tokenizer": no_tokenizer,
}


@pytest.mark.parametrize("breaks", WEIGHTS)
def test_broken_weights_are_refused_and_none_is_drawn_at_random(
    breaks: Callable[[Path], None], directory: Path
) -> None:
    breaks(directory)
    reasons = r"model at .* cannot be read: |config.json of .* describes|model in .* lacks the weights "
    with pytest.raises(GeffectError, match=rf"^(The ({reasons})|[\w.]+ in .* has shape )[^\n]*$"):
        load(str(directory))


@pytest.mark.parametrize("reader", [load, outline])
@pytest.mark.parametrize("broken", CONFIGS)
def test_a_broken_directory_is_refused_in_one_line(
    broken: str, reader: Callable[[str], Loaded | tuple[Any, Any]], directory: Path
) -> None:
    CONFIGS[broken](directory)
    with pytest.raises(GeffectError, match=r"^The model at [^\n]* cannot be read: [^\n]*$"):
        reader(str(directory))


@pytest.mark.parametrize("reader", [load, outline])
@pytest.mark.parametrize(
    "text",
    [
        "garbage",
        "[]",
        "{}",
        '{"base_model_name_or_path": null}',
        '{"base_model_name_or_path": "./absent", "peft_type": "LORA"}',
    ],
)
def test_an_adapter_without_a_base_is_refused_in_one_line(
    text: str, reader: Callable[[str], Loaded | tuple[Any, Any]], tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(
        GeffectError, match=r"^(The model at .* cannot be read: |.* has no base_model_name|There is no model )[^\n]*$"
    ):
        reader(str(tmp_path))


def test_a_pickled_adapter_is_refused(adapter: Path) -> None:
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(GeffectError, match=r"There is no adapter_model.safetensors in "):
        load(str(adapter))


@pytest.mark.parametrize("reader", [load, outline])
@pytest.mark.parametrize("content", [b"", b"garbage", b"GGUF"])
def test_a_broken_gguf_file_is_refused_and_leaves_no_cache(
    content: bytes, reader: Callable[[str], Loaded | tuple[Any, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEFFECT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(GeffectError, match=r"^(The model at .* cannot be read: |The package gguf)[^\n]*$"):
        reader(f"gguf:{tmp_path / 'model.gguf'}")
    assert not [path for path in tmp_path.glob("cache/*")]


# outlines


@pytest.mark.parametrize("tied", [False, True])
def test_an_outline_has_the_models_parameters_and_none_of_its_memory(tied: bool, tmp_path: Path) -> None:
    save(tmp_path, make_tiny(tie_word_embeddings=tied, **SHAPE)[0])
    expected = table(load(str(tmp_path)).model)
    no_weights(tmp_path)
    model, tokenizer = outline(str(tmp_path))
    assert table(model) == expected
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert len(tokenizer) == len(TOKENIZER)


def test_an_adapters_outline_is_that_of_what_is_loaded(adapter: Path) -> None:
    model, _ = outline(str(adapter))
    assert table(model) == table(load(str(adapter)).model)
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_a_fresh_adapter_can_be_outlined(directory: Path) -> None:
    assert table(add_lora(outline(str(directory))[0], 3, 0)) == table(add_lora(load(str(directory)).model, 3, 0))


def test_the_built_in_model_is_outlined_without_being_fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEFFECT_CACHE", str(tmp_path))
    model, _ = outline("builtin:tiny")
    assert 1.5e6 < sum(p.numel() for p in model.parameters()) < 2e6
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert not list(tmp_path.iterdir())


# LoRA


def test_a_fresh_adapter_starts_as_its_base(directory: Path) -> None:
    base = logits(load(str(directory)).model)
    assert torch.equal(logits(add_lora(load(str(directory)).model, 4, 0)), base)


def test_a_fresh_adapter_is_on_every_linear_layer_but_the_head_and_alone_trainable() -> None:
    model, _ = make_tiny(**SHAPE)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)} - {"lm_head"}
    names = {name for name, p in add_lora(model, 4, 0).named_parameters() if p.requires_grad}
    assert names == {f"base_model.model.{name}.lora_{side}.default.weight" for name in linear for side in "AB"}


def test_a_fresh_adapter_depends_on_its_seed_alone() -> None:
    def drawn(seed: int, state: int) -> Tensor:
        torch.manual_seed(state)
        model = add_lora(make_tiny(**SHAPE)[0], 2, seed)
        return torch.cat([p.detach().flatten() for name, p in model.named_parameters() if "lora_A" in name])

    assert torch.equal(drawn(0, 1), drawn(0, 2))
    assert not torch.equal(drawn(0, 1), drawn(1, 1))


def test_drawing_weights_leaves_the_global_random_state() -> None:
    torch.manual_seed(1234)
    before = torch.get_rng_state()
    model, _ = make_tiny(**SHAPE)
    assert torch.equal(torch.get_rng_state(), before)
    add_lora(model, 2, 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_adapter_on_an_adapter_is_refused(adapter: Path) -> None:
    with pytest.raises(GeffectError, match="--lora cannot be used: the model has an adapter"):
        add_lora(load(str(adapter)).model, 2, 0)


# the built-in model


def test_a_tiny_model_depends_on_its_seed_alone() -> None:
    first, again, other = (make_tiny(seed, **SHAPE)[0] for seed in (0, 0, 1))
    assert torch.equal(logits(first), logits(again))
    assert not torch.equal(logits(first), logits(other))


def test_a_tiny_model_knows_its_tokenizer() -> None:
    model, tokenizer = make_tiny(**SHAPE)
    assert model.config.vocab_size == len(tokenizer) == model.get_input_embeddings().weight.shape[0]
    ends = (model.config.eos_token_id, model.config.pad_token_id)
    assert ends == (tokenizer.eos_token_id, tokenizer.pad_token_id)


@settings(deadline=None)
@given(st.text().filter(lambda text: "<|" not in text))
def test_any_text_can_be_written_with_the_tiny_tokenizer(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


def test_the_tiny_tokenizer_is_the_same_each_time() -> None:
    assert make_tokenizer().get_vocab() == TOKENIZER.get_vocab()


# the host's settings


def test_being_quiet_ends_with_the_block() -> None:
    from transformers.utils import logging

    logging.enable_progress_bar()
    logging.set_verbosity_info()
    try:
        with pytest.raises(KeyError), quiet_transformers():
            assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.ERROR, False)
            raise KeyError
        assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (logging.INFO, True)
    finally:
        logging.set_verbosity_warning()


# the cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("GEFFECT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fill(directory: Path) -> None:
    (directory / "file").write_text("made")


def test_a_directory_is_made_once_a_key(cache: Path) -> None:
    made: list[Path] = []

    def make(directory: Path) -> None:
        made.append(directory)
        fill(directory)

    first, again, other = (cached_directory("thing", key, make) for key in ("a", "a", "b"))
    assert first == again != other
    assert len(made) == 2
    assert [(path / "file").read_text() for path in (first, other)] == ["made", "made"]
    assert sorted(cache.iterdir()) == sorted([first, other])


def test_what_fails_or_is_interrupted_leaves_nothing(cache: Path) -> None:
    def make(directory: Path) -> None:
        fill(directory)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_directory("thing", "a", make)
    assert list(cache.iterdir()) == []


def test_a_directory_is_complete_when_it_gets_its_name(cache: Path) -> None:
    def make(directory: Path) -> None:
        assert not list(cache.glob("thing-*"))
        fill(directory)
        assert not list(cache.glob("thing-*"))

    assert sorted(path.name for path in cached_directory("thing", "a", make).iterdir()) == [MANIFEST, "file"]


def test_whoever_is_first_wins(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a file system whose locks do not reach the other machine."""
    monkeypatch.setattr("geffect.models.cache._lock", lambda path: contextlib.nullcontext())
    monkeypatch.setattr("geffect.models.cache._remove_leftovers", lambda path: None)

    def make(directory: Path) -> None:
        assert cached_directory("thing", "a", fill) != directory
        (directory / "late").touch()

    path = cached_directory("thing", "a", make)
    assert sorted(each.name for each in path.iterdir()) == [MANIFEST, "file"]
    assert list(cache.iterdir()) == [path]


@pytest.mark.parametrize("harm", ["cut", "gone", "more", "manifest", "no manifest", "a file", "same size"])
def test_a_damaged_entry_is_made_again(cache: Path, harm: str) -> None:
    path = cached_directory("thing", "a", fill)
    if harm == "cut":
        (path / "file").write_text("ma")
    elif harm == "same size":
        (path / "file").write_text("fade")
    elif harm == "gone":
        (path / "file").unlink()
    elif harm == "more":
        (path / "late").touch()
    elif harm == "a file":
        shutil.rmtree(path)
        path.touch()
    else:
        (path / MANIFEST).write_text("[") if harm == "manifest" else (path / MANIFEST).unlink()
    assert cached_directory("thing", "a", fill) == path
    assert {each.name: each.read_text() for each in path.iterdir() if each.name != MANIFEST} == {"file": "made"}
    assert list(cache.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed_and_what_is_being_made_is_not(cache: Path) -> None:
    """Both processes would have the same number in two containers: a lock tells who is alive."""
    held, left = threading.Event(), threading.Event()

    def make_slowly(directory: Path) -> None:
        fill(directory)
        held.set()
        assert left.wait(30)

    path = cache / f"thing-{hashlib.sha256(b'a').hexdigest()[:16]}"
    (cache / f".{path.name}.1").mkdir(parents=True)
    (cache / f".{path.name}.1" / "half").touch()
    with ThreadPoolExecutor() as others:
        first = others.submit(cached_directory, "thing", "a", make_slowly)
        assert held.wait(30)
        second = others.submit(
            cached_directory, "thing", "a", lambda directory: pytest.fail(f"{directory} was made twice")
        )
        with pytest.raises(TimeoutError):
            second.result(timeout=0.2)  # it waits, and removes nothing
        assert len(list(cache.glob(".thing-*/file"))) == 1
        left.set()
        assert first.result(30) == second.result(30) == path
    assert list(cache.iterdir()) == [path]


def test_a_cache_without_room_or_leave_is_told(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(directory: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(GeffectError, match=r"cache directory .*cache cannot be written to: .*No space left"):
        cached_directory("thing", "a", full)
    assert list(cache.iterdir()) == []
    (tmp_path / "file").touch()
    monkeypatch.setenv("GEFFECT_CACHE", str(tmp_path / "file"))
    with pytest.raises(GeffectError, match="or set GEFFECT_CACHE to another one"):
        cached_directory("thing", "a", fill)


def test_what_lies_in_a_read_only_cache_is_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = cached_directory("thing", "a", fill)

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("mkdir", "touch", "unlink", "rename"):
        monkeypatch.setattr(Path, name, read_only)
    monkeypatch.setattr("tempfile.mkdtemp", read_only)
    assert cached_directory("thing", "a", fill) == path
    with pytest.raises(GeffectError, match=r"cannot be written to: .*Read-only file system. Free disk space, make"):
        cached_directory("thing", "b", fill)


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.name", "posix")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("GEFFECT_CACHE", str(tmp_path / "own"))
    assert cache_home() == tmp_path / "own"
    monkeypatch.delenv("GEFFECT_CACHE")
    assert cache_home() == tmp_path / "xdg" / "geffect"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_home() == Path.home() / ".cache" / "geffect"


def test_the_hash_of_weights_is_of_the_weights_alone(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_text(name)
    before = weights_sha256(tmp_path)
    (tmp_path / "config.json").touch()
    assert weights_sha256(tmp_path) == before
    (tmp_path / "b.safetensors").write_text("b")
    assert weights_sha256(tmp_path) != before
    assert file_sha256(tmp_path / "b.safetensors") == hashlib.sha256(b"b").hexdigest()
