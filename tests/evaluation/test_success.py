"""Success: every row counts the same, whatever its length and whatever batch it comes in."""

import math
import subprocess
import sys
from dataclasses import astuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from geffect.core.forward import IGNORE_INDEX
from geffect.data.encode import EncodedExample, encode_set, pad_id_of
from geffect.data.load import load_set
from geffect.errors import GeffectError
from geffect.evaluation.success import harmonic_success, success
from geffect.models.builtin import make_tiny, make_tokenizer
from geffect.models.scoring import compute_likelihood

PERCENT = st.floats(0.01, 100) | st.just(0.0)


class Certain(nn.Module):
    """Knows what follows each token of what it was given, but for a token it does not know."""

    def __init__(self, vocabulary: int, unknown: int = -1, instead: int = 0) -> None:
        super().__init__()
        self.sure = nn.Parameter(torch.tensor(30.0))
        self.vocabulary, self.unknown, self.instead = vocabulary, unknown, instead

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        following = input_ids.roll(-1, 1)
        said = torch.where(following == self.unknown, self.instead, following)
        return SimpleNamespace(logits=self.sure * nn.functional.one_hot(said, self.vocabulary))


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    """A model in float64 that has learnt a little: neither all right nor all wrong."""
    model, tokenizer = make_tiny(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2
    )
    model.double()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(15):
        for row in encoded(tokenizer):
            ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
            model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, tokenizer


def encoded(tokenizer: Any) -> list[EncodedExample]:
    """Rows of quite different lengths: every other answer is cut."""
    rows = encode_set(tokenizer, load_set("builtin:authors/forget[:9]"))
    return [EncodedExample(row.index, cut(row.input_ids, row), cut(row.labels, row)) for row in rows]


def cut(ids: list[int], row: EncodedExample) -> list[int]:
    start = next(i for i, label in enumerate(row.labels) if label != IGNORE_INDEX)
    return ids if row.index % 2 else ids[: start + 1 + row.index // 2]


def longest_common(a: list[str], b: list[str]) -> int:
    """The length of the longest common subsequence, by definition."""
    if not a or not b:
        return 0
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def oracle(model: Any, tokenizer: Any, rows: list[EncodedExample]) -> tuple[float, float, float, int]:
    """One row and one token at a time, without padding."""
    from rouge_score.tokenizers import DefaultTokenizer

    words = DefaultTokenizer(use_stemmer=True)
    accuracies, losses, rouges = [], [], []
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0].double()
        places = [t for t in range(1, len(row.labels)) if row.labels[t] != IGNORE_INDEX]
        said = [int(logits[t - 1].argmax()) for t in places]
        true = [row.labels[t] for t in places]
        accuracies.append(sum(x == y for x, y in zip(said, true, strict=True)) / len(true))
        losses.append(-sum(float(logits[t - 1].log_softmax(0)[row.labels[t]]) for t in places) / len(places))
        specials = {tokenizer.eos_token_id, tokenizer.pad_token_id}
        a, b = (words.tokenize(tokenizer.decode([i for i in ids if i not in specials])) for ids in (said, true))
        common = longest_common(a, b)
        rouges.append(2 * common / (len(a) + len(b)) if common else 0.0)
    n = len(rows)
    return 100 * sum(accuracies) / n, math.exp(sum(losses) / n), 100 * sum(rouges) / n, n


@pytest.mark.parametrize("batch_size", [1, 2, 4, 16])
def test_scores_are_the_oracles_in_batches_of_any_size(tiny: tuple[Any, Any], batch_size: int) -> None:
    model, tokenizer = tiny
    rows = encoded(tokenizer)
    expected = oracle(model, tokenizer, rows)
    assert astuple(success(model, tokenizer, rows, batch_size)) == pytest.approx(expected, rel=1e-9)
    assert all(0.5 < share < 99.5 for share in (expected[0], expected[2]))


def test_a_row_counts_the_same_however_long_it_is() -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer("A red house stands on the hill")["input_ids"]
    rows = [EncodedExample(i, ids[:n], [IGNORE_INDEX, *ids[1:n]]) for i, n in enumerate((2, len(ids)))]
    model = Certain(len(tokenizer), unknown=ids[1])
    nn.init.constant_(model.sure, 2.0)
    right, wrong = (1 / 2 * (0 + 1 - 1 / (len(ids) - 1)), 1 / len(ids))
    by_row, pooled = success(model, tokenizer, rows), compute_likelihood(model, rows, pad_id_of(tokenizer))
    assert (by_row.accuracy, pooled.accuracy) == pytest.approx((100 * right, 1 - 2 * wrong))
    nll = [compute_likelihood(model, [row], 0).loss for row in rows]
    assert by_row.perplexity == pytest.approx(math.exp(sum(nll) / 2))
    assert by_row.perplexity > 1.5 * math.exp(pooled.loss)


