"""Diagnostics by step, of few runs and of many methods (arXiv 2502.19301, Fig. 3 and 4), and success by mask size."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from geffect.errors import GeffectError
from geffect.reports.plots import style
from geffect.reports.plots.style import (
    NATS,
    NOTE,
    PAGE,
    PER_RATE,
    RUNS,
    TWO_COLUMN,
    Figure,
    Look,
    Numbers,
    Page,
    styled,
)

G_EFFECT = f"G-effect  $\\langle\\nabla R,\\, d\\rangle${{}}\n({PER_RATE}{{}})"
CHANGE = f"change of the loss by a step{{}}\n({NATS}{{}})"
SIDES = {  # column → what stands above its panels, and the name of the axis
    "unlearn": ("unlearn: below 0 forgets", G_EFFECT),
    "retain": ("retain: below 0 harms", G_EFFECT),
    "forget_change": ("forget: above 0 forgets", CHANGE),
    "retain_change": ("retain: above 0 harms", CHANGE),
}
BANDS = "bands: two standard errors"


@styled
def g_effect_curves(
    frame: pd.DataFrame, zoom: tuple[float, float] | None = None, scale: str = "linear", page: Page = PAGE
) -> Figure:
    """Draw the unlearn (left) and retain (right) G-effects by step and layer group, a pair of panels a run.

    Columns ``run`` (the method; at most 16, with a zoom eight), ``step``, ``group`` (of ``GROUPS``, or ``total``), and
    ``unlearn``, ``retain`` or both, or of `geffect.read_effects` ``forget_change`` and ``retain_change``; ``± unlearn``
    and so on are standard errors, drawn as bands of two. ``zoom`` is the first and the last step of a window that is
    drawn again to the right. All panels have one y-axis where each is readable on it; else the two of a run have, else
    each its own, and the figure says which.
    """
    sides = [side for side in SIDES if side in frame] or ["unlearn"]
    runs = style.by_run(frame, ("run", "step", "group", *sides), style.MOST_RUNS // (2 if zoom else 1))
    cells = [cell for run, rows in runs.items() for cell in _windows(run, rows, zoom)]
    looks = style.group_looks(frame)
    several = len(cells) > 1
    height = 1.05 if several else 1.6
    most = 1 if len(cells) == 3 and len(sides) == 2 else 4 // len(sides)  # three pairs below one another leave no gap
    figure, panels, across = page.panels(len(cells), most, lambda *_: height, 1.25, len(sides), wide=several)
    drawn = {}
    blocks = [panels[i : i + len(sides)] for i in range(0, len(panels), len(sides))]
    for (title, rows), block in zip(cells, blocks, strict=True):
        for axes, side in zip(block, sides, strict=True):
            drawn[axes] = _lines(axes, rows, side, looks)
            axes.tick_params(labelbottom=bool(zoom) or block in blocks[-across:])
        block[0].set_title(title, loc="left", parse_math=False)
    for block in blocks[:across]:
        for axes, side in zip(block, sides, strict=True):
            _head(axes, SIDES[side][0])
    note = style.rescale([axes.yaxis for axes in panels], np.concatenate([*drawn.values()]), scale)
    notes = [style.fit(blocks, drawn, "window" if zoom else "run"), _bands(frame, sides)]
    page.name(figure, panels, "unlearning step", SIDES[sides[0]][1].format(note, ""), notes)
    style.finish(figure, looks, page)
    return figure


def _lines(axes: Axes, rows: pd.DataFrame, column: str, looks: dict[str, Look]) -> Numbers:
    """Draw a panel's groups, and return all that its axis must hold."""
    for group, look in looks.items():
        style.curve(axes, rows[rows["group"] == group], column, group, look)
    first, last = rows["step"].min(), rows["step"].max()
    room = 0.03 * (last - first) or 0.5  # at both ends, for markers
    style.furnish(axes).set_xlim(first - room, last + room)
    shown = rows[rows["group"].isin(looks)]
    edges = [edge for pair in style.errors(shown, column) for edge in pair]
    return np.concatenate([shown[column].to_numpy(float), *edges])


def _head(axes: Axes, text: str) -> None:
    """Write what a column of panels shows above its title."""
    axes.annotate(text, (0, 1), (0, 16), xycoords="axes fraction", textcoords="offset points", **NOTE)


