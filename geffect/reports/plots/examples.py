"""Single examples and tokens: effects on both losses, weights (arXiv 2502.19301, Fig. 5), and colored texts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font
from matplotlib.patches import Rectangle

from geffect.errors import GeffectError
from geffect.reports.plots import style
from geffect.reports.plots.style import (
    NOTE,
    ONE_COLUMN,
    PAGE,
    PER_RATE,
    RUNS,
    SIGNED,
    Figure,
    Look,
    Numbers,
    Page,
    styled,
)

FIXED = ("step", "example", "unlearn", "retain", "nll", "reference_nll", "num_tokens")  # the rest are weights
EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
ENOUGH, PANELS, GRID = 20, 3, 80  # points for a density, panels side by side, its grid's lines
HELD = {0.5: "-", 0.9: (0, (3, 1.5))}  # a contour holds such a share of its range's points
REST: Look = {"c": "0.8", "ls": "", "marker": "o", "ms": 1.5, "mec": "none", "zorder": 1}
POINT: Look = {"c": "#004488", "ls": "", "marker": "o", "ms": 2.2, "mec": "none", "alpha": 0.6, "zorder": 2}
CONTOUR: Look = {"c": "#BB5566", "lw": 1.0}


@styled
def point_plane(points: pd.DataFrame, weight: str = "", scale: str = "linear", page: Page = PAGE) -> Figure:
    """Draw every forget example's PG-effect on the forget (x) and the retain (y) loss, a panel a range of its weight.

    PG(s; D) = ⟨∇R(D), ∇log p(s)⟩: what gradient ascent on example s alone does, with the sign of a G-effect (arXiv
    2502.19301). Columns ``unlearn``, ``retain`` (nats a token per unit of learning rate) and ``weight`` (an objective's
    weights; by default the first such column); a row a step and forget example, all steps together. A range's points
    lie on gray ones of all others. Of twenty or more that are not on a line, contours of a kernel density hold half and
    90 % of them.
    """
    weight = weight or next(iter(_weights(points)), "a column of weights")
    style.check(points, ("unlearn", "retain", weight))
    rows = points[["unlearn", "retain", weight]].replace([np.inf, -np.inf], np.nan).dropna()
    if rows.empty:
        message = f"No example has finite unlearn, retain and {weight}"
        raise GeffectError(message, remedy="Draw a record made with --points")
    places = np.digitize(rows[weight].round(6), EDGES[1:], right=True)  # NPO's 1 at the start is 1 to rounding
    ranges, effects = sorted(set(places)), rows[["unlearn", "retain"]].to_numpy(float)
    figure, panels, _ = page.panels(len(ranges), PANELS, lambda width, n: min(2.2, 0.85 * width / n), 1.1, shared="xy")
    notes = _scale(panels[0], effects, scale)
    for place, axes in zip(ranges, panels, strict=True):
        _range(axes, effects, places == place)
        axes.set_title(f"weight {_name(place)} (n = {(places == place).sum()})")
    x, y = (
        f"PG-effect on the {side}\n({PER_RATE}{note})".replace(", ", ",\n", 1)
        for side, note in zip(("forget loss; left: forgets", "retain loss; below 0: harms"), notes, strict=True)
    )
    said = f"panels: weight of {style.literal(weight)}; shaded: forgets and retains"
    page.name(figure, panels, x, y, [said])
    looks = {"an example at a step": POINT, "of another weight": REST}
    looks |= {f"holds {100 * share:g} %": CONTOUR | {"ls": dashes} for share, dashes in HELD.items()}
    style.finish(figure, looks, page)
    return figure


def _weights(points: pd.DataFrame) -> list[str]:
    return [name for name in points.columns if name not in (*FIXED, "run")]


def _name(place: int) -> str:
    return f"above {EDGES[-1]:g}" if place == len(EDGES) - 1 else f"{EDGES[place]:g} to {EDGES[place + 1]:g}"


def _scale(axes: Axes, points: Numbers, scale: str) -> tuple[str, str]:
    """Set scales and limits of all panels; what the labels of both axes must add."""
    notes = []
    for name, values in zip("xy", points.T, strict=True):
        axis = getattr(axes, f"{name}axis")
        notes.append(style.rescale([axis], values, scale, 2))
        axes.set(**{f"{name}lim": style.around_zero(axis, values, 0.12)})
    return notes[0], notes[1]


def _range(axes: Axes, points: Numbers, inside: npt.NDArray[np.bool_]) -> None:
    """Draw one panel: zero lines, all points, the range's own, and their contours where they are enough."""
    style.cross(axes)
    axes.plot(*points[~inside].T, **REST)
    axes.plot(*points[inside].T, **POINT)
    left, top = axes.get_xlim()[0], axes.get_ylim()[1]
    axes.add_patch(Rectangle((left, 0), -left, top, fc="0.92", ec="none", zorder=0))
    scaled = axes.transScale.transform(points[inside])
    if len(scaled) >= ENOUGH:
        _contours(axes, scaled)


