"""Many runs at once: a small panel an objective."""

import matplotlib
import pandas as pd
from matplotlib.axes import Axes

from geffect.errors import GeffectError
from geffect.reports.plots.figure import Figure
from geffect.reports.plots.panels import check, finish
from geffect.reports.plots.planes import name_loss
from geffect.reports.plots.style import ONE_COLUMN, RUNS, STYLE, TWO_COLUMN, Look

MOST, COLUMNS = 16, 4
X = {
    "forget_loss": "forget risk (nats/token{}; right: forgotten)",
    "forget_accuracy": "forget accuracy (left: forgotten)",
}
SEED: Look = {"c": "0.35", "lw": 0.5, "alpha": 0.7}
MEAN: Look = {"lw": 1.5, "mec": "black", "ms": 4.5}
START: Look = {"c": "black", "marker": "o", "ls": "", "mfc": "white", "ms": 4.5, "zorder": 5}
RECTIFIERS: tuple[Look, ...] = (
    {"c": "#BB5566", "marker": "s", "ls": (0, (4, 1.2))},
    *({"ls": "-"} | look for look in RUNS if look["c"] != "#BB5566"),
)


def trade_off_grid(frame: pd.DataFrame, x: str = "forget_loss") -> Figure:
    """Draw the paths of many runs in the plane of what is forgotten and what is kept, a small panel an objective.

    Args:
        frame: Columns ``objective`` (at most 16), ``rectifier`` (at most six), ``seed``, ``step``, ``heldout_accuracy``
            and what ``x`` names; a row an evaluation, those with NaN left out.
        x: ``forget_loss`` (nats per token) or ``forget_accuracy``.

    Returns:
        A figure whose panels share both axes: a thin line a seed, a thick one for their mean over the steps that every
        seed reached, its end marked.
    """
    rows = _evaluations(frame, x)
    objectives, looks = list(rows["objective"].unique()), looks_of(rows)
    with matplotlib.rc_context(STYLE):
        figure, panels, columns = small_panels(len(objectives))
        for objective, axes in zip(objectives, panels, strict=False):
            for rectifier, look in looks.items():
                _paths(axes, rows[(rows["objective"] == objective) & (rows["rectifier"] == rectifier)], x, look)
            axes.set_title(objective)
        _name_axes(figure, panels[0], rows[x])
        seed = {"one seed": SEED} if rows["seed"].nunique() > 1 else {}
        finish(figure, looks | seed | {"start": START}, 6 if columns > 1 else 2, above=True)
    return figure


def small_panels(count: int) -> tuple[Figure, list[Axes], int]:
    """An empty figure of panels that share both axes, those at the bottom labeled.

    Args:
        count: of panels.

    Returns:
        The figure, its panels, and how many stand side by side.
    """
    columns = min(COLUMNS, count)
    width, lines = TWO_COLUMN if columns > 1 else ONE_COLUMN, -(-count // columns)
    figure = Figure(figsize=(width, 0.8 + 0.78 * width / columns * lines), layout="constrained")
    panels = list(figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
    for axes in panels[count:]:
        axes.remove()
    for axes in panels[count - columns : count]:
        axes.tick_params(labelbottom=True)  # below some of these stands no panel
    return figure, panels[:count], columns


def _evaluations(frame: pd.DataFrame, x: str) -> pd.DataFrame:
    """The rows without NaN, sorted by step within objectives in order of appearance."""
    if x not in X:
        raise GeffectError(f"x among {', '.join(X)}", repr(x), "choose one of these")
    columns = ["objective", "rectifier", "seed", "step", x, "heldout_accuracy"]
    check(frame, tuple(columns))
    for column, most in (("objective", MOST), ("rectifier", len(RECTIFIERS))):
        if (found := frame[column].nunique()) > most:
            raise GeffectError(f"at most {most} {column}s in a picture", str(found), "leave some out")
    rows = frame[columns].dropna()
    if rows.empty:
        raise GeffectError(f"evaluations with {x} and heldout_accuracy", "only NaN", "evaluate with a heldout set")
    places = {objective: place for place, objective in enumerate(rows["objective"].unique())}
    return rows.assign(place=rows["objective"].map(places)).sort_values(["place", "step"], kind="stable")


def looks_of(rows: pd.DataFrame) -> dict[str, Look]:
    """How each rectifier's paths look, that of none first.

    Args:
        rows: with a column ``rectifier``.

    Returns:
        Rectifier → look.
    """
    names = sorted(rows["rectifier"].unique(), key=lambda name: bool(name != "none"))
    return dict(zip(names, RECTIFIERS, strict=False))


def _paths(axes: Axes, cell: pd.DataFrame, x: str, look: Look) -> None:
    """One objective's runs with one rectifier."""
    seeds = cell["seed"].nunique()
    for _, path in cell.groupby("seed"):
        axes.plot(path[x].to_numpy(), path["heldout_accuracy"].to_numpy(), **(SEED | {"c": look["c"]}))
    steps = cell.groupby("step")
    mean = steps[[x, "heldout_accuracy"]].mean()[steps["seed"].nunique() == seeds]
    if not mean.empty:
        axes.plot(*mean.to_numpy(float).T, markevery=[len(mean) - 1], **(MEAN | look))
        axes.plot(*mean.iloc[0], **START)


def _name_axes(figure: Figure, axes: Axes, values: "pd.Series[float]") -> None:
    """Name what all panels share, once; an accuracy's axis is never logarithmic."""
    label = X[str(values.name)]
    if values.name == "forget_loss":
        name_loss(axes.xaxis, label, (values.min(), values.max()))
        label = axes.get_xlabel()
        axes.set_xlabel("")
    figure.supxlabel(label, size=8)
    figure.supylabel("heldout accuracy (up: kept)", size=8)
