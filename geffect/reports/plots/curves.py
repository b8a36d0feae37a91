"""Diagnostics by step, of few runs and of many methods (arXiv 2502.19301, Fig. 3 and 4), and success by mask size."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from geffect.errors import GeffectError
from geffect.reports.plots import style
from geffect.reports.plots.style import GROUPS, NOTE, ONE_COLUMN, RUNS, TWO_COLUMN, Figure, Look, styled


@styled
def g_effect_curves(frame: pd.DataFrame) -> Figure:
    """Draw the unlearn (top) and retain (bottom) G-effects by step, one column of panels a run.

    Columns ``run`` (at most four), ``step``, ``group`` (of ``GROUPS``), ``unlearn`` and ``retain``. Each row of panels
    has one y-axis, centered on zero.
    """
    runs = style.by_run(frame, ("run", "step", "group", "unlearn", "retain"), most=4)
    looks = {group: look for group, look in GROUPS.items() if group in set(frame["group"])}
    figure = Figure(figsize=(TWO_COLUMN if len(runs) > 1 else ONE_COLUMN, 4), layout="constrained")
    panels = figure.subplots(2, len(runs), sharex="col", sharey="row", squeeze=False)
    for (run, rows), (top, bottom) in zip(runs.items(), panels.T, strict=True):
        for group, look in looks.items():
            style.curve(top, rows[rows["group"] == group], "unlearn", group, look)
            style.curve(bottom, rows[rows["group"] == group], "retain", group, look)
        style.furnish(top, "below 0: forgets").set_title(run)
        style.furnish(bottom, "below 0: harms the retain set").set_xlabel("unlearning step")
    style.center(panels[0, 0], frame["unlearn"], r"unlearn G-effect  $\langle\nabla R_f,\, d\rangle$")
    style.center(panels[1, 0], frame["retain"], r"retain G-effect  $\langle\nabla R_r,\, d\rangle$")
    style.finish(figure, looks, 6 if len(runs) > 1 else 3)
    return figure


MOST_TARGETS = 9
TOTAL: Look = {"c": "black", "ls": "-", "lw": 1.6, "zorder": 2}
THIN: Look = {"lw": 0.9, "ms": 2.2, "zorder": 3}


@styled
def effect_curves(frame: pd.DataFrame) -> Figure:
    """Draw what every step does to every target, in total and by layer group, a panel a target.

    Columns ``step``, ``group`` (of ``GROUPS``), ``target`` (at most nine) and ``effect`` (nats a token; above 0 the
    step raises the target's loss), as of `geffect.read_effects`. The panels share both axes; the y-axis includes zero,
    and is a symmetric logarithm where a few values are far larger than the rest.
    """
    style.check(frame, ("step", "group", "target", "effect"))
    targets = list(frame["target"].unique())
    style.at_most(MOST_TARGETS, "targets", targets)
    looks = {group: look | THIN for group, look in GROUPS.items() if group in set(frame["group"])}
    figure, panels, across = style.panel_grid(len(targets), 2 if len(targets) == 4 else 3, lambda *_: 1.6, 0.8)
    frame = frame.sort_values("step", kind="stable")
    totals = frame.groupby(["target", "step"], as_index=False)["effect"].sum()
    for target, axes in zip(targets, panels, strict=True):
        rows = frame[frame["target"] == target]
        for group, look in looks.items():
            style.curve(axes, rows[rows["group"] == group], "effect", group, look)
        style.curve(axes, totals[totals["target"] == target], "effect", "total", TOTAL)
        style.furnish(axes, "").set_title(style.literal(target))
    drawn = style.finite(pd.concat([frame["effect"], totals["effect"]]))
    _, exponents = style.spread(drawn)
    if exponents:
        low, high = exponents
        panels[0].set_yscale("symlog", linthresh=10.0**low)  # all panels share it
        panels[0].set_yticks(style.decades(low, high, 2))
    panels[0].set_ylim(*style.around_zero(panels[0].yaxis, drawn, 0.08))
    scale = ", symlog" if exponents else ""
    style.name_axes(figure, "training step", f"change of the loss by a step\n(nats/token{scale}; above 0: harm)")
    style.finish(figure, {"total": TOTAL} | looks, 7 if across > 1 else 4, above=True)
    return figure


PAID: Look = {"c": "black", "marker": "o", "ms": 2.5, "ls": "-", "lw": 1.6}
POSSIBLE: Look = {"c": "0.6", "ls": "-", "lw": 5, "alpha": 0.5}


@styled
def price_curves(frame: pd.DataFrame) -> Figure:
    """Draw what each step harmed within what steps of its length and gain can harm, and below how well it chose.

    Columns ``step``, ``harm``, ``cheapest``, ``dearest`` (nats a token) and ``efficiency``, as of `geffect.price` for
    the whole model. An efficiency of 1 is the cheapest step, 0 the dearest; one that ignores the retain set has about
    one half.
    """
    style.check(frame, ("step", "harm", "cheapest", "dearest", "efficiency"))
    figure = Figure(figsize=(ONE_COLUMN, 3.8), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    style.furnish(top, "")
    top.fill_between(frame["step"], frame["cheapest"], frame["dearest"], color="0.6", alpha=0.5, lw=0)
    style.curve(top, frame, "harm", "harm", PAID)
    drawn = style.finite(pd.concat([frame["harm"], frame["cheapest"], frame["dearest"]]))
    top.set_ylim(*style.around_zero(top.yaxis, drawn, 0.08))
    top.set_ylabel("rise of the retain loss\n(nats/token a step)")
    style.curve(bottom, frame, "efficiency", "efficiency", PAID)
    bottom.axhline(0.5, color="0.55", lw=0.9, ls=":")
    bottom.set(ylim=(0, 1), yticks=[0, 0.5, 1], ylabel="efficiency", xlabel="unlearning step")
    style.finish(figure, {"the step": PAID, "steps of its gain and length": POSSIBLE}, 2)
    return figure


MOST_METRICS, SET_LINES = 6, ("-", "--", ":", "-.")
NATS = ("loss", "min_k", "gradient_norm")  # nats a token
SHARES = ("probability", "rouge", "accuracy", "memorization", "extraction", "truth", "verbmem", "knowmem", "uds")


@styled
def relearning_curves(frame: pd.DataFrame) -> Figure:
    """Draw each metric of each set by steps of relearning, a panel a metric, with the examples' intervals.

    Columns ``run``, ``model`` (at most six of both), ``step``, ``set`` (at most four), ``metric`` (at most six),
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
    figure = Figure(figsize=(TWO_COLUMN if len(metrics) > 1 else ONE_COLUMN, 2.9), layout="constrained")
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for metric, axes in zip(metrics, panels, strict=True):
        for (name, kind), rows in frame[frame["metric"] == metric].groupby(["name", "set"]):
            look = models[name] | {"ls": lines[kind]}
            axes.fill_between(rows["step"], rows["low"], rows["high"], color=look["c"], alpha=0.15, lw=0)
            style.curve(axes, rows, "mean", f"{name}: {kind}", look)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=True))
        nats = " (nats/token)" if metric.startswith(NATS) and metric != "min_k_plus_plus" else ""
        share = " (0 to 1)" if any(each in metric for each in SHARES) and "ratio" not in metric else ""
        axes.set_ylabel(metric.replace("_", " ") + nats + share)
    figure.supxlabel("relearning (optimizer steps)", size=8)
    kinds: dict[str, Look] = {style.literal(name): {"c": "0.35", "ls": line} for name, line in lines.items()}
    style.finish(figure, models | kinds, 4, above=True)
    return figure


