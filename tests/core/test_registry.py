"""Registries: a text is read as it was written, and everything else is refused in one line."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geffect.core.registry import Call, Configurable, Positive, Registry, parse
from geffect.errors import GeffectError

NAMES = st.sampled_from(["ga", "gd", "npo", "wga", "gru", "_x1"])
NUMBERS = st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = NUMBERS | st.booleans() | st.text(alphabet="ab'\"\\ é\n", max_size=5)
CALLS = st.builds(Call, NAMES, st.dictionaries(st.sampled_from(["beta", "decay", "alpha"]), VALUES), NUMBERS)


@dataclass(frozen=True)
class Method(Configurable):
    beta: Positive = 0.1
    alpha: float = 1.0
    steps: int | None = None
    on: Literal["retain", "general"] = "retain"
    mean: bool = True
    unit: ClassVar[str] = "token"


@dataclass(frozen=True)
class Bare(Configurable):
    pass


@dataclass(frozen=True)
class Demanding(Configurable):
    level: int


def make_registry() -> Registry[Configurable]:
    return Registry("a thing", {"method": Method, "bare": Bare, "demanding": Demanding})


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
        "npo(2)",
        "npo(beta, gd)",
        "npo(beta + gd)",
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
    with pytest.raises(GeffectError, match=r"^[^\n]* is no sum of names with parameters, such as [^\n]*$"):
        parse(text)


def test_a_bare_name_is_a_word_and_refused_where_a_number_belongs() -> None:
    assert parse("kl(on=general)") == parse("kl(on='general')") == [Call("kl", {"on": "general"})]
    with pytest.raises(GeffectError, match=r"beta of method is 'x'. It should be a valid number"):
        make_registry().build(parse("method(beta=x)")[0])


@pytest.mark.parametrize(
    ("text", "thing"),
    [
        ("method(beta=2)", Method(beta=2)),
        ("METHOD(on=general)", Method(on="general")),
        ("method(steps=3, mean=False)", Method(steps=3, mean=False)),
        ("method(steps=None)", Method()),
        ("method(steps=none, mean=false)", Method(mean=False)),
        ("3*bare", Bare()),
        ("demanding(level=4)", Demanding(4)),
    ],
)
def test_a_term_builds_what_it_names_with_its_parameters(text: str, thing: Configurable) -> None:
    assert make_registry().build(parse(text)[0]) == thing


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("other", "'other' is not a thing. Choose one of bare, demanding, method"),
        ("metod", "'metod' is not a thing. Did you mean method\\? There are bare, demanding, method"),
        ("method(gamma=1)", "method has no parameter 'gamma'. It has beta, alpha, steps, on, mean"),
        ("method(unit=1)", "method has no parameter 'unit'"),
        ("bare(beta=1)", "bare has no parameter 'beta'. It has none"),
        ("method(beta='1')", "beta of method is '1'. It should be a valid number"),
        ("method(beta=True)", "beta of method is True. It should be a valid number"),
        ("method(beta=1e999)", "beta of method is inf. It should be a finite number"),
        ("method(beta=-1)", "beta of method is -1. It should be greater than 0"),
        ("method(steps=1.5)", "steps of method is 1.5. It should be a valid integer"),
        ("method(on=heldout)", "on of method is 'heldout'. It should be 'retain' or 'general'"),
        ("method(mean=1)", "mean of method is 1. It should be a valid boolean"),
        ("method(mean=none)", "mean of method is None. It should be a valid boolean"),
        ("demanding", "demanding needs a value of level. Write demanding\\(level=…\\)"),
    ],
)
def test_what_a_registry_does_not_hold_is_refused(text: str, says: str) -> None:
    with pytest.raises(GeffectError, match=says):
        make_registry().build(parse(text)[0])


def test_python_is_refused_as_a_text_is() -> None:
    with pytest.raises(GeffectError, match=r"beta of Method is -1. It should be greater than 0"):
        Method(beta=-1)
    with pytest.raises(GeffectError, match=r"on of Method is 'held'. It should be 'retain' or 'general'"):
        Method(on="held")  # type: ignore[arg-type]


def test_a_class_is_registered_once_under_a_word() -> None:
    registry = make_registry()

    @registry.register("Mine")
    @dataclass(frozen=True)
    class Mine(Configurable):
        level: int = 3

    assert registry.build(parse("mine(level=5)")[0]) == Mine(5)
    assert list(registry) == ["bare", "demanding", "method", "mine"]
    for name, problem in (("mine", "taken"), ("METHOD", "taken"), ("a b", "no word"), ("2nd", "no word")):
        with pytest.raises(GeffectError, match=f"is {problem}"):
            registry.register(name)
    with pytest.raises(GeffectError, match="int is no dataclass"):
        registry.register("number")(int)
