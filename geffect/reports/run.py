"""A run directory as an object: its summary, its data frames and its plots."""

import logging
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from geffect.core.effects import cosines, direction_name, g_effect
from geffect.core.registry import Metric
from geffect.errors import visible_text
from geffect.io.readers import StrPath
from geffect.record import frames
from geffect.record.reader import check_run, damage_refused, is_finished, read_config, step_lines
from geffect.record.schema import EXAMPLES, RECIPE
from geffect.reports.compare import at_checkpoints, named
from geffect.reports.plots.options import Options
from geffect.reports.plots.registry import Plot, draw_all, find_plot, plots_of
from geffect.reports.plots.style import save
from geffect.reports.price import price

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOGGER = logging.getLogger(__name__)
SETTINGS = (
    *("model", "checkpoints", "start", "train", "targets", "forget", "retain", "heldout", "domain"),
    *("objective", "rectifier", "learning_rate", "share", "importance", "labels"),
)


class Run(os.PathLike[str]):
    """A directory of ``geffect unlearn``, ``finetune``, ``inspect`` or ``localize``; the object holds only its path.

    As the last value of a notebook's cell it is shown as a table of `summary`. A run that is not finished is read up
    to its last line.

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
        table = pd.Series({name: visible_text(text) for name, text in self.summary().items()}).to_frame()
        with pd.option_context("display.max_colwidth", None):
            return f"<p><b>{escape(visible_text(str(self.path)))}</b></p>{table.to_html(header=False)}"

    @property
    def is_localization(self) -> bool:
        """Whether the directory is of ``geffect localize``."""
        return (self.path / RECIPE).exists()

    @property
    def is_evaluation(self) -> bool:
        """Whether the directory is of ``geffect evaluate``."""
        return (self.path / EXAMPLES).exists()

    def summary(self) -> dict[str, str]:
        """Name → text: its settings, last step, and every set's loss and accuracy at the first and last evaluation."""
        return dict(_summary(self.path))

    def to_frame(self, by: str = "group", scheme: str = "thirds") -> pd.DataFrame:
        """The inner products of the run's gradients, as `geffect.read`."""
        return frames.read(self.path, by, scheme)

    def g_effect(self, by: str = "group", direction: str | None = None, scheme: str = "thirds") -> pd.DataFrame:
        """The G-effects of a direction, as `geffect.g_effect`: columns ``step``, ``by``, ``unlearn``, ``retain``.

        ``direction`` is a gradient of the record; by default what was descended: ``rectified`` where a rectifier ran.
        """
        frame = self.to_frame(by, scheme)
        return g_effect(frame, direction or direction_name(frame))

    @property
    def targets(self) -> list[str]:
        """The sets whose losses' gradients were measured; empty where none were."""
        return frames.read_targets(self.path)

    def effects(self, by: str = "group", direction: str | None = None, scheme: str = "thirds") -> pd.DataFrame:
        """What every measured step did to every target, in nats a token, as `geffect.read_effects`."""
        return frames.read_effects(self.path, by, scheme, direction)

    def target_cosines(self, by: str = "total", scheme: str = "thirds") -> pd.DataFrame:
        """The cosines of every two targets' gradients, as `geffect.read_cosines`."""
        return frames.read_cosines(self.path, by, scheme)

    def price(self, by: str = "total", scheme: str = "thirds", metric: Metric = "euclidean") -> pd.DataFrame:
        """What each step forgot and harmed, and the least harm it could have done, as `geffect.price`."""
        return price(self.path, by, scheme, metric)

    def simulate(self, *rules: str, by: str = "total", scheme: str = "thirds") -> pd.DataFrame:
        """What other rectifiers would have done at every recorded step, as `geffect.simulate`."""
        from geffect.reports.simulation import simulate  # rules need torch; the rest of a record does not

        return simulate(self.path, rules, by, scheme)

    def cosine(self) -> pd.DataFrame:
        """Cosine with the retain gradient: columns ``step``, ``cosine``, ``rectified`` (NaN without a rectifier)."""
        return cosines(self.to_frame())

    def steps(self) -> pd.DataFrame:
        """The run's scalars, a line a step, as `geffect.read_steps`."""
        return frames.read_steps(self.path)

    def evaluations(self) -> pd.DataFrame:
        """Every set's loss (nats a token) and token accuracy: columns ``step``, ``set``, ``loss``, ``accuracy``."""
        scores = [(line.step, name, *score) for line in step_lines(self.path) for name, score in line.scores.items()]
        return pd.DataFrame(scores, columns=["step", "set", "loss", "accuracy"])

    def prediction(self) -> pd.DataFrame:
        """Predicted against measured change of the losses, where recorded, as `geffect.read_prediction`."""
        return frames.read_prediction(self.path)

    def checkpoints(self) -> pd.DataFrame:
        """What an inspection measured at every checkpoint, as the command prints it."""
        return at_checkpoints(self.path)

    def standard_errors(self, by: str = "total", scheme: str = "thirds") -> pd.DataFrame:
        """Inner products with their standard errors, where recorded, as `geffect.read_standard_errors`."""
        return frames.read_standard_errors(self.path, by, scheme)

    def overlap(self, by: str = "group", scheme: str = "thirds") -> pd.DataFrame:
        """The overlaps of the gradients' top-k masks, where recorded, as `geffect.read_overlap`."""
        return frames.read_overlap(self.path, by, scheme)

    def tokens(self) -> pd.DataFrame:
        """Effects on single tokens, where recorded, as `geffect.read_tokens`."""
        return frames.read_tokens(self.path)

    def points(self) -> pd.DataFrame:
        """Single examples' effects on both losses, where recorded, as `geffect.read_points`."""
        return frames.read_points(self.path)

    def plot(self, kind: str = "g_effect", *others: "Run", scheme: str = "thirds", **options: object) -> "Figure":
        """Draw the run, alone or with others.

        A run that recorded nothing to draw is left out with a warning, if another one can be drawn.

        Args:
            kind: one of ``geffect list plots``, or registered by `geffect.register_plot`.
            *others: runs to draw with it, labeled with their directories' names.
            scheme: how layers make groups.
            **options: what the kind takes of ``targets``, ``groups`` (names), ``steps`` (``(first, last)`` or
                ``"A:B"``), ``reading`` (``nats``, ``published``), ``scale`` (``linear``, ``symlog``, ``log``),
                ``width`` (``column``, ``page``), ``figsize`` (inches), ``ax`` (of a figure of one panel), ``labels``
                (run → name) and ``style`` (a matplotlib style sheet); and those of the function that draws it:
                ``step`` of ``gram`` and ``plane`` (the last by default), ``weight`` of ``points``, ``column`` of
                ``tokens``, ``share`` of ``overlap`` and ``overlap_by_layer``.

        Returns:
            The figure, which a notebook shows.

        Raises:
            GeffectError: the kind or an option is unknown, the kind does not take the option, no run recorded what it
                draws, or there are too many runs.
        """
        runs = {name: Run(path) for name, path in named([each.path for each in (self, *others)]).items()}
        plot = find_plot(kind)
        return plot.figure(runs, scheme, Options.read(options, plot.own))


