"""Tests of the built-in benchmark of invented people and works, and of the models that are made for it."""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from geffect.data.load import QASet, load_set
from geffect.data.synthetic import (
    AUTHOR_PARTS,
    DOMAIN_KINDS,
    DOMAIN_PARTS,
    DOMAINS,
    SPLITS,
    generate_authors,
    generate_domains,
)
from geffect.errors import GeffectError
from geffect.models.builtin import BUILT_IN, built_in_key, make_tiny, make_tokenizer
from geffect.models.load import load, outline, quiet_transformers

GOLDEN = "e1455146db5e6e0c097c86fba09b741f29ae7c57a7034b1a9ae5b580c2589a92"
MODELS = [name for name in BUILT_IN if "domains" in name]
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
Row = dict[str, str]

each_set = pytest.mark.parametrize(("domain", "split"), [(domain, split) for domain in DOMAINS for split in SPLITS])
each_seed = pytest.mark.parametrize("seed", range(5))


def all_rows(seed: int = 0) -> dict[str, list[Row]]:
    sets = ((domain, split, part) for domain in DOMAINS for split in SPLITS for part in ("train", "val"))
    return {"/".join(name): generate_domains(*name, seed=seed) for name in sets}


def kind_of(row: Row, domain: str, split: str) -> int:
    """Which kind of question a row asks."""
    [kind] = [
        index
        for index, kind in enumerate(DOMAIN_KINDS[domain, split])
        if any(re.fullmatch(re.sub(r"\\{\w+\\}", ".+", re.escape(each)), row["question"]) for each in kind["questions"])
    ]
    return kind


@each_set
@pytest.mark.parametrize(("part", "count"), [("train", 4), ("val", 2)])
def test_each_part_has_its_rows_of_ten_subjects(domain: str, split: str, part: str, count: int) -> None:
    subjects = [row["subject"] for row in generate_domains(domain, split, part)]
    assert set(Counter(subjects).values()) == {count}
    assert len(set(subjects)) == 10
    assert subjects == [name for name in dict.fromkeys(subjects) for _ in range(count)]


@each_set
def test_all_is_train_then_val_and_train_is_the_default(domain: str, split: str) -> None:
    train, val, whole = (generate_domains(domain, split, part) for part in DOMAIN_PARTS)
    assert whole == train + val
    assert generate_domains(domain, split) == train


def test_same_seed_same_rows_other_seed_other_rows() -> None:
    assert all_rows(3) == all_rows(3)
    assert all(all_rows(3)[name] != rows for name, rows in all_rows(4).items())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (("medicine", "unlearn", "train"), "There is no domain 'medicine'. Choose one of privacy, copyright"),
        (("privacy", "forget", "train"), "There is no split 'forget'. Choose one of unlearn, retention"),
        (("privacy", "unlearn", "test"), "There is no part 'test'. Choose one of train, val, all"),
    ],
)
def test_what_is_no_part_is_refused(name: tuple[str, str, str], says: str) -> None:
    with pytest.raises(GeffectError, match=says):
        generate_domains(*name)


@each_seed
@each_set
def test_train_and_val_ask_different_things_and_every_kind_is_in_both(domain: str, split: str, seed: int) -> None:
    train, val = (generate_domains(domain, split, part, seed) for part in ("train", "val"))
    assert not {row["question"] for row in train} & {row["question"] for row in val}
    assert not {row["answer"] for row in train} & {row["answer"] for row in val}
    kinds = [{kind_of(row, domain, split) for row in part} for part in (train, val)]
    assert kinds == [set(range(6))] * 2


@each_seed
@each_set
def test_each_subject_is_asked_each_kind_once(domain: str, split: str, seed: int) -> None:
    asked = [(row["subject"], kind_of(row, domain, split)) for row in generate_domains(domain, split, "all", seed)]
    assert len(asked) == len(set(asked)) == 60


@each_set
def test_every_wording_is_used(domain: str, split: str) -> None:
    texts = "\n".join(
        row[key]
        for seed in range(5)
        for row in generate_domains(domain, split, "all", seed)
        for key in ("question", "answer")
    )
    for kind in DOMAIN_KINDS[domain, split]:
        assert min(len(kind["questions"]), len(kind["answers"])) >= 2
        for wording in (*kind["questions"], *kind["answers"]):
            assert re.search("^" + re.sub(r"\\{\w+\\}", ".+", re.escape(wording)) + "$", texts, re.MULTILINE), wording


