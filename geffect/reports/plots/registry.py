"""The plots of runs: one table for `geffect.Run.plot`, ``geffect plot``, ``geffect list plots`` and the HTML page."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from geffect.core.effects import cosines
from geffect.errors import GeffectError
from geffect.io.readers import StrPath
from geffect.record.frames import (
    read,
    read_cosines,
    read_effects,
    read_overlap,
    read_points,
    read_prediction,
    read_steps,
    read_tokens,
)
from geffect.record.reader import Damaged, keep_lines, read_metrics
from geffect.reports.compare import effects_to_draw, whole_overlaps
from geffect.reports.plots.curves import (
    cosine_curves,
    effect_curves,
    g_effect_curves,
    jaccard_curves,
    overlaps_of,
    price_curves,
    relearning_curves,
)
from geffect.reports.plots.examples import point_plane, token_strip, worst_texts
from geffect.reports.plots.heat_maps import (
    WHOLE,
    conflict_map,
    gram_heat_map,
    jaccard_by_layer,
    layer_heat_map,
    overlap_matrix,
)
from geffect.reports.plots.options import COLUMNS, FIGURE, FILES, FILTERS, Options
from geffect.reports.plots.planes import g_effect_plane, prediction_plane, prediction_sums
from geffect.reports.plots.style import PAGE, Page
from geffect.reports.plots.trade_offs import trade_off
from geffect.reports.price import price

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from geffect.reports.run import Run

LOGGER = logging.getLogger(__name__)
Draw = Callable[..., "Figure"]
Own = dict[str, float]
DEFAULT = Options()


class Drawing(NamedTuple):
    """One figure of a plot: the name of its files, and the rows that it shows."""

    plot: "Plot"
    name: str
    figure: "Figure"
    frame: pd.DataFrame


@dataclass(frozen=True)
class Plot:
    """What is drawn of runs, under a name.

    Its fields are the arguments of `register_plot` and the function that draws, and more of the built-in plots'.

    Attributes:
        evaluation: it is drawn of a directory of ``geffect evaluate``, not of a run.
        by_group: ``frame`` takes a keyword ``scheme``: how layers make groups.
        filters: which of ``steps``, ``targets`` and ``groups`` a reader may choose among.
        options: the options of ``draw`` for each figure that the command and the page draw of a frame, such as
            ``[{"share": 0.1}, {"share": 0.2}]``; they are columns of the frame. The first are the defaults.
    """

    name: str
    frame: Callable[..., pd.DataFrame]
    draw: Draw
    title: str = ""
    caption: str = ""
    several: bool = False
    by_group: bool = False
    localization: bool = False
    evaluation: bool = False
    filters: tuple[str, ...] = ("steps",)
    options: Callable[[pd.DataFrame], list[Own]] = lambda _: [{}]

    @property
    def own(self) -> list[str]:
        """The options of the function that draws, beside those that all plots may have."""
        _, *rest = signature(self.draw).parameters
        return [name for name in rest if name not in ("page", "scale")]

    def takes(self, *further: str) -> list[str]:
        """The options that the plot takes, with what is further taken of any figure."""
        drawn, framed = signature(self.draw).parameters, signature(self.frame).parameters
        names = [*self.filters, *(["reading"] if "reading" in framed else []), *(["scale"] if "scale" in drawn else [])]
        names += ["width", "figsize"] if "page" in drawn else []
        names += ["labels"] if self.several else []
        return [*names, "style", *(each for each in further if each != "ax" or "page" in drawn), *self.own]

    def figure(self, runs: "Mapping[str, Run]", scheme: str = "thirds", chosen: Options = DEFAULT) -> "Figure":
        """The figure of runs by name; a run that recorded nothing to draw is left out with a warning."""
        frame = self._frames(runs, scheme, chosen, FIGURE)
        with chosen.styled():
            return self.draw(frame, **self.options(frame)[0] | self._drawing(chosen))

    def drawings(
        self, runs: "Mapping[str, Run]", scheme: str = "thirds", chosen: Options = DEFAULT
    ) -> Iterator[Drawing]:
        """Every figure of runs by name that the command and the page show."""
        frame = self._frames(runs, scheme, chosen, FILES)
        for options in self.options(frame):
            name = "-".join([self.name, *(f"{value:g}" for value in options.values())])
            shown = frame[(frame[list(options)] == pd.Series(options)).all(axis=1)] if options else frame
            with chosen.styled():
                yield Drawing(self, name, self.draw(frame, **options | self._drawing(chosen)), shown)

    def _drawing(self, chosen: Options) -> dict[str, Any]:
        """What the function that draws is given of the reader's options."""
        page = {"page": chosen.page} if "page" in signature(self.draw).parameters else {}
        return page | ({"scale": chosen.scale} if chosen.scale else {}) | dict(chosen.own)

    def _frames(
        self, runs: "Mapping[str, Run]", scheme: str, chosen: Options, further: tuple[str, ...]
    ) -> pd.DataFrame:
        """The chosen rows of the frames of all runs that have one, in one."""
        if refused_options := [name for name in chosen.given if name not in self.takes(*further)]:
            message = f"A plot of {self.name} takes no option {', '.join(refused_options)}"
            raise GeffectError(message, remedy=f"It takes {', '.join(self.takes(*further))}")
        if len(runs) > 1 and not self.several:
            raise GeffectError(f"A plot of {self.name} shows one run, not {len(runs)}", remedy="Draw each by itself")
        frames, refused = [], {}
        reading = {"reading": chosen.reading} if chosen.reading else {}
        for name, run in chosen.rename(runs).items():
            try:
                frame = self._frame(run, reading | ({"scheme": scheme} if self.by_group else {}))
                frames.append(frame.assign(**{"run": name} if self.several else {}))
            except Damaged:
                raise
            except GeffectError as error:
                refused[name] = error
        if not frames:
            raise next(iter(refused.values()))
        for name, reason in refused.items():
            LOGGER.warning("%s is drawn without %s: %s", self.name, name, reason)
        frame = pd.concat(frames)
        for option, columns in {"steps": {"step"}, "targets": {"target", *COLUMNS}, "groups": {"group"}}.items():
            if option in chosen.given and not columns & set(frame):
                raise GeffectError(f"A plot of {self.name} has no {option} to choose", remedy="Leave the option out")
        return chosen.select(frame)

    def _frame(self, run: "Run", keywords: dict[str, str]) -> pd.DataFrame:
        if self.localization and not run.is_localization:
            raise GeffectError(f"There is no localization in {run.path}", remedy="Name a directory of geffect localize")
        if self.evaluation and not run.is_evaluation:
            raise GeffectError(f"There is no evaluation in {run.path}", remedy="Name a directory of geffect evaluate")
        frame = self.frame(run, **keywords)
        if frame.empty:
            raise GeffectError(f"{run.path} recorded nothing that {self.name} draws", remedy="Draw another plot")
        return frame