@styled
def cosine_curves(frame: pd.DataFrame) -> Figure:
    """Draw the cosine of the objective's and the retain gradient by step, before and after rectification.

    Columns ``run`` (at most six), ``step``, ``cosine`` and ``rectified`` (NaN where the run has no rectifier). A line
    is solid before and dashed after; the negative half is shaded as conflict.
    """
    runs = style.by_run(frame, ("run", "step", "cosine", "rectified"), most=len(RUNS))
    looks = dict(zip(runs, RUNS, strict=False))
    figure = Figure(figsize=(ONE_COLUMN, 2.8), layout="constrained")
    axes = style.furnish(figure.subplots(subplot_kw={"ylim": (-1, 1), "xlabel": "unlearning step"}), "")
    axes.axhspan(-1, 0, color="0.95", lw=0, zorder=0)
    axes.text(1.02, 0.25, "conflict", transform=axes.transAxes, rotation=90, va="center", **NOTE)
    for run, rows in runs.items():
        style.curve(axes, rows, "cosine", run, looks[run])
        style.curve(axes, rows, "rectified", run, looks[run] | {"ls": "--", "mfc": "white"})
    axes.set(ylabel="cosine to the retain gradient", yticks=[-1, -0.5, 0, 0.5, 1])
    if frame["rectified"].notna().any():
        looks |= {"before": {"c": "0.35"}, "rectified": {"c": "0.35", "ls": "--"}}
    style.finish(figure, looks, 2 if len(runs) > 1 else 3)
    return figure


@styled
def jaccard_curves(frame: pd.DataFrame, gradient: str, other: str, share: float) -> Figure:
    """Draw the Jaccard index of two gradients' masks by step and layer group, against chance.

    Columns ``step``, ``group`` (of ``GROUPS``), ``gradient``, ``other``, ``jaccard`` and optionally ``run`` (at most
    four, a panel each). A mask holds a ``share`` of the entries; two random ones have the index share / (2 − share),
    dashed.
    """
    frame = _pair(frame, gradient, other)
    runs = style.by_run(frame, ("step", "group", "gradient", "other", "jaccard"), most=4)
    looks = {group: look for group, look in GROUPS.items() if group in set(frame["group"])}
    level = share / (2 - share)
    top = np.nanmax([level, *frame["jaccard"].to_numpy(float)])
    figure = Figure(figsize=(TWO_COLUMN if len(runs) > 1 else ONE_COLUMN, 2.8), layout="constrained")
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for (run, rows), axes in zip(runs.items(), panels, strict=True):
        for group, look in looks.items():
            style.curve(axes, rows[rows["group"] == group], "jaccard", group, look)
        style.furnish(axes, "").set(title=run, xlabel="unlearning step", ylim=(0, min(1.0, 1.1 * top)))
        axes.axhline(level, color="0.35", ls="--", lw=0.9, label="chance")
    last = panels[-1]
    last.text(1.02, level, f"chance\n{level:.3f}", transform=last.get_yaxis_transform(), va="center", **NOTE)
    panels[0].set_ylabel(f"Jaccard index, largest {100 * share:g} %\nof {gradient} and {other}")
    style.finish(figure, looks, 6 if len(runs) > 1 else 3)
    return figure