def _bands(frame: pd.DataFrame, columns: Sequence[str]) -> str:
    return BANDS if any(style.errors(frame, column) for column in columns) else ""


def _windows(run: str, rows: pd.DataFrame, zoom: tuple[float, float] | None) -> list[tuple[str, pd.DataFrame]]:
    """A method's rows, and those of the window, each with a title."""
    if zoom is None:
        return [(run, rows)]
    inside = rows[rows["step"].between(*zoom)]
    if inside.empty:
        first, last = rows["step"].min(), rows["step"].max()
        message = f"{run} has steps from {first:g} to {last:g}, and none from {zoom[0]:g} to {zoom[1]:g}"
        raise GeffectError(message, remedy="Zoom into steps that were measured")
    return [(run, rows), (f"{run}, steps {zoom[0]:g} to {zoom[1]:g}", inside)]


MOST_TARGETS = 16


@styled
def effect_curves(frame: pd.DataFrame, scale: str = "linear", page: Page = PAGE) -> Figure:
    """Draw what every step does to every target, by layer group and in total, a panel a target.

    Columns ``step``, ``group`` (of ``GROUPS``, or ``total``), ``target`` (at most 16) and ``effect`` (nats a token;
    above 0 the step raises the target's loss), as of `geffect.read_effects`. The panels share the y-axis where each is
    readable on it.
    """
    style.check(frame, ("step", "group", "target", "effect"))
    targets = list(frame["target"].unique())
    style.at_most(MOST_TARGETS, "targets", targets)
    looks = style.group_looks(frame)
    figure, panels, across = page.panels(len(targets), 2 if len(targets) == 4 else 3, lambda *_: 1.5, 1.0, shared="x")
    frame = frame.sort_values("step", kind="stable")
    drawn = {}
    for i, (target, axes) in enumerate(zip(targets, panels, strict=True)):
        drawn[axes] = _lines(axes, frame[frame["target"] == target], "effect", looks)
        axes.set_title(style.literal(target))
        axes.tick_params(labelbottom=i + across >= len(targets))
    note = style.rescale([axes.yaxis for axes in panels], np.concatenate([*drawn.values()]), scale)
    notes = [style.fit([[axes] for axes in panels], drawn, "target")]
    page.name(figure, panels, "training step", CHANGE.format(note, "; above 0: harm"), notes)
    style.finish(figure, looks, page)
    return figure


PAID: Look = {"c": "black", "marker": "o", "ms": 2.5, "ls": "-", "lw": 1.6}
POSSIBLE: Look = {"c": "0.6", "ls": "-", "lw": 5, "alpha": 0.5}


@styled
def price_curves(frame: pd.DataFrame, scale: str = "linear", page: Page = PAGE) -> Figure:
    """Draw what each step harmed within what steps of its length and gain can harm, and below how well it chose.

    Columns ``step``, ``harm``, ``cheapest``, ``dearest`` (nats a token) and ``efficiency``, as of `geffect.price` for
    the whole model. An efficiency of 1 is the cheapest step, 0 the dearest; one that ignores the retain set has about
    one half.
    """
    style.check(frame, ("step", "harm", "cheapest", "dearest", "efficiency"))
    figure = page.figure(False, 3.8)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    style.furnish(top)
    top.fill_between(frame["step"], frame["cheapest"], frame["dearest"], color="0.6", alpha=0.5, lw=0)
    style.curve(top, frame, "harm", "harm", PAID)
    drawn = style.finite(pd.concat([frame["harm"], frame["cheapest"], frame["dearest"]]))
    note = style.rescale([top.yaxis], drawn, scale)
    style.fit([[top]], {top: drawn}, "step")
    top.set_ylabel(f"rise of the retain loss\n({NATS} a step{note})")
    style.curve(bottom, frame, "efficiency", "efficiency", PAID)
    bottom.axhline(0.5, color="0.55", lw=0.9, ls=":")
    bottom.set(ylim=(0, 1), yticks=[0, 0.5, 1], ylabel="efficiency", xlabel="unlearning step")
    style.finish(figure, {"the step": PAID, "steps of its gain and length": POSSIBLE})
    return figure


MOST_METRICS, SET_LINES = 16, ("-", "--", ":", "-.")
IN_NATS = ("loss", "min_k", "gradient_norm")
SHARES = ("probability", "rouge", "accuracy", "memorization", "extraction", "truth", "verbmem", "knowmem", "uds")


