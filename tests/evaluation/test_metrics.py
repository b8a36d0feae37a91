"""Metrics of a row: hand-computed examples, slow and independent implementations, edges."""

import math
import string
import zlib
from collections.abc import Iterator, Sequence
from copy import deepcopy
from decimal import Decimal
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import GenerationConfig

from geffect.data.encode import encode_set, pad_id_of
from geffect.data.load import ExampleSet, QASet, load_set
from geffect.errors import GeffectError
from geffect.evaluation import scores, view
from geffect.evaluation.metrics import METRICS
from geffect.evaluation.results import geometric_interval, mean_interval
from geffect.evaluation.scores import (
    answer_probability,
    exact_memorization,
    exponential,
    extraction_strength,
    forget_quality,
    forget_truth,
    log_truth_ratio,
    model_utility,
    retain_truth,
)
from geffect.evaluation.success import Measure, rouge_l, words
from geffect.evaluation.variants import calibrate, mixed, rounded
from geffect.evaluation.view import TokenScores, View, end_ids, generate, prompt_of, token_scores
from geffect.models.load import Loaded, add_lora, load
from geffect.models.scoring import batches_by_length

LONG = "geffect's own rows are of several lengths, so that batches are padded"


@pytest.fixture(scope="module")
def loaded(known: Path) -> Loaded:
    return load(str(known))


@pytest.fixture(scope="module")
def rows() -> ExampleSet:
    return load_set("builtin:authors/forget[:14]")


def view_of(loaded: Loaded, rows: ExampleSet, batch_size: int = 16) -> View:
    return View(loaded.model, loaded.tokenizer, rows, partial(encode_set, loaded.tokenizer), batch_size, 24)


def tokens(log_p: Sequence[float], right: Sequence[bool] = (), mean: float = 0.0, std: float = 1.0) -> TokenScores:
    n = len(log_p)
    return TokenScores(
        torch.tensor(log_p, dtype=torch.float64),
        torch.tensor(list(right) or [True] * n),
        torch.full((n,), mean).double(),
        torch.full((n,), std).double(),
    )


def test_tokens_are_scored_as_one_by_one(loaded: Loaded, rows: ExampleSet) -> None:
    encoded = encode_set(loaded.tokenizer, rows)
    model = loaded.model.double()
    try:
        for row, scores in zip(encoded, token_scores(model, encoded, pad_id_of(loaded.tokenizer), 5), strict=True):
            logits = model(torch.tensor([row.input_ids])).logits[0].detach()
            places = [i for i, label in enumerate(row.labels) if label != -100]
            assert len(scores.log_p) == len(places)
            for at, place in enumerate(places):
                p = [math.exp(x - float(logits[place - 1].max())) for x in logits[place - 1].tolist()]
                p = [each / math.fsum(p) for each in p]
                mean = math.fsum(each * math.log(each) for each in p)
                second = math.fsum(each * math.log(each) ** 2 for each in p)
                assert float(scores.log_p[at]) == pytest.approx(math.log(p[row.labels[place]]), abs=1e-10)
                assert bool(scores.right[at]) == (max(range(len(p)), key=p.__getitem__) == row.labels[place])
                assert float(scores.mean[at]) == pytest.approx(mean, abs=1e-10)
                assert float(scores.std[at]) == pytest.approx(math.sqrt(second - mean**2), abs=1e-8)
    finally:
        model.float()


def test_a_certain_model_has_no_spread() -> None:
    from geffect.evaluation.view import _statistics

    scores = TokenScores.of(_statistics(torch.tensor([[0.0, -torch.inf, -torch.inf]]), torch.tensor([0])))
    assert (scores.log_p.item(), scores.mean.item(), scores.std.item()) == (0, 0, 0)


@pytest.mark.parametrize("name", [name for name in METRICS if name not in ("choice_accuracy", "uds")])
def test_batches_change_nothing(name: str, loaded: Loaded, rows: ExampleSet) -> None:
    one, many = (METRICS[name](view_of(loaded, rows, size)) for size in (1, 16))
    assert len(one) == len(rows)
    assert many == pytest.approx(one, rel=1e-5, abs=1e-5, nan_ok=True)


