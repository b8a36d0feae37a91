"""The head over labeled positions alone, a chunk of them at a time, beside the logits of every position at once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from geffect.core import head
from geffect.core.forward import IGNORE_INDEX, Outputs, forward, labeled_positions, shift_labels
from geffect.core.gradients import capture_gradients
from geffect.core.head import Head
from geffect.core.model_state import ModelState
from geffect.core.token_effects import token_effects
from geffect.data.encode import EncodedExample, collate
from geffect.evaluation.success import success
from geffect.evaluation.view import token_scores
from geffect.localization.localize import example_losses
from geffect.models.builtin import make_tokenizer
from geffect.models.scoring import Reference, compute_likelihood, compute_reference_nll
from geffect.monitoring.targets import Others, measure_targets
from geffect.training.batches import adversarial_labels
from tests.support.architectures import FAMILIES, make
from tests.support.cases import llama, lora
from tests.support.properties import assert_gradients_close
from tests.support.steps import gradients, make_batches, make_measurement, take_step

LABELED = [(1, 3), (4, 12), (2, 5)]  # first and last labeled token of each example


def make_batch() -> dict[str, Tensor]:
    ids = torch.randint(2, 48, (3, 12), generator=torch.Generator().manual_seed(0))
    labels = torch.full_like(ids, IGNORE_INDEX)
    for i, (first, end) in enumerate(LABELED):
        labels[i, first:end] = ids[i, first:end]
    mask = torch.ones_like(ids)
    mask[0, 9:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def whole_nll(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The oracle ``[B, T]``: cross-entropy in float64 over the logits of every position."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.double()
    labels = shift_labels(batch["labels"])
    return functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of three positions of 48 logits, with a graph and without."""
    monkeypatch.setattr(head, "CHUNK", 3 * 48)
    monkeypatch.setattr(head, "TRAINED", 3 * 48)


@contextmanager
def positions(model: Any) -> Iterator[list[int]]:
    """The number of positions of every call of the head."""
    counts: list[int] = []

    def count(_module: object, inputs: tuple[Tensor, ...]) -> None:
        counts.append(inputs[0].shape[:-1].numel())

    with model.get_output_embeddings().register_forward_pre_hook(count):
        yield counts


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_have_the_nll_and_gradient_of_the_whole(family: str, tied: bool, few: None) -> None:
    model, batch = make(family, tied=tied), make_batch()
    losses: dict[str, Callable[[], Tensor]] = {
        "chunks": lambda: forward(model, batch).nll.square().sum(),
        "whole": lambda: whole_nll(model, batch).square().sum(),
    }
    with torch.no_grad():
        outputs = forward(model, batch)
        assert torch.allclose(outputs.nll.double(), whole_nll(model, batch), rtol=1e-5, atol=1e-6)
    gradients = capture_gradients(model, losses)
    for name, gradient in gradients["whole"].items():
        assert (gradients["chunks"][name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name


def test_the_head_of_every_family_runs_apart(few: None) -> None:
    whole = {name for name in FAMILIES if not isinstance(forward(make(name, tied=False), make_batch()).head, Head)}
    assert not whole


def test_no_call_of_the_head_takes_more_than_a_chunk(few: None) -> None:
    model, batch = llama(), make_batch()
    with positions(model) as counts:
        outputs = forward(model, batch)
        assert counts == [1]
        outputs.nll.sum().backward()
    assert max(counts) == 3
    labeled = sum(end - first for first, end in LABELED)
    assert sum(counts) == 1 + 2 * labeled  # once for the value, once for the gradient


@torch.no_grad()
def test_an_evaluation_reads_every_chunk_once(few: None) -> None:
    """Losses and most likely tokens, also where another labeling has positions of its own."""
    model, batch = llama(), make_batch()
    other = torch.where(batch["labels"] == IGNORE_INDEX, 1, IGNORE_INDEX)
    with positions(model) as counts:
        outputs = forward(model, batch | {"other_labels": other})
        found = outputs.nll, outputs.right
    assert sum(counts) == 1 + len(outputs.index)
    assert len(outputs.index) > sum(end - first for first, end in LABELED)
    whole = forward(model, batch)
    assert torch.equal(found[0], whole.nll_of(batch["labels"]))
    assert torch.equal(
        found[1], outputs.spread(outputs.logits.argmax(-1) == shifted(batch)[outputs.index]) & outputs.mask
    )


def shifted(batch: dict[str, Tensor]) -> Tensor:
    """``[B·T]`` the label that each position predicts."""
    return torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE_INDEX).flatten()


def test_two_losses_over_one_pass(few: None) -> None:
    """As NPO has: the objective and the loss are back-propagated one after the other."""
    model, batch = llama().double(), make_batch()
    outputs = forward(model, batch)
    assert isinstance(outputs.head, Head)
    weights = torch.tensor([0.5, 2.0, -1.0])
    expected = [(whole_nll(model, batch).sum(1) * each).sum() for each in (weights, torch.ones(3))]
    for i, each in enumerate((weights, torch.ones(3))):
        found, oracle = (
            torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
            for loss in ((outputs.sequence_nll * each).sum(), expected[i])
        )
        assert all(torch.allclose(one, other, atol=1e-10) for one, other in zip(found, oracle, strict=True))


def test_chunks_have_an_adapters_logits_and_hidden_states(few: None) -> None:
    model, batch = lora(), make_batch()
    outputs = forward(model, batch, {"hidden"})
    assert isinstance(outputs.head, Head)
    output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True)
    assert torch.allclose(outputs.logits, output.logits.flatten(0, 1)[outputs.index], atol=1e-6)
    assert all(map(torch.equal, outputs.hidden or (), output.hidden_states))
    assert torch.equal(outputs.likeliest, outputs.logits.argmax(-1))


