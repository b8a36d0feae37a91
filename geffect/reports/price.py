"""The price of forgetting (`geffect.core.price`) in a record: of each step, and before any."""

import pandas as pd

from geffect.core.price import ascent_price, step_price
from geffect.errors import GeffectError
from geffect.io.readers import StrPath
from geffect.record.frames import APPLIED, read_groups
from geffect.record.reader import damage_refused, grams, step_lines
from geffect.reports.findings import nats, number


def price(path: StrPath, by: str = "total", scheme: str = "thirds") -> pd.DataFrame:
    """What each measured step forgot and harmed, and the least harm that a step of its length and gain could do.

    It needs the applied update, which ``geffect unlearn`` records with ``--prediction`` or ``--target``, and a monitor
    of the targets ``forget`` and ``retain`` by default.

    Args:
        path: a run's directory.
        by: ``total``, or ``group``: each group alone, with its own part of the step.
        scheme: how layers make groups.

    Returns:
        Columns ``step``, ``by``; ``gain`` and ``harm``, the first-order rise of the forget and of the retain loss by
        the step; ``cheapest`` and ``dearest``, the least and the largest harm of a step of the same length and gain;
        ``free``, the largest gain at that length whose cheapest step harms nothing (all in nats a token); and
        ``efficiency`` = (dearest − harm) / (dearest − cheapest), 1 where no step is cheaper, NaN where all cost alike.

    Raises:
        GeffectError: ``by`` is another word, or the record lacks the applied update or one of the two losses.
    """
    if by not in ("total", "group"):
        raise GeffectError(f"by is {by!r}", remedy="Choose one of total, group")
    groups = read_groups(path, scheme)
    labels = {name: "tied" if "@" in name else group for name, group in groups.items()} if by == "group" else {}
    rows: list[dict[str, object]] = []
    for step, gram in grams(path):
        applied = next((name for name in APPLIED if name in gram.names), None)
        if applied is None or not {"forget", "retain"} <= {*gram.names}:
            remedy = "Run geffect unlearn with --prediction 16 or --target, or monitor targets forget and retain"
            raise GeffectError(f"{path} has no price: it lacks an applied update, or a loss of the two", remedy=remedy)
        parts = gram.by(labels) if labels else {"total": gram.total()}
        rows += [{"step": step, by: label, **step_price(part, gram.names, applied)} for label, part in parts.items()]
    return pd.DataFrame(rows)


@damage_refused
def price_sentences(path: StrPath) -> list[str]:
    """What forgetting costs at the first and at the last measured weights, to first order, in words.

    Empty where a record lacks the gradient of the forget or of the retain loss.
    """
    found = [line for line in step_lines(path) if {"forget", "retain"} <= {*line.products.names}]
    ends = found[:1] + found[1:][-1:]
    priced = [(line.step, ascent_price(line.products.matrix, line.products.names)) for line in ends]
    return [_sentence(step, *found) for step, found in priced if found]


def _sentence(step: int, harm: float, free: float) -> str:
    start = f"The price of forgetting at step {step}, to first order: gradient ascent"
    if harm <= 0:
        return f"{start} lowers the retain loss by {nats(-harm)} nats for each nat of forgetting: it is free."
    rest = f"a step of its length forgets {number(free)} nats at most without any harm."
    return f"{start} raises the retain loss by {nats(harm)} nats for each nat of forgetting; {rest}"
