"""What is forgotten against what is retained: paths of runs, panels of objectives, and methods with intervals."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.ticker import LogLocator

from geffect.errors import GeffectError
from geffect.reports.plots import style
from geffect.reports.plots.style import NATS, ONE_COLUMN, PAGE, RUNS, Figure, Look, Page, styled

START: Look = {"c": "black", "marker": "o", "ls": "", "mfc": "white", "ms": 4.5, "zorder": 5}
LOSSES = (f"forget loss ({NATS}{{}}; higher: forgotten)", f"heldout loss ({NATS}{{}}; lower: kept)")


@styled
def trade_off(frame: pd.DataFrame, scale: str = "linear", page: Page = PAGE) -> Figure:
    """Draw each run's path in the plane of forget loss and heldout loss.

    Columns ``run`` (six in one panel, else at most 16, a panel each before the others in gray), ``step``,
    ``forget_loss`` and ``heldout_loss`` (nats a token). Start and ends are marked, and some points bear their step.
    """
    runs = style.by_run(frame, ("run", "step", "forget_loss", "heldout_loss"))
    cells, looks = style.cells(runs)
    paths = {run: rows.set_index("step")[["forget_loss", "heldout_loss"]] for run, rows in runs.items()}
    figure, panels, across = page.panels(
        len(cells), COLUMNS, lambda width, n: 2.2 if n == 1 else 0.85 * width / n, 0.9, shared="xy"
    )
    for i, (shown, axes) in enumerate(zip(cells, panels, strict=True)):
        for run in paths if len(cells) > 1 else ():
            axes.plot(*paths[run].to_numpy(float).T, label="others", **style.OTHERS)
        for run in shown:
            end = looks[run] | {"markevery": [len(paths[run]) - 1], "ms": 6, "mec": "black"}
            axes.plot(*paths[run].to_numpy(float).T, label=run, **end)
        starts = np.unique([paths[run].iloc[0] for run in shown], axis=0)
        axes.plot(*starts.T, **START)
        axes.set_title(shown[0] if len(cells) > 1 else "")
        axes.tick_params(labelbottom=i + across >= len(cells))
    axes = panels[0]
    axes.margins(x=0.1, y=0.15)
    added = [
        style.rescale([axis], frame[column].to_numpy(float), scale)
        for axis, column in ((axes.xaxis, "forget_loss"), (axes.yaxis, "heldout_loss"))
    ]
    page.name(figure, panels, *(text.format(note) for text, note in zip(LOSSES, added, strict=True)))
    if len(cells) == 1:
        _number_steps(axes, paths, looks)
    keys = {"the run": RUNS[0], "others": style.OTHERS} if len(cells) > 1 else dict(looks)
    style.finish(figure, keys | {"start": START}, page)
    return figure


def _name_loss(axis: XAxis | YAxis, text: str, interval: tuple[float, float]) -> None:
    """Name the axis of a loss; it is logarithmic where the interval of the data spans more than a decade."""
    low, high = interval
    if wide := 0 < 10 * low < high:
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axis.set_label_text(text.format(", log" if wide else ""))


def _number_steps(axes: Axes, paths: dict[str, pd.DataFrame], looks: dict[str, Look]) -> None:
    """Mark and number the ends, then the points that are far from all numbered before."""
    axes.autoscale_view()
    plane = axes.transScale + axes.transLimits
    taken = [plane.transform(path.iloc[0]) for path in paths.values()]
    points = [(run, index) for run, path in paths.items() for index in range(len(path))]
    for run, index in [(run, -1) for run in paths] + points:
        point = tuple(paths[run].iloc[index])
        place = plane.transform(point)
        if min(np.hypot(*(place - other)) for other in taken) > 0.13:
            text = f"{'step ' if len(taken) == len(paths) else ''}{paths[run].index[index]:g}"
            falls = point[1] < paths[run].iloc[0, 1]  # keep the number off the path it belongs to
            shift, side = ((3, 3), "left") if falls else ((-3, 3), "right")
            axes.annotate(text, point, shift, textcoords="offset points", size=6.5, ha=side)
            axes.plot(*point, **looks[run])
            taken.append(place)


MOST, COLUMNS = 16, 4
X = {
    "forget_loss": f"forget loss ({NATS}{{}}; right: forgotten)",
    "forget_accuracy": "forget accuracy (left: forgotten)",
}
SEED: Look = {"c": "0.35", "lw": 0.5, "alpha": 0.7}
MEAN: Look = {"lw": 1.5, "mec": "black", "ms": 4.5}
RECTIFIERS: tuple[Look, ...] = (
    {"c": "#BB5566", "marker": "s", "ls": (0, (4, 1.2))},
    *({"ls": "-"} | look for look in RUNS if look["c"] != "#BB5566"),
)


@styled
def trade_off_grid(frame: pd.DataFrame, x: str = "forget_loss") -> Figure:
    """Draw the paths of many runs in the plane of forgetting and heldout accuracy, a small panel an objective.

    Columns ``objective`` (at most 16), ``rectifier`` (at most six), ``seed``, ``step``, ``heldout_accuracy`` and ``x``:
    ``forget_loss`` (nats a token) or ``forget_accuracy``; a row an evaluation, rows with NaN are left out. A thin line
    is a seed, a thick one the mean over the steps that every seed reached.
    """
    rows = _evaluations(frame, x)
    objectives, looks = list(rows["objective"].unique()), _looks(rows)
    figure, panels = _small_panels(len(objectives))
    for objective, axes in zip(objectives, panels, strict=False):
        for rectifier, look in looks.items():
            _paths(axes, rows[(rows["objective"] == objective) & (rows["rectifier"] == rectifier)], x, look)
        axes.set_title(objective)
    _name_loss_axes(figure, panels, rows[x])
    seed = {"one seed": SEED} if rows["seed"].nunique() > 1 else {}
    style.finish(figure, looks | seed | {"start": START})
    return figure


def _small_panels(count: int) -> tuple[Figure, list[Axes]]:
    height = lambda width, across: 0.78 * width / across  # noqa: E731
    figure, panels, across = PAGE.panels(count, COLUMNS, height, 0.8, shared="xy")
    for axes in panels[count - across :]:
        axes.tick_params(labelbottom=True)  # below some of these stands no panel
    return figure, panels


def _evaluations(frame: pd.DataFrame, x: str) -> pd.DataFrame:
    """The rows without NaN, sorted by step within objectives, which stand in order of appearance."""
    if x not in X:
        raise GeffectError(f"There is no x {x!r}", remedy=f"Choose one of {', '.join(X)}")
    columns = ["objective", "rectifier", "seed", "step", x, "heldout_accuracy"]
    style.check(frame, tuple(columns))
    style.at_most(MOST, "objectives", frame["objective"].unique())
    style.at_most(len(RECTIFIERS), "rectifiers", frame["rectifier"].unique())
    rows = frame[columns].dropna()
    if rows.empty:
        raise GeffectError(f"No evaluation has {x} and heldout_accuracy", remedy="Evaluate with a heldout set")
    places = {objective: place for place, objective in enumerate(rows["objective"].unique())}
    return rows.assign(place=rows["objective"].map(places)).sort_values(["place", "step"], kind="stable")


def _looks(rows: pd.DataFrame) -> dict[str, Look]:
    """Rectifier → the look of its paths; the column's ``none`` comes first."""
    names = sorted(rows["rectifier"].unique(), key=lambda name: bool(name != "none"))
    return dict(zip(names, RECTIFIERS, strict=False))


