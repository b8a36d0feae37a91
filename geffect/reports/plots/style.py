"""How figures look: sizes, colors that survive gray and color-blindness, and matplotlib's settings."""

from typing import Any, Final

import matplotlib

Look = dict[str, Any]  # how a line looks: keywords of Line2D
ONE_COLUMN, TWO_COLUMN = 3.4, 7.0  # inches
NOTE: Final[Look] = {"color": "0.35", "size": 6}  # text inside a panel
STYLE: Final[dict[Any, Any]] = {  # on top of the defaults, so that a user's own settings change no figure
    **{key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")},
    "font.size": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.edgecolor": "0.7",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": "0.7",
    "ytick.color": "0.7",
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "legend.frameon": False,
    "legend.handlelength": 2.8,
    "legend.columnspacing": 1.2,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    "figure.dpi": 200,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
}


def literal(name: object) -> str:
    """A name as matplotlib shows it: dollars would make a formula of what is between them."""
    return str(name).replace("$", r"\$")


GROUPS: Final[dict[str, Look]] = {
    "embed": {"c": "#0072B2", "marker": "o", "ls": "-"},
    "shallow": {"c": "#E69F00", "marker": "s", "ls": (0, (5, 1.5))},
    "middle": {"c": "#009E73", "marker": "^", "ls": (0, (5, 1.5, 1, 1.5))},
    "deep": {"c": "#D55E00", "marker": "D", "ls": (0, (1, 1))},
    "lm_head": {"c": "#CC79A7", "marker": "v", "ls": (0, (3, 1, 1, 1, 1, 1))},
    "shared": {"c": "#56B4E9", "marker": "X", "ls": (0, (2, 1.5, 6, 1.5))},
    "tied": {"c": "#000000", "marker": "P", "ls": (0, (8, 2))},
}
RUNS: Final[tuple[Look, ...]] = (
    {"c": "#004488", "marker": "o"},
    {"c": "#BB5566", "marker": "s"},
    {"c": "#DDAA33", "marker": "^"},
    {"c": "#000000", "marker": "D"},
    {"c": "#228833", "marker": "v"},
    {"c": "#66CCEE", "marker": "P"},
)
READINGS: Final[dict[str, Look]] = {  # what a change of risk is predicted from
    "gradient": {"c": "#D55E00", "marker": "s", "ls": (0, (5, 1.5))},
    "update": {"c": "#0072B2", "marker": "o", "ls": (0, (5, 1.5, 1, 1.5))},
}
