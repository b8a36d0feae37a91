"""Objects that show themselves: a run directory with its frames, and its pictures, at hand in a notebook."""

import os
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from geffect.core.gram import cosines, direction_name, g_effect
from geffect.errors import GeffectError, visible
from geffect.io.readers import StrPath
from geffect.record.frames import (
    read,
    read_overlap,
    read_points,
    read_prediction,
    read_standard_errors,
    read_steps,
    read_tokens,
)
from geffect.record.reader import check_run, damage_refused, is_finished, read_config, step_lines
from geffect.record.schema import RECIPE
from geffect.reports import plots
from geffect.reports.compare import at_checkpoints, descended, named, overlap_matrix, whole_overlaps
from geffect.reports.plots.strips import MOST

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SETTINGS = (
    "model",
    "checkpoints",
    "start",
    "train",
    "forget",
    "retain",
    "heldout",
    "domain",
    "objective",
    "rectifier",
    "learning_rate",
    "share",
    "importance",
    "labels",
)


class Run(os.PathLike[str]):
    """A directory to look at, of ``geffect unlearn``, ``fit``, ``inspect`` or ``localize``; only its path is kept.

    As the last value of a notebook's cell it is a table of `summary`. A run that is still going on is read as far as
    it has come.

    Args:
        path: the directory.

    Raises:
        GeffectError: no run is there.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = Path(path)
        check_run(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"geffect.Run({str(self.path)!r})"

    def _repr_html_(self) -> str:
        table = pd.Series({name: visible(text) for name, text in self.summary().items()}).to_frame()
        with pd.option_context("display.max_colwidth", None):
            return f"<p><b>{escape(visible(str(self.path)))}</b></p>{table.to_html(header=False)}"

    def summary(self) -> dict[str, str]:
        """What was run, how far it came, and every set's loss and accuracy from the first evaluation to the last.

        Returns:
            Name → text.
        """
        return dict(_summary(self.path))

    def to_frame(self, by: str = "group", scheme: str = "thirds") -> pd.DataFrame:
        """The inner products of the run's rows, as `geffect.read`."""
        return read(self.path, by, scheme)

    def g_effect(self, by: str = "group", direction: str | None = None, scheme: str = "thirds") -> pd.DataFrame:
        """The G-effects, as `geffect.g_effect`.

        Args:
            by: ``group``, ``layer`` or ``parameter``.
            direction: a row of the record; what was descended by default: ``rectified`` where a rectifier ran.
            scheme: how layers make groups.

        Returns:
            Columns ``step``, ``by``, ``unlearn``, ``retain``.
        """
        frame = self.to_frame(by, scheme)
        return g_effect(frame, direction or direction_name(frame))

    def cosine(self) -> pd.DataFrame:
        """Cosine with the retain gradient: columns ``step``, ``cosine``, ``rectified`` (NaN without a rectifier)."""
        return cosines(self.to_frame())

    def steps(self) -> pd.DataFrame:
        """The run's scalars, a line a step, as `geffect.read_steps`."""
        return read_steps(self.path)

    def evaluations(self) -> pd.DataFrame:
        """Every set's loss (nats a token) and token accuracy: columns ``step``, ``set``, ``loss``, ``accuracy``."""
        return pd.DataFrame(_evaluations(self.path), columns=["step", "set", "loss", "accuracy"])

    def prediction(self) -> pd.DataFrame:
        """Predicted against measured change of the losses, where recorded, as `geffect.read_prediction`."""
        return read_prediction(self.path)

    def checkpoints(self) -> pd.DataFrame:
        """What an inspection found at every checkpoint, as the command prints it."""
        return at_checkpoints(self.path)

    def standard_errors(self, by: str = "total", scheme: str = "thirds") -> pd.DataFrame:
        """Inner products with their standard errors, where recorded, as `geffect.read_standard_errors`."""
        return read_standard_errors(self.path, by, scheme)

    def overlap(self, by: str = "group", scheme: str = "thirds") -> pd.DataFrame:
        """The overlaps of the rows' largest entries, where recorded, as `geffect.read_overlap`."""
        return read_overlap(self.path, by, scheme)

    def tokens(self) -> pd.DataFrame:
        """Effects on single tokens, where recorded, as `geffect.read_tokens`."""
        return read_tokens(self.path)

    def points(self) -> pd.DataFrame:
        """Single examples' effects on both losses, where recorded, as `geffect.read_points`."""
        return read_points(self.path)

    def plot(self, kind: str = "g_effect", *others: "Run", **options: Any) -> "Figure":
        """Draw the run, alone or with others.

        Args:
            kind: a key of `KINDS`.
            *others: runs to draw with it, labeled with their directories' names.
            **options: of the function of `geffect.reports.plots` that draws the kind: ``step`` of ``gram`` and
                ``plane``,
                ``weight`` of ``points``, ``column`` of ``tokens``, ``share`` of ``jaccard`` and ``jaccard_by_layer``.

        Returns:
            The figure, which a notebook shows.

        Raises:
            GeffectError: the kind is unknown, a run has nothing of it, or there are too many runs.
        """
        if kind not in KINDS:
            raise GeffectError(f"There is no plot {kind!r}", remedy=f"Choose one of {', '.join(KINDS)}")
        chosen, paths = KINDS[kind], named([each.path for each in (self, *others)])
        if chosen.alone and others:
            raise GeffectError(f"A plot of {kind} shows one run, not {len(paths)}", remedy="Draw each by itself")
        frames = [chosen.frame(Run(path)).assign(run=name) for name, path in paths.items()]
        return chosen.draw(pd.concat(frames), **options)


