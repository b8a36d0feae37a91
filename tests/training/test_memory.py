"""Memory estimates: against what autograd really holds, part by part, and what is done with them."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import geffect
from geffect import api
from geffect.config import EvaluateConfig, FinetuneConfig, InspectConfig, LocalizeConfig, UnlearnConfig
from geffect.core import head
from geffect.core.forward import forward
from geffect.data.encode import collate, encode_set, pad_id_of
from geffect.data.load import load_set
from geffect.errors import GeffectError
from geffect.evaluation.results import estimate_memory
from geffect.evaluation.suites import Part
from geffect.models.builtin import make_tiny
from geffect.models.load import DTYPES
from geffect.objectives.base import Counts, mean_nll
from geffect.record.reader import read_metrics
from geffect.training import fit
from geffect.training.memory import MemoryEstimate, Sizes, activation_bytes, micro_batch

CPU = torch.device("cpu")
SETS: dict[str, Any] = {"forget": "builtin:authors/forget[:4]", "retain": "builtin:authors/retain[:4]"}
TINY = "builtin:tiny-untrained"


def estimate(tmp_path: Path, **changes: Any) -> MemoryEstimate:
    settings: dict[str, Any] = {"model": TINY, "out": tmp_path / "out"} | SETS | changes
    config = UnlearnConfig(**settings)
    return api.prepare(config).memory


def saved_bytes(model: Any, batch: dict[str, Tensor], *, checkpointing: bool) -> int:
    """The slow way: the bytes of all storages that autograd holds for the backward pass, the weights' apart."""
    weights, held = {p.untyped_storage().data_ptr() for p in model.parameters()}, dict[int, int]()

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = mean_nll(forward(model, batch), Counts.of([batch]))
    assert loss.requires_grad
    return sum(held.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [{}, {"num_key_value_heads": 2}, {"intermediate_size": 1024}])
def test_activations_are_what_autograd_holds(shape: dict[str, int], dtype: str) -> None:
    model, tokenizer = make_tiny(0, **shape)
    model = model.to(DTYPES[dtype]).train()
    encoded = encode_set(tokenizer, load_set("builtin:authors/forget[:8]"))
    batch = collate(encoded, pad_id_of(tokenizer))
    number = torch.empty((), dtype=DTYPES[dtype]).element_size()
    tokens, labeled = batch["input_ids"].numel(), int((batch["labels"][:, 1:] != -100).sum())
    logits = labeled * model.config.vocab_size * number
    layers, inner, hidden = 6, model.config.intermediate_size, 128
    moving = tokens * number * 3 * (inner + hidden)  # gradients in motion, which a forward pass does not hold
    expected = activation_bytes(model, tokens, number) - moving + logits
    assert saved_bytes(model, batch, checkpointing=False) == pytest.approx(expected, rel=0.15)
    assert activation_bytes(model, tokens, number, checkpointing=True) < expected / layers * 2


def test_a_micro_batch_is_the_largest_of_its_set() -> None:
    _, tokenizer = make_tiny(0)
    encoded = {name: encode_set(tokenizer, load_set(spec)) for name, spec in SETS.items()}
    for size in (1, 3):
        batches = {name: collate(each, pad_id_of(tokenizer)) for name, each in encoded.items()}
        widest = max(batch["input_ids"].shape[1] for batch in batches.values())
        assert micro_batch(encoded, size)[0] == size * widest


