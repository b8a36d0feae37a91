"""ROUGE-L between two texts, by the scorer of TOFU's and MUSE's published evaluations, extended to every script."""

import functools
import unicodedata
from typing import Any, Literal

import regex

Measure = Literal["recall", "fmeasure", "precision"]

UNSPACED = "Han Hira Kana Bopo Thai Laoo Khmr Mymr Tibt Yiii"  # scripts that put no space between words
_EACH = "".join(rf"\p{{scx={each}}}" for each in UNSPACED.split())
_OTHER = r"[[\p{L}\p{Nd}]--[\p{Latin}\p{Common}\p{ASCII}]]"
WORDS = regex.compile(rf"(?V1)[\p{{L}}\p{{Nl}}&&[{_EACH}]]\p{{M}}*|(?:{_OTHER}[\p{{M}}\u200C\u200D]*)+")
ANYTHING = regex.compile(r"[^\s\p{P}\p{C}]+")


def rouge_l(said: str, true: str, measure: Measure = "recall") -> float:
    """ROUGE-L with Porter's stemmer: the longest common subsequence of words, over those of the true text for recall.

    Words are those of `words`: a text of the letters a–z and digits has exactly its published score.

    Args:
        said: what a model says.
        true: the reference.
        measure: ``recall`` (TOFU), ``fmeasure`` (MUSE) or ``precision``.

    Returns:
        In [0, 1]; 0 where a text has no word.

    >>> rouge_l("the mentor was Oskar", "the mentor of Hanae was Oskar"), rouge_l("a b", "a b c d", "fmeasure")
    (0.6666666666666666, 0.6666666666666666)
    >>> rouge_l("東京に住む", "東京に住んだ"), rouge_l("он живёт там", "он живёт здесь")
    (0.6666666666666666, 0.6666666666666666)
    """
    return float(getattr(_scorer().score(true, said)["rougeL"], measure))


def words(text: str) -> list[str]:
    """The words that ROUGE compares.

    Those of the published scorer (runs of a–z and digits, lower case, stemmed where longer than three) and, in their
    order, the words of scripts other than Latin, which that scorer drops: a run of letters, marks and digits, without
    case; in scripts without spaces between words (Chinese, Japanese, Thai, …) each letter with its marks. Other letters
    of the Latin script separate words, as published ("José" is "jos"), unless the text has no word otherwise: then its
    runs of anything but spaces and punctuation are its words.

    Returns:
        The words, in order.

    >>> words("She wrote «Карты глины» in 1990"), words("東京 2020"), words("é")
    (['she', 'wrote', 'карты', 'глины', 'in', '1990'], ['東', '京', '2020'], ['é'])
    """
    found: list[str] = []
    end = 0
    for match in WORDS.finditer(text):
        found += [*_published().tokenize(text[end : match.start()]), _folded(match[0])]
        end = match.end()
    found += _published().tokenize(text[end:])
    return found or [_folded(each) for each in ANYTHING.findall(text)]


def _folded(word: str) -> str:
    return unicodedata.normalize("NFC", word).casefold()


@functools.cache
def _published() -> Any:
    from rouge_score.tokenizers import DefaultTokenizer  # brings nltk, a second to import

    return DefaultTokenizer(use_stemmer=True)


@functools.cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.tokenizers import Tokenizer

    class Words(Tokenizer):  # type: ignore[misc]
        def tokenize(self, text: str) -> list[str]:
            return words(text)

    return RougeScorer(["rougeL"], tokenizer=Words())