def test_answers_by_hand() -> None:
    answer = tokens([math.log(0.5), math.log(0.125), 0.0], [True, False, True])
    assert answer_probability(answer) == pytest.approx(0.0625 ** (1 / 3))
    assert exact_memorization(answer) == 0.5


@pytest.mark.parametrize(
    ("right", "strength", "floored", "memorized"),
    [
        ([1, 1, 1, 1, 0], 1, 1, 1),
        ([0, 0, 0, 0, 1], 0, 1 / 4, 0),
        ([0, 0, 0, 1, 1], 1 / 4, 1 / 4, 1 / 4),
        ([0, 1, 1, 1, 1], 3 / 4, 3 / 4, 3 / 4),
        ([1, 1, 0, 1, 0], 1 / 4, 1 / 4, 3 / 4),
        ([1, 0], 1, 1, 1),
        ([0, 1], 0, 1, 0),
        ([1], math.nan, 0, math.nan),
        ([], math.nan, 0, math.nan),
    ],
)
def test_what_an_answer_gives_away(right: list[int], strength: float, floored: float, memorized: float) -> None:
    answer = tokens([-1.0] * len(right), [bool(each) for each in right])
    assert extraction_strength(answer) == pytest.approx(strength, nan_ok=True)
    assert extraction_strength(answer, floor=True) == pytest.approx(floored)
    assert exact_memorization(answer) == pytest.approx(memorized, nan_ok=True)


@given(right=st.lists(st.booleans(), min_size=2, max_size=12))
def test_extraction_strength_is_its_definition(right: list[bool]) -> None:
    n = len(right) - 1
    k = min(k for k in range(n + 1) if all(right[k:n]))
    assert extraction_strength(tokens([-1.0] * len(right), right)) == 1 - k / n


def test_extraction_by_generation_is_that_by_teacher_forcing(loaded: Loaded, rows: ExampleSet) -> None:
    """Greedy decoding from a true prefix writes the rest where each next token is the likeliest one."""
    forced, generated = (METRICS[f"extraction_strength{kind}"](view_of(loaded, rows)) for kind in ("", "_generated"))
    assert generated == forced
    assert len(set(forced)) > 2


def test_greedy_text_is_that_of_a_loop_and_of_any_batch(loaded: Loaded, rows: ExampleSet) -> None:
    prompts = [prompt_of(row) for row in encode_set(loaded.tokenizer, rows)]
    prompts.append(prompts[0][:1])
    together = generate(loaded.model, loaded.tokenizer, prompts, 24)
    assert all(together == generate(loaded.model, loaded.tokenizer, prompts, 24, batch_size=n) for n in (1, 3, 16))
    assert together == [_greedy(loaded, prompt, 24) for prompt in prompts]
    assert len({len(each) for each in together}) > 1


