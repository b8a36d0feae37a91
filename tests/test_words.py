"""The words of the package, its documentation and its studies: one a thing, the field's own, in American spelling."""

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PLACES = ("geffect", "docs", "README.md", "CONTRIBUTING.md", "analysis", "figures/README.md", "notebooks")
KINDS = {".py", ".md", ".ipynb", ".html", ".css", ".js", ".yaml", ".toml", ".bib"}
STEMS = (
    "author|capital|categor|central|character|custom|emphas|equal|factor|final|general|initial|local|maxim|memor|minim|"
    "normal|optim|organ|parameter|penal|polar|quant|random|rational|real|recogn|regular|serial|special|stabil|standard|"
    "summar|synchron|token|util|vector|visual"
)
SAY = {
    rf"\w*({STEMS})is(e|es|ed|er|ers|ing|ation|ations)\b": "the same with z",
    r"\w*(colour|behaviour|favour|neighbour|honour|flavour|rigour)\w*": "the same with -or",
    r"\w*(labell|modell|cancell|signall|travell)(ed|ing|er)\b": "the same with one l",
    r"\w*analys(e|ed|er|ing)\b|\bcentred?\b|artefacts?|catalogue|whilst|judgement": "the American form",
    r"\b(re|un)?learnt\b|\b(mis)?spelt|burnt": "the form in -ed",
    r"moving_avg": "decay, the weight on the past",
    r"hyper_param\w*": "beta, gamma or alpha",
    r"unlearn metrics?": "objective",
    r"gradient edit\w*": "rectifier",
    r"\brisks?\b": "loss, or a target",
    r"\bledger\w*": "prediction check",
    r"\bheld (set|row|author|answer|example)s?\b": "heldout",
    r"\bkept (set|row)s?\b": "the heldout or retain set",
    r"\b(retain|forget|heldout|objective|memory|retention|unlearning|validation|probe) rows?\b": "example, or gradient",
    r"\bworks? against\b": "conflict",
    r"\bgo(es|ing|ne)? on (with|from|where)\b": "continue",
    r"\bmeant over\b": "mean over",
    r"\btold apart\b|\btells? apart\b|\btell \w+ apart\b": "distinguish",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bwhat must (go|stay)\b": "forget or retain",
    r"\bnobody can\b|\bbrings? (its|their) room\b|\bslip of the pen\b": "plain English",
    r"\bgeffect (fit|figures|align|localise|show-batch)\b": "finetune, plot, compare, localize, preview",
}
# What stays, each for a reason: the names of other people's code, and quotations.
EXCEPTIONS = {
    ("docs/open_unlearning.md", "ra_Q_A_Prob_normalised"): "open-unlearning's own name",
    ("docs/open_unlearning.md", "wf_Q_A_Prob_normalised"): "open-unlearning's own name",
    ("geffect/reports/scores.py", "ra_Q_A_Prob_normalised"): "open-unlearning's own name",
    ("geffect/reports/scores.py", "wf_Q_A_Prob_normalised"): "open-unlearning's own name",
    ("geffect/rectifiers/gru.py", "moving_avg"): "the published script's name, beside ours",
    ("analysis/benchmarks/published.py", "moving_avg"): "the published script's name, beside ours",
}


def files() -> list[str]:
    """The text files that a reader of the package, the documentation or a study sees."""
    paths = (path for place in PLACES for path in [ROOT / place, *(ROOT / place).rglob("*")])
    names = (path.relative_to(ROOT).as_posix() for path in paths if path.suffix in KINDS and path.is_file())
    return sorted(name for name in names if not name.startswith("docs/_build/"))


@cache
def texts() -> dict[str, str]:
    """File → its text."""
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in files()}


@pytest.mark.parametrize("pattern", SAY)
def test_no_word_has_another_one_in_its_place(pattern: str) -> None:
    search = re.compile(pattern, re.IGNORECASE)
    inside = re.compile(pattern.removeprefix(r"\w*"), re.IGNORECASE)  # far faster, and in every text of a hit
    hits = [
        f"{name}:{number}: {match[0]!r}"
        for name, text in texts().items()
        if inside.search(text)
        for number, line in enumerate(text.splitlines(), 1)
        for match in search.finditer(line)
        if (name, match[0]) not in EXCEPTIONS
    ]
    assert not hits, f"say {SAY[pattern]}:\n" + "\n".join(hits)


def test_every_exception_is_needed() -> None:
    for (name, word), reason in EXCEPTIONS.items():
        assert word in (ROOT / name).read_text(encoding="utf-8"), reason


def test_the_patterns_find_what_they_are_for() -> None:
    text = "normalised localisation colours labelled hyper_params goes on with told apart relearnt mended forget rows"
    assert sum(len(re.findall(pattern, text)) for pattern in SAY) == 10