def find_plot(name: str) -> Plot:
    """The plot of a name."""
    if name not in PLOTS:
        raise GeffectError(f"There is no plot {name!r}", remedy=f"Choose one of {', '.join(PLOTS)}")
    return PLOTS[name]


def plots_of(runs: "Mapping[str, Run]") -> list[Plot]:
    """The plots that suit directories: localizations, evaluations or runs, and of several where there are several."""
    kind = tuple(all(getattr(run, name) for run in runs.values()) for name in ("is_localization", "is_evaluation"))
    suited = [each for each in PLOTS.values() if (each.localization, each.evaluation) == kind]
    return [each for each in suited if each.several or len(runs) == 1]


def draw_all(
    plots: Sequence[Plot], runs: "Mapping[str, Run]", scheme: str = "thirds", chosen: Options = DEFAULT
) -> tuple[list[Drawing], list[GeffectError]]:
    """The figures of plots, and why others could not be drawn; a line of log names these."""
    drawn: list[Drawing] = []
    refused: dict[str, GeffectError] = {}
    with keep_lines():
        for plot in plots:
            try:
                drawn += plot.drawings(runs, scheme, chosen)
            except Damaged:
                raise
            except GeffectError as error:
                refused[plot.name] = error
    if refused and len(plots) > 1:
        message = "not drawn of %s, for want of records or of an option: %s; geffect plot --kind NAME says why"
        LOGGER.info(message, ", ".join(runs), ", ".join(refused))
    return drawn, list(refused.values())


