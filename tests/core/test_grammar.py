"""The one grammar: what is written is read back, and everything else is one line."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geffect.core.grammar import Call, choose, parse
from geffect.errors import GeffectError

NAMES = st.sampled_from(["ga", "gd", "npo", "wga", "gru", "_x1"])
NUMBERS = st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = NUMBERS | st.booleans() | st.text(alphabet="ab'\"\\ é\n", max_size=5)
CALLS = st.builds(Call, NAMES, st.dictionaries(st.sampled_from(["beta", "decay", "alpha"]), VALUES), NUMBERS)


@dataclass(frozen=True)
class Method:
    beta: float = 0.1
    alpha: float = 1.0
    unit: ClassVar[str] = "token"

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise GeffectError("beta > 0", str(self.beta), "raise it")


@dataclass(frozen=True)
class Bare:
    pass


TABLE: dict[str, type[Any]] = {"method": Method, "bare": Bare}


def written(call: Call, space: str = " ") -> str:
    parameters = f",{space}".join(f"{name}={value!r}" for name, value in call.parameters.items())
    return f"{call.weight!r}{space}*{space}{call.name}({parameters})"


@settings(deadline=None)
@given(st.lists(CALLS, min_size=1, max_size=4), st.sampled_from(["", " ", "  "]))
def test_what_is_written_is_read_back(calls: list[Call], space: str) -> None:
    assert parse(f"{space}+{space}".join(written(call, space) for call in calls)) == calls


@settings(deadline=None)
@given(st.text(alphabet="ganpo01.9e=()*+-,'[]{}: \n_\\#é", max_size=30))
def test_no_text_ends_in_another_error(text: str) -> None:
    try:
        calls = parse(text)
    except GeffectError as error:
        assert "\n" not in str(error)
    else:
        assert calls
        assert all(call.name.isidentifier() for call in calls)


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("ga", [Call("ga")]),
        (" ga ", [Call("ga")]),
        ("ga()", [Call("ga")]),
        ("-1*ga", [Call("ga", {}, -1.0)]),
        ("2*(3*ga)", [Call("ga", {}, 6.0)]),
        ("ga + (gd + npo)", [Call("ga"), Call("gd"), Call("npo")]),
        ("0*gd", [Call("gd", {}, 0.0)]),
    ],
)
def test_forms_of_a_sum(text: str, calls: list[Call]) -> None:
    assert parse(text) == calls


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "npo(beta=0.1",
        "npo(0.1)",
        "npo(beta)",
        "npo(beta=0.1, beta=0.2)",
        "npo(**x)",
        "npo(beta=1+1)",
        "ga - gd",
        "ga / 2",
        "ga * 2",
        "ga gd",
        "ga; gd",
        "ga, gd",
        "2",
        "'ga'",
        "2*3",
        "ga + 1",
        "-ga",
        "True*ga",
        "'2'*ga",
        "1e999*ga",
        "2j*ga",
        "a.b",
        "a[0]",
        "f(x=1)(y=2)",
        "lambda: ga",
        "npo(beta={[]: 1})",
        "1" + "0" * 400 + "*ga",
        "1" * 5000 + "*ga",
        "+".join(["ga"] * 20_000),
        "(" * 500,
        "\0",
        "ga\ngd",
    ],
)
def test_another_form_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(GeffectError, match=r"^expected names with parameters, such as [^\n]*$"):
        parse(text)


def test_a_bare_name_is_a_word_and_refused_where_a_number_belongs() -> None:
    assert parse("kl(on=general)") == parse("kl(on='general')") == [Call("kl", {"on": "general"})]
    with pytest.raises(GeffectError, match="a number for beta of method; found 'x'"):
        choose(TABLE, parse("method(beta=x)")[0], "thing")


def test_a_term_builds_what_it_names_with_its_parameters() -> None:
    assert choose(TABLE, Call("method", {"beta": 2}), "thing") == Method(beta=2)
    assert choose(TABLE, Call("bare", {}, 3.0), "thing") == Bare()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (Call("other"), "expected thing among bare, method; found 'other'"),
        (Call("method", {"gamma": 1}), "parameters of method among: beta, alpha; found 'gamma'"),
        (Call("method", {"unit": 1}), "parameters of method among: beta, alpha; found 'unit'"),
        (Call("bare", {"beta": 1}), "parameters of bare among: none; found 'beta'"),
        (Call("method", {"beta": "1"}), "a number for beta of method; found '1'"),
        (Call("method", {"beta": True}), "a number for beta of method; found True"),
        (Call("method", {"beta": float("inf")}), "a number for beta of method; found inf"),
        (Call("method", {"beta": -1}), "beta > 0; found -1"),
    ],
)
def test_what_a_table_does_not_hold_is_refused(call: Call, says: str) -> None:
    with pytest.raises(GeffectError, match=says):
        choose(TABLE, call, "thing")
