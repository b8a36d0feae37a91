"""The built-in set of general ability: what it holds, how its kinds are mixed, and that its answers are right."""

import operator
import re
from collections import Counter
from typing import Any

import pytest

from geffect.data.encode import encode_set
from geffect.data.load import QASet, load_set
from geffect.data.synthetic import read_general
from geffect.errors import GeffectError
from geffect.models.builtin import BUILT_IN, make_tokenizer
from geffect.monitoring.targets import make_targets

EXAMPLES = read_general()
KINDS = [example["kind"] for example in EXAMPLES]
TOKENS = 128  # more than any example has
OPERATORS = {"+": operator.add, "-": operator.sub, "×": operator.mul, "÷": operator.truediv}
CALLS: dict[str, list[tuple[Any, Any]]] = {
    "is_even": [(4, True), (-3, False), (0, True)],
    "count_vowels": [("Apple Tree", 4), ("rhythm", 0)],
    "last_word": [("we went home", "home")],
}


def answers(kind: str) -> dict[str, str]:
    """Question → answer."""
    return {each["question"]: each["answer"] for each in EXAMPLES if each["kind"] == kind}


def test_it_is_loaded_like_any_other_set() -> None:
    whole = load_set("builtin:general")
    assert isinstance(whole, QASet)
    assert whole.examples == tuple(EXAMPLES)
    assert load_set("builtin:general[:8]").examples == tuple(EXAMPLES[:8])


def test_all_64_differ_and_none_is_blank() -> None:
    assert len(EXAMPLES) == 64
    for field in ("question", "answer"):
        assert len({example[field] for example in EXAMPLES}) == 64
        assert all(example[field] == example[field].strip() != "" for example in EXAMPLES)
    assert all(set(example) == {"kind", "question", "answer"} for example in EXAMPLES)


def test_four_of_each_kind_are_mixed() -> None:
    assert set(Counter(KINDS).values()) == {4} and len(set(KINDS)) == 16
    assert all(len(set(KINDS[i : i + 8])) == 8 for i in range(57))
    assert all(len(set(KINDS[i::8])) == 8 for i in range(8))
    assert len({KINDS[i * 64 // 8] for i in range(8)}) == 8
    assert len({KINDS[i * 64 // 16] for i in range(16)}) == 16


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_tokenizer_encodes_them_shortly(name: str) -> None:
    encoded = encode_set(make_tokenizer(name=name), load_set("builtin:general"))
    assert len(encoded) == 64
    assert max(len(each.input_ids) for each in encoded) < TOKENS
    assert not any(each.cut for each in encoded)


def test_a_target_of_eight_has_eight_kinds() -> None:
    tokenizer = make_tokenizer()
    target = make_targets({"general": "builtin:general"}, tokenizer, batch_size=8, most=8)["general"]
    encoded = encode_set(tokenizer, load_set("builtin:general"))
    taken = [[each.input_ids for each in encoded].index(each.input_ids) for each in target.examples]
    assert len({KINDS[i] for i in taken}) == 8


def test_every_calculation_is_right() -> None:
    number = r"\d+(?:\.\d+)?"
    text = "\n".join(example["answer"] for example in EXAMPLES)
    found = re.findall(rf"({number}) ([-+×÷]) ({number}) = ({number})", text)
    assert len(found) == text.count(" = ") >= 8
    for first, sign, second, result in found:
        assert OPERATORS[sign](float(first), float(second)) == float(result), (first, sign, second, result)


def test_every_program_does_what_was_asked() -> None:
    names = set()
    for question, answer in answers("code").items():
        if printed := re.search(r"print\((.*)\)$", question):
            assert repr(eval(printed[1])) == answer
        else:
            defined: dict[str, Any] = {}
            exec(answer, defined)
            (name,) = defined.keys() - {"__builtins__"}
            assert f"{name}(" in question
            assert all(defined[name](value) == result for value, result in CALLS[name])
            names.add(name)
    assert names == set(CALLS)


def test_every_list_is_in_order() -> None:
    found = answers("ordering")
    given = {each.partition(":")[0]: each.partition(":")[2].strip(" .").split(", ") for each in found}
    numbers, words, sizes = (
        (given[each], answer.split(", "))
        for start in ("Sort", "Put", "Order")
        for each, answer in zip(given, found.values(), strict=True)
        if each.startswith(start)
    )
    assert numbers[1] == sorted(numbers[0], key=int)
    assert words[1] == sorted(words[0])
    assert sorted(sizes[0]) == sorted(sizes[1])


def test_a_name_beside_it_is_told_its_name() -> None:
    with pytest.raises(
        GeffectError, match=r"Did you mean builtin:general\? Name one of .*, builtin:general, builtin:d"
    ):
        load_set("builtin:generl")