@styled
def relearning_curves(frame: pd.DataFrame, page: Page = PAGE) -> Figure:
    """Draw each metric of each set by steps of relearning, a panel a metric, with the examples' intervals.

    Columns ``run``, ``model`` (at most six of both), ``step``, ``set`` (at most four), ``metric`` (at most 16),
    ``mean``, ``low`` and ``high``. Step 0 is the model before relearning. Models have colors, sets kinds of lines.
    """
    style.check(frame, ("run", "model", "step", "set", "metric", "mean", "low", "high"))
    metrics, sets = list(frame["metric"].unique()), list(frame["set"].unique())
    style.at_most(MOST_METRICS, "metrics", metrics)
    style.at_most(len(SET_LINES), "sets", sets)
    several = frame.groupby("run")["model"].nunique().max() > 1
    names = frame["run"] + ": " + frame["model"] if several else frame["run"]
    frame = frame.assign(name=names.map(style.literal))
    style.at_most(len(RUNS), "models", frame["name"].unique())
    models = dict(zip(frame["name"].unique(), RUNS, strict=False))
    lines = dict(zip(sets, SET_LINES, strict=False))
    figure, panels, _ = page.panels(len(metrics), 3, lambda *_: 1.9, 0.9)
    for metric, axes in zip(metrics, panels, strict=True):
        for (name, kind), rows in frame[frame["metric"] == metric].groupby(["name", "set"]):
            look = models[name] | {"ls": lines[kind]}
            axes.fill_between(rows["step"], rows["low"], rows["high"], color=look["c"], alpha=0.15, lw=0)
            style.curve(axes, rows, "mean", f"{name}: {kind}", look)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=True))
        nats = f" ({NATS})" if metric.startswith(IN_NATS) and metric != "min_k_plus_plus" else ""
        share = " (0 to 1)" if any(each in metric for each in SHARES) and "ratio" not in metric else ""
        axes.set_ylabel(metric.replace("_", " ") + nats + share)
    for axes in panels if len(panels) == 1 else ():
        axes.set_xlabel("relearning (optimizer steps)")
    if len(panels) > 1:
        figure.supxlabel("relearning (optimizer steps)", size=8)
    kinds: dict[str, Look] = {style.literal(name): {"c": "0.35", "ls": line} for name, line in lines.items()}
    style.finish(figure, models | kinds, page)
    return figure


@styled
def cosine_curves(frame: pd.DataFrame, page: Page = PAGE) -> Figure:
    """Draw the cosine of the objective's and the retain gradient by step, before and after rectification.

    Columns ``run`` (six in one panel, else at most 16, a panel each before the others in gray), ``step``, ``cosine``
    and ``rectified`` (NaN where the run has no rectifier). A line is solid before and dashed after; the negative half
    is shaded as conflict.
    """
    runs = style.by_run(frame, ("run", "step", "cosine", "rectified"))
    cells, looks = style.cells(runs)
    figure, panels, across = page.panels(len(cells), 4, lambda *_: 2.0 if len(cells) == 1 else 1.0, 0.9, shared="xy")
    for i, (shown, axes) in enumerate(zip(cells, panels, strict=True)):
        axes.axhspan(-1, 0, color="0.95", lw=0, zorder=0)
        for run in runs if len(cells) > 1 else ():
            axes.plot(runs[run]["step"], runs[run]["cosine"], label="others", **style.OTHERS)
        for run in shown:
            style.curve(axes, runs[run], "cosine", run, looks[run])
            style.curve(axes, runs[run], "rectified", run, looks[run] | {"ls": "--", "mfc": "white"})
        style.furnish(axes).set_title(shown[0] if len(cells) > 1 else "")
        axes.tick_params(labelbottom=i + across >= len(cells))
    style.rescale([panels[0].yaxis], np.zeros(1), "linear", 4)
    low, high = style.around_zero(panels[0].yaxis, style.finite(pd.concat([frame["cosine"], frame["rectified"]])), 0.08)
    panels[0].set_ylim(max(-1, low), min(1, high))
    page.name(figure, panels, "unlearning step", "cosine to the retain gradient", ["shaded: conflict"])
    keys = {"the run": RUNS[0], "others": style.OTHERS} if len(cells) > 1 else dict(looks)
    if frame["rectified"].notna().any():
        keys |= {"before": {"c": "0.35"}, "rectified": {"c": "0.35", "ls": "--"}}
    style.finish(figure, keys, page)
    return figure


