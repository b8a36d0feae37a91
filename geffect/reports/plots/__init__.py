"""A data frame of diagnostics in, a matplotlib figure out; legible in gray, and no global setting touched."""

from geffect.reports.plots.curves import (
    cosine_curves,
    effect_curves,
    g_effect_curves,
    jaccard_curves,
    price_curves,
    success_sweep,
)
from geffect.reports.plots.examples import point_plane, token_strip, weight_curves
from geffect.reports.plots.heat_maps import (
    conflict_map,
    gram_heat_map,
    jaccard_by_layer,
    jaccard_matrix,
    layer_heat_map,
)
from geffect.reports.plots.planes import g_effect_plane, prediction_plane, prediction_sums, retain_by_cosine
from geffect.reports.plots.style import GROUPS, ONE_COLUMN, READINGS, RUNS, STYLE, TWO_COLUMN, Page, save
from geffect.reports.plots.trade_offs import leaderboard, trade_off, trade_off_bands, trade_off_grid

__all__ = [
    "GROUPS",
    "ONE_COLUMN",
    "READINGS",
    "RUNS",
    "STYLE",
    "TWO_COLUMN",
    "Page",
    "conflict_map",
    "cosine_curves",
    "effect_curves",
    "g_effect_curves",
    "g_effect_plane",
    "gram_heat_map",
    "jaccard_by_layer",
    "jaccard_curves",
    "jaccard_matrix",
    "layer_heat_map",
    "leaderboard",
    "point_plane",
    "prediction_plane",
    "prediction_sums",
    "price_curves",
    "retain_by_cosine",
    "save",
    "success_sweep",
    "token_strip",
    "trade_off",
    "trade_off_bands",
    "trade_off_grid",
    "weight_curves",
]
