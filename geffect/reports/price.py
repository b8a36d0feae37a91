"""The price of forgetting (`geffect.core.price`) in a record: of each step, and before any."""

from pathlib import Path
from typing import get_args

import pandas as pd

from geffect.core.groups import depth_key
from geffect.core.price import ascent_price, least_harm, step_price
from geffect.core.registry import Metric
from geffect.errors import GeffectError
from geffect.io.readers import StrPath
from geffect.record.frames import APPLIED, read_groups
from geffect.record.reader import damage_refused, products_by, step_lines
from geffect.reports.findings import nats, number


def price(path: StrPath, by: str = "total", scheme: str = "thirds", metric: Metric = "euclidean") -> pd.DataFrame:
    """What each measured step forgot and harmed, and the least harm that a step of its length and gain could do.

    It needs the applied update, which ``geffect unlearn`` records with ``--prediction``, ``--target`` or
    ``--adam-metric``, and a monitor of the targets ``forget`` and ``retain`` by default.

    Args:
        path: a run's directory.
        by: ``total``, or ``group``: each group alone, with its own part of the step.
        scheme: how layers make groups.
        metric: what a length is: ``euclidean``, or ``adam``, √⟨Δ, MΔ⟩ with M = diag(√v̂ + ε) and v̂ the second moment
            that the step was divided by, which ``geffect unlearn --adam-metric`` records. The former is a bound that
            AdamW does not come to. In the latter an entry that no gradient has reached has M = ε, and moves at almost
            no length: of a rule that descends no retain gradient, as plain ascent, the least price says little.

    Returns:
        Columns ``step``, ``by``, ``metric``; ``gain`` and ``harm``, the first-order rise of the forget and of the
        retain loss by the step; ``cheapest`` and ``dearest``, the least and the largest harm of a step of the same
        length and gain; ``free``, the largest gain at that length whose cheapest step harms nothing (all in nats a
        token); and ``efficiency`` = (dearest − harm) / (dearest − cheapest), 1 where no step is cheaper, NaN where all
        cost alike.

    Raises:
        GeffectError: ``by`` is another word, or the record lacks the applied update or one of the two losses.
    """
    if by not in ("total", "group"):
        raise GeffectError(f"by is {by!r}", remedy="Choose one of total, group")
    if metric not in get_args(Metric):
        raise GeffectError(f"metric is {metric!r}", remedy=f"Choose one of {', '.join(get_args(Metric))}")
    groups = read_groups(path, scheme)
    labels = {name: by if by == "total" else "tied" if "@" in name else group for name, group in groups.items()}
    rows: list[dict[str, object]] = []
    measured = products_by(path, labels, metric)
    if metric == "adam" and not measured:
        remedy = "Run geffect unlearn with --adam-metric"
        raise GeffectError(f"{path} has no price in Adam's metric", remedy=remedy)
    for step, parts in measured:
        names = next(iter(parts.values())).names
        applied = next((name for name in APPLIED if name in names), None)
        if applied is None or not {"forget", "retain"} <= {*names}:
            remedy = "Run geffect unlearn with --prediction 16 or --target, or monitor targets forget and retain"
            raise GeffectError(f"{path} has no price: it lacks an applied update, or a loss of the two", remedy=remedy)
        found = {label: step_price(parts[label].matrix, names, applied) for label in sorted(parts, key=depth_key)}
        rows += [{"step": step, by: label, "metric": metric, **numbers} for label, numbers in found.items()]
    return pd.DataFrame(rows)


@damage_refused
def price_sentences(path: StrPath) -> list[str]:
    """What forgetting costs at the first and at the last measured weights, to first order, in words.

    Empty where a record lacks the gradient of the forget or of the retain loss.
    """
    found = [line for line in step_lines(path) if {"forget", "retain"} <= {*line.products.names}]
    ends = found[:1] + found[1:][-1:]
    told = [(line.step, metric, line.products_in(metric)) for metric in get_args(Metric) for line in ends]
    priced = [(step, metric, ascent_price(each.matrix, each.names)) for step, metric, each in told if each.names]
    return [_sentence(step, metric, *found) for step, metric, found in priced if found]


def _sentence(step: int, metric: Metric, harm: float, free: float) -> str:
    kind, ascent = (" in Adam's metric", "ascent by Adam") if metric == "adam" else ("", "gradient ascent")
    start = f"The price of forgetting{kind} at step {step}, to first order: {ascent}"
    if harm <= 0:
        return f"{start} lowers the retain loss by {nats(-harm)} nats for each nat of forgetting: it is free."
    rest = f"a step of its length forgets {number(free)} nats at most without any harm."
    return f"{start} raises the retain loss by {nats(harm)} nats for each nat of forgetting; {rest}"


GAINS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)  # nats that a step forgets whose length gradient ascent needs for one nat


@damage_refused
def cheapest_harm(path: StrPath) -> pd.DataFrame:
    """c(B) at the first and the last measured weights: the least harm of a step of fixed length that forgets B.

    The length is the one at which gradient ascent forgets 1 nat, to first order: c(B) = ‖g_r‖/‖g_f‖ · cos(acos B + θ).

    Returns:
        Columns ``forgets (nats)``, B, and for each of the two steps ``least harm at step N (nats)``, the rise of the
        retain loss (below 0 it falls). Empty where a record lacks one of the two gradients.
    """
    found = [line for line in step_lines(path) if {"forget", "retain"} <= {*line.products.names}]
    columns: dict[str, object] = {}
    for line in found[:1] + found[1:][-1:]:
        harms = [least_harm(line.products.matrix, line.products.names, gain) for gain in GAINS]
        if None not in harms:
            columns[f"least harm at step {line.step} (nats)"] = harms
    return pd.DataFrame({"forgets (nats)": GAINS} | columns) if columns else pd.DataFrame()


@damage_refused
def price_by_part(path: Path, scheme: str = "thirds") -> pd.DataFrame:
    """What the measured steps did, in the whole model and in each group, and what the cheapest steps would have done.

    Returns:
        Columns ``part``; ``forgot``, ``harmed``, ``cheapest`` and ``free``, sums over the steps of `price` (nats a
        token, to first order); ``efficiency``, its mean, and that of the first and of the last step.
    """
    if not {*APPLIED} & {name for line in step_lines(path)[:1] for name in line.products.names}:
        remedy = "Run geffect unlearn with --prediction 16 or --target"
        raise GeffectError(f"{path} recorded no applied update", remedy=remedy)
    both = [price(path, by, scheme).rename(columns={by: "part"}) for by in ("total", "group")]
    parts = pd.concat([both[0].assign(part="whole model"), both[1]]).groupby("part", sort=False)
    sums = parts[["gain", "harm", "cheapest", "free"]].sum().set_axis(["forgot", "harmed", "cheapest", "free"], axis=1)
    kinds = {"efficiency": "mean", "efficiency, first step": "first", "efficiency, last step": "last"}
    return pd.concat(
        [sums, *(parts["efficiency"].agg(how).rename(name) for name, how in kinds.items())], axis=1
    ).reset_index()
