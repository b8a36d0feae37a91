"""MemFlex: train only where forgetting is strong and points elsewhere than retaining (arXiv 2407.01920)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from geffect.core.masks import GradientMask, Localization, complement
from geffect.errors import GeffectError
from geffect.rectifiers.base import Freezing


@dataclass(frozen=True)
class MemFlex(Freezing):
    """Freeze every tensor outside the region cos(ḡ_forget, ḡ_retain) < μ and mean |ḡ_forget| > σ.

    Over several domains ḡ is the mean over all their examples: the merged data of arXiv 2504.12681's comparison.

    Attributes:
        mu: μ, 0.92 as published for Llama-2.
        sigma: σ, 6e-4 as published; it depends on the model, its loss and its adapter.
        thresholds: ``absolute``, or ``quantile``: μ and σ are quantiles over the tensors.
    """

    mu: float = 0.92
    sigma: float = 6e-4
    thresholds: Literal["absolute", "quantile"] = "absolute"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.thresholds == "quantile" and not (0 <= self.mu <= 1 and 0 <= self.sigma <= 1):
            message = f"mu={self.mu}, sigma={self.sigma} are no quantiles for memflex"
            raise GeffectError(message, remedy="Choose both from 0 to 1, such as 0.8 and 0.2")

    def region(self, localized: Localization) -> list[str]:
        """The tensors that stay trainable."""
        quantiles = self.thresholds == "quantile"
        return region(localized.cosines(), localized.magnitudes["forget"], self.mu, self.sigma, quantiles=quantiles)

    def gradient_mask(self, parameters: Mapping[str, nn.Parameter], localized: Localization) -> GradientMask:
        """The whole tensors outside the region of a localization that has mean gradients."""
        region = set(self.region(localized))
        outside = complement({}, {name: each for name, each in parameters.items() if name not in region})
        return GradientMask(parameters, outside, outside)


def region(
    cosines: Mapping[str, float], magnitudes: Mapping[str, float], mu: float, sigma: float, *, quantiles: bool = False
) -> list[str]:
    """MemFlex's region: the tensors with cosine < μ and magnitude > σ, both strict (arXiv 2407.01920).

    ``cosines`` (of the forget and retain splits' mean gradients, 0 where one is zero) and ``magnitudes`` (mean |ḡ| of
    the forget split) are by parameter. ``quantiles``: μ and σ are quantiles of these; absolute thresholds do not carry
    over between models. An empty region is refused.

    >>> region({"a": 0.1, "b": 0.99, "c": 0.2}, {"a": 1e-3, "b": 1e-3, "c": 1e-5}, mu=0.92, sigma=6e-4)
    ['a']
    """
    limits = [torch.tensor(list(each.values()), dtype=torch.float64) for each in (cosines, magnitudes)]
    low, high = (float(limits[0].quantile(mu)), float(limits[1].quantile(sigma))) if quantiles else (mu, sigma)
    trainable = [name for name in cosines if cosines[name] < low and magnitudes[name] > high]
    if not trainable:
        has = f"cosines start at {limits[0].min():.3g} and magnitudes end at {limits[1].max():.3g}"
        raise GeffectError(
            f"No tensor has a cosine < {low:.3g} and a magnitude > {high:.3g} for memflex's region: {has}",
            remedy="Choose other thresholds, or memflex(mu=0.8, sigma=0.2, thresholds=quantile)",
        )
    return trainable