@styled
def jaccard_curves(frame: pd.DataFrame, gradient: str, other: str, share: float, page: Page = PAGE) -> Figure:
    """Draw the Jaccard index of two gradients' masks by step and layer group, against chance.

    Columns ``step``, ``group`` (of ``GROUPS``), ``gradient``, ``other``, ``jaccard`` and optionally ``run`` (at most
    16, a panel each). A mask holds a ``share`` of the entries; two random ones have the index share / (2 − share),
    dashed.
    """
    frame = overlaps_of(frame, gradient, other)
    runs = style.by_run(frame, ("step", "group", "gradient", "other", "jaccard"))
    looks = style.group_looks(frame)
    level = share / (2 - share)
    top = np.nanmax([level, *frame["jaccard"].to_numpy(float)])
    figure, panels, across = page.panels(len(runs), 4, lambda *_: 1.9 if len(runs) < 3 else 1.2, 1.0, shared="xy")
    for i, ((run, rows), axes) in enumerate(zip(runs.items(), panels, strict=True)):
        for group, look in looks.items():
            style.curve(axes, rows[rows["group"] == group], "jaccard", group, look)
        style.furnish(axes).set(title=run, ylim=(0, min(1.0, 1.1 * top)))
        axes.tick_params(labelbottom=i + across >= len(runs))
        axes.axhline(level, label="chance", **CHANCE)
    label = f"Jaccard index, largest {100 * share:g} %\nof {gradient} and {other}"
    page.name(figure, panels, "unlearning step", label)
    style.finish(figure, looks | {f"chance, {level:.3f}": CHANCE}, page)
    return figure


CHANCE: Look = {"c": "0.35", "ls": "--", "lw": 0.9}


def overlaps_of(frame: pd.DataFrame, gradient: str, other: str) -> pd.DataFrame:
    """The rows of one pair of gradients."""
    style.check(frame, ("step", "group", "gradient", "other", "jaccard"))
    pair = frame[[{a, b} == {gradient, other} for a, b in zip(frame["gradient"], frame["other"], strict=True)]]
    if pair.empty:
        known = ", ".join(sorted({*frame["gradient"], *frame["other"]}))
        raise GeffectError(f"There are no overlaps of {gradient} and {other}", remedy=f"Name two of {known}")
    return pair


BAND: Look = {"c": "0.8", "lw": 6, "solid_capstyle": "butt"}
SWEEP = ("which", "share", "domain", "unlearn_success", "retention_success", "seed")
SUCCESSES = {"unlearn_success": "unlearn success (%)", "retention_success": "retention success (%)"}


@styled
def success_sweep(frame: pd.DataFrame) -> Figure:
    """Draw unlearn (left) and retention (right) success by the share of entries in a mask, one row of panels a mask.

    Columns ``which`` (the mask; at most four), ``share``, ``domain`` (at most six), ``unlearn_success`` and
    ``retention_success`` (in %), and ``seed``; each combination once. A line is a domain's mean over seeds, its band
    goes from the lowest to the highest.
    """
    style.check(frame, SWEEP)
    style.once(frame, ["which", "share", "domain", "seed"])
    masks, domains = frame["which"].unique(), frame["domain"].unique()
    style.at_most(4, "masks", masks)
    style.at_most(len(RUNS), "domains", domains)
    looks = dict(zip(domains, RUNS, strict=False))
    percent = frame.assign(share=100 * frame["share"])
    figure = Figure(figsize=(TWO_COLUMN, 0.6 + 2.0 * len(masks)), layout="constrained")
    panels = figure.subplots(len(masks), 2, squeeze=False, sharex="row", sharey="col")
    for mask, line in zip(masks, panels, strict=True):
        for (column, label), axes in zip(SUCCESSES.items(), line, strict=True):
            for domain, look in looks.items():
                rows = percent[(percent["which"] == mask) & (percent["domain"] == domain)]
                style.band(axes, rows, "share", column, ("pi", 100), look | {"label": domain})
            axes.set(xlabel=f"{mask}: share of entries (%)", ylabel=label)
    range_of_seeds = {"lowest to highest seed": BAND} if frame["seed"].nunique() > 1 else {}
    style.finish(figure, looks | range_of_seeds)
    return figure
