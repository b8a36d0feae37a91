"""The options of every plot: one record for `geffect.Run.plot`, `geffect.plot` and the flags of ``geffect plot``."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from geffect.errors import GeffectError, nearest
from geffect.reports.plots.style import FORMATS, ON_TOP, SCALES, Page

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHOICES = {"reading": ("nats", "published"), "scale": SCALES, "width": ("column", "page"), "format": tuple(FORMATS)}
COLUMNS = {"unlearn": "forget", "forget_change": "forget", "retain": "retain", "retain_change": "retain"}
FILTERS = ("steps", "targets", "groups")
FILES, FIGURE = ("format", "dpi"), ("ax",)  # options of what is written, and of a figure that is returned


@dataclass(frozen=True)
class Options:
    """What a reader chose of a plot; empty fields are the plot's own choice.

    Attributes:
        targets: the sets to draw, of those that the run measured.
        groups: the layer groups to draw, ``total`` among them.
        steps: the first and the last step to draw, ``A:B`` in a text.
        reading: ``published``, ⟨∇R, d⟩ in nats a token per unit of learning rate, or ``nats``, the change of the losses
            by the applied update.
        scale: ``linear`` (the default), ``symlog`` or ``log``; of every panel of the figure.
        width: ``column`` (3.3 inches) or ``page`` (7).
        figsize: width and height in inches, in place of ``width``.
        ax: matplotlib axes to draw in, for a figure of one panel.
        labels: run → its name in the figure.
        style: a matplotlib style sheet (a name, a file or a mapping of settings) on top of the plots' own.
        format: the files to write, of ``png``, ``pdf`` and ``svg``; the data are always written as CSV.
        dpi: dots an inch of a PNG.
        own: options of the function that draws the kind.
    """

    targets: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    steps: tuple[float, float] | None = None
    reading: str = ""
    scale: str = ""
    width: str = ""
    figsize: tuple[float, float] | None = None
    ax: "Axes | None" = None
    labels: Mapping[str, str] = field(default_factory=dict)
    style: Mapping[Any, Any] = field(default_factory=dict)
    format: tuple[str, ...] = ("png", "pdf")
    dpi: float = 200
    own: Mapping[str, object] = field(default_factory=dict)
    given: tuple[str, ...] = ()

    @classmethod
    def read(cls, given: Mapping[str, Any], own: Iterable[str] = ()) -> "Options":
        """The options of Python's keywords or of flags; one that is None is not given.

        Args:
            given: name → value, a text as on the command line among them.
            own: further names, which the functions that draw take.

        Raises:
            GeffectError: a name is unknown, or a value is not allowed.
        """
        values = {name: value for name, value in given.items() if value is not None}
        known = [each.name for each in fields(cls) if each.name not in ("own", "given")]
        own = [name for name in own if name not in known]
        for name in values:
            if name not in (*known, *own):
                remedy = f"{nearest(name, known)}There are {', '.join([*known, *own])}"
                raise GeffectError(f"There is no option {name!r} of a plot", remedy=remedy)
        checked = {name: READERS[name](name, value) for name, value in values.items() if name in known}
        mine = {name: value for name, value in values.items() if name in own}
        return cls(**checked, own=mine, given=tuple(values))

    @property
    def page(self) -> Page:
        """Where the figure is drawn."""
        return Page(self.width, self.figsize, self.ax)

    def styled(self) -> AbstractContextManager[None]:
        """A context in which figures are drawn and saved in the reader's style."""
        return _on_top(self.style)

    def rename(self, runs: Mapping[str, Any]) -> dict[str, Any]:
        """The runs by their labels."""
        if unknown := set(self.labels) - set(runs):
            raise GeffectError(f"There is no run {min(unknown)!r} to label", remedy=f"Name one of {', '.join(runs)}")
        renamed = {self.labels.get(name, name): run for name, run in runs.items()}
        if len(renamed) < len(runs):
            raise GeffectError("Two runs have one label", remedy="Give each its own")
        return renamed

    def select(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows and columns of the chosen steps, targets and groups."""
        if self.steps:
            first, last = self.steps
            inside = frame[frame["step"].between(first, last)]
            if inside.empty:
                message = f"No step from {first:g} to {last:g} was measured"
                raise GeffectError(message, remedy=f"The steps go from {min(frame['step'])} to {max(frame['step'])}")
            frame = inside
        if self.groups:
            _known(self.groups, frame["group"].unique(), "layer group")
            frame = frame[frame["group"].isin(self.groups)]
        return self._targets(frame) if self.targets else frame

    def _targets(self, frame: pd.DataFrame) -> pd.DataFrame:
        if "target" not in frame:
            bare = {name: str(name).removeprefix("± ") for name in frame}
            held = {name: COLUMNS[text] for name, text in bare.items() if text in COLUMNS}
            _known(self.targets, dict.fromkeys(held.values()), "target")
            return frame.drop(columns=[name for name, target in held.items() if target not in self.targets])
        names = ["target", "other"] if "other" in frame else ["target"]
        _known(self.targets, dict.fromkeys(frame[names].to_numpy().ravel()), "target")
        chosen = frame[frame[names].isin(self.targets).all(axis=1)]
        if chosen.empty:
            raise GeffectError(f"There is no pair of {', '.join(self.targets)}", remedy="Name two targets or more")
        return chosen


def _known(names: Iterable[str], there: Iterable[str], what: str) -> None:
    there = [str(each) for each in there]
    for name in names:
        if name not in there:
            raise GeffectError(f"{name!r} is no {what} of the plot", remedy=f"Choose among {', '.join(there)}")


@contextmanager
def _on_top(settings: Mapping[Any, Any]) -> Iterator[None]:
    token = ON_TOP.set(settings)
    try:
        yield
    finally:
        ON_TOP.reset(token)


def _refused(name: str, value: object, expected: str) -> GeffectError:
    return GeffectError(f"{name} is {value!r}", remedy=f"Write {expected}")


def _names(name: str, value: str | Sequence[str]) -> tuple[str, ...]:
    names = tuple(value.split(",")) if isinstance(value, str) else tuple(value)
    if not names or not all(isinstance(each, str) and each for each in names):
        raise _refused(name, value, "names with commas between them")
    for each in names if name in CHOICES else ():
        _choice(name, each)
    return names


def _choice(name: str, value: str) -> str:
    if value not in CHOICES[name]:
        raise _refused(name, value, " or ".join(CHOICES[name]))
    return value


def _pair(name: str, value: Any) -> tuple[float, float]:
    """Two numbers; of ``A:B`` each may be left out."""
    ends = (-math.inf, math.inf) if isinstance(value, str) else (math.nan,) * 2
    parts = value.split(":") if isinstance(value, str) else list(value) if isinstance(value, tuple | list) else []
    try:
        first, last = (float(part) if part != "" else end for part, end in zip(parts, ends, strict=True))
    except (TypeError, ValueError):
        first = last = math.nan
    if not (first <= last if name == "steps" else first > 0 and last > 0):
        expected = "the first and the last step as A:B" if name == "steps" else "width and height in inches"
        raise _refused(name, value, expected)
    return first, last


def _labels(name: str, value: Any) -> dict[str, str]:
    pairs = value.items() if isinstance(value, Mapping) else (text.partition("=")[::2] for text in _names(name, value))
    labels = {str(run): str(label) for run, label in pairs}
    if not all(labels) or not all(labels.values()):
        raise _refused(name, value, "RUN=LABEL")
    return labels


def _dpi(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 10 <= value <= 2400:
        raise _refused(name, value, "a number from 10 to 2400")
    return value


def _style(name: str, value: Any) -> Mapping[Any, Any]:
    from matplotlib import rc_params_from_file, style

    if isinstance(value, Mapping):
        return value
    if value in style.library:
        return style.library[value]
    if not Path(value).is_file():
        raise _refused(name, value, f"a file, or one of {', '.join(style.available)}")
    return rc_params_from_file(value, use_default_template=False)


READERS: Mapping[str, Any] = {
    **dict.fromkeys(("targets", "groups", "format"), _names),
    **dict.fromkeys(("reading", "scale", "width"), _choice),
    **dict.fromkeys(("steps", "figsize"), _pair),
    "ax": lambda _, value: value,
    "labels": _labels,
    "style": _style,
    "dpi": _dpi,
}