def register_plot(
    name: str,
    frame: "Callable[[Run], pd.DataFrame]",
    *,
    title: str = "",
    caption: str = "",
    several: bool = False,
    localization: bool = False,
) -> Callable[[Draw], Draw]:
    """Make a plot known by a name, for `geffect.Run.plot`, ``geffect plot``, ``geffect list plots`` and the HTML page.

    Args:
        name: of the plot, and of its files: letters, digits and underscores.
        frame: what is drawn of a run, such as ``geffect.Run.evaluations``. It may raise `geffect.GeffectError`, or be
            empty, where the run recorded nothing to draw: the plot is then skipped, and a line of log names it.
        title: the heading in the page; the name by default.
        caption: how to read the figure, for the page; the first paragraph of the function's docstring by default.
        several: the figure can show several runs side by side. The frame then has a column ``run``.
        localization: it is drawn of a directory of ``geffect localize``, not of a run.

    Returns:
        A decorator of a function that takes the frame and returns a matplotlib figure.

    Raises:
        GeffectError: the name is taken or no word.
    """
    if not name.isidentifier() or name in PLOTS:
        problem = "taken" if name in PLOTS else "no word"
        raise GeffectError(f"The name {name!r} is {problem}", remedy="Choose another one for a plot")

    def register(draw: Draw) -> Draw:
        text = caption or " ".join((draw.__doc__ or name).strip().split("\n\n")[0].split())
        PLOTS[name] = Plot(
            name, frame, draw, title or name, text, several=several, localization=localization, filters=FILTERS
        )
        return draw

    return register


def _evaluated_losses(run: StrPath) -> pd.DataFrame:
    """Evaluations of a forget and a heldout set; ``run`` is filled in later."""
    losses = ["forget_loss", "heldout_loss"]
    frame = read_steps(run).reindex(columns=["run", "step", *losses]).dropna(subset=losses)
    if frame.empty:
        message = f"{os.fspath(run)} has no evaluations of a forget and a heldout set"
        raise GeffectError(message, remedy="Draw another plot")
    return frame


def _relearning(run: StrPath) -> pd.DataFrame:
    """The means of an evaluation's metrics, with intervals, by set and steps of relearning."""
    models = read_metrics(run)["models"]
    steps = {label: results["totals"].get("relearn_steps") for label, results in models.items()}
    starts = {label.rpartition(" relearned")[0] for label, step in steps.items() if step}
    rows = [
        {
            "model": label.rpartition(" relearned")[0] if step else label,
            "step": step or 0,
            "set": name,
            "metric": metric,
        }
        | {key: each[key] for key in ("mean", "low", "high")}
        for label, step in steps.items()
        if step or label in starts
        for name, metrics in models[label]["sets"].items()
        for metric, each in metrics.items()
    ]
    if not rows:
        message = f"{os.fspath(run)} has no evaluation of a relearned model"
        raise GeffectError(message, remedy="Run geffect evaluate with --relearn 0,5,20,100")
    return pd.DataFrame(rows).sort_values("step", kind="stable")


def _last_step(frame: pd.DataFrame) -> list[Own]:
    """The last step that all runs measured, if there is one."""
    runs = frame.groupby("run")["step"] if "run" in frame else [("", frame["step"])]
    common = set.intersection(*(set(steps) for _, steps in runs))
    return [{"step": int(max(common))} if common else {}]


def _each_share(frame: pd.DataFrame) -> list[Own]:
    return [{"share": float(share)} for share in sorted(frame["share"].unique())]


def _overlap_by_layer(frame: pd.DataFrame, share: float, page: Page = PAGE) -> "Figure":
    """Draw the Jaccard index of every pair of a localization's splits by layer."""
    return jaccard_by_layer(frame[frame["share"] == share], share, page)


def _effects(run: StrPath, scheme: str) -> pd.DataFrame:
    """The effects on every target by layer group, after their total."""
    frame = read_effects(run, "group", scheme)
    sums = frame.groupby(["target", "step"], sort=False)["effect"].sum().reset_index()
    return pd.concat([sums.assign(group="total").reindex(columns=frame.columns), frame], ignore_index=True)


def _mean_cosines(run: StrPath) -> pd.DataFrame:
    """The mean cosine of every two targets' gradients over the measured steps, of the whole model and by layer."""
    whole = read_cosines(run).rename(columns={"total": "layer"}).assign(layer=WHOLE)
    both = pd.concat([whole, read_cosines(run, "layer")])
    return both.groupby(["layer", "target", "other"], sort=False)["cosine"].mean().reset_index()


def _objective_and_retain(run: StrPath, scheme: str) -> pd.DataFrame:
    return overlaps_of(read_overlap(run, "group", scheme), "objective", "retain")


def _jaccard(frame: pd.DataFrame, page: Page = PAGE) -> "Figure":
    """Draw the overlap of the objective's and the retain gradient by step and layer group, against chance."""
    share, *others = frame["share"].unique()
    if others:
        shares = ", ".join(f"{each:g}" for each in (share, *others))
        raise GeffectError(f"The runs recorded overlaps of several shares: {shares}", remedy="Draw runs of one share")
    return jaccard_curves(frame, "objective", "retain", share, page)