def _contours(axes: Axes, points: Numbers) -> None:
    """Draw contours of the density over the axes as scaled; none where the points lie on a line.

    Each holds a share of the points; seaborn's ``kdeplot`` would hold a share of the smoothed density, and be wider.
    """
    from scipy.stats import gaussian_kde

    if np.linalg.svd(points - points.mean(0), compute_uv=False)[-1] <= 1e-9 * np.abs(points).max():
        return  # nothing but rounding across the line
    density = gaussian_kde(points.T)
    low, high = axes.transScale.transform(np.transpose([axes.get_xlim(), axes.get_ylim()]))
    x, y = np.linspace(low, high, GRID).T
    heights = density(np.stack(np.meshgrid(x, y)).reshape(2, -1)).reshape(GRID, GRID)
    grid = axes.transScale.inverted().transform(np.stack([x, y], axis=1))
    for share, dashes in HELD.items():
        level = np.quantile(density(points.T), 1 - share)
        axes.contour(*grid.T, heights, [level], colors=[CONTOUR["c"]], linewidths=CONTOUR["lw"], linestyles=[dashes])


@styled
def weight_curves(points: pd.DataFrame, weights: Sequence[str] = ()) -> Figure:
    """Draw the mean weight that objectives put on the forget examples by step, in a band of two standard errors.

    Column ``step``, and one an objective (``weights``, at most six; by default all that are not of
    `geffect.read_points` itself); a row a step and forget example.
    """
    names = list(weights) or _weights(points)
    if not 0 < len(names) <= len(RUNS):
        message = f"There are {len(names)} columns of weights in {list(points)}; a figure shows one to {len(RUNS)}"
        raise GeffectError(message, remedy="Name some")
    style.check(points, ("step", *names))
    looks = dict(zip(names, RUNS, strict=False))
    figure = Figure(figsize=(ONE_COLUMN, 2.6), layout="constrained")
    axes = style.furnish(figure.subplots())
    for name, look in looks.items():
        style.band(axes, points, "step", name, ("se", 2), look | {"label": name})
    axes.set(xlabel="unlearning step\nbands: two standard errors over examples", ylim=(0, None))
    axes.set_ylabel(r"mean weight on $\nabla\log p$")
    style.finish(figure, looks)
    return figure


FONT, SIZE = "DejaVu Sans Mono", 7  # comes with matplotlib; every character has one width
WIDTH, LINE = 0.617 * SIZE / 72, 0.17  # inches of a character (as wide as whole pixels make it) and of a line
MARGIN, BELOW = 0.08, 0.68  # inches beside the text, and of the color bar with its label
MOST, LONGEST = 8, 40  # texts in a picture, characters of a token
SHOWN = str.maketrans({"\n": "⏎", "\r": "␍", "\t": "⇥"})
PROMPT = "0.9"


@dataclass(frozen=True)
class Box:
    """The place of a token: its first character, its line, and its text."""

    column: int
    line: int
    text: str


