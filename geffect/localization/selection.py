"""Sets of entries over several domains: OP-UR and OP-RR of GRAIL, regions of MemFlex."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from geffect.core.topk import count, intersection, union
from geffect.errors import GeffectError

Masks = dict[str, Tensor]  # parameter → packed mask; missing: empty


def op_ur(forget: Sequence[Masks], retain: Sequence[Masks]) -> Masks:
    """OP-UR = (∪_d T_forget,d) ∩ (∪_d T_retain,d): where what is unlearned lies upon what is kept (arXiv 2504.12681).

    Args:
        forget: T a domain, what matters to what it forgets.
        retain: T a domain, what matters to what it keeps.

    Returns:
        Parameter → packed mask; empty ones are missing.
    """
    return _intersection([united(forget), united(retain)])


def op_rr(retain: Sequence[Masks]) -> Masks:
    """OP-RR = ∩_d T_retain,d: what matters to what every domain keeps (arXiv 2504.12681).

    Args:
        retain: T a domain.

    Returns:
        Parameter → packed mask; empty ones are missing.
    """
    return _intersection(retain)


def united(masks: Sequence[Masks]) -> Masks:
    """Parameter → the packed mask of every entry in any of some masks."""
    names = dict.fromkeys(name for each in masks for name in each)
    return {name: union([each[name] for each in masks if name in each]) for name in names}


def _intersection(masks: Sequence[Masks]) -> Masks:
    common = [name for name in masks[0] if all(name in each for each in masks)]
    found = {name: intersection([each[name] for each in masks]) for name in common}
    return {name: mask for name, mask in found.items() if count(mask)}


def region(
    cosines: Mapping[str, float], magnitudes: Mapping[str, float], mu: float, sigma: float, *, quantiles: bool = False
) -> list[str]:
    """MemFlex's region: the tensors with cosine < μ and magnitude > σ, both strict (arXiv 2407.01920).

    Args:
        cosines: parameter → cosine of the forget and retain splits' mean gradients, 0 where one is zero.
        magnitudes: parameter → mean |ḡ| over the entries of the forget split's mean gradient.
        mu: μ.
        sigma: σ; absolute thresholds do not carry over between models.
        quantiles: μ and σ are quantiles of the cosines and the magnitudes.

    Returns:
        The tensors that stay trainable, in order.

    Raises:
        GeffectError: there are none.

    >>> region({"a": 0.1, "b": 0.99, "c": 0.2}, {"a": 1e-3, "b": 1e-3, "c": 1e-5}, mu=0.92, sigma=6e-4)
    ['a']
    """
    limits = [torch.tensor(list(each.values()), dtype=torch.float64) for each in (cosines, magnitudes)]
    low, high = (float(limits[0].quantile(mu)), float(limits[1].quantile(sigma))) if quantiles else (mu, sigma)
    found = [name for name in cosines if cosines[name] < low and magnitudes[name] > high]
    if not found:
        has = f"cosines from {limits[0].min():.3g} and magnitudes up to {limits[1].max():.3g}"
        raise GeffectError(
            f"tensors with cosine < {low:.3g} and magnitude > {high:.3g} for memflex's region",
            has,
            "choose other thresholds, or memflex(mu=0.8, sigma=0.2, thresholds=quantile)",
        )
    return found
