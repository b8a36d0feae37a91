"""`Live`: how a run that is being trained stands, from the first and the last lines of its record."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from geffect.core.gram import Gram, effects_by_group
from geffect.core.groups import depth_key
from geffect.io.readers import StrPath
from geffect.record.frames import APPLIED, read_groups, read_sets
from geffect.record.reader import Score, Tail, check_run, is_finished, read_config
from geffect.record.schema import ENVIRONMENT, STEPS


class Standing(NamedTuple):
    """How one set stands; losses in nats a token, None where unknown."""

    name: str
    start: float | None  # loss at the first evaluation
    loss: float | None  # at the last
    effect: float | None  # of the last measured step; above 0: harm
    by_group: dict[str, float]  # layer group → its part of the effect


class View(NamedTuple):
    """A run at one look."""

    path: Path
    step: int | None  # of the last line; None before the first
    steps: int | None  # in all, where that is known
    finished: bool
    sets: list[Standing]


class Live:
    """A run's directory that is looked at again and again; each look reads only what is new in it.

    Of a directory that holds runs, the one that was written to last is looked at.

    Raises:
        GeffectError: no run is there, or it is damaged.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = newest_run(Path(path))
        check_run(self.path)
        self._steps = read_config(self.path).get("steps")
        self._groups, self._sets = read_groups(self.path), read_sets(self.path)
        self._tail, self._step = Tail(self.path), -1
        self._first: dict[str, Score] = {}
        self._scores: dict[str, Score] = {}
        self._effects: dict[str, dict[str, float]] = {}

    def look(self) -> View:
        """How it stands now."""
        for line in self._tail.look():
            self._step = line.step
            self._scores |= line.scores
            self._first = {**line.scores, **self._first}
        gram = self._tail.gram(list(self._groups))
        if gram is not None:
            self._effects = self._of_gram(gram)
        names = dict.fromkeys([*self._first, *self._effects])
        steps = self._steps if isinstance(self._steps, int) and self._steps > 0 else None
        step = self._step if self._step >= 0 else None
        return View(self.path, step, steps, is_finished(self.path), list(map(self._standing, names)))

    def _standing(self, name: str) -> Standing:
        start, now = self._first.get(name), self._scores.get(name)
        by_group = dict(self._effects.get(name, {}))
        whole = by_group.pop("", None)
        return Standing(name, None if start is None else start.loss, None if now is None else now.loss, whole, by_group)

    def _of_gram(self, gram: Gram) -> dict[str, dict[str, float]]:
        applied = next((name for name in APPLIED if name in gram.names), None)
        targets = [name for name in gram.names if name in self._sets]
        return effects_by_group(gram, self._groups, targets, applied) if applied else {}


def newest_run(path: Path) -> Path:
    """A run's directory itself; of one that holds runs, at any depth up to two, the one that was written to last."""
    if (path / ENVIRONMENT).exists():
        return path
    runs = [each.parent for depth in ("*", "*/*") for each in path.glob(f"{depth}/{ENVIRONMENT}")]
    return max(runs, key=_written, default=path)


def _written(run: Path) -> float:
    lines = run / STEPS
    return (lines if lines.exists() else run / ENVIRONMENT).stat().st_mtime


def groups_of(sets: Iterable[Standing]) -> list[str]:
    """The layer groups of what is shown, from the embedding to the head."""
    return sorted({group for each in sets for group in each.by_group}, key=depth_key)