@damage_refused
def _summary(path: StrPath) -> list[tuple[str, str]]:
    path = Path(path)
    config = read_config(path)
    lines, finished = step_lines(path), is_finished(path)
    last = lines[-1].step if lines else "none"
    told = [(name, _text(config[name])) for name in SETTINGS if config.get(name)]
    if not (path / RECIPE).exists():
        told += [("last step", f"{last} of {config['steps']}" if config.get("steps") else str(last))]
    told += [("finished", "yes" if finished else "no")]
    told += [("stopped", line.stop.reason) for line in lines if line.stop]
    scored = [line.scores for line in lines if line.scores]
    for name in scored[0] if scored else ():
        for kind in ("loss", "accuracy"):
            told.append((
                f"{name} {kind}",
                " → ".join(_number(getattr(each[name], kind)) for each in (scored[0], scored[-1])),
            ))
    return told


@damage_refused
def _evaluations(path: StrPath) -> list[tuple[int, str, float, float]]:
    return [
        (line.step, name, score.loss, score.accuracy)
        for line in step_lines(path)
        for name, score in line.scores.items()
    ]


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _plane(run: Run) -> pd.DataFrame:
    found = run.steps().reindex(columns=["step", "forget_loss", "heldout_loss"]).dropna()
    if found.empty:
        raise GeffectError(f"{run.path} has no evaluations of a forget and a heldout set", remedy="Draw another kind")
    return found


def _last_tokens(run: Run) -> pd.DataFrame:
    """The last checkpoint's; of each set the worst rows, as many as a picture holds."""
    tokens = run.tokens()
    last = tokens[tokens["step"] == tokens["step"].max()]
    texts = last[["set", "example"]].drop_duplicates()
    found: pd.DataFrame = last.merge(texts.groupby("set", sort=False).head(max(1, MOST // texts["set"].nunique())))
    return found


def _overlaps(frame: Callable[[Path], pd.DataFrame]) -> Callable[[Run], pd.DataFrame]:
    """A localization's overlaps."""

    def found(run: Run) -> pd.DataFrame:
        if not (run.path / RECIPE).exists():
            raise GeffectError(f"There is no localization in {run.path}", remedy="Name a directory of geffect localize")
        return frame(run.path)

    return found


def _of_share(draw: Callable[..., "Figure"]) -> Callable[..., "Figure"]:
    """A picture of the masks of one share: the smallest by default."""

    def drawn(frame: pd.DataFrame, share: float = 0.0) -> "Figure":
        chosen = share or float(frame["share"].min())
        return draw(frame[frame["share"] == chosen], chosen)

    return drawn


class Kind(NamedTuple):
    """A kind of picture: what is drawn of a run, what draws it, and whether it holds one run alone."""

    frame: Callable[[Run], pd.DataFrame]
    draw: Callable[..., "Figure"]
    alone: bool = False


KINDS = {
    "g_effect": Kind(lambda run: descended(run.to_frame()), plots.g_effect_curves),
    "layers": Kind(lambda run: descended(run.to_frame("layer")), plots.layer_heat_map, alone=True),
    "cosine": Kind(Run.cosine, plots.cosine_curves),
    "trade_off": Kind(_plane, plots.trade_off),
    "gram": Kind(Run.to_frame, plots.gram_heat_map, alone=True),
    "plane": Kind(Run.to_frame, plots.g_effect_plane),
    "prediction": Kind(Run.prediction, plots.prediction_plane),
    "prediction_sums": Kind(Run.prediction, plots.prediction_sums),
    "tokens": Kind(_last_tokens, plots.token_strip, alone=True),
    "points": Kind(Run.points, plots.point_plane, alone=True),
    "jaccard": Kind(_overlaps(whole_overlaps), _of_share(overlap_matrix), alone=True),
    "jaccard_by_layer": Kind(
        _overlaps(lambda path: read_overlap(path, "layer")), _of_share(plots.jaccard_by_layer), alone=True
    ),
}
