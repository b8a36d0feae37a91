"""The plane of the two risk gradients, with what the objectives descend in it (arXiv 2502.19301, Fig. 1)."""

import math

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Wedge

from geffect.core.gram import gram_at, plane_coordinates
from geffect.errors import GeffectError
from geffect.reports.plots.figure import Figure
from geffect.reports.plots.panels import Numbers, check, finish
from geffect.reports.plots.style import NOTE, ONE_COLUMN, RUNS, STYLE, TWO_COLUMN, Look, literal

TARGETS = {"forget": r"$\nabla R_f$", "retain": r"$\nabla R_r$"}
DIRECTIONS = {"objective": "-", "rectified": (0, (4, 1.5))}
RISK: Look = {"c": "0.5"}
MOST, ACROSS, SAME = 8, 4, 0.5  # planes, planes side by side, degrees between two angles that are one


def g_effect_plane(frame: pd.DataFrame, step: int | None = None) -> Figure:
    """Draw where objectives' gradients lie in the plane spanned by the two risk gradients.

    All is told by inner products. The forget and the retain gradient are unit arrows at their true angle; an
    objective's arrow (and a rectified one, dashed) is its direction's projection into their plane, its length the share
    of its norm that lies within. A descended direction in the shaded wedge raises the forget risk and does not raise
    the retain risk, to first order.

    Args:
        frame: Columns ``run``, ``step``, ``gradient`` (``forget``, ``retain``, ``objective``, perhaps ``rectified``),
            ``other``, ``inner``; each unordered pair once a run, step and label (labels are summed).
        step: Which; may be left out where there is one.

    Returns:
        A figure of one plane where the angle of the risk gradients is the same in all runs (at most six) to half a
        degree, else of one plane a run (at most eight).

    Raises:
        GeffectError: a column, a row or the step is missing, a risk gradient is zero, or there are too many runs.
    """
    check(frame, ("run", "step", "gradient", "other", "inner"))
    arrows = {str(run): _arrows(str(run), gram_at(frame[frame["run"] == run], step)) for run in frame["run"].unique()}
    angles = [_angle(each["retain"]) for each in arrows.values()]
    together = len(arrows) <= len(RUNS) and max(angles) - min(angles) <= SAME
    planes = {"": list(arrows)} if together else {run: [run] for run in arrows}
    if len(planes) > MOST:
        raise GeffectError(f"at most {MOST} runs in a picture", f"{len(planes)}: {', '.join(planes)}", "name fewer")
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
    """Row → the tip of its unit vector's projection."""
    rows = [*TARGETS, *(row for row in DIRECTIONS if row in gram.index)]
    if missing := {*TARGETS, "objective"} - set(gram.index):
        raise GeffectError("rows forget, retain, objective", f"no {min(missing)} in {run}", "draw a run's record")
    products = gram.loc[rows, rows].to_numpy(float)
    norms = np.sqrt(np.clip(np.diag(products), 0, None))
    if not (norms[:2] > 0).all():
        raise GeffectError("risk gradients other than zero", f"a zero one in {run}", "draw another step")
    units = plane_coordinates(products) / np.where(norms > 0, norms, 1)[:, None]
    return dict(zip(rows, units, strict=True))


def _angle(tip: Numbers) -> float:
    return math.degrees(math.atan2(tip[1], tip[0]))


def _furnish(axes: Axes, arrows: dict[str, Numbers], title: str) -> None:
    """The circle of unit length, the wedge of what forgets and keeps, and the two risk gradients."""
    angle = _angle(arrows["retain"])
    axes.add_patch(Circle((0, 0), 1, fill=False, ec="0.8", lw=0.6))
    if angle > SAME:
        axes.add_patch(Wedge((0, 0), 1, 90, 90 + angle, fc="0.9", ec="none", zorder=0))
        far = math.radians(90 + 0.7 * angle)  # off the retain gradient's own name
        axes.text(1.22 * math.cos(far), 1.22 * math.sin(far), "forgets\nand keeps", ha="center", va="center", **NOTE)
    for row, name in TARGETS.items():
        _arrow(axes, arrows[row], RISK, "-", 2)
        x, y = 1.22 * arrows[row]
        axes.text(x, y, name, ha="center", va="center", size=8)
    says = f"risk gradients at {angle:.0f}°"
    axes.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
    axes.set_title(f"{title}\n{says}" if title else says, parse_math=False, size=7)


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
