"""Tests of the built-in benchmark of invented authors."""

import hashlib
import json
import re
from typing import Any

import pytest

from geffect.data.synthetic import AUTHOR_KINDS, AUTHOR_PARTS, generate_authors
from geffect.errors import GeffectError

TEXTS = ("question", "answer", "paraphrased_question", "paraphrased_answer")
GOLDEN = "4af9300dcda261368c52d634695b169f2e330c0badea039bb2abb9e9ff23e834"


def all_rows(seed: int = 0) -> list[dict[str, Any]]:
    return [row for part in AUTHOR_PARTS for row in generate_authors(part, seed)]


def all_texts(seed: int = 0) -> list[str]:
    rows = all_rows(seed)
    return [text for row in rows for text in [*(row[key] for key in TEXTS), *row["perturbed_answer"]]]


@pytest.mark.parametrize(("part", "count"), [("forget", 40), ("retain", 100), ("heldout", 60)])
def test_each_part_has_ten_rows_per_author(part: str, count: int) -> None:
    rows = generate_authors(part)
    authors = [row["author"] for row in rows]
    assert len(rows) == count
    assert authors == [name for name in dict.fromkeys(authors) for _ in range(10)]


def test_same_seed_same_rows_other_seed_other_rows() -> None:
    assert all_rows(3) == all_rows(3)
    assert all_rows(3) != all_rows(4)


def test_unknown_part_is_refused() -> None:
    with pytest.raises(GeffectError, match=r"no part 'other'\. Choose one of forget, retain, heldout"):
        generate_authors("other")


@pytest.mark.parametrize("seed", range(5))
def test_authors_are_distinct_in_first_and_last_name(seed: int) -> None:
    names = list(dict.fromkeys(row["author"] for row in all_rows(seed)))
    firsts, lasts = zip(*(name.split() for name in names), strict=True)
    assert len(names) == len(set(firsts)) == len(set(lasts)) == 20


def test_parts_share_no_author() -> None:
    authors = [{row["author"] for row in generate_authors(part)} for part in AUTHOR_PARTS]
    assert len(set.union(*authors)) == sum(map(len, authors))


@pytest.mark.parametrize("seed", range(5))
def test_questions_are_distinct_and_name_the_author(seed: int) -> None:
    rows = all_rows(seed)
    asked = [row[key] for row in rows for key in ("question", "paraphrased_question")]
    assert len(set(asked)) == len(asked) == 400
    assert all(row["author"] in row[key] for row in rows for key in TEXTS)


@pytest.mark.parametrize("seed", range(5))
def test_wrong_answers_differ_from_the_paraphrase_in_the_fact_alone(seed: int) -> None:
    for index, row in enumerate(all_rows(seed)):
        values = AUTHOR_KINDS[index % len(AUTHOR_KINDS)]["values"]
        [fact] = [value for value in values if value in row["paraphrased_answer"]]
        assert fact in row["answer"]
        assert len(set(row["perturbed_answer"])) == len(row["perturbed_answer"]) == 5
        for wrong_answer in row["perturbed_answer"]:
            [wrong] = [value for value in values if value in wrong_answer]
            assert fact not in wrong_answer
            assert wrong_answer.replace(wrong, fact) == row["paraphrased_answer"]


def test_book_titles_are_unique() -> None:
    rows = all_rows()
    titles = [re.findall(r"(?<!\w)'(.+)'", row["answer"]) for row in rows]
    found = [title for match in titles for title in match]
    assert len(found) == len(set(found)) == 40


def test_forgotten_authors_share_facts_with_retained_ones() -> None:
    texts = " ".join(row["answer"] for row in generate_authors("retain"))
    facts = [
        value
        for row, kind in zip(generate_authors("forget"), AUTHOR_KINDS * 4, strict=True)
        for value in kind["values"]
        if value in row["answer"]
    ]
    assert sum(fact in texts for fact in facts) >= 10


@pytest.mark.parametrize("seed", range(5))
def test_texts_are_plain_sentences_with_the_right_article(seed: int) -> None:
    for text in all_texts(seed):
        assert re.fullmatch(r"[A-Z'][ -~]+[.?]", text)
        assert "{" not in text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text, re.IGNORECASE), text


@pytest.mark.parametrize("seed", range(5))
def test_answers_have_eight_to_twenty_words(seed: int) -> None:
    for row in all_rows(seed):
        for answer in (row["answer"], row["paraphrased_answer"], *row["perturbed_answer"]):
            assert 8 <= len(answer.split()) <= 20, answer


def test_rows_do_not_drift() -> None:
    assert hashlib.sha256(json.dumps(all_rows(), sort_keys=True).encode()).hexdigest() == GOLDEN