def test_the_memory_for_keys_and_values_bounds_a_batch(
    loaded: Loaded, rows: ExampleSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [prompt_of(row) for row in encode_set(loaded.tokenizer, rows)]
    shape = loaded.model.config
    token = 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * 4
    longest, sizes = max(map(len, prompts)) + 24, list[int]()

    def count(_module: object, _inputs: object, inputs: dict[str, Any]) -> None:
        sizes.append(len(inputs["input_ids"]))

    together = generate(loaded.model, loaded.tokenizer, prompts, 24)
    monkeypatch.setattr(view, "CACHE", 3 * longest * token)
    assert view.cache_tokens(loaded.model) == 3 * longest
    with loaded.model.register_forward_pre_hook(count, with_kwargs=True):
        assert generate(loaded.model, loaded.tokenizer, prompts, 24) == together
    assert max(sizes) == 3


@given(
    lengths=st.lists(st.integers(1, 30), max_size=20),
    batch_size=st.integers(1, 6),
    tokens=st.integers(1, 90),
    further=st.integers(0, 9),
)
def test_batches_hold_what_they_may(lengths: list[int], batch_size: int, tokens: int, further: int) -> None:
    batches = list(batches_by_length(lengths, batch_size, tokens, further))
    assert [i for batch in batches for i in batch] == sorted(range(len(lengths)), key=lengths.__getitem__)
    sizes = [len(batch) * (max(lengths[i] for i in batch) + further) for batch in batches]
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert all(size <= tokens or len(batch) == 1 for size, batch in zip(sizes, batches, strict=True))


def _greedy(loaded: Loaded, prompt: list[int], most: int) -> list[int]:
    said: list[int] = []
    while len(said) < most:
        with torch.no_grad():
            token = int(loaded.model(torch.tensor([prompt + said])).logits[0, -1].argmax())
        if token == loaded.tokenizer.eos_token_id:
            break
        said.append(token)
    return said


def test_an_answer_that_ends_at_once_is_empty(loaded: Loaded) -> None:
    prompt = prompt_of(encode_set(loaded.tokenizer, load_set("builtin:authors/forget[:1]"))[0])
    first = generate(loaded.model, loaded.tokenizer, [prompt], 1)[0][0]
    end = loaded.tokenizer.eos_token
    loaded.tokenizer.eos_token = loaded.tokenizer.convert_ids_to_tokens(first)
    try:
        assert generate(loaded.model, loaded.tokenizer, [prompt], 8) == [[]]
    finally:
        loaded.tokenizer.eos_token = end


@pytest.fixture
def two_ends(loaded: Loaded) -> Iterator[tuple[Any, int, list[int]]]:
    """A model that knows nothing of its tokenizer's end, the token it says third, and what it says before."""
    model, tokenizer = deepcopy(loaded.model), loaded.tokenizer
    prompt = prompt_of(encode_set(tokenizer, load_set("builtin:authors/forget[:1]"))[0])
    said = _greedy(loaded, prompt, 8)
    end = next(i for i, token in enumerate(said) if i >= 2 and token not in said[:i])
    yield model, said[end], prompt
    assert generate(model, tokenizer, [prompt], 8) == [said[:end]]
    assert generate(model, tokenizer, [prompt, prompt[:1], prompt], 8)[::2] == [said[:end]] * 2


ENDS: dict[str, Any] = {"one": lambda end: end, "a list": lambda end: [1_000, end], "one of one": lambda end: [end]}


@pytest.mark.parametrize("form", ENDS)
@pytest.mark.parametrize("place", ["generation_config", "config"])
def test_an_answer_ends_with_any_end_the_model_names(
    place: str, form: str, two_ends: tuple[Any, int, list[int]]
) -> None:
    model, end, _ = two_ends
    getattr(model, place).eos_token_id = ENDS[form](end)


def test_an_adapters_answer_ends_with_its_bases_ends(two_ends: tuple[Any, int, list[int]], loaded: Loaded) -> None:
    model, end, prompt = two_ends
    model.generation_config.eos_token_id = [1_000, end]
    adapter = add_lora(deepcopy(model), rank=2, seed=0)
    assert generate(adapter, loaded.tokenizer, [prompt], 8) == generate(model, loaded.tokenizer, [prompt], 8)


def test_an_answer_ends_where_the_template_ends_the_turn(two_ends: tuple[Any, int, list[int]], loaded: Loaded) -> None:
    _, end, prompt = two_ends
    tokenizer = deepcopy(loaded.tokenizer)
    tokenizer.add_tokens([tokenizer.convert_ids_to_tokens(end)], special_tokens=True)
    tokenizer.chat_template = "{{ messages[0].content }}{{ messages[1].content }}" + tokenizer.decode([end])
    model = deepcopy(loaded.model)
    found = generate(model, tokenizer, [prompt], 8)
    assert end_ids(model, tokenizer) == {end, tokenizer.eos_token_id}
    two_ends[0].config.eos_token_id = end
    assert found == generate(two_ends[0], loaded.tokenizer, [prompt], 8)


def test_text_is_greedy_whatever_the_models_own_settings(loaded: Loaded, rows: ExampleSet) -> None:
    model = deepcopy(loaded.model)
    prompts = [prompt_of(row) for row in encode_set(loaded.tokenizer, rows)][:4]
    own = GenerationConfig(
        repetition_penalty=9.0,
        no_repeat_ngram_size=1,
        min_new_tokens=20,
        do_sample=True,
        top_k=3,
        temperature=4.0,
        suppress_tokens=list(range(50)),
        num_beams=2,
    )
    settings_before = vars(own).copy()
    model.generation_config = own
    assert generate(model, loaded.tokenizer, prompts, 24) == [_greedy(loaded, prompt, 24) for prompt in prompts]
    assert model.generation_config is own
    assert vars(own) == settings_before


def _lcs(a: list[str], b: list[str]) -> int:
    return max(map(len, _common(a, b)))


def _common(a: list[str], b: list[str]) -> Any:
    """Every subsequence of a that is one of b."""
    for chosen in product([False, True], repeat=len(a)):
        words = [word for word, kept in zip(a, chosen, strict=True) if kept]
        rest = iter(b)
        if all(word in rest for word in words):
            yield words


@given(*[st.lists(st.sampled_from(["red", "blue", "ox", "tin"]), min_size=1, max_size=6)] * 2)
@settings(deadline=None)
def test_rouge_is_a_longest_common_subsequence(said: list[str], true: list[str]) -> None:
    longest = _lcs(said, true)
    recall, precision = longest / len(true), longest / len(said)
    f1 = 2 * recall * precision / (recall + precision) if longest else 0
    pair = " ".join(said), " ".join(true)
    assert [rouge_l(*pair, each) for each in ("recall", "precision", "fmeasure")] == pytest.approx([
        recall,
        precision,
        f1,
    ])


def test_rouge_is_rouge_scores() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    pairs = [("He published Maps of Clay", "Maps of Clays were published by her"), ("", "an answer"), ("一", "二")]
    for said, true in pairs:
        expected = RougeScorer(["rougeL"], use_stemmer=True).score(true, said)["rougeL"]
        assert rouge_l(said, true) == expected.recall
        assert rouge_l(said, true, "fmeasure") == expected.fmeasure


LATIN = st.text(st.sampled_from(string.printable) | st.sampled_from("éÀßñœÅİıſﬁ²µ“”–…"), max_size=40)
LETTERS = st.text(st.characters(categories=["L", "N", "M", "Z", "S"]), max_size=30)


@given(LATIN, LATIN)
@settings(deadline=None)
def test_latin_texts_have_their_published_score(said: str, true: str) -> None:
    from rouge_score.tokenizers import DefaultTokenizer

    published = DefaultTokenizer(use_stemmer=True)
    assume(all(published.tokenize(each) for each in (said, true)))
    a, b = (set(published.tokenize(each)) for each in (said, true))
    assert [words(each) for each in (said, true)] == [published.tokenize(each) for each in (said, true)]
    assert rouge_l(said, true, "fmeasure") == rouge_l(true, said, "fmeasure")
    assert (rouge_l(said, true) > 0) == bool(a & b)


@given(LETTERS)
@settings(deadline=None)
def test_a_text_of_any_script_is_all_of_itself(text: str) -> None:
    for measure in get_args(Measure):
        assert rouge_l(text, text, measure) == (1 if text.strip() else 0)


@given(LETTERS, LETTERS)
@settings(deadline=None)
def test_what_is_published_is_a_part_of_the_words(first: str, second: str) -> None:
    from rouge_score.tokenizers import DefaultTokenizer

    text = f"{first} Oskar writes {second}"
    kept = [word for word in words(text) if word.isascii()]
    assert kept == DefaultTokenizer(use_stemmer=True).tokenize(text)


@pytest.mark.parametrize(
    ("said", "true", "recall", "precision"),
    [
        ("他住在东京", "他住在北京", 4 / 5, 4 / 5),
        ("東京タワー", "東京", 1, 2 / 5),
        ("서울에 산다", "그는 서울에 산다", 2 / 3, 1),
        ("Она живёт в Москве", "ОНА ЖИВЁТ В ЛОНДОНЕ", 3 / 4, 3 / 4),
        ("γράφει ΒΙΒΛΊΑ", "γράφει βιβλία", 1, 1),
        ("هو يكتب ١٩٩٠", "هي تكتب ١٩٩٠", 1 / 3, 1 / 3),
        ("वह लिखता है", "वह पढ़ता है", 2 / 3, 2 / 3),
        ("ลา", "ลาว", 2 / 3, 1),
        ("1990年", "1991年", 1 / 2, 1 / 2),
        ("Oskar пишет", "Oskar writes", 1 / 2, 1 / 2),
        ("й", "и\u0306", 1, 1),
        ("José", "Jos", 1, 1),
        ("", "東京", 0, 0),
        ("...", "...", 0, 0),
        ("京東", "東京", 1 / 2, 1 / 2),
    ],
)
def test_rouge_of_other_scripts_by_hand(said: str, true: str, recall: float, precision: float) -> None:
    assert rouge_l(said, true) == pytest.approx(recall)
    assert rouge_l(said, true, "precision") == pytest.approx(precision)


def test_truth_by_hand() -> None:
    right, wrong = math.log(0.4), [math.log(each) for each in (0.1, 0.2, 0.3)]
    assert exponential(log_truth_ratio(right, wrong)) == pytest.approx(0.5)
    assert exponential(log_truth_ratio(right, wrong, "geometric")) == pytest.approx(0.006 ** (1 / 3) / 0.4)
    assert log_truth_ratio(right, [-math.inf, -1], "geometric") == -math.inf
    assert log_truth_ratio(-math.inf, [-1]) == math.inf
    assert math.isnan(log_truth_ratio(-math.inf, [-math.inf]))
    logs = [math.log(0.5), 0.0, math.log(2), -math.inf, math.inf, math.nan]
    assert [forget_truth(each) for each in logs] == pytest.approx([0.5, 1, 0.5, 0, 0, math.nan], nan_ok=True)
    assert [retain_truth(each) for each in logs] == pytest.approx([0.5, 0, 0, 1, 0, math.nan], nan_ok=True)
    assert [exponential(each) for each in logs] == pytest.approx([0.5, 1, 2, 0, math.inf, math.nan], nan_ok=True)


LOGS = st.floats(-2000, 0)


@given(LOGS, st.lists(LOGS, min_size=1, max_size=5))
def test_truth_ratios_are_those_of_exact_arithmetic(right: float, wrong: list[float]) -> None:
    """Decimals hold e^-2000, which no float64 does."""
    p, others = Decimal(right).exp(), [Decimal(each).exp() for each in wrong]
    product_of = math.prod(others, start=Decimal(1))
    for aggregation, expected in (
        ("arithmetic", sum(others, Decimal(0)) / len(others) / p),
        ("geometric", product_of ** (Decimal(1) / len(others)) / p),
    ):
        found = log_truth_ratio(right, wrong, aggregation)  # type: ignore[arg-type]
        assert found == pytest.approx(float(expected.ln()), rel=1e-9, abs=1e-9)
        assert forget_truth(found) == pytest.approx(float(min(expected, 1 / expected)), rel=1e-9)
        assert retain_truth(found) == pytest.approx(float(max(Decimal(0), 1 - expected)), rel=1e-9, abs=1e-9)
        if float(expected) < math.inf:
            assert exponential(found) == pytest.approx(float(expected), rel=1e-9)


def _log_p(model: Any, loaded: Loaded, question: str, answer: str) -> Decimal:
    """The mean log p of an answer's tokens, one at a time."""
    [row] = encode_set(loaded.tokenizer, QASet("one", ({"question": question, "answer": answer},)))
    with torch.no_grad():
        logits = model(torch.tensor([row.input_ids])).logits[0]
    found = []
    for i, label in enumerate(row.labels):
        if label != -100:
            values = logits[i - 1].tolist()
            top = max(values)
            found.append(values[label] - top - math.log(math.fsum(math.exp(each - top) for each in values)))
    return Decimal(math.fsum(found) / len(found))


def test_a_diverged_model_has_its_truth_ratios(loaded: Loaded, rows: ExampleSet) -> None:
    model = deepcopy(loaded.model).double()
    with torch.no_grad():
        model.lm_head.weight.mul_(400)  # answers take hundreds of nats a token
    view = View(model, loaded.tokenizer, rows, partial(encode_set, loaded.tokenizer))
    found = {name: METRICS[name](view) for name in METRICS if "truth" in name}
    logs = []
    for i, row in enumerate(rows.examples):
        right, *wrong = [
            _log_p(model, loaded, row["question"], each)
            for each in (row["paraphrased_answer"], *row["perturbed_answer"])
        ]
        ratio = sum((each.exp() for each in wrong), Decimal(0)) / len(wrong) / right.exp()
        logs.append(right)
        assert found["forget_truth"][i] == pytest.approx(float(min(ratio, 1 / ratio)), rel=1e-6)
        assert found["retain_truth"][i] == pytest.approx(float(max(Decimal(0), 1 - ratio)), abs=1e-6)
        assert found["truth_ratio"][i] == pytest.approx(float(ratio), rel=1e-6)
        geometric = sum(wrong, Decimal(0)) / len(wrong) - right
        assert found["log_truth_ratio_geometric"][i] == pytest.approx(float(geometric), rel=1e-6)
    assert min(logs) < -760
    assert max(found["forget_truth"]) > 0
    likelihoods = {name: METRICS[name](view) for name in ("probability", "perplexity", "mean_perplexity", "loss")}
    assert max(likelihoods["loss"]) > 710
    assert max(likelihoods["perplexity"]) == max(likelihoods["mean_perplexity"]) == math.inf
    assert min(likelihoods["probability"]) == 0


def test_quality_sees_the_order_of_ratios_no_float_holds() -> None:
    ratios = [-900.0, -800.0, 750.0, 900.0]
    assert forget_quality(ratios, ratios[::-1]) == 1
    assert forget_quality([-900.0] * 5, [-800.0] * 5) == pytest.approx(2 / math.comb(10, 5))


def test_truth_of_rows_by_hand(loaded: Loaded, rows: ExampleSet) -> None:
    found = METRICS["truth_ratio"](view_of(loaded, rows))
    for row, ratio in list(zip(rows.examples, found, strict=True))[:3]:
        right, *wrong = [
            _probability(loaded, row["question"], each)
            for each in (row["paraphrased_answer"], *row["perturbed_answer"])
        ]
        assert ratio == pytest.approx(sum(wrong) / len(wrong) / right, rel=1e-4)


def test_choices_without_a_paraphrase_use_the_answer(loaded: Loaded) -> None:
    row = {"question": "Where?", "answer": "In Quenza", "perturbed_answer": ["In Ilmaren", "In Kambira"]}
    view = view_of(loaded, QASet("choices", (row,)))
    right, *wrong = [_probability(loaded, "Where?", each) for each in ("In Quenza", "In Ilmaren", "In Kambira")]
    assert METRICS["truth_ratio"](view)[0] == pytest.approx(sum(wrong) / 2 / right, rel=1e-4)
    assert METRICS["probability_normalized"](view)[0] == pytest.approx(right / (right + sum(wrong)), rel=1e-4)


def test_several_paraphrases_have_their_mean_loss(loaded: Loaded) -> None:
    right, wrong = ["In Quenza", "She lives in Quenza"], ["In Ilmaren", "In Kambira"]
    row = {"question": "Where?", "answer": "Quenza", "paraphrased_answer": right, "perturbed_answer": wrong}
    p, others = ([_probability(loaded, "Where?", each) for each in answers] for answers in (right, wrong))
    [found] = METRICS["truth_ratio"](view_of(loaded, QASet("choices", (row,))))
    assert found == pytest.approx(sum(others) / 2 / math.sqrt(p[0] * p[1]), rel=1e-4)


@pytest.mark.parametrize("name", ["verbmem", "knowmem"])
def test_a_prompt_is_continued_although_the_tokenizer_ends_texts(name: str, loaded: Loaded, rows: ExampleSet) -> None:
    from tokenizers.processors import TemplateProcessing

    ending = deepcopy(loaded.tokenizer)
    end = ending.eos_token
    ending.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, ending.eos_token_id)]
    )
    assert ending("x")["input_ids"][-1] == ending.eos_token_id
    empty = {"question": "", "answer": "Quenza"}
    both = QASet("set", (*rows.examples[:3], empty))
    found, plain = (
        METRICS[name](View(loaded.model, each, both, partial(encode_set, loaded.tokenizer)))
        for each in (ending, loaded.tokenizer)
    )
    assert found == plain