def test_a_decoder_with_hooks_runs_in_one_piece(few: None) -> None:
    model, batch = llama(), make_batch()
    with model.model.register_forward_hook(lambda *_: None):
        assert isinstance(forward(model, batch).head, Tensor)


def test_the_model_is_as_it_was(few: None) -> None:
    model = llama()
    before = dict(vars(model.model))
    with torch.no_grad():
        _ = forward(model, make_batch()).nll
    assert vars(model.model) == before
    assert not model.model._forward_hooks


def test_small_passes_keep_their_logits() -> None:
    outputs = forward(llama(), make_batch())
    assert isinstance(outputs, Outputs)
    assert isinstance(outputs.head, Tensor)
    assert outputs.head is outputs.logits


ANSWERS = [(3, 8), (2, 4), (5, 6)]  # tokens of each example, and where its answer begins
ENCODED = [
    EncodedExample(i, list(range(2, 2 + length)), [IGNORE_INDEX] * start + list(range(2 + start, 2 + length)))
    for i, (start, length) in enumerate(ANSWERS)
]
LABELED_TOKENS = sum(length - start for start, length in ANSWERS)


def _evaluate(model: Any) -> None:
    compute_likelihood(model, ENCODED, 0)


def _score(model: Any) -> None:
    token_scores(model, ENCODED, 0)


def _success(model: Any) -> None:
    success(model, make_tokenizer(), ENCODED)


def _reference_nll(model: Any) -> None:
    compute_reference_nll(model, ENCODED, 0)


def _reference(model: Any) -> None:
    batch = collate(ENCODED, 0)
    outputs = Outputs(torch.zeros(0), batch["labels"], labeled_positions(batch["labels"]))
    Reference(model)(batch, outputs, frozenset({"ref_logits"}))


def _adversarial(model: Any) -> None:
    adversarial_labels(model, ENCODED, 0)


def _targets(model: Any) -> None:
    parameters = dict(model.named_parameters())
    none = Others((), lambda _: {})
    measure_targets(model, parameters, {"forget": [collate(ENCODED, 0)]}, None, ModelState(model), none)


def _token_effects(model: Any) -> None:
    batch = collate(ENCODED, 0)
    token_effects(model, batch, {name: torch.ones_like(p) for name, p in model.named_parameters()})


def _localization(model: Any) -> None:
    for loss in example_losses(model, make_tokenizer(), ENCODED):
        loss()


@pytest.mark.parametrize("text", ["undial + gd", "pdu + dual(gd, start=1)", "ceu + gd", "flat + dual(kl, start=1)"])
def test_chunks_have_an_objectives_gradient_of_the_whole(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, reference = llama(), llama()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.mul_(1.1)
    batches, found = make_batches(model), []
    for size in (head.CHUNK, 3 * 48):
        monkeypatch.setattr(head, "CHUNK", size)
        monkeypatch.setattr(head, "TRAINED", size)
        take_step(make_measurement(model, text, reference=reference), [batches])
        found.append(gradients(model))
    assert_gradients_close(found[1], found[0], 1e-5)


@pytest.mark.parametrize(
    "run",
    [_evaluate, _score, _success, _reference_nll, _reference, _adversarial, _targets, _token_effects, _localization],
)
def test_only_labeled_positions_reach_the_head(run: Callable[[Any], None]) -> None:
    model = llama()
    with positions(model) as counts:
        run(model)
    assert sum(counts) == LABELED_TOKENS


@pytest.mark.parametrize(
    ("objective", "sets"),
    [
        ("ga + gd", ("forget", "retain")),
        ("npo + gd", ("forget", "retain")),
        ("dpo + kl", ("forget", "alternative", "retain")),
        ("rmu(layer=1) + gd(on=general)", ("forget", "general", "retain")),
    ],
)
def test_only_labeled_positions_of_a_training_step_reach_the_head(objective: str, sets: tuple[str, ...]) -> None:
    model, reference = llama(), llama()
    batches = make_batches(model)
    labeled = {name: int((batches[name]["labels"][:, 1:] != IGNORE_INDEX).sum()) for name in batches}
    with positions(model) as counts, positions(reference) as others:
        take_step(make_measurement(model, objective, "gru", reference=reference), [batches])
    assert sum(counts) == sum(labeled[name] for name in sets)
    assert sum(others) == ("kl" in objective) * labeled["retain"]


def test_the_published_divergence_takes_every_position() -> None:
    model, reference = llama(), llama()
    batches = make_batches(model)
    with positions(model) as counts:
        take_step(make_measurement(model, "ga + kl(variant=tofu)", reference=reference), [batches])
    assert max(counts) == batches["retain"]["labels"].numel()