def test_the_parts_are_those_of_the_method(tmp_path: Path) -> None:
    weights = 4 * sum(p.numel() for p in make_tiny(0)[0].parameters())
    ga = estimate(tmp_path)
    assert (ga.weights, ga.gradients, ga.rectifier, ga.reference, ga.kept) == (weights, weights, 0, 0, 0)
    assert 2 * weights < ga.optimizer < 2.5 * weights
    assert ga.total == sum(ga.parts().values())
    assert estimate(tmp_path, objective="npo").gradients == 2 * weights
    rules = {"gru": 1, "gem(memory=3)": 3, "pcgrad": 1, "hamu": 1, "sago": 0}  # ga's forget gradient is the objective's
    assert {text: estimate(tmp_path, rectifier=text).rectifier / weights for text in rules} == rules
    assert estimate(tmp_path, rectifier="hamu", objective="npo").rectifier == 2 * weights
    kl = estimate(tmp_path, objective="ga + kl")
    assert (kl.reference, kl.gradients) == (weights, 2 * weights)  # either side of the objective has a buffer
    undial = estimate(tmp_path, objective="undial")
    assert (undial.reference, undial.gradients, undial.logits) == (weights, 2 * weights, kl.logits)
    assert estimate(tmp_path, objective="ceu(skip=1)").reference == 0
    assert estimate(tmp_path, grad_accum_steps=2).gradients == 2 * weights
    assert estimate(tmp_path, optimizer="sgd").optimizer < 0.5 * weights
    assert estimate(tmp_path, save_gradients=["objective"]).kept == 3 * weights  # a copy, the retain gradient, and θ
    half = estimate(tmp_path, dtype="bfloat16")
    assert (half.weights, half.gradients) == (weights // 2, weights // 2)
    adapter = estimate(tmp_path, lora=2, objective="npo + kl")
    assert adapter.gradients < 0.1 * weights and adapter.reference == 0
    assert estimate(tmp_path, gradient_checkpointing=True).activations < ga.activations / 2
    assert estimate(tmp_path, batch_size=2).activations < ga.activations


def test_logits_are_bounded_where_the_head_is_chunked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen reference, and an objective over every position, hold all of theirs."""
    plain, kl = estimate(tmp_path).logits, estimate(tmp_path, objective="ga + kl").logits
    monkeypatch.setattr(head, "TRAINED", 10_000)
    monkeypatch.setattr(head, "CHUNK", 10_000)
    vocabulary = make_tiny(0)[0].config.vocab_size
    chunk = 10_000 // vocabulary * vocabulary * 4
    assert (estimate(tmp_path).logits, estimate(tmp_path, objective="ga + kl").logits) == (
        2 * chunk,
        2 * chunk + plain // 2,
    )
    assert kl == plain + plain // 2 > 6 * chunk


def test_a_smaller_batch_is_a_remedy_of_an_evaluation_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fit, "available_bytes", lambda device: 10**8)
    with caplog.at_level(logging.WARNING, "geffect"):
        api.evaluate(
            EvaluateConfig(model=TINY, out=tmp_path / "out", metric=["loss"], set=[f"forget={SETS['forget']}"])
        )
    (said,) = [each.getMessage() for each in caplog.records if "GB are free" in each.getMessage()]
    assert "lower --batch-size to 8" in said


def test_what_the_host_holds_is_not_the_device_s(tmp_path: Path) -> None:
    """A prediction keeps two gradients of the loss, the objective's, θ, and one gradient a probe."""
    asked: dict[str, Any] = {"prediction": 2, "objective": "npo"}
    on_device, on_host = (estimate(tmp_path, **asked, keep_on=place) for place in ("device", "cpu"))
    assert (on_host.kept, on_device.host) == (0, 0)
    assert on_host.host == on_device.kept == 6 * on_device.weights
    gpu = torch.device("cuda")
    assert on_host.on(gpu).total < on_device.on(gpu).total - 3 * on_device.weights
    assert on_host.on(CPU) is on_host


def test_an_accelerator_holds_no_process() -> None:
    both = MemoryEstimate(process=5, weights=3, logits=1)
    assert (both.total, both.on(torch.device("cuda")).total) == (9, 4)
    lines = fit.memory_lines(both, CPU)
    assert list(lines) == ["memory", "memory: process", "memory: weights", "memory: logits"]


def test_a_sentence_warns_of_too_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fit, "available_bytes", lambda device: 10**8)
    with caplog.at_level(logging.WARNING, "geffect"):
        api.prepare(UnlearnConfig(model=TINY, out=tmp_path / "out", prediction=2, **SETS))
    (said,) = [each.getMessage() for each in caplog.records if "GB are free" in each.getMessage()]
    assert said.startswith("about 0.6") and "and 0.1 GB are free on cpu: " in said
    assert said.count(" or ") == 1