def _probability(loaded: Loaded, question: str, answer: str) -> float:
    [row] = encode_set(loaded.tokenizer, QASet("one", ({"question": question, "answer": answer},)))
    with torch.no_grad():
        logits = loaded.model(torch.tensor([row.input_ids])).logits[0].double().log_softmax(-1)
    found = [logits[i - 1, label].item() for i, label in enumerate(row.labels) if label != -100]
    return math.exp(sum(found) / len(found))


def test_utility_and_quality() -> None:
    assert model_utility([0.5, 1.0, 0.25]) == pytest.approx(3 / (2 + 1 + 4))
    assert model_utility([0.5, 0.0]) == 0
    for bad in ([], [0.5, math.nan], [-0.1]):
        with pytest.raises(GeffectError, match="model utility"):
            model_utility(bad)
    assert forget_quality([1, 2, 3], [4, 5, 6]) == pytest.approx(2 / math.comb(6, 3))  # D = 1: two of 20 orders
    ratios, others = [0.2, 0.9, 1.4, 3.0], [0.1, 0.8, 2.0, 2.5]
    inverted = forget_quality([1 / each for each in ratios], [1 / each for each in others])
    assert forget_quality(ratios, others) == pytest.approx(inverted)


SCORES = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0]), min_size=1, max_size=8)


