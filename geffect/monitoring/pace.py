"""`Pace`: which steps are measured."""

import logging
import math
import statistics
from time import perf_counter

import torch

from geffect.core.distributed import num_processes, sum_over_processes

LOGGER = logging.getLogger(__name__)
CALIBRATION = 5  # the step, from the first one, whose measurement is timed: the first one warms up


class Pace:
    """Measures every ``every`` steps or, where that is None, as often as ``overhead`` allows.

    The first step is measured, then the sixth, whose measurement is timed, as are the steps between. Then every k-th
    is, k = ⌈seconds of a measurement / (overhead · median seconds of a step)⌉, the same in every process. What the
    first two measurements cost comes on top.
    """

    def __init__(self, every: int | None, overhead: float) -> None:
        self.every, self.overhead = every, overhead
        self.begin(0)

    def begin(self, step: int) -> None:
        """Begin at a step: what was found before is forgotten."""
        self.first, self.chosen = step, self.every
        self._step = self._since = 0.0  # when the last step that was not measured began; a measurement's part
        self._spent = 0.0  # seconds of the measurement that runs
        self._steps: list[float] = []

    def due(self, at: int) -> bool:
        """Whether a step is measured; called once at each step."""
        if self.every is not None:
            return at % self.every == 0
        now, at = perf_counter(), at - self.first
        if 1 < at <= CALIBRATION:
            self._steps.append(now - self._step)
        self._step = self._since = now
        self._spent = 0.0
        return at in (0, CALIBRATION) or (self.chosen is not None and (at - CALIBRATION) % self.chosen == 0)

    def pause(self) -> None:
        """The measurement waits for the optimizer."""
        self._spent += perf_counter() - self._since

    def resume(self) -> None:
        """The optimizer has stepped."""
        self._since = perf_counter()

    def measured(self) -> None:
        """The measurement is over; the second one decides."""
        self.pause()
        if self.every is not None or self.chosen is not None or len(self._steps) < CALIBRATION - 1:
            return
        step = statistics.median(self._steps)
        seconds = sum_over_processes(torch.tensor([self._spent, step], dtype=torch.float64)) / num_processes()
        spent, step = seconds.tolist()
        self.chosen = max(1, math.ceil(spent / (self.overhead * step)))
        text = "a measurement takes %.3g s and a step %.3g s: every step in %d is measured, at an overhead of %.2g"
        LOGGER.info(text, spent, step, self.chosen, spent / (self.chosen * step))