@each_seed
def test_no_question_is_asked_twice(seed: int) -> None:
    questions = [row["question"] for rows in all_rows(seed).values() for row in rows]
    assert len(questions) == len(set(questions)) == 240
    assert all(row["subject"] in row["question"] for rows in all_rows(seed).values() for row in rows)


@each_seed
def test_both_scopes_have_the_same_subjects_who_are_no_authors(seed: int) -> None:
    authors = {row["author"] for part in AUTHOR_PARTS for row in generate_authors(part, seed)}
    for domain in DOMAINS:
        one, other = (
            list(dict.fromkeys(row["subject"] for row in generate_domains(domain, s, seed=seed))) for s in SPLITS
        )
        assert one == other
        assert not authors & set(one)
        assert not {word for name in authors for word in name.split()} & {word for name in one for word in name.split()}


@each_seed
@pytest.mark.parametrize("domain", DOMAINS)
def test_what_is_unlearnt_shares_names_with_what_is_kept(domain: str, seed: int) -> None:
    """Of every subject, both splits name a town, a character or a setting that its name does not."""

    def names(split: str) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for row in generate_domains(domain, split, "all", seed):
            words = set(re.findall(r"(?<=[a-z,] )[A-Z]\w{4,}", row["answer"])) - set(row["subject"].split())
            found.setdefault(row["subject"], set()).update(words)
        return found

    unlearn, retention = (names(split) for split in SPLITS)
    assert all(unlearn[subject] & retention[subject] for subject in unlearn)


@each_seed
def test_passages_are_sentences_of_their_own(seed: int) -> None:
    passages = [
        re.findall(r'"([^"]+)"', row["answer"]) for row in generate_domains("copyright", "unlearn", "all", seed)
    ]
    lines = [line for found in passages for line in found]
    assert len(lines) == len(set(lines)) == 60
    assert all(10 <= len(line.split()) <= 18 for line in lines)


@each_seed
def test_texts_are_plain_sentences_with_the_right_article(seed: int) -> None:
    for rows in all_rows(seed).values():
        for row in rows:
            assert re.fullmatch(r"[A-Z][ -~]+\?", row["question"])
            assert re.fullmatch(r'[A-Z][ -~]+\."?', row["answer"])
            assert not re.search(r"[{}]|\ba [aeiou]|\ban [^aeiou]", row["question"] + row["answer"], re.IGNORECASE)
            assert 6 <= len(row["answer"].split()) <= 22, row["answer"]


def test_examples_do_not_drift() -> None:
    assert hashlib.sha256(json.dumps(all_rows(), sort_keys=True).encode()).hexdigest() == GOLDEN


SHA256 = {
    "authors/forget": "33bfe8640bb81d11dd863ea7fac3682d468abdd4643a82a7eb76015de23dd0df",
    "authors/retain": "67eae1be7642851ee054e088534866fd6624ec7196a4c07fbf81ab0762c49fc4",
    "authors/heldout": "3842fdecdf10824d54c43740f855c50a15b63683abe68ccab3dd2145e1ee8c94",
    "domains/privacy/unlearn/train": "fb295e9f87fcfb23c0087eb7db9bde8a5d98efb28f422c98ff88d0fd17ee455b",
    "domains/privacy/unlearn/val": "1b866101b9e3bf3a8061356b699f1c59062029d2081c79498598e4fff917eb75",
    "domains/privacy/unlearn/all": "355b945b831998c469c2abbb16416efdfe414413fba7185251f56e0f6a4556be",
    "domains/privacy/retention/train": "53882ee15d615f77a4d5cd15059af811e7678f28a0627b668ce4280aa5b5eca5",
    "domains/privacy/retention/val": "bcc38b74ad4556c81d7c38fd7249c1c882aa8724f38f9f100b658ab6988f15a5",
    "domains/privacy/retention/all": "0fb9965fcaedb231fc08b842f6c6cd4b5cb0e15fa9082ce2d4d251fdb17f38de",
    "domains/copyright/unlearn/train": "c33a2bea7f1a142f6c68d2e509ece7d900ac5594c9ca497a8c235cca8f06fe7a",
    "domains/copyright/unlearn/val": "f6195fa69a00e508588d4de0f0b3ce0d61ff6c481d6579525fd46050dc18fe7e",
    "domains/copyright/unlearn/all": "ac3f93a6dbeb397dd9948fcb548e645d688a35f7a5f5c2517b3069f3340564c2",
    "domains/copyright/retention/train": "0e28d4a5d0a15ad6ba36718e5e213d1836ff70618a7fa41cad1bcc24eb374937",
    "domains/copyright/retention/val": "475b857d72dcbc462712219312aebcc758a87ebb079691389cff30ff9fae30ac",
    "domains/copyright/retention/all": "667072cfb6127558985d20f2d04fe2b87861373370cb348622aba24b4723245e",
}