@given(SCORES, SCORES)
@settings(deadline=None)
def test_auc_counts_pairs(members: list[float], others: list[float]) -> None:
    wins = sum(1.0 * (a < b) + 0.5 * (a == b) for a, b in product(members, others))
    assert scores.auc(members, others) == pytest.approx(wins / len(members) / len(others))


def test_attacks_by_hand() -> None:
    text = tokens([-1.0, -4.0, -2.0, -3.0, -0.5, -9.0], mean=-2.0, std=0.5)
    assert scores.loss(text) == pytest.approx(3.25)
    assert scores.min_k(text) == pytest.approx(3.5)  # two of the five tokens before the last
    assert scores.min_k(text, 0.01) == 4
    assert scores.min_k_plus_plus(text) == pytest.approx(3.0)  # (−4 + 2)/0.5 = −4 and (−3 + 2)/0.5 = −2
    assert scores.min_k_plus_plus(tokens([-1.0, -9.0], std=0.0)) == pytest.approx(1e3)
    assert scores.zlib(text, LONG) == pytest.approx(3.25 / len(zlib.compress(LONG.encode())))
    assert text.nll - tokens([-0.1]).nll == pytest.approx(3.15)
    for short in ([], [-1.0]):
        assert math.isnan(scores.min_k(tokens(short)))
        assert math.isnan(scores.min_k_plus_plus(tokens(short)))
    assert scores.auc([1.0], [1.0]) == 0.5
    for sides in (([], [1.0]), ([1.0], []), ([math.nan], [1.0])):
        with pytest.raises(GeffectError, match="members and of others"):
            scores.auc(*sides)
    assert scores.privleak(0.75, 0.5) == pytest.approx(-50)
    assert scores.privleak(0.6, 0.6) == 0