def worst_texts(tokens: pd.DataFrame) -> pd.DataFrame:
    """The tokens of the last step; of each set the examples served worst, as many as a figure shows."""
    last = tokens[tokens["step"] == tokens["step"].max()]
    texts = last[["set", "example"]].drop_duplicates()
    worst: pd.DataFrame = texts.groupby("set", sort=False).head(max(1, MOST // texts["set"].nunique()))
    return pd.merge(last, worst)


def token_unit(tokens: pd.DataFrame) -> str:
    """The unit of effects on single tokens: an update is a whole step, any other direction a rate multiplies."""
    return "nats" if {*tokens["direction"]} <= {"update", "applied"} else "nats per unit of learning rate"


@styled
def token_strip(tokens: pd.DataFrame, column: str = "effect", scale: str = "linear", page: Page = PAGE) -> Figure:
    """Draw texts token by token, each on the color of its effect.

    Columns ``step``, ``set``, ``example``, ``position``, ``token``, ``labeled``, ``direction`` and ``column``
    (``effect``, or a layer group), as of `geffect.read_tokens`; at most eight texts. The effect is in nats per unit of
    learning rate, along an update in nats: below 0 for a token that a step along the direction makes less likely. The
    color scale is centered on zero. Tokens without loss are gray. A line break is drawn as ⏎, a character that
    matplotlib's own font lacks as □.
    """
    keys = ["step", "set", "example"]
    style.check(tokens, (*keys, "position", "token", "labeled", "direction", column))
    style.once(tokens, [*keys, "direction", "position"])
    texts = list(tokens.groupby([*keys, "direction"], sort=False))
    if len(texts) > MOST:
        message = f"A figure shows at most {MOST} texts, not {len(texts)}"
        raise GeffectError(message, remedy="Choose some examples, at one step")
    effects = tokens.loc[tokens["labeled"].astype(bool), column].to_numpy(float)
    norm, note, ticks = style.signed(effects, scale)
    colors, wide = ScalarMappable(norm, SIGNED), page.inches(True)
    across = int((wide - 2 * MARGIN) / WIDTH)  # characters of a line
    title = "{1} example {2}, step {0}, along the {3}"
    laid = [(title.format(*key), rows.sort_values("position"), list(_lay(rows, across))) for key, rows in texts]
    lines = sum(boxes[-1].line + 2.3 for _, _, boxes in laid)
    height = lines * LINE + BELOW
    if page.ax is not None:
        page.figure(True, height)
    figure = Figure(figsize=(wide, height))
    axes = figure.add_axes((0, BELOW / height, 1, lines * LINE / height))
    inches = MARGIN / WIDTH
    axes.set(xlim=(-inches, wide / WIDTH - inches), ylim=(lines, 0))
    axes.set_axis_off()
    top = 0.0
    for title, rows, boxes in laid:
        axes.text(0, top + 0.65, title, va="center", parse_math=False, **NOTE)
        _write(axes, rows, boxes, column, top + 1.1, colors)
        top += boxes[-1].line + 2.3
    below = figure.add_axes((0.2, (BELOW - 0.14) / height, 0.6, 0.09 / height))
    of = "effect" if column == "effect" else f"effect within {column}"
    note = "; ".join([token_unit(tokens), *([note] if note else []), "below 0: less likely"])
    label = f"{of} on a token's NLL" + (" " if wide > 5 else "\n") + f"({note}; gray: no loss)"
    style.bar(figure, below, colors, label, ticks, effects).ax.xaxis.label.set_fontsize(7 if wide > 5 else 6.5)
    return figure


def _lay(rows: pd.DataFrame, across: int) -> Iterator[Box]:
    """The boxes of tokens from left to right; a line ends where a token does not fit, or after a line break."""
    column = line = 0
    for token in rows.sort_values("position")["token"]:
        text = _printable(str(token))
        if column and column + len(text) > across:
            column, line = 0, line + 1
        yield Box(column, line, text)
        column += len(text)
        if text.endswith("⏎"):
            column, line = 0, line + 1


def _printable(token: str) -> str:
    """The text drawn of a token: cut if long, with □ for a character that the font lacks."""
    text = "".join(char if _drawable(char) else "□" for char in token.translate(SHOWN))
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


@cache
def _drawable(char: str) -> bool:
    return char == " " or (char.isprintable() and FT2Font(findfont(FontProperties(FONT))).get_char_index(ord(char)) > 0)


def _write(axes: Axes, rows: pd.DataFrame, boxes: list[Box], column: str, top: float, colors: ScalarMappable) -> None:
    """Draw one text: a rectangle and the letters of each token."""
    letters: Look = {"va": "center_baseline", "family": FONT, "size": SIZE, "parse_math": False}
    for box, labeled, value in zip(boxes, rows["labeled"], rows[column], strict=True):
        fill = colors.to_rgba(value) if labeled and np.isfinite(value) else PROMPT
        x, y = box.column, top + box.line
        axes.add_patch(Rectangle((x, y), len(box.text), 0.94, fc=fill, ec="white", lw=0.4))
        axes.text(x, y + 0.5, box.text, color=style.ink(colors, value) if labeled else "0.45", **letters)