def _paths(axes: Axes, cell: pd.DataFrame, x: str, look: Look) -> None:
    """Draw one objective's runs with one rectifier."""
    seeds = cell["seed"].nunique()
    for _, path in cell.groupby("seed"):
        axes.plot(path[x].to_numpy(), path["heldout_accuracy"].to_numpy(), **(SEED | {"c": look["c"]}))
    steps = cell.groupby("step")
    mean = steps[[x, "heldout_accuracy"]].mean()[steps["seed"].nunique() == seeds]
    if not mean.empty:
        axes.plot(*mean.to_numpy(float).T, markevery=[len(mean) - 1], **(MEAN | look))
        axes.plot(*mean.iloc[0], **START)


def _name_loss_axes(figure: Figure, panels: list[Axes], values: "pd.Series[float]") -> None:
    """Name the axes that all panels share; an accuracy's axis is never logarithmic."""
    label, axes = X[str(values.name)], panels[0]
    if values.name == "forget_loss":
        _name_loss(axes.xaxis, label, (values.min(), values.max()))
        label = axes.get_xlabel()
        axes.set_xlabel("")
    PAGE.name(figure, panels, label, "heldout accuracy (up: kept)")


@styled
def leaderboard(frame: pd.DataFrame, label: str) -> Figure:
    """Draw what methods retain at equal forgetting, the best on top, with intervals: a line an objective.

    Columns ``objective``, ``rectifier`` (at most six), ``mean``, ``low`` and ``high``; a row a method, NaN where it
    never reached the level. ``label`` names the axis.
    """
    style.check(frame, ("objective", "rectifier", "mean", "low", "high"))
    best = frame.groupby("objective")["mean"].max().sort_values(na_position="first")
    if best.isna().all():
        raise GeffectError("No method forgets as much as the level", remedy="Compare at a lower forget loss")
    looks = _looks(frame)
    figure = Figure(figsize=(ONE_COLUMN, 0.9 + 0.22 * len(best)), layout="constrained")
    axes = figure.subplots()
    for place, (rectifier, look) in enumerate(looks.items()):
        rows = frame[frame["rectifier"] == rectifier].set_index("objective").reindex(best.index)
        heights = np.arange(len(best)) + 0.26 * (place - (len(looks) - 1) / 2) * 2 / max(1, len(looks) - 1) / 1.6
        errors = np.abs(rows[["low", "high"]].to_numpy(float).T - rows["mean"].to_numpy(float))
        marks = {key: look[key] for key in ("c", "marker")}
        axes.errorbar(rows["mean"], heights, xerr=errors, ls="", elinewidth=1, mec="black", mew=0.4, **marks)
        missing = {"c": look["c"], "marker": look["marker"], "mfc": "white"}
        tried = rows.index.isin(frame.loc[frame["rectifier"] == rectifier, "objective"])
        never = np.flatnonzero(rows["mean"].isna() & tried)
        axes.plot([0.02] * len(never), heights[never], ls="", transform=axes.get_yaxis_transform(), **missing)
    axes.set(yticks=range(len(best)), yticklabels=list(best.index), xlabel=label, ylim=(-0.7, len(best) - 0.3))
    axes.grid(axis="y", color="0.93", lw=0.6)
    axes.set_axisbelow(True)
    marked = {name: {"ls": "", **{key: look[key] for key in ("c", "marker")}} for name, look in looks.items()}
    hollow: Look = {"c": "0.35", "marker": "o", "mfc": "white", "ls": ""}
    style.finish(figure, marked | ({"never got there": hollow} if frame["mean"].isna().any() else {}))
    return figure