def test_remedies_that_suffice_come_first(tmp_path: Path) -> None:
    config = UnlearnConfig(model=TINY, out=tmp_path / "out", batch_size=8, **SETS)
    large = MemoryEstimate(weights=10, gradients=10, optimizer=20, activations=100, logits=10)
    assert fit.remedies(config, large, 40) == ["add --gradient-checkpointing", "lower --batch-size to 4"]
    weighty = replace(large, activations=1)
    assert fit.remedies(config, weighty, 20) == ["use --dtype bfloat16", "train an adapter with --lora 8"]
    diagnosed = UnlearnConfig(model=TINY, out=tmp_path / "out", save_gradients=["objective"], **SETS)
    assert fit.remedies(diagnosed, replace(weighty, kept=30), 30)[0] == "leave out --save-gradients"


CASES: dict[str, tuple[Any, Any]] = {
    "unlearn": (UnlearnConfig, SETS),
    "finetune": (FinetuneConfig, {"train": ["builtin:authors/forget[:4]"]}),
    "localize": (LocalizeConfig, {"domain": ["privacy=builtin:domains/privacy[:4]"]}),
    "inspect": (InspectConfig, SETS | {"objective": ["ga"]}),
    "evaluate": (EvaluateConfig, {"metric": ["loss"], "set": ["forget=builtin:authors/forget[:4]"]}),
}


@pytest.mark.parametrize("name", CASES)
def test_more_than_max_memory_is_refused_before_a_model_is_loaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema, settings = CASES[name]
    model = str(api.builtin_tiny(TINY))
    named = {"checkpoints": [model], "start": model} if name == "inspect" else {"model": model}
    config = schema(**settings, **named, out=tmp_path / "out", max_memory=0.01)
    monkeypatch.setattr(api, "load_model", lambda *args, **options: pytest.fail("a model was loaded"))
    with pytest.raises(GeffectError, match=r"^About 0\.\d+ GB of memory are needed, more than --max-memory 0\.01\. "):
        getattr(api, name)(config)
    assert not (tmp_path / "out").exists()


def test_an_evaluation_is_estimated_from_its_longest_examples(tmp_path: Path) -> None:
    config = EvaluateConfig(model=TINY, out=tmp_path / "out", metric=["loss"], set=["forget=builtin:authors/forget"])
    some, all_ = load_set("builtin:authors/forget[:2]"), load_set("builtin:authors/forget")
    part = Part("forget", "builtin:authors/forget", ("loss",))
    scored = estimate_memory(config, [(part, all_)])
    assert estimate_memory(config, [(part, some)]).activations < scored.activations
    assert scored.weights == 4 * sum(p.numel() for p in make_tiny(0)[0].parameters())
    writing = replace(part, metrics=("rouge_l_recall",))
    assert estimate_memory(config, [(writing, all_)]).activations > scored.activations


def test_every_verb_records_its_peak(tmp_path: Path) -> None:
    schema, settings = CASES["evaluate"]
    path = geffect.evaluate(schema(**settings, model=TINY, out=tmp_path / "evaluated")).path
    assert read_metrics(path)["peak_memory_gb"] > 0.1


def test_sizes_of_an_adapter_are_those_of_float32(tmp_path: Path) -> None:
    from geffect.models.load import add_lora

    model, _ = make_tiny(0)
    whole = Sizes.of(model, "bfloat16")
    adapted = Sizes.of(add_lora(model, 2, 0), "bfloat16")
    assert adapted.trained == 4 * adapted.entries < whole.trained
    assert adapted.weights == whole.weights + adapted.trained
