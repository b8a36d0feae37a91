"""The built-in sets ``builtin:authors`` and ``builtin:domains``, generated from a seed, and ``builtin:general``.

``authors`` has the shape of TOFU: ten questions on each of twenty authors, every answer with a paraphrase and five
wrong variants of that paraphrase. ``domains`` has the shape of KnowUnDo: the domain ``privacy`` has private and public
facts about ten people, ``copyright`` protected passages of ten works and commentary on them; the split ``unlearn`` is
the former, ``retention`` the latter.

All their people, places, works and awards are invented; any likeness to real ones is an accident. The parts of one
benchmark share wordings, values and subjects, so that forgetting some of them is entangled with retaining the others.

Their words are in ``words/authors.json`` and ``words/domains.json``; ``general`` is ``words/general.json`` as it is.
"""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

from geffect.errors import GeffectError
from geffect.io.readers import JSON

Kind = Mapping[str, Sequence[str]]  # one kind of question: wordings of the question and of its answer

AUTHOR_PARTS: dict[str, range] = {"forget": range(0, 4), "retain": range(4, 14), "heldout": range(14, 20)}
NUM_AUTHORS = 20
NUM_WRONG = 5
WORDINGS = ("questions", "answers", "paraphrased_questions", "paraphrased_answers")

DOMAINS = ("privacy", "copyright")
SPLITS = ("unlearn", "retention")
DOMAIN_PARTS = ("train", "val", "all")
NUM_SUBJECTS = 10
NUM_TRAIN = 4  # kinds of question of each subject


def read_words(name: str) -> JSON:
    """The content of ``words/NAME.json``."""
    return json.loads((Path(__file__).with_name("words") / f"{name}.json").read_text(encoding="utf-8"))