def _pair(frame: pd.DataFrame, gradient: str, other: str) -> pd.DataFrame:
    style.check(frame, ("step", "group", "gradient", "other", "jaccard"))
    pair = frame[[{a, b} == {gradient, other} for a, b in zip(frame["gradient"], frame["other"], strict=True)]]
    if pair.empty:
        known = ", ".join(sorted({*frame["gradient"], *frame["other"]}))
        raise GeffectError(f"There are no overlaps of {gradient} and {other}", remedy=f"Name two of {known}")
    return pair


SIDES = {"unlearn": "unlearn; below 0: forgets", "retain": "retain; below 0: harms"}
CELLS = 16  # pairs of panels on a page


@styled
def g_effect_panels(frame: pd.DataFrame, zoom: tuple[float, float] | None = None) -> Figure:
    """Draw many methods' unlearn (left) and retain (right) G-effect by step, in total and by layer group.

    Columns ``run`` (the method; at most 16, with a zoom eight), ``step``, ``group`` (of ``GROUPS``), ``unlearn`` and
    ``retain``; each run, step and group once. The total is the sum over groups. ``zoom`` is the first and the last step
    of a window that is drawn again to the right, on a scale of its own. The two panels of a method share a y-axis
    centered on zero, two methods do not. A title says where it is a symmetric logarithm; with a zoom it never is.
    """
    runs = style.by_run(frame, ("run", "step", "group", "unlearn", "retain"), CELLS // 2 if zoom else CELLS)
    cells = [cell for run, rows in runs.items() for cell in _windows(run, rows, zoom)]
    looks = {group: look | THIN for group, look in GROUPS.items() if group in set(frame["group"])}
    across = min(2, len(cells))
    lines = -(-len(cells) // across)
    figure = Figure(figsize=(TWO_COLUMN, 1 + 1.05 * lines) if across > 1 else (ONE_COLUMN, 2.3), layout="constrained")
    panels = figure.subplots(lines, 2 * across, squeeze=False).reshape(-1, 2)
    for (title, rows), (left, right) in zip(cells, panels, strict=False):
        _method(left, right, rows, title, looks, np.inf if zoom else 100)
    for axes in panels[len(cells) :].flat:
        axes.remove()
    for i, pair in enumerate(panels[: len(cells)]):
        for axes in pair:
            axes.tick_params(labelbottom=i + across >= len(cells))
    style.name_axes(figure, "unlearning step", "G-effect  $\\langle\\nabla R,\\, d\\rangle$\n(gradient² units)")
    style.finish(figure, {"total": TOTAL} | looks, 7 if across > 1 else 4, above=True)
    return figure


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


def _method(left: Axes, right: Axes, rows: pd.DataFrame, title: str, looks: dict[str, Look], ratio: float) -> None:
    """Draw one method's pair of panels on one scale."""
    total = rows.groupby("step")[list(SIDES)].sum(min_count=1).reset_index()
    for axes, (side, note) in zip((left, right), SIDES.items(), strict=True):
        axes.plot(total["step"], total[side], label="total", **TOTAL)
        for group, look in looks.items():
            style.curve(axes, rows[rows["group"] == group], side, group, look)
        style.furnish(axes, note)
        style.center(
            axes, pd.concat([part[name] for part in (total, rows) for name in SIDES]), "", ticks=2, ratio=ratio
        )
        first, last = rows["step"].min(), rows["step"].max()
        room = 0.03 * (last - first) or 0.5  # at both ends, for markers
        axes.set(ylabel="", xlim=(first - room, last + room))
        if axes.get_yscale() == "linear":
            axes.yaxis.set_major_locator(MaxNLocator(nbins=4, symmetric=True))
            axes.yaxis.set_major_formatter(FuncFormatter(_short))
    right.tick_params(labelleft=False)
    left.set_title(title + (" (symlog)" if left.get_yscale() == "symlog" else ""), loc="left", parse_math=False)


def _short(value: float, _: object) -> str:
    """A tick's number in few characters: 0.002, 1200, 3.5e5."""
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    return (f"{mantissa}e{int(exponent)}" if exponent else mantissa).replace("-", "−")


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
    style.finish(figure, looks | range_of_seeds, 4)
    return figure
