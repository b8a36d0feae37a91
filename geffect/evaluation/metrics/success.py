"""Unlearn and retention success as KnowUnDo and GRAIL report them, teacher-forced (arXiv 2407.01920, 2504.12681)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geffect.core.forward import IGNORE_INDEX, Outputs, shift_labels
from geffect.core.splits import domain_of, role_of
from geffect.data.encode import EncodedExample, pad_id_of
from geffect.errors import GeffectError
from geffect.evaluation.metrics.rouge import Measure, rouge_l
from geffect.models.scoring import forward_batches


@dataclass(frozen=True)
class Success:
    """How well a model answers a set, every row counting the same (`compute_likelihood` counts every token the same).

    Of retention rows the accuracy is the retention success (RS), of unlearning rows 100 − accuracy the unlearn success
    (US).

    Attributes:
        accuracy: share of a row's labeled tokens that are the most likely one, averaged over examples, × 100.
        perplexity: exp of the mean over the rows of a row's nats per labeled token.
        rouge_l: ROUGE-L of the most likely tokens against the labeled ones, averaged over examples, × 100.
        rows: how many.
    """

    accuracy: float
    perplexity: float
    rouge_l: float
    rows: int


def success(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[EncodedExample],
    batch_size: int = 16,
    *,
    measure: Measure = "fmeasure",
) -> Success:
    """Accuracy, perplexity and ROUGE-L over a set; the model is left in the mode it was in.

    ROUGE-L compares two texts without special tokens: what is most likely at each labeled position, given the true
    tokens before it, and the labels. The papers' own scorer is unreleased; the F-measure with Porter's stemmer is this
    toolkit's choice. The end-of-sequence token that `encode_set` labels counts in accuracy and perplexity; the papers'
    validation rows have none.

    Args:
        model: the model.
        tokenizer: its Hugging Face tokenizer.
        rows: the encoded set.
        batch_size: rows at a time; it does not change the result.
        measure: which number of ROUGE-L.

    Returns:
        The scores.

    Raises:
        GeffectError: there are no rows, or one has no labeled token.
    """
    _check(rows)
    parts, rouge = [], 0.0
    for _, outputs in forward_batches(model, rows, pad_id_of(tokenizer), batch_size):
        likely = outputs.spread(outputs.logits.argmax(-1))
        parts.append(_means(outputs).cpu())
        for said, true in _texts(tokenizer, outputs, likely):
            rouge += rouge_l(said, true, measure)
    accuracy, nll = torch.cat(parts).mean(0)
    return Success(100 * accuracy.item(), nll.exp().item(), 100 * rouge / len(rows), len(rows))


def harmonic_success(unlearn: float, retention: float) -> float:
    """HS = 2·US·RS / (US + RS), at most twice the smaller; 0 where both are 0.

    >>> round(harmonic_success(90.72, 85.34), 2)
    87.95
    """
    return 2 * unlearn * retention / (unlearn + retention) if unlearn + retention else 0.0


def successes(
    model: nn.Module, tokenizer: Any, sets: Mapping[str, Sequence[EncodedExample]]
) -> dict[str, dict[str, Any]]:
    """US, RS, HS, perplexity and ROUGE-L of every domain's validation sets."""
    found: dict[str, dict[str, Any]] = {}
    for name, rows in sets.items():
        role, _, validation = role_of(name).partition("_")
        if validation == "val":
            found.setdefault(domain_of(name), {})[role] = asdict(success(model, tokenizer, rows))
    for scores in found.values():
        unlearn, retention = 100 - scores["forget"]["accuracy"], scores["retain"]["accuracy"]
        scores |= {"US": unlearn, "RS": retention, "HS": harmonic_success(unlearn, retention)}
    return found


def _check(rows: Sequence[EncodedExample]) -> None:
    bare = [row.index for row in rows if all(label == IGNORE_INDEX for label in row.labels[1:])]
    if bare or not rows:
        state = f"example {bare[0]} has no labeled token" if bare else "there are no examples"
        raise GeffectError(f"Success cannot be computed: {state}", remedy="Encode a set that has answers")


def _means(outputs: Outputs) -> Tensor:
    """``[B, 2]``: each row's token accuracy and nats per token."""
    sums = torch.stack([each.sum(1, dtype=torch.float64) for each in (outputs.right, outputs.nll)], 1)
    return sums / outputs.mask.sum(1, keepdim=True)


def _texts(tokenizer: Any, outputs: Outputs, likely: Tensor) -> list[tuple[str, str]]:
    """Each row's most likely and labeled tokens, as text."""
    labels = shift_labels(outputs.labels)
    return [
        (_text(tokenizer, said[mask]), _text(tokenizer, true[mask]))
        for said, true, mask in zip(likely, labels, outputs.mask, strict=True)
    ]


def _text(tokenizer: Any, ids: Tensor) -> str:
    text: str = tokenizer.decode(ids.tolist(), skip_special_tokens=True)
    return text
