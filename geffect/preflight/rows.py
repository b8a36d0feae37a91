"""Of a set's rows as the model sees them: masks, ends, and whether it knows them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from geffect.core.forward import IGNORE_INDEX
from geffect.core.splits import role_of
from geffect.data.encode import EncodedExample, turn_end
from geffect.data.load import ExampleSet
from geffect.data.shared import shared_examples
from geffect.models.scoring import compute_likelihood
from geffect.preflight.finding import Finding
from geffect.training.unlearn import KNOWN

APART = "leave them out of one set: what is forgotten cannot be kept, and what is trained on is not held out"
LOOK = "see them with geffect preview"
MEND = "mend the tokenizer's chat template so that it writes {{ bos_token }} once"
CUT = "raise --max-length if rows were cut; else this tokenizer's end is another token"


def shared(sets: Mapping[str, ExampleSet]) -> Iterator[Finding]:
    """Examples that stand in two sets, a pair each; one finding where there are none."""
    pairs = list(shared_examples(sets))
    if not pairs:
        yield Finding("shared", "good", f"no example stands in two of {', '.join(sets)}")
    for each in pairs:
        yield Finding(f"shared, {each.one} and {each.other}", "warning", str(each), APART)


def masks(name: str, rows: Sequence[EncodedExample]) -> Finding:
    """The share of tokens that carry loss; a row whose only such token is its end has an empty answer."""
    labeled = [sum(label != IGNORE_INDEX for label in row.labels) for row in rows]
    share = sum(labeled) / sum(len(row.labels) for row in rows)
    found = f"{share:.0%} of its tokens carry loss; rows have {min(labeled)} to {max(labeled)} such"
    poor = [str(row.index) for row, count in zip(rows, labeled, strict=True) if count < 2]
    if poor:
        return Finding(f"masks, {name}", "warning", f"{found}; one alone in rows {', '.join(poor[:5])}", LOOK)
    return Finding(f"masks, {name}", "good", found)


def ends(name: str, rows: Sequence[EncodedExample], tokenizer: Any) -> Finding:
    """A beginning-of-sequence token, once, where the tokenizer itself puts one; an end that is learned."""
    title, bos, end = f"ends, {name}", tokenizer.bos_token_id, turn_end(tokenizer)
    puts = bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
    for wrong, what in (
        (sum(row.input_ids[0] != bos for row in rows) if puts else 0, "without"),
        (sum(row.input_ids[:2] == [bos, bos] for row in rows) if bos is not None else 0, "twice with"),
    ):
        if wrong:
            found = f"{wrong} of {len(rows)} rows begin {what} {tokenizer.bos_token}, which plain texts begin with once"
            return Finding(title, "bad", found, MEND)
    unended, token = sum(row.labels[-1] != end for row in rows), tokenizer.decode([end]) if end is not None else None
    if unended:
        return Finding(title, "warning", f"{unended} of {len(rows)} rows do not end with {token}", CUT)
    return Finding(title, "good", f"rows begin as plain texts do and end with a learned {token}")


def known(name: str, rows: Sequence[EncodedExample], model: Any, pad_id: int) -> Finding:
    """Token accuracy and risk of the start."""
    scores = compute_likelihood(model, rows, pad_id, 8)
    found = f"token accuracy {scores.accuracy:.3f}, risk {scores.loss:.3g} nats a token"
    if scores.accuracy >= KNOWN:
        return Finding(f"knows {name}", "good", found)
    lost, remedy = f"{found}: this model does not know the set", "fit it first: geffect finetune --train SET"
    return Finding(f"knows {name}", "bad" if role_of(name) == "forget" else "warning", lost, remedy)