@styled
def trade_off_bands(frame: pd.DataFrame, label: str) -> Figure:
    """Draw what is retained along what is forgotten, with intervals, a small panel an objective.

    Columns ``objective`` (at most 16), ``rectifier`` (at most six), ``forget_loss``, ``mean``, ``low`` and ``high``; a
    row a level. ``label`` names what is retained.
    """
    style.check(frame, ("objective", "rectifier", "forget_loss", "mean", "low", "high"))
    objectives, looks = list(frame["objective"].unique()), _looks(frame)
    style.at_most(MOST, "objectives", objectives)
    figure, panels = _small_panels(len(objectives))
    for objective, axes in zip(objectives, panels, strict=True):
        for rectifier, look in looks.items():
            rows = frame[(frame["objective"] == objective) & (frame["rectifier"] == rectifier)]
            rows = rows.dropna().sort_values("forget_loss")
            axes.fill_between(rows["forget_loss"], rows["low"], rows["high"], color=look["c"], alpha=0.2, lw=0)
            axes.plot(rows["forget_loss"], rows["mean"], c=look["c"], ls=look["ls"])
        axes.set_title(objective)
    PAGE.name(figure, panels, f"forget loss ({NATS}; right: forgotten)", label)
    style.finish(figure, {name: {"c": look["c"], "ls": look["ls"]} for name, look in looks.items()})
    return figure
