"""The metrics of a row by name: each a function of a set under a model, one number a row.

A row without what a metric needs (an answer of no token) has NaN, and does not count in its mean.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from geffect.core.forward import IGNORE_INDEX
from geffect.data.conversations import right_answers
from geffect.data.encode import pad_id_of
from geffect.data.load import ExampleSet, QASet
from geffect.errors import GeffectError
from geffect.evaluation.metrics import membership
from geffect.evaluation.metrics.generation import generate, prompt_of
from geffect.evaluation.metrics.memorization import (
    answer_probability,
    exact_memorization,
    extraction_strength,
    perplexity,
)
from geffect.evaluation.metrics.rouge import Measure, rouge_l
from geffect.evaluation.metrics.truth import (
    Aggregation,
    forget_truth,
    log_truth_ratio,
    normalized_probability,
    retain_truth,
    truth_ratio,
)
from geffect.evaluation.view import View

VERBATIM_TOKENS, KNOWLEDGE_TOKENS = 128, 32  # MUSE's
SHOTS = 10  # MUSE's
ENDS = ("\n\n", "\nQuestion", "Question:")  # where MUSE cuts an answer

PerRow = Callable[[View], list[float]]


def _each(score: Callable[..., float]) -> PerRow:
    return lambda view: [score(row) for row in view.scores()]


def _accuracy(view: View) -> list[float]:
    return [row.right.double().mean().item() for row in view.scores()]


def _rouge(measure: Measure) -> PerRow:
    def score(view: View) -> list[float]:
        return [_best(said, row, measure) for said, row in zip(view.said(), view.questions().rows, strict=True)]

    return score


def _best(said: str, row: Mapping[str, Any], measure: Measure) -> float:
    """Against the likest of a question's right answers."""
    return max(rouge_l(said, true, measure) for true in right_answers(row))


def _normalized(view: View) -> list[float]:
    right, wrong = (
        [[answer_probability(each) for each in row] for row in view.variants(field)]
        for field in ("answer", "perturbed_answer")
    )
    return [normalized_probability(p, others) for [p], others in zip(right, wrong, strict=True)]


def _truth(aggregation: Aggregation = "arithmetic", of: Callable[[float], float] = truth_ratio) -> PerRow:
    def score(view: View) -> list[float]:
        right, wrong = (
            [[-each.nll for each in row] for row in view.variants(*fields)]
            for fields in (("paraphrased_answer", "answer"), ("perturbed_answer",))
        )
        means = [math.fsum(each) / len(each) for each in right]  # of several paraphrases, as open-unlearning
        return [of(log_truth_ratio(p, others, aggregation)) for p, others in zip(means, wrong, strict=True)]

    return score


def _zlib(view: View) -> list[float]:
    return [membership.zlib(row, text) for row, text in zip(view.scores(), view.targets(), strict=True)]


