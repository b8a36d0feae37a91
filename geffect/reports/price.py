"""The price of forgetting: how much a step must harm the retain set, at the least, for what it makes forget.

A step Δ of length R forgets by the gain B = ⟨g_f, Δ⟩ and harms by ρ = ⟨g_r, Δ⟩, to first order, where g_f and g_r are
the gradients of the two losses. Of all steps of that length and gain the harm lies between c(B) = R‖g_r‖ cos(φ + θ) and
R‖g_r‖ cos(φ − θ), with the angle θ between g_f and g_r and cos φ = B / (R‖g_f‖): both ends lie in the plane of the two
gradients (arXiv 2606.02119 names the cheapest direction). For B ≤ R‖g_f‖ sin θ the cheapest step harms nothing, and for
any B where the gradients point apart (θ > 90°).
"""

import math
from collections.abc import Sequence

import pandas as pd
from torch import Tensor

from geffect.core.gram import inner, norm
from geffect.errors import GeffectError
from geffect.io.readers import StrPath
from geffect.record.frames import APPLIED, read_groups
from geffect.record.reader import grams


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


def step_price(part: Tensor, names: Sequence[str], applied: str = "applied") -> dict[str, float]:
    """The numbers of `price` for one matrix of inner products ``[M, M]`` over a part of the model, by its names.

    >>> import torch
    >>> vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]], dtype=torch.float64)
    >>> found = step_price(vectors @ vectors.T, ("forget", "retain", "applied"))
    >>> {name: round(value, 3) for name, value in found.items() if name in ("gain", "harm", "free")}
    {'gain': 1.0, 'harm': 0.6, 'free': 0.8}
    """
    length, forget, retain = (norm(part, names, each) for each in (applied, "forget", "retain"))
    gain, harm = (-inner(part, names, each, applied) for each in ("forget", "retain"))
    if not (length and forget and retain):
        return {"gain": gain, "harm": harm, "cheapest": 0.0, "dearest": 0.0, "free": 0.0, "efficiency": math.nan}
    angle = math.acos(_unit(inner(part, names, "forget", "retain") / (forget * retain)))
    share = math.acos(_unit(gain / (length * forget)))
    scale = length * retain
    cheapest, dearest = scale * math.cos(share + angle), scale * math.cos(share - angle)
    spread = dearest - cheapest
    return {
        "gain": gain,
        "harm": harm,
        "cheapest": cheapest,
        "dearest": dearest,
        "free": length * forget * (math.sin(angle) if angle <= math.pi / 2 else 1.0),
        "efficiency": _unit((dearest - harm) / spread) if spread > 1e-12 * scale else math.nan,
    }


def _unit(value: float) -> float:
    return max(-1.0, min(1.0, value))