_ALL = (
    Plot(
        "g_effect",
        lambda run, scheme, reading="published": effects_to_draw(run, "group", scheme, reading),
        g_effect_curves,
        "G-effects by layer group",
        "Each line is a layer group's inner product of a loss's gradient with what was descended, the thick one their "
        "sum. Left panel: below 0, the step raises the forget loss, which is wanted. Right panel: below 0, it raises "
        "the retain loss, which is harm. It predicts a change under plain SGD; an adaptive optimizer applies something "
        "else. Bands, where standard errors were measured, are two of them wide on either side.",
        several=True,
        by_group=True,
        filters=FILTERS,
    ),
    Plot(
        "layers",
        lambda run, reading="published": effects_to_draw(run, "layer", reading=reading),
        layer_heat_map,
        filters=("steps", "targets"),
    ),
    Plot(
        "cosine",
        lambda run: cosines(read(run)),
        cosine_curves,
        "Conflict with the retain gradient",
        "Cosine of the objective's gradient and the retain gradient over the whole model: below 0 the two "
        "pull apart. It does not depend on the gradients' lengths. Dashed, where a rectifier ran: what it "
        "made of the objective's gradient.",
        several=True,
    ),
    Plot(
        "trade_off",
        _evaluated_losses,
        trade_off,
        "What was forgotten against what was retained",
        "The path of the model from its first evaluation on: to the right the forget set is forgotten, "
        "upwards the heldout set, which no gradient was drawn from, is harmed. A good path runs to the right "
        "and stays low.",
        several=True,
    ),
    Plot("gram", read, gram_heat_map, options=_last_step),
    Plot(
        "plane",
        read,
        g_effect_plane,
        "The objective among the two losses' gradients",
        "The last measured step. Arrows of unit length: the gradients of the forget and of the retain loss at "
        "their true angle; the objective's and, dashed, the rectified gradient are projected into their "
        "plane, as long as the share of them that lies in it. In the shaded wedge a step forgets and does not "
        "harm.",
        several=True,
        options=_last_step,
    ),
    Plot(
        "effects",
        _effects,
        effect_curves,
        "What each step does to each target",
        "To first order, the change of a target's loss by what the optimizer applied, in nats a token, as the sum of "
        "the layer groups' parts: above 0 the step harms that target, below 0 it helps. It holds for steps small "
        "enough; the prediction check says how well.",
        by_group=True,
        filters=FILTERS,
    ),
    Plot(
        "conflicts",
        _mean_cosines,
        conflict_map,
        "Which targets pull apart",
        "Mean over the measured steps of the cosine of two targets' gradients, in the whole model and by layer. Below "
        "0 (orange) a step that helps one of the two harms the other.",
        filters=("targets",),
    ),
    Plot(
        "price",
        price,
        price_curves,
        "What each step cost the retain set",
        "To first order. The gray band is what steps of the same length and the same gain on the forget loss can do to "
        "the retain loss; the line is what this one did. Below: 1 is the cheapest of them, 0 the dearest.",
    ),
    Plot("prediction", read_prediction, prediction_plane, several=True, filters=("steps", "targets")),
    Plot(
        "prediction_sums",
        read_prediction,
        prediction_sums,
        "Predicted against measured change of the losses",
        "Sums from the first step on, over the check's examples. The black line is what happened. A reading "
        "that follows it may be trusted: 'update' pairs the loss's gradient with what the optimizer applied, "
        "'gradient' with the objective's gradient times the learning rate.",
        several=True,
        filters=("steps", "targets"),
    ),
    Plot("relearning", _relearning, relearning_curves, several=True, evaluation=True),
    Plot("tokens", lambda run: worst_texts(read_tokens(run)), token_strip, filters=()),
    Plot(
        "points",
        read_points,
        point_plane,
        "Single examples of the forget set",
        "Each point is a forget example: what ascending on it alone would do to both losses, to first order.",
    ),
    Plot("jaccard", _objective_and_retain, _jaccard, several=True, by_group=True, filters=("steps", "groups")),
    Plot("overlap", whole_overlaps, overlap_matrix, localization=True, options=_each_share, filters=()),
    Plot(
        "overlap_by_layer",
        lambda run: read_overlap(run, "layer"),
        _overlap_by_layer,
        localization=True,
        filters=(),
        options=_each_share,
    ),
)
PLOTS = {plot.name: plot for plot in _ALL}