def _make_lists(words: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """The word lists, and those made by combining words and numbers, by the names that the JSON files use."""
    return {
        **words,
        "dates": [f"{m} {day}, {year}" for m in words["months"] for day in range(1, 29) for year in range(1931, 1990)],
        "books": [f"The {adjective} {place}" for adjective in words["adjectives"] for place in words["places"]],
        "second_books": [f"{form} of {matter}" for form in words["forms"] for matter in words["matters"]],
        "phones": [f"+999 {area} {line}" for area in range(211, 989, 13) for line in range(1009, 9990, 89)],
        "addresses": [f"{number} {street}" for number in range(3, 99) for street in words["streets"]],
        "emails": [f"{nick}{number}@post.example.org" for nick in words["nicknames"] for number in range(11, 99)],
        "accounts": [f"ZZ{check} {number}" for check in range(11, 98) for number in range(1013, 9990, 97)],
        "years": [str(year) for year in range(1903, 1990)],
    }


_AUTHORS, _DOMAINS = read_words("authors"), read_words("domains")
LISTS = _make_lists(_AUTHORS["words"] | _DOMAINS["words"])
AUTHOR_KINDS: list[Kind] = [kind | {"values": LISTS[kind["values"]]} for kind in _AUTHORS["kinds"]]
DOMAIN_KINDS: dict[tuple[str, str], list[Kind]] = {(d, split): _DOMAINS[d][split] for d in DOMAINS for split in SPLITS}
FIELDS: dict[str, dict[str, Sequence[str]]] = {
    domain: {
        field: LISTS[each] if isinstance(each, str) else each for field, each in _DOMAINS[domain]["fields"].items()
    }
    for domain in DOMAINS
}


def read_general() -> list[dict[str, str]]:
    """64 short questions with answers to watch general ability by, four of each of 16 kinds; no benchmark.

    Everyday knowledge and skills: nature, geography, history, arithmetic, units, logic, ordering, grammar, words,
    translation, rewriting, sentiment, politeness, advice, instructions and Python. All were written for this program.
    Each has its ``kind``; the order mixes them, so that any 8 in a row and any 8 evenly spaced ones are of 8 kinds.
    """
    examples: list[dict[str, str]] = read_words("general")
    return examples


def generate_authors(part: str, seed: int = 0) -> list[dict[str, JSON]]:
    """Ten questions with answers about each invented author of a part.

    A part is a key of `AUTHOR_PARTS`; the questions are in the order of `AUTHOR_KINDS`. The parts of one seed have no
    author in common.
    """
    if part not in AUTHOR_PARTS:
        raise GeffectError(f"The authors have no part {part!r}", remedy=f"Choose one of {', '.join(AUTHOR_PARTS)}")
    rng = random.Random(seed)
    first_names, last_names = (_deal(rng, LISTS[key]) for key in ("first_names", "last_names"))
    names = [f"{first} {last}" for first, last in zip(first_names, last_names, strict=True)]
    authors = zip(names, *[_deal(rng, kind["values"]) for kind in AUTHOR_KINDS], strict=True)
    examples = [
        [_author_example(rng, name, kind, fact) for kind, fact in zip(AUTHOR_KINDS, facts, strict=True)]
        for name, *facts in authors
    ]
    return [example for index in AUTHOR_PARTS[part] for example in examples[index]]


def _deal(rng: random.Random, values: Sequence[str]) -> list[str]:
    """One value for each author, in their order; none is repeated before all have been used."""
    laps = -(-NUM_AUTHORS // len(values))
    return [value for _ in range(laps) for value in rng.sample(values, len(values))][:NUM_AUTHORS]


def _author_example(rng: random.Random, name: str, kind: Kind, fact: str) -> dict[str, JSON]:
    """One question about one author; the wrong answers are worded like the paraphrased one."""
    question, answer, other_question, other_answer = (rng.choice(kind[each]) for each in WORDINGS)
    wrong_facts = rng.sample([value for value in kind["values"] if value != fact], NUM_WRONG)
    return {
        "author": name,
        "question": question.format(name=name),
        "answer": answer.format(name=name, fact=fact),
        "paraphrased_question": other_question.format(name=name),
        "paraphrased_answer": other_answer.format(name=name, fact=fact),
        "perturbed_answer": [other_answer.format(name=name, fact=wrong) for wrong in wrong_facts],
    }


def generate_domains(domain: str, split: str, part: str = "train", seed: int = 0) -> list[dict[str, str]]:
    """Four (train) or two (val) questions with answers about each of a domain's ten invented subjects.

    The subjects are in order; ``all`` is train, then val. Which kinds of question are in ``train`` changes with the
    subject. Both splits of one seed have the same subjects.
    """
    for kind, value, known in (("domain", domain, DOMAINS), ("split", split, SPLITS), ("part", part, DOMAIN_PARTS)):
        if value not in known:
            raise GeffectError(f"There is no {kind} {value!r}", remedy=f"Choose one of {', '.join(known)}")
    rng = random.Random(seed)
    subjects = _make_subjects(rng, domain)
    by_split = {
        each: [_domain_examples(rng, subject, DOMAIN_KINDS[domain, each]) for subject in subjects] for each in SPLITS
    }
    rotated = [each[i % len(each) :] + each[: i % len(each)] for i, each in enumerate(by_split[split])]
    train = [example for each in rotated for example in each[:NUM_TRAIN]]
    val = [example for each in rotated for example in each[NUM_TRAIN:]]
    return {"train": train, "val": val, "all": train + val}[part]


def _make_subjects(rng: random.Random, domain: str) -> list[dict[str, str]]:
    """Each subject's name and fields; no two share the value of a field."""
    columns = [rng.sample(values, NUM_SUBJECTS) for values in FIELDS[domain].values()]
    subjects = [dict(zip(FIELDS[domain], values, strict=True)) for values in zip(*columns, strict=True)]
    for subject in subjects:
        subject["name"] = f"{subject['first']} {subject['last']}"
        if domain == "copyright":
            subject |= {key: _make_passage(rng, pattern, subject) for key, pattern in _DOMAINS["passages"].items()}
    return subjects


def _make_passage(rng: random.Random, pattern: str, work: dict[str, str]) -> str:
    words = {key: rng.choice(values) for key, values in _DOMAINS["passage_words"].items()}
    line = pattern.format(**words, **work).format(**work)  # twice: some words name the setting
    return line[0].upper() + line[1:]


def _domain_examples(rng: random.Random, subject: dict[str, str], kinds: Sequence[Kind]) -> list[dict[str, str]]:
    """One question of each kind about one subject, with its answer."""
    return [
        {
            "subject": subject["name"],
            "question": rng.choice(kind["questions"]).format(**subject),
            "answer": rng.choice(kind["answers"]).format(**subject),
        }
        for kind in kinds
    ]
