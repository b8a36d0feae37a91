"""Planes: gradients (arXiv 2502.19301, Fig. 1), the cost of conflict (arXiv 2503.09117), predicted against measured."""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Wedge

from geffect.core.effects import gram_at, plane_coordinates, r_squared
from geffect.errors import GeffectError
from geffect.reports.plots import style
from geffect.reports.plots.style import (
    NATS,
    NOTE,
    ONE_COLUMN,
    PAGE,
    READINGS,
    RUNS,
    TWO_COLUMN,
    Figure,
    Look,
    Numbers,
    Page,
    styled,
)

TARGETS = {"forget": r"$\nabla R_f$", "retain": r"$\nabla R_r$"}
DIRECTIONS = {"objective": "-", "rectified": (0, (4, 1.5))}
LOSS: Look = {"c": "0.5"}
MOST, ACROSS, SAME = 16, 4, 0.5  # planes, planes side by side, degrees between two angles that are one


@styled
def g_effect_plane(frame: pd.DataFrame, step: int | None = None, page: Page = PAGE) -> Figure:
    """Draw where objectives' gradients lie in the plane spanned by the gradients of the two losses.

    The forget and the retain gradient are unit arrows at their true angle. An objective's arrow (dashed where
    rectified) is the projection of its unit vector into their plane: it is as long as the share of its norm within. A
    descended direction in the shaded wedge raises the forget loss and does not raise the retain loss, to first order.
    All is computed from inner products.

    Columns ``run``, ``step``, ``gradient`` (``forget``, ``retain``, ``objective``, perhaps ``rectified``), ``other``
    and ``inner``; each unordered pair once a run, step and label (labels are summed). ``step`` may be None if there is
    one. Runs (at most six) share a plane where their angle of the two losses is the same to half a degree; otherwise
    each of at most 16 runs has its own.
    """
    style.check(frame, ("run", "step", "gradient", "other", "inner"))
    arrows = {str(run): _arrows(str(run), gram_at(frame[frame["run"] == run], step)) for run in frame["run"].unique()}
    angles = [_angle(each["retain"]) for each in arrows.values()]
    together = len(arrows) <= len(RUNS) and max(angles) - min(angles) <= SAME
    planes = {"": list(arrows)} if together else {run: [run] for run in arrows}
    style.at_most(MOST, "runs", planes)
    looks = dict(zip(arrows, RUNS, strict=False)) if together else dict.fromkeys(arrows, RUNS[0])
    figure, panels, _ = page.panels(
        len(planes), ACROSS, lambda width, across: (width - 0.5) / across + 0.15, 0.85, shared="xy"
    )
    for (title, runs), axes in zip(planes.items(), panels, strict=True):
        _furnish(axes, arrows[runs[0]], title)
        for width, run in zip(1.2 + 0.6 * np.arange(len(runs))[::-1], runs, strict=True):  # thick first, to hide none
            for name in (name for name in DIRECTIONS if name in arrows[run]):
                _arrow(axes, arrows[run][name], looks[run], DIRECTIONS[name], width)
    x, y = "along the forget gradient (share of a direction's norm)", "across it, towards the retain gradient"
    page.name(figure, panels, *(text if len(panels) == 1 else text.replace(" (", "\n(") for text in (x, y)))
    style.finish(figure, _keys(arrows, looks if together else {"objective": RUNS[0]}), page)
    return figure


def _arrows(run: str, gram: pd.DataFrame) -> dict[str, Numbers]:
    """Gradient → the tip of its unit vector's projection."""
    names = [*TARGETS, *(name for name in DIRECTIONS if name in gram.index)]
    if missing := {*TARGETS, "objective"} - set(gram.index):
        raise GeffectError(f"{run} has no gradient {min(missing)}", remedy="Draw the record of an unlearning run")
    products = gram.loc[names, names].to_numpy(float)
    norms = np.sqrt(np.clip(np.diag(products), 0, None))
    if not (norms[:2] > 0).all():
        raise GeffectError(f"The gradient of a loss is zero in {run}", remedy="Draw another step")
    units = plane_coordinates(products) / np.where(norms > 0, norms, 1)[:, None]
    return dict(zip(names, units, strict=True))