def _extraction_by_generation(view: View) -> list[float]:
    """The fewest tokens after which greedy decoding writes the rest, by bisection (arXiv 2406.09179)."""
    answers = [[label for label in row.labels if label != IGNORE_INDEX][:-1] for row in view.encoded]
    least, most = [0] * len(answers), [len(answer) for answer in answers]
    while unsettled := [i for i in range(len(answers)) if least[i] < most[i]]:
        middle = {i: (least[i] + most[i]) // 2 for i in unsettled}
        prompts = [prompt_of(view.encoded[i]) + answers[i][:k] for i, k in middle.items()]
        left = max(len(answers[i]) - k for i, k in middle.items())
        for (i, k), said in zip(
            middle.items(), generate(view.model, view.tokenizer, prompts, left, view.batch_size), strict=True
        ):
            if said[: len(answers[i]) - k] == answers[i][k:]:
                most[i] = k
            else:
                least[i] = k + 1
    return [1 - k / len(answer) if answer else math.nan for k, answer in zip(most, answers, strict=True)]


def _begun(view: View, text: str) -> list[int]:
    """A text to continue: as the tokenizer begins one, without the end that some put after it."""
    ids: list[int] = view.tokenizer(text)["input_ids"]
    bare: list[int] = view.tokenizer(text, add_special_tokens=False)["input_ids"]
    end = view.tokenizer.eos_token_id
    return (ids[:-1] if ids[-1:] == [end] and bare[-1:] != [end] else ids) or [pad_id_of(view.tokenizer)]


def _verbatim(view: View) -> list[float]:
    """MUSE's VerbMem: ROUGE-L F1 of 128 tokens that continue a prompt, without a template."""
    rows = view.questions().rows
    prompts = [_begun(view, row["question"]) for row in rows]
    said = generate(view.model, view.tokenizer, prompts, VERBATIM_TOKENS, view.batch_size)
    return [_best(view.text(ids), row, "fmeasure") for ids, row in zip(said, rows, strict=True)]


def knowledge_prompt(question: str, shots: Sequence[Mapping[str, Any]]) -> str:
    r"""MUSE's prompt: answered questions, then one more.

    Args:
        question: the one more.
        shots: rows with ``question`` and ``answer``.

    Returns:
        The text.

    >>> knowledge_prompt("Who?", [{"question": "Where?", "answer": "Here."}])
    'Question: Where?\nAnswer: Here.\n\nQuestion: Who?\nAnswer: '
    """
    shown = "".join(f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in shots)
    return f"{shown}Question: {question}\nAnswer: "


def cut(text: str) -> str:
    r"""An answer up to where the model goes on to another question.

    Args:
        text: what it wrote.

    Returns:
        The answer.

    >>> cut("Here.\n\nQuestion: Why?")
    'Here.'
    """
    for end in ENDS:
        text = text.partition(end)[0]
    return text


def _knowledge(view: View) -> list[float]:
    """MUSE's KnowMem: ROUGE-L F1 of 32 tokens, after ten answered questions and without a template."""
    rows = view.questions().rows
    prompts = [_begun(view, knowledge_prompt(row["question"], view.shots[:SHOTS])) for row in rows]
    said = generate(view.model, view.tokenizer, prompts, KNOWLEDGE_TOKENS, view.batch_size)
    answers = [cut(view.tokenizer.decode(ids, skip_special_tokens=True)) for ids in said]
    return [_best(answer, row, "fmeasure") for answer, row in zip(answers, rows, strict=True)]


METRICS: dict[str, PerRow] = {
    "loss": _each(membership.loss),
    "perplexity": _each(perplexity),
    "mean_perplexity": _each(perplexity),
    "accuracy": _accuracy,
    "probability": _each(answer_probability),
    "probability_normalized": _normalized,
    "exact_memorization": _each(exact_memorization),
    "extraction_strength": _each(extraction_strength),
    "extraction_strength_floored": _each(lambda row: extraction_strength(row, floor=True)),
    "extraction_strength_generated": _extraction_by_generation,
    "rouge_l_recall": _rouge("recall"),
    "rouge_l_f1": _rouge("fmeasure"),
    "truth_ratio": _truth(),
    "truth_ratio_geometric": _truth("geometric"),
    "log_truth_ratio_geometric": _truth("geometric", of=float),
    "forget_truth": _truth(of=forget_truth),
    "retain_truth": _truth(of=retain_truth),
    "verbmem": _verbatim,
    "knowmem": _knowledge,
    "min_k": _each(membership.min_k),
    "min_k_plus_plus": _each(membership.min_k_plus_plus),
    "zlib": _zlib,
}


GEOMETRIC = {"perplexity"}  # of a set, the geometric mean over its rows; of every other metric, the arithmetic one

COLUMNS = {
    name: ("perturbed_answer",)
    for name in (
        "probability_normalized",
        "truth_ratio",
        "truth_ratio_geometric",
        "log_truth_ratio_geometric",
        "forget_truth",
        "retain_truth",
    )
}
PARAPHRASED = {
    name for name in COLUMNS if "truth" in name
}  # a paraphrased_answer, where every row has it, is the right one
ASKED = {"rouge_l_recall", "rouge_l_f1", "verbmem", "knowmem", "extraction_strength_generated", *COLUMNS}


def check_fields(name: str, rows: ExampleSet) -> None:
    """Raise where a set lacks what a metric needs.

    Args:
        name: of the metric.
        rows: the set.

    Raises:
        GeffectError: what is missing.
    """
    if name in ASKED and not isinstance(rows, QASet):
        raise GeffectError(f"questions and answers in {rows.name} for {name}", "texts", "name a set of questions")
    columns = COLUMNS.get(name, ())
    if name in PARAPHRASED and all("paraphrased_answer" in row for row in rows.rows):
        columns = (*columns, "paraphrased_answer")
    for column in columns:
        lacking = next((i for i, row in enumerate(rows.rows) if not _texts(row.get(column))), None)
        if lacking is not None:
            have = f"{', '.join(rows.rows[lacking])} in row {lacking}"
            remedy = "name a set that has it, such as tofu:forget01_perturbed or builtin:authors/forget"
            raise GeffectError(f"texts in a column {column!r} of {rows.name} for {name}", have, remedy)


def _texts(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    return isinstance(texts, list) and bool(texts) and all(isinstance(each, str) and each.strip() for each in texts)


def metric(name: str) -> PerRow:
    """A metric by its name.

    Args:
        name: a key of `METRICS`.

    Returns:
        A function of a set under a model, one number a row.

    Raises:
        GeffectError: there is none.
    """
    if name not in METRICS:
        raise GeffectError(f"a metric among {', '.join(METRICS)}", repr(name), "choose one of these")
    return METRICS[name]
