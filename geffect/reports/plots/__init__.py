"""A data frame of diagnostics in, a matplotlib figure out; legible in gray, and no global setting touched."""

from geffect.reports.plots.curves import cosine_curves, g_effect_curves, jaccard_curves
from geffect.reports.plots.disparity import retain_by_cosine
from geffect.reports.plots.gradients import g_effect_plane
from geffect.reports.plots.grid import trade_off_grid
from geffect.reports.plots.layers import gram_heat_map, layer_heat_map
from geffect.reports.plots.leaderboard import leaderboard, trade_off_bands
from geffect.reports.plots.methods import g_effect_panels
from geffect.reports.plots.overlaps import jaccard_by_layer, jaccard_matrix, success_sweep
from geffect.reports.plots.planes import trade_off
from geffect.reports.plots.points import point_plane, weight_curves
from geffect.reports.plots.prediction import prediction_plane, prediction_sums
from geffect.reports.plots.saving import save
from geffect.reports.plots.strips import token_strip
from geffect.reports.plots.style import GROUPS, ONE_COLUMN, READINGS, RUNS, STYLE, TWO_COLUMN

__all__ = [
    "GROUPS",
    "ONE_COLUMN",
    "READINGS",
    "RUNS",
    "STYLE",
    "TWO_COLUMN",
    "cosine_curves",
    "g_effect_curves",
    "g_effect_panels",
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
    "retain_by_cosine",
    "save",
    "success_sweep",
    "token_strip",
    "trade_off",
    "trade_off_bands",
    "trade_off_grid",
    "weight_curves",
]