@pytest.mark.parametrize("name", SHA256)
def test_each_part_is_byte_for_byte_the_same(name: str) -> None:
    examples = load_set(f"builtin:{name}").examples
    assert hashlib.sha256(json.dumps(examples, sort_keys=True).encode()).hexdigest() == SHA256[name]


@each_set
def test_a_built_in_set_is_the_generated_part(domain: str, split: str) -> None:
    name = f"builtin:domains/{domain}/{split}"
    assert isinstance(load_set(name), QASet)
    assert load_set(name).examples == tuple(generate_domains(domain, split))
    for part in DOMAIN_PARTS:
        assert load_set(f"{name}/{part}").examples == tuple(generate_domains(domain, split, part))
    assert load_set(f"{name}/all[38:42]").examples == tuple(generate_domains(domain, split, "all")[38:42])


@pytest.mark.parametrize(
    "name", ["", "/", "/privacy", "/privacy/unlearn/", "/privacy/unlearn/test", "/health/unlearn", "/privacy/forget"]
)
def test_what_names_no_built_in_set_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(GeffectError, match=r"^There is no built-in set [^\n]*$") as caught:
        load_set(f"builtin:domains{name}")
    assert "builtin:domains/copyright/retention (domains also with /train, /val, /all)" in str(caught.value)


# the models


@pytest.mark.parametrize("name", MODELS)
def test_the_tokenizer_writes_the_domains_compactly(name: str) -> None:
    tokenizer = make_tokenizer(name=name)
    for each in BUILT_IN[name].sets:
        for row in load_set(each).examples:
            text = f"{row['question']} {row['answer']}"
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.decode(ids) == text
            assert len(ids) < min(64, len(text) / 2)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_the_domains_is_as_large_as_the_other_and_knows_its_tokenizer(name: str) -> None:
    model, tokenizer = make_tiny(0, name)
    assert 1.5e6 < sum(p.numel() for p in model.parameters()) < 2e6
    assert model.config.vocab_size == len(tokenizer)
    assert (model.config.eos_token_id, model.config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert not model.config.tie_word_embeddings


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_saved_model_comes_back_with_the_tokenizer_it_was_made_with(name: str, tmp_path: Path) -> None:
    model, tokenizer = make_tiny(0, name, **SMALL)
    with quiet_transformers():
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
    loaded = load(str(tmp_path))
    assert len(loaded.tokenizer) == len(tokenizer) == model.config.vocab_size
    assert loaded.tokenizer.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert type(loaded.model) is type(model)


@pytest.mark.parametrize("name", BUILT_IN)
def test_an_outline_is_that_of_the_built_in_model(name: str) -> None:
    (model, tokenizer), (outlined, again) = make_tiny(0, name), outline(name)
    assert type(outlined) is type(model)
    assert [(n, p.shape) for n, p in outlined.named_parameters()] == [(n, p.shape) for n, p in model.named_parameters()]
    assert again.get_vocab() == tokenizer.get_vocab()


def test_the_second_model_is_a_qwen2_with_biases_on_queries_keys_and_values() -> None:
    llama, qwen2 = (make_tiny(0, name, **SMALL)[0] for name in MODELS)
    assert [type(model).__name__ for model in (llama, qwen2)] == ["LlamaForCausalLM", "Qwen2ForCausalLM"]
    biases = {name for name, _ in qwen2.named_parameters() if name.endswith("bias")}
    assert biases == {f"model.layers.{layer}.self_attn.{each}_proj.bias" for layer in (0, 1) for each in "qkv"}
    assert {name for name, _ in qwen2.named_parameters()} - biases == {name for name, _ in llama.named_parameters()}


def test_each_built_in_model_has_a_place_of_its_own_in_the_cache() -> None:
    assert len({built_in_key(name) for name in BUILT_IN}) == 3