def _angle(tip: Numbers) -> float:
    return math.degrees(math.atan2(tip[1], tip[0]))


def _furnish(axes: Axes, arrows: dict[str, Numbers], title: str) -> None:
    """Draw the unit circle, the wedge of what forgets and retains, and the gradients of the two losses."""
    angle = _angle(arrows["retain"])
    axes.add_patch(Circle((0, 0), 1, fill=False, ec="0.8", lw=0.6))
    if angle > SAME:
        axes.add_patch(Wedge((0, 0), 1, 90, 90 + angle, fc="0.9", ec="none", zorder=0))
        corner = (1.45, "top") if angle < 90 else (-1.45, "bottom")  # off the circle and the retain gradient's name
        axes.text(-1.7, corner[0], "shaded: forgets\nand retains", va=corner[1], **NOTE)
    for name, symbol in TARGETS.items():
        _arrow(axes, arrows[name], LOSS, "-", 2)
        x, y = 1.22 * arrows[name]
        axes.text(x, y, symbol, ha="center", va="center", size=8)
    caption = f"gradients of the losses at {angle:.0f}°"
    axes.set(xlim=(-1.75, 1.5), ylim=(-1.5, 1.5), aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
    axes.set_title(f"{title}\n{caption}" if title else caption, parse_math=False, size=7)


def _arrow(axes: Axes, tip: Numbers, look: Look, dashes: object, width: float) -> None:
    properties = {"arrowstyle": "-|>", "color": look["c"], "ls": dashes, "lw": width, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", tuple(tip), (0, 0), arrowprops=properties)


def _keys(arrows: dict[str, dict[str, Numbers]], looks: dict[str, Look]) -> dict[str, Look]:
    keys = {style.literal(name): {"c": look["c"]} for name, look in looks.items()}
    if any("rectified" in each for each in arrows.values()):
        keys["rectified"] = {"c": RUNS[0]["c"] if len(looks) == 1 else "0.35", "ls": DIRECTIONS["rectified"]}
    return keys


Y = {
    "heldout_accuracy": "heldout accuracy where the step starts (up: kept)",
    "heldout_rise": f"rise of the heldout loss over the step\n({NATS}; above 0: harm)",
}
MOST_RECTIFIERS = 4
DOT: Look = {"ls": "", "ms": 3.5, "mew": 0.8, "zorder": 3}
BEFORE: Look = DOT | {"mfc": "none", "alpha": 0.55, "zorder": 2}
WAY: Look = {"c": "0.8", "lw": 0.5, "zorder": 1}


@styled
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
    style.check(frame, ("run", "rectifier", "step", "cosine", "rectified", y))
    rows = frame.dropna(subset=["cosine", y])
    if rows.empty:
        raise GeffectError(f"No step has a cosine and {y}", remedy="Draw runs with --evaluate-every 1")
    style.at_most(len(RUNS), "runs", rows["run"].unique())
    style.at_most(MOST_RECTIFIERS, "rectifiers", rows["rectifier"].unique())
    looks = dict(zip(rows["run"].unique(), RUNS, strict=False))
    rectifiers = list(rows["rectifier"].unique())
    figure = Figure(figsize=(TWO_COLUMN if len(rectifiers) > 1 else ONE_COLUMN, 3), layout="constrained")
    panels = figure.subplots(1, len(rectifiers), sharex=True, sharey=True, squeeze=False)[0]
    for rectifier, axes in zip(rectifiers, panels, strict=True):
        axes.axvspan(-1, 0, color="0.95", lw=0, zorder=0)
        axes.axhline(0, color="0.55", lw=0.7, zorder=1)
        title = "without rectifier" if rectifier == "none" else f"with {rectifier}"
        axes.set_title(title)
        for run, look in looks.items():
            _steps(axes, rows[(rows["run"] == run) & (rows["rectifier"] == rectifier)], y, look)
    style.rescale([panels[0].xaxis], np.zeros(1), "linear", 4)
    low, high = style.around_zero(panels[0].xaxis, style.finite(pd.concat([rows["cosine"], rows["rectified"]])), 0.05)
    panels[0].set_xlim(max(-1, low), min(1, high))
    panels[0].set_ylabel(Y[y])
    figure.supxlabel("cosine to the step's retain gradient (shaded: conflict)", size=8)
    keys = {run: DOT | {"c": look["c"], "marker": look["marker"]} for run, look in looks.items()}
    if rows["rectified"].notna().any():
        keys |= {"before rectification": BEFORE | {"c": "0.35", "marker": "o"}}
    style.finish(figure, keys)
    return figure


def _steps(axes: Axes, rows: pd.DataFrame, y: str, look: Look) -> None:
    """Draw one objective's steps under one rectifier."""
    color = {"c": look["c"], "marker": look["marker"]}
    moved = rows.dropna(subset=["rectified"])
    if not moved.empty:
        axes.plot(moved[["cosine", "rectified"]].to_numpy(float).T, moved[[y, y]].to_numpy(float).T, **WAY)
        axes.plot(moved["cosine"], moved[y], **(BEFORE | color))
    axes.plot(rows["rectified"].fillna(rows["cosine"]), rows[y], **(DOT | color))


COLUMNS = ("step", "target", "reading", "predicted", "measured")
WATCHED = {"forget": "above 0 forgets", "retain": "above 0 harms"}
HARM = "above 0 harms"
FORMULAS = {"gradient": r"$-\eta\,\langle\nabla R,\, d\rangle$", "update": r"$\langle\nabla R,\, \Delta\theta\rangle$"}
MEASURED: Look = {"c": "black", "marker": "D", "ls": "-", "lw": 1.6}
MOST_TARGETS = 4
IDENTITY: Look = {"c": "0.35", "ls": "--", "lw": 0.9}


@styled
def prediction_plane(frame: pd.DataFrame, scale: str = "linear", page: Page = PAGE) -> Figure:
    """Draw the predicted (x) against the measured (y) change of each loss, a point a step and a square panel a target.

    Columns ``step``, ``target`` (``forget``, ``retain``), ``reading`` (``gradient``, ``update``), ``predicted`` and
    ``measured`` (nats a token), and optionally ``run`` (at most eight) and ``standard_error`` (of the measured change;
    bars of two). Above a panel stands R² = 1 − Σ(measured − predicted)² / Σ(measured − mean)² of each reading; nothing
    is fitted. Every panel has axes of its own.
    """
    cells, across = _cells(frame)
    figure, panels, _ = page.panels(len(cells), across, lambda width, n: (width - 0.3) / n + 0.2, 0.8, least=1.0)
    values = frame[["predicted", "measured"]].to_numpy(float).ravel()
    note = style.rescale([axis for axes in panels for axis in (axes.xaxis, axes.yaxis)], values, scale, 2)
    for (title, _, rows), axes in zip(cells, panels, strict=True):
        _prediction(axes, rows, title)
    bars = [BARS] if "standard_error" in frame and frame["standard_error"].notna().any() else []
    page.name(figure, panels, f"predicted change ({NATS}{note})", f"measured change\n({NATS}{note})", bars)
    looks = {f"{reading}: {FORMULAS[reading]}": look for reading, look in _dots(frame).items()}
    style.finish(figure, looks | {"predicted = measured": IDENTITY}, page)
    return figure


BARS = "bars: two standard errors of the measured change"


@styled
def prediction_sums(frame: pd.DataFrame, scale: str = "linear", page: Page = PAGE) -> Figure:
    """Draw the predicted and the measured changes of each loss, summed from the first step on, a panel a target.

    Columns as of `prediction_plane`; a step without a number adds nothing.
    """
    cells, across = _cells(frame)
    figure, panels, side = page.panels(len(cells), across, lambda *_: 1.6, 0.8)
    drawn = {axes: _sums(axes, rows) for (_, _, rows), axes in zip(cells, panels, strict=True)}
    for i, ((title, target, _), axes) in enumerate(zip(cells, panels, strict=True)):
        axes.set_title(f"{title}\n{WATCHED.get(target, HARM)}", size=7)
        axes.tick_params(labelbottom=i + side >= len(cells))
    note = style.rescale([axes.yaxis for axes in panels], np.concatenate([*drawn.values()]), scale)
    each = frame["target"].nunique()
    said = style.fit([panels[i : i + each] for i in range(0, len(panels), each)], drawn, "run")
    step = "unlearning step" if set(frame["target"]) <= set(WATCHED) else "training step"
    page.name(figure, panels, step, f"summed change of loss\n({NATS}{note})", [said])
    style.finish(figure, {name: READINGS[name] for name in _dots(frame)} | {"measured": MEASURED}, page)
    return figure


def _cells(frame: pd.DataFrame) -> tuple[list[tuple[str, str, pd.DataFrame]], int]:
    """Title, target and rows of each run and target, and how many panels stand side by side."""
    runs = style.by_run(frame, COLUMNS)
    if unknown := set(frame["reading"]) - set(READINGS):
        message = f"{', '.join(sorted(map(str, unknown)))} is no reading of a prediction check"
        raise GeffectError(message, remedy=f"Leave it out; there are {', '.join(READINGS)}")
    targets = sorted(frame["target"].unique(), key=lambda each: list(WATCHED).index(each) if each in WATCHED else 2)
    style.at_most(MOST_TARGETS, "targets", targets)
    cells = [
        (f"{run}: {target} loss" if len(runs) > 1 else f"{target} loss", target, rows[rows["target"] == target])
        for run, rows in runs.items()
        for target in targets
    ]
    return cells, 2 if len(cells) < 3 else 3 if len(targets) == 3 else 4


def _dots(frame: pd.DataFrame) -> dict[str, Look]:
    """The frame's readings as hollow markers."""
    return {
        reading: look | {"ls": "", "mfc": "none"}
        for reading, look in READINGS.items()
        if reading in set(frame["reading"])
    }


def _prediction(axes: Axes, cell: pd.DataFrame, title: str) -> None:
    """Draw one panel of the plane; its title and R² stand above it, where no point can be."""
    fits = {}
    for reading, look in _dots(cell).items():
        points = cell[cell["reading"] == reading]
        finite = points[["predicted", "measured"]].replace([np.inf, -np.inf], np.nan).dropna()
        fit = r_squared(list(finite["predicted"]), list(finite["measured"])) if len(finite) else math.nan
        (line,) = axes.plot(points["predicted"], points["measured"], label=reading, **look)
        fits[line] = f"R² = {_digits(fit)}"
        for low, high in style.errors(points.rename(columns={"standard_error": "± measured"}), "measured"):
            axes.vlines(points["predicted"], low, high, color=look["c"], lw=0.7, zorder=1.5)
    barred = cell.rename(columns={"standard_error": "± measured"})
    edges = [pd.Series(edge) for pair in style.errors(barred, "measured") for edge in pair]
    drawn = style.finite(pd.concat([cell["predicted"], cell["measured"], *edges]))
    limits = style.around_zero(axes.yaxis, drawn, 0.06)
    style.cross(axes)
    axes.plot(limits, limits, zorder=1, **IDENTITY)
    axes.set(xlim=limits, ylim=limits, box_aspect=1)
    axes.legend(
        handles=list(fits),
        labels=list(fits.values()),
        loc="lower left",
        bbox_to_anchor=(0, 1),
        title=title,
        title_fontsize=7,
        alignment="left",
        handlelength=1,
        borderpad=0.1,
    )


def _digits(value: float) -> str:
    return (f"{value:.3f}" if abs(value) < 10 else f"{value:.3g}").replace("-", "−")


def _sums(axes: Axes, cell: pd.DataFrame) -> Numbers:
    """Draw one panel of sums, and return what its axis must hold."""
    measured = cell.drop_duplicates("step")
    parts = {"measured": measured.assign(sum=measured["measured"])}
    for reading, rows in cell.groupby("reading", sort=False):
        parts[str(reading)] = rows.assign(sum=rows["predicted"])
    parts = {name: rows.assign(sum=rows["sum"].fillna(0).cumsum()) for name, rows in parts.items()}
    for name, rows in parts.items():
        style.curve(axes, rows, "sum", name, READINGS.get(name, MEASURED))
    style.furnish(axes)
    return style.finite(pd.concat([rows["sum"] for rows in parts.values()]))
