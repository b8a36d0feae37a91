"""`Live`: how a run that is being trained stands, from the first and the last lines of its record."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from geffect.core.gram import Gram, effects_by_group
from geffect.core.layers import depth_key, layer_groups
from geffect.io.readers import StrPath
from geffect.record.frames import APPLIED
from geffect.record.reader import Tail, check_run, is_finished, read_config, read_environment


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

    Raises:
        GeffectError: no run is there, or it is damaged.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = Path(path)
        check_run(self.path)
        self._steps = read_config(self.path).get("steps")
        environment = read_environment(self.path)
        table = environment.get("parameters", {"names": [], "layers": [], "num_blocks": 0})
        groups = layer_groups(table["num_blocks"])
        self._groups = {name: groups[layer] for name, layer in zip(table["names"], table["layers"], strict=True)}
        self._data = environment.get("data", {})
        self._tail = Tail(self.path)
        self._first: dict[str, Any] = {}
        self._scores: dict[str, Any] = {}
        self._effects: dict[str, dict[str, float]] = {}

    def look(self) -> View:
        """How it stands now."""
        for line in self._tail.new_lines():
            scores = line.get("evaluation") or {}
            self._scores |= scores
            self._first = {**scores, **self._first}
        if (measured := self._tail.last_with("gram")) is not None:
            self._effects = self._of_gram(measured["gram"])
        names = dict.fromkeys([*self._first, *self._effects])
        sets = [self._standing(name) for name in names]
        steps = self._steps if isinstance(self._steps, int) and self._steps > 0 else None
        return View(self.path, self._tail.step, steps, is_finished(self.path), sets)

    def _standing(self, name: str) -> Standing:
        start, loss = (each.get(name, {}).get("loss") for each in (self._first, self._scores))
        by_group = dict(self._effects.get(name, {}))
        return Standing(name, start, loss, by_group.pop("", None), by_group)

    def _of_gram(self, record: Any) -> dict[str, dict[str, float]]:
        applied = next((name for name in APPLIED if name in record["gradients"]), None)
        if applied is None:
            return {}
        gram = Gram.from_record(record, list(self._groups))
        return effects_by_group(gram, self._groups, [each for each in gram.names if each in self._data], applied)


def groups_of(sets: Iterable[Standing]) -> list[str]:
    """The layer groups of what is shown, from the embedding to the head."""
    return sorted({group for each in sets for group in each.by_group}, key=depth_key)