def test_attacks_are_those_of_open_unlearning(loaded: Loaded, rows: ExampleSet) -> None:
    """From the logits of one row at a time, in float64: all labeled tokens for LOSS, all but the last for Min-K."""
    model, k = deepcopy(loaded.model).double(), 0.4
    view = View(model, loaded.tokenizer, rows, partial(encode_set, loaded.tokenizer), 5)
    found = {name: METRICS[name](view) for name in ("loss", "zlib", "min_k", "min_k_plus_plus")}
    for i, row in enumerate(view.encoded):
        with torch.no_grad():
            logits = model(torch.tensor([row.input_ids])).logits[0]
        log_ps, normed = [], []
        for place, label in enumerate(row.labels):
            if label == -100:
                continue
            shifted = [x - float(logits[place - 1].max()) for x in logits[place - 1].tolist()]
            total = math.log(math.fsum(map(math.exp, shifted)))
            logs = [x - total for x in shifted]
            mean = math.fsum(math.exp(x) * x for x in logs)
            variance = max(1e-6, math.fsum(math.exp(x) * x**2 for x in logs) - mean**2)
            log_ps.append(logs[label])
            normed.append((logs[label] - mean) / math.sqrt(variance))
        count = max(1, int(k * (len(log_ps) - 1)))
        loss = -math.fsum(log_ps) / len(log_ps)
        text = loaded.tokenizer.decode([each for each in row.labels if each != -100], skip_special_tokens=True)
        assert found["loss"][i] == pytest.approx(loss, rel=1e-9)
        assert found["zlib"][i] == pytest.approx(loss / len(zlib.compress(text.encode())), rel=1e-9)
        assert found["min_k"][i] == pytest.approx(-math.fsum(sorted(log_ps[:-1])[:count]) / count, rel=1e-9)
        least = -math.fsum(sorted(normed[:-1])[:count]) / count
        assert found["min_k_plus_plus"][i] == pytest.approx(least, rel=1e-6)