@damage_refused
def _summary(path: StrPath) -> list[tuple[str, str]]:
    config, lines = read_config(path), step_lines(path)
    last = lines[-1].step if lines else "none"
    settings = {name: config[name] for name in SETTINGS if config.get(name)}
    content = [(key, _setting(value)) for key, value in settings.items()]
    if not (Path(path) / RECIPE).exists():
        content += [("last step", f"{last} of {config['steps']}" if config.get("steps") else str(last))]
    content += [("finished", "yes" if is_finished(path) else "no")]
    content += [("stopped", line.stop.reason) for line in lines if line.stop]
    scored = [line.scores for line in lines if line.scores]
    for name in scored[0] if scored else ():
        for kind in ("loss", "accuracy"):
            ends = (getattr(scores[name], kind) for scores in (scored[0], scored[-1]))
            content.append((f"{name} {kind}", " → ".join(map(_number, ends))))
    return content


def _setting(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={each}" for name, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def plot(
    runs: Sequence[StrPath],
    out: Path | None = None,
    scheme: str = "thirds",
    kind: str | Sequence[str] = (),
    **options: object,
) -> list[Path]:
    """Draw plots of runs into files; each with the rows it shows.

    Several runs are drawn side by side, by the plots that can show several. Localizations are drawn each by itself.
    Where a plot cannot be drawn, or takes no option that is given, a line of log says why.

    Args:
        runs: directories of runs, or of localizations.
        out: where to write; ``figures`` in the first run by default. Of localizations, each in a directory of its name.
        scheme: how layers make groups.
        kind: the plots to draw; by default every one, built-in or registered, that the runs recorded enough for. One
            that is named and cannot be drawn is refused.
        **options: as of `Run.plot` without ``ax``, ``format`` (of ``png``, ``pdf``, ``svg``; the first two by default)
            and ``dpi`` (200).

    Returns:
        The files written, of each plot the pictures and then the CSV.

    Raises:
        GeffectError: no run is there, a record is damaged, an option is unknown, or nothing can be drawn.
    """
    plots = [find_plot(name) for name in ((kind,) if isinstance(kind, str) else kind)]
    chosen = Options.read(options, [name for each in plots for name in each.own])
    named_runs = {name: Run(path) for name, path in named(runs).items()}
    if all(run.is_localization for run in named_runs.values()):
        parts = [({name: run}, out and out / name) for name, run in named_runs.items()]
    else:
        parts = [(named_runs, out)]
    return [file for part, folder in parts for file in _plot(part, folder, scheme, plots, chosen)]


def _plot(runs: dict[str, Run], out: Path | None, scheme: str, plots: Sequence[Plot], chosen: Options) -> list[Path]:
    suited = plots or plots_of(runs)
    if (
        len(runs) > 1
        and not plots
        and (alone := [each.name for each in plots_of(dict([*runs.items()][:1])) if not each.several])
    ):
        LOGGER.info("%s show one run: name each run by itself for them", ", ".join(alone))
    drawings, refused = draw_all(suited, runs, scheme, chosen)
    if refused and (plots or not drawings):
        raise refused[0]
    folder = out or next(iter(runs.values())).path / "figures"
    with chosen.styled():
        return [
            file
            for each in drawings
            for file in save(each.figure, folder / each.name, each.frame, chosen.format, chosen.dpi)
        ]
