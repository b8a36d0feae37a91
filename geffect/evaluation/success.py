"""ROUGE-L, and unlearn and retention success as KnowUnDo and GRAIL report them (arXiv 2407.01920, 2504.12681).

ROUGE-L is that of TOFU's and MUSE's published evaluations, extended to every script.
"""

import functools
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import regex
import torch
from torch import Tensor, nn

from geffect.core.forward import IGNORE_INDEX, Outputs, shift_labels
from geffect.core.splits import domain_of, role_of
from geffect.data.encode import EncodedExample, pad_id_of
from geffect.errors import GeffectError
from geffect.models.scoring import forward_batches

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Measure = Literal["recall", "fmeasure", "precision"]

UNSPACED = "Han Hira Kana Bopo Thai Laoo Khmr Mymr Tibt Yiii"  # scripts that put no space between words
_EACH = "".join(rf"\p{{scx={each}}}" for each in UNSPACED.split())
_OTHER = r"[[\p{L}\p{Nd}]--[\p{Latin}\p{Common}\p{ASCII}]]"
WORDS = regex.compile(rf"(?V1)[\p{{L}}\p{{Nl}}&&[{_EACH}]]\p{{M}}*|(?:{_OTHER}[\p{{M}}\u200C\u200D]*)+")
ANYTHING = regex.compile(r"[^\s\p{P}\p{C}]+")


def rouge_l(answer: str, true: str, measure: Measure = "recall") -> float:
    """ROUGE-L with Porter's stemmer: the longest common subsequence of words, over those of the true text for recall.

    Words are those of `words`: a text of the letters a–z and digits has exactly its published score. ``recall`` is
    TOFU's measure, ``fmeasure`` MUSE's. In [0, 1]; 0 where a text has no word.

    >>> rouge_l("the mentor was Oskar", "the mentor of Hanae was Oskar"), rouge_l("a b", "a b c d", "fmeasure")
    (0.6666666666666666, 0.6666666666666666)
    >>> rouge_l("東京に住む", "東京に住んだ"), rouge_l("он живёт там", "он живёт здесь")
    (0.6666666666666666, 0.6666666666666666)
    """
    return float(getattr(_scorer().score(true, answer)["rougeL"], measure))


def words(text: str) -> list[str]:
    """The words that ROUGE compares.

    Those of the published scorer (runs of a–z and digits, lower case, stemmed where longer than three) and, in their
    order, the words of scripts other than Latin, which that scorer drops: a run of letters, marks and digits, without
    case; in scripts without spaces between words (Chinese, Japanese, Thai, …) each letter with its marks. Other letters
    of the Latin script separate words, as published ("José" is "jos"), unless the text has no word otherwise: then its
    runs of anything but spaces and punctuation are its words.

    >>> words("She wrote «Карты глины» in 1990"), words("東京 2020"), words("é")
    (['she', 'wrote', 'карты', 'глины', 'in', '1990'], ['東', '京', '2020'], ['é'])
    """
    result: list[str] = []
    end = 0
    for match in WORDS.finditer(text):
        result += [*_published().tokenize(text[end : match.start()]), _folded(match[0])]
        end = match.end()
    result += _published().tokenize(text[end:])
    return result or [_folded(each) for each in ANYTHING.findall(text)]


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


@dataclass(frozen=True)
class Success:
    """How well a model answers a set; every example counts the same (in `compute_likelihood` every token does).

    Of a retain set the accuracy is the retention success (RS), of a forget set 100 − accuracy the unlearn success (US).
    """

    accuracy: float  # share of an example's labeled tokens that are the most likely one, averaged over examples, in %
    perplexity: float  # exp of the mean over examples of an example's nats per labeled token
    rouge_l: float  # of the most likely tokens against the labeled ones, averaged over examples, in %
    examples: int


def success(
    model: nn.Module,
    tokenizer: "PreTrainedTokenizerBase",
    examples: Sequence[EncodedExample],
    batch_size: int = 16,
    *,
    measure: Measure = "fmeasure",
) -> Success:
    """Accuracy, perplexity and ROUGE-L over a set; no batch size changes them, and the model stays in its mode.

    ROUGE-L compares two texts without special tokens: what is most likely at each labeled position after the true
    tokens before it, and the labels. The papers' own scorer is unreleased; the F-measure with Porter's stemmer is this
    toolkit's choice. The end-of-sequence token that `encode_set` labels counts in accuracy and perplexity; the papers'
    validation examples have none.
    """
    bare = [example.index for example in examples if all(label == IGNORE_INDEX for label in example.labels[1:])]
    if bare or not examples:
        state = f"example {bare[0]} has no labeled token" if bare else "there are no examples"
        raise GeffectError(f"Success cannot be computed: {state}", remedy="Encode a set that has answers")
    parts, rouge = [], 0.0
    for _, outputs in forward_batches(model, examples, pad_id_of(tokenizer), batch_size):
        likely, labels = outputs.spread(outputs.likeliest), shift_labels(outputs.labels)
        parts.append(_means(outputs).cpu())
        for answer, true, mask in zip(likely, labels, outputs.mask, strict=True):
            said, right = (tokenizer.decode(ids[mask].tolist(), skip_special_tokens=True) for ids in (answer, true))
            rouge += rouge_l(said, right, measure)
    accuracy, nll = torch.cat(parts).mean(0)
    return Success(100 * accuracy.item(), nll.exp().item(), 100 * rouge / len(examples), len(examples))


def harmonic_success(unlearn: float, retention: float) -> float:
    """HS = 2·US·RS / (US + RS), at most twice the smaller; 0 where both are 0.

    >>> round(harmonic_success(90.72, 85.34), 2)
    87.95
    """
    return 2 * unlearn * retention / (unlearn + retention) if unlearn + retention else 0.0


def successes(
    model: nn.Module, tokenizer: "PreTrainedTokenizerBase", sets: Mapping[str, Sequence[EncodedExample]]
) -> dict[str, dict[str, Any]]:
    """US, RS, HS, perplexity and ROUGE-L of every domain's validation sets."""
    by_domain: dict[str, dict[str, Any]] = {}
    for name, examples in sets.items():
        role, _, validation = role_of(name).partition("_")
        if validation == "val":
            by_domain.setdefault(domain_of(name), {})[role] = asdict(success(model, tokenizer, examples))
    for scores in by_domain.values():
        unlearn, retention = 100 - scores["forget"]["accuracy"], scores["retain"]["accuracy"]
        scores |= {"US": unlearn, "RS": retention, "HS": harmonic_success(unlearn, retention)}
    return by_domain


def _means(outputs: Outputs) -> Tensor:
    """Each example's token accuracy and nats a token, ``[B, 2]``."""
    sums = torch.stack([each.sum(1, dtype=torch.float64) for each in (outputs.right, outputs.nll)], 1)
    return sums / outputs.mask.sum(1, keepdim=True)