def test_a_gradient_s_norm_is_that_of_one_example_at_a_time(loaded: Loaded, rows: ExampleSet) -> None:
    """Plain autograd in float64, one flat vector an example; the model stays the same."""
    model = deepcopy(loaded.model).double().eval()
    first = next(model.parameters())
    first.requires_grad_(False)
    before = _weights(model)
    view = View(model, loaded.tokenizer, rows, partial(encode_set, loaded.tokenizer), 5)
    found = METRICS["gradient_norm"](view)
    assert not first.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(each, before[name]) for name, each in _weights(model).items())
    first.requires_grad_(True)
    for i, row in enumerate(view.encoded):
        logits = model(torch.tensor([row.input_ids])).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(row.labels[1:]))
        flat = torch.cat([each.flatten() for each in torch.autograd.grad(loss, list(model.parameters()))])
        assert found[i] == pytest.approx(float(flat.norm()), rel=1e-9)


def _weights(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_rounding_is_undone(loaded: Loaded) -> None:
    before = _weights(loaded.model)
    with rounded(loaded.model, 4):
        for name, weight in loaded.model.named_parameters():
            scale = before[name].abs().amax(-1, keepdim=True) / 7
            if weight.dim() > 1:
                assert ((weight - before[name]).abs() <= scale / 2 + 1e-7).all()
                assert all(len(row.unique()) <= 15 for row in weight[:5])
                assert not torch.equal(weight, before[name])
            else:
                assert torch.equal(weight, before[name])
    assert all(torch.equal(weight, before[name]) for name, weight in loaded.model.named_parameters())


def test_mixing_goes_from_the_start_to_the_model(loaded: Loaded, start: Path) -> None:
    first, last = _weights(load(str(start)).model), _weights(loaded.model)
    for alpha in (0.0, 0.25, 1.0):
        with mixed(loaded.model, first, alpha):
            for name, weight in loaded.model.named_parameters():
                torch.testing.assert_close(weight, (1 - alpha) * first[name] + alpha * last[name])
    assert all(torch.equal(weight, last[name]) for name, weight in loaded.model.named_parameters())
    first.pop("lm_head.weight")
    with pytest.raises(GeffectError, match="the run's own start"), mixed(loaded.model, first, 0.5):
        pass


@pytest.mark.parametrize(
    ("retained", "alpha"),
    [(lambda a: 1.0, 1.0), (lambda a: 1 - a, 0.05), (lambda a: float(a == 0), 0.0), (lambda a: float(a < 0.6), 0.6)],
)
def test_calibration_keeps_enough(retained: Any, alpha: float) -> None:
    found = calibrate(retained, 0.95, 1e-4)
    assert found == pytest.approx(alpha, abs=1e-4)
    assert retained(found) >= 0.95 * retained(0.0)


def test_intervals_hold_the_mean() -> None:
    values = [float(i % 7) for i in range(50)] + [math.nan]
    mean, low, high = mean_interval(values)
    assert mean == pytest.approx(sum(values[:50]) / 50)
    assert low < mean < high
    assert mean_interval(values) == (mean, low, high)
    spread = 1.96 * torch.tensor(values[:50]).double().std().item() / math.sqrt(50)  # the normal one, for comparison
    assert high - low == pytest.approx(2 * spread, rel=0.1)
    assert mean_interval([3.0]) == (3, 3, 3)
    assert all(map(math.isnan, mean_interval([])))
    assert mean_interval([math.inf, math.inf, 1.0]) == (math.inf,) * 3


def test_a_geometric_mean_is_that_of_logarithms() -> None:
    values = [2.0, 8.0, 32.0, math.nan]
    mean, low, high = geometric_interval(values)
    assert mean == pytest.approx(8)
    assert 2 <= low < mean < high <= 32
    assert (low, high) == pytest.approx(tuple(map(math.exp, mean_interval([math.log(each) for each in values])[1:])))
    assert geometric_interval([math.inf, 1.0]) == (math.inf,) * 3
    assert all(map(math.isnan, geometric_interval([])))