def test_the_model_keeps_its_mode_and_gets_no_gradient(tiny: tuple[Any, Any]) -> None:
    model, tokenizer = tiny
    model.train()
    model.zero_grad(set_to_none=True)
    success(model, tokenizer, encoded(tokenizer))
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_who_knows_all_is_right_throughout() -> None:
    tokenizer = make_tokenizer()
    known = success(Certain(len(tokenizer)), tokenizer, encoded(tokenizer))
    assert (known.accuracy, known.rouge_l, known.examples) == (100, 100, 9)
    assert known.perplexity == pytest.approx(1, abs=1e-6)


def test_special_tokens_are_no_part_of_the_text_but_are_of_the_accuracy() -> None:
    tokenizer = make_tokenizer()
    rows = encode_set(tokenizer, load_set("builtin:authors/forget[:3]"))
    padding = Certain(len(tokenizer), unknown=tokenizer.eos_token_id, instead=tokenizer.pad_token_id)
    unending = success(padding, tokenizer, rows)
    assert unending.rouge_l == 100
    shares = [sum(label != IGNORE_INDEX for label in row.labels) for row in rows]
    assert unending.accuracy == pytest.approx(100 - sum(100 / n for n in shares) / 3)


def test_each_measure_of_rouge_is_of_what_is_said_against_what_is_true() -> None:
    tokenizer = make_tokenizer()
    ids, more = (tokenizer(text)["input_ids"] for text in ("A red house", " and"))
    (extra,) = more
    row = EncodedExample(0, [*ids, tokenizer.pad_token_id], [IGNORE_INDEX, *ids[1:], tokenizer.pad_token_id])
    talker = Certain(len(tokenizer), unknown=tokenizer.pad_token_id, instead=extra)
    words = len(tokenizer.decode(ids[1:]).split())
    expected = {"recall": 100, "precision": 100 * words / (words + 1), "fmeasure": 200 * words / (2 * words + 1)}
    for measure, score in expected.items():
        assert success(talker, tokenizer, [row], measure=measure).rouge_l == pytest.approx(score)  # type: ignore[arg-type]


def test_a_perplexity_out_of_range_is_infinite() -> None:
    tokenizer = make_tokenizer()
    model = Certain(len(tokenizer), unknown=tokenizer.eos_token_id, instead=0)
    nn.init.constant_(model.sure, 1e30)
    assert success(model, tokenizer, encoded(tokenizer)).perplexity == float("inf")


@pytest.mark.parametrize(
    ("rows", "found"),
    [([], "there are no examples"), ([EncodedExample(7, [3, 4], [3, IGNORE_INDEX])], "example 7 has no labeled token")],
)
def test_nothing_to_score_is_refused_in_one_line(rows: list[EncodedExample], found: str) -> None:
    tokenizer = make_tokenizer()
    line = rf"^Success cannot be computed: {found}\. [^\n]*$"
    with pytest.raises(GeffectError, match=line):
        success(Certain(len(tokenizer)), tokenizer, rows)


@pytest.mark.parametrize(
    ("unlearn", "retention", "published"), [(90.72, 85.34, 87.95), (98.75, 93.87, 96.25), (94.40, 72.79, 82.20)]
)
def test_harmonic_success_is_the_published_tables(unlearn: float, retention: float, published: float) -> None:
    assert round(harmonic_success(unlearn, retention), 2) == published


@given(PERCENT, PERCENT)
def test_harmonic_success_lies_between_and_leans_to_the_smaller(unlearn: float, retention: float) -> None:
    found, least, most = harmonic_success(unlearn, retention), min(unlearn, retention), max(unlearn, retention)
    assert found == harmonic_success(retention, unlearn)
    assert least * (1 - 1e-12) <= found <= min(most, 2 * least) * (1 + 1e-12)


def test_nothing_forgotten_and_nothing_kept_is_no_success() -> None:
    assert harmonic_success(0, 0) == harmonic_success(0, 50) == harmonic_success(50, 0) == 0
    assert harmonic_success(64.5, 64.5) == 64.5


def test_importing_the_metrics_brings_no_scorer() -> None:
    code = "import sys, geffect.evaluation.metrics; assert not {'rouge_score', 'nltk', 'absl'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
