"""Directions of gradients: their plane (arXiv 2502.19301, Fig. 1), and what a conflict costs (arXiv 2503.09117)."""

import math

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Wedge

from geffect.core.gram import gram_at, plane_coordinates
from geffect.errors import GeffectError
from geffect.reports.plots.panels import Numbers, at_most, check, finish
from geffect.reports.plots.style import NOTE, ONE_COLUMN, RUNS, STYLE, TWO_COLUMN, Figure, Look, literal

TARGETS = {"forget": r"$\nabla R_f$", "retain": r"$\nabla R_r$"}
DIRECTIONS = {"objective": "-", "rectified": (0, (4, 1.5))}
LOSS: Look = {"c": "0.5"}
MOST, ACROSS, SAME = 8, 4, 0.5  # planes, planes side by side, degrees between two angles that are one


def g_effect_plane(frame: pd.DataFrame, step: int | None = None) -> Figure:
    """Draw where objectives' gradients lie in the plane spanned by the gradients of the two losses.

    The forget and the retain gradient are unit arrows at their true angle. An objective's arrow (dashed where
    rectified) is the projection of its unit vector into their plane: it is as long as the share of its norm within. A
    descended direction in the shaded wedge raises the forget loss and does not raise the retain loss, to first order.
    All is computed from inner products.

    Columns ``run``, ``step``, ``gradient`` (``forget``, ``retain``, ``objective``, perhaps ``rectified``), ``other``
    and ``inner``; each unordered pair once a run, step and label (labels are summed). ``step`` may be None if there is
    one. Runs (at most six) share a plane where their angle of the two losses is the same to half a degree; otherwise
    each of at most eight runs has its own.
    """
    check(frame, ("run", "step", "gradient", "other", "inner"))
    arrows = {str(run): _arrows(str(run), gram_at(frame[frame["run"] == run], step)) for run in frame["run"].unique()}
    angles = [_angle(each["retain"]) for each in arrows.values()]
    together = len(arrows) <= len(RUNS) and max(angles) - min(angles) <= SAME
    planes = {"": list(arrows)} if together else {run: [run] for run in arrows}
    at_most(MOST, "runs", planes)
    looks = dict(zip(arrows, RUNS, strict=False)) if together else dict.fromkeys(arrows, RUNS[0])
    across = min(ACROSS, len(planes))
    width, lines = (TWO_COLUMN if across > 1 else ONE_COLUMN), -(-len(planes) // across)
    height = 0.85 + lines * ((width - 0.5) / across + 0.35)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        panels = figure.subplots(lines, across, squeeze=False, sharex=True, sharey=True).ravel()
        for (title, runs), axes in zip(planes.items(), panels, strict=False):
            _furnish(axes, arrows[runs[0]], title)
            for place, run in enumerate(runs):  # the first ones thick, so that none hides another
                _draw(axes, arrows[run], looks[run], 1.2 + 0.6 * (len(runs) - 1 - place))
        for axes in panels[len(planes) :]:
            axes.remove()
        figure.supxlabel("along the forget gradient (share of a direction's norm)", size=8)
        figure.supylabel("across it, towards the retain gradient", size=8)
        finish(figure, _keys(arrows, looks if together else {"objective": RUNS[0]}), 3, above=True)
    return figure


def _arrows(run: str, gram: pd.DataFrame) -> dict[str, Numbers]:
    """Gradient → the tip of its unit vector's projection."""
    rows = [*TARGETS, *(row for row in DIRECTIONS if row in gram.index)]
    if missing := {*TARGETS, "objective"} - set(gram.index):
        raise GeffectError(f"{run} has no gradient {min(missing)}", remedy="Draw the record of an unlearning run")
    products = gram.loc[rows, rows].to_numpy(float)
    norms = np.sqrt(np.clip(np.diag(products), 0, None))
    if not (norms[:2] > 0).all():
        raise GeffectError(f"The gradient of a loss is zero in {run}", remedy="Draw another step")
    units = plane_coordinates(products) / np.where(norms > 0, norms, 1)[:, None]
    return dict(zip(rows, units, strict=True))


def _angle(tip: Numbers) -> float:
    return math.degrees(math.atan2(tip[1], tip[0]))


def _furnish(axes: Axes, arrows: dict[str, Numbers], title: str) -> None:
    """Draw the unit circle, the wedge of what forgets and retains, and the gradients of the two losses."""
    angle = _angle(arrows["retain"])
    axes.add_patch(Circle((0, 0), 1, fill=False, ec="0.8", lw=0.6))
    if angle > SAME:
        axes.add_patch(Wedge((0, 0), 1, 90, 90 + angle, fc="0.9", ec="none", zorder=0))
        far = math.radians(90 + 0.7 * angle)  # off the retain gradient's own name
        axes.text(1.22 * math.cos(far), 1.22 * math.sin(far), "forgets\nand retains", ha="center", va="center", **NOTE)
    for row, name in TARGETS.items():
        _arrow(axes, arrows[row], LOSS, "-", 2)
        x, y = 1.22 * arrows[row]
        axes.text(x, y, name, ha="center", va="center", size=8)
    caption = f"gradients of the losses at {angle:.0f}°"
    axes.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
    axes.set_title(f"{title}\n{caption}" if title else caption, parse_math=False, size=7)


def _draw(axes: Axes, arrows: dict[str, Numbers], look: Look, width: float) -> None:
    for row, style in DIRECTIONS.items():
        if row in arrows:
            _arrow(axes, arrows[row], look, style, width)


def _arrow(axes: Axes, tip: Numbers, look: Look, style: object, width: float) -> None:
    properties = {"arrowstyle": "-|>", "color": look["c"], "ls": style, "lw": width, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", tuple(tip), (0, 0), arrowprops=properties)


def _keys(arrows: dict[str, dict[str, Numbers]], looks: dict[str, Look]) -> dict[str, Look]:
    keys = {literal(name): {"c": look["c"]} for name, look in looks.items()}
    if any("rectified" in each for each in arrows.values()):
        keys["rectified"] = {"c": RUNS[0]["c"] if len(looks) == 1 else "0.35", "ls": DIRECTIONS["rectified"]}
    return keys


Y = {
    "heldout_accuracy": "heldout accuracy where the step starts (up: kept)",
    "heldout_rise": "rise of the heldout loss over the step\n(nats/token; above 0: harm)",
}
MOST_RECTIFIERS = 4
DOT: Look = {"ls": "", "ms": 3.5, "mew": 0.8, "zorder": 3}
BEFORE: Look = DOT | {"mfc": "none", "alpha": 0.55, "zorder": 2}
WAY: Look = {"c": "0.8", "lw": 0.5, "zorder": 1}


def retain_by_cosine(frame: pd.DataFrame, y: str = "heldout_rise") -> Figure:
    """Draw every step's cosine with the retain gradient against what became of the heldout set, a panel a rectifier.

    Columns ``run`` (the objective; at most six), ``rectifier`` (at most four), ``step``, ``cosine`` (of the objective's
    gradient), ``rectified`` (NaN without a rectifier) and ``y``: ``heldout_accuracy`` (of the state that the step
    starts from), or ``heldout_rise`` (by how much the heldout loss rises over the step, nats a token). Rows with NaN in
    ``cosine`` or ``y`` are left out. A filled mark is a step at the cosine of what it descended; where that was
    rectified, a gray line leads to a hollow mark at the cosine before.
    """
    if y not in Y:
        raise GeffectError(f"There is no y {y!r}", remedy=f"Choose one of {', '.join(Y)}")
    check(frame, ("run", "rectifier", "step", "cosine", "rectified", y))
    rows = frame.dropna(subset=["cosine", y])
    if rows.empty:
        raise GeffectError(f"No step has a cosine and {y}", remedy="Draw runs with --evaluate-every 1")
    at_most(len(RUNS), "runs", rows["run"].unique())
    at_most(MOST_RECTIFIERS, "rectifiers", rows["rectifier"].unique())
    looks = dict(zip(rows["run"].unique(), RUNS, strict=False))
    rectifiers = list(rows["rectifier"].unique())
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(TWO_COLUMN if len(rectifiers) > 1 else ONE_COLUMN, 3), layout="constrained")
        panels = figure.subplots(1, len(rectifiers), sharex=True, sharey=True, squeeze=False)[0]
        for rectifier, axes in zip(rectifiers, panels, strict=True):
            _furnish_cosine(axes, "without rectifier" if rectifier == "none" else f"with {rectifier}")
            for run, look in looks.items():
                _steps(axes, rows[(rows["run"] == run) & (rows["rectifier"] == rectifier)], y, look)
        if y == "heldout_accuracy":
            panels[0].set_ylim(-0.03, 1.03)
        panels[0].set_ylabel(Y[y])
        figure.supxlabel("cosine to the step's retain gradient", size=8)
        keys = {run: DOT | {"c": look["c"], "marker": look["marker"]} for run, look in looks.items()}
        if rows["rectified"].notna().any():
            keys |= {"before rectification": BEFORE | {"c": "0.35", "marker": "o"}}
        finish(figure, keys, 4 if len(rectifiers) > 1 else 2, above=True)
    return figure


def _furnish_cosine(axes: Axes, title: str) -> None:
    axes.axvspan(-1, 0, color="0.95", lw=0, zorder=0)
    axes.axhline(0, color="0.55", lw=0.7, zorder=1)
    axes.text(0.02, 0.98, "conflict", transform=axes.transAxes, va="top", in_layout=False, **NOTE)
    axes.set(title=title, xlim=(-1, 1), xticks=[-1, -0.5, 0, 0.5, 1])
    axes.xaxis.set_major_formatter("{x:g}")


def _steps(axes: Axes, rows: pd.DataFrame, y: str, look: Look) -> None:
    """Draw one objective's steps under one rectifier."""
    color = {"c": look["c"], "marker": look["marker"]}
    moved = rows.dropna(subset=["rectified"])
    if not moved.empty:
        axes.plot(moved[["cosine", "rectified"]].to_numpy(float).T, moved[[y, y]].to_numpy(float).T, **WAY)
        axes.plot(moved["cosine"], moved[y], **(BEFORE | color))
    axes.plot(rows["rectified"].fillna(rows["cosine"]), rows[y], **(DOT | color))
