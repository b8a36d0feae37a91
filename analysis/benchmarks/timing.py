"""Seconds of several variants, taken in turn within one process, and ratios of them."""

import gc
import logging
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tqdm.auto import tqdm

LOGGER = logging.getLogger("geffect.analysis")
Variants = Mapping[str, Callable[[], object]]
Seconds = dict[str, list[float]]


@dataclass(frozen=True)
class StandardErrors:
    """What repeats of a measurement found.

    Attributes:
        median: of them.
        low: the lowest.
        high: the highest.
        repeats: how many.
    """

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "StandardErrors":
        """Summarize repeats.

        Args:
            values: one a repeat.

        Returns:
            Their median and range.

        >>> StandardErrors.of([3.0, 1.0, 2.0])
        StandardErrors(median=2.0, low=1.0, high=3.0, repeats=3)
        """
        found = list(values)
        return cls(statistics.median(found), min(found), max(found), len(found))


def synchronize() -> None:
    """Wait until the accelerator has done all that it was given; nothing where there is none."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def clock() -> tuple[str, Callable[[], float]]:
    """Its name and the clock: CPU seconds on one thread without an accelerator; else wall seconds."""
    alone = torch.get_num_threads() == 1 and not torch.accelerator.is_available()
    return ("CPU seconds", time.process_time) if alone else ("wall seconds", time.perf_counter)


def interleave(
    variants: Variants, repeats: int, between: Callable[[], object] = lambda: None, *, label: str = ""
) -> Seconds:
    """Time variants in turn, another one first in each repeat, so that a slow spell of the machine hits all alike.

    Args:
        variants: name → what is timed.
        repeats: of every variant, after one call that warms it up.
        between: called before every variant, untimed.
        label: what a progress bar says.

    Returns:
        Name → seconds of each repeat.
    """
    names, (_, now) = list(variants), clock()
    found: Seconds = {name: [] for name in names}
    bar = tqdm(total=len(names) * (repeats + 1), unit="call", disable=None, desc=label)
    gc.freeze()  # what is there already need not be gone through at every collection
    for repeat in range(-1, repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            between()
            gc.collect()
            synchronize()
            began = now()
            variants[name]()
            synchronize()
            took = now() - began
            LOGGER.info("%s, %s: %.3f s", label, name, took)
            if repeat >= 0:
                found[name].append(took)
            bar.update()
    gc.unfreeze()
    bar.close()
    return found


def interleave_with(take: Callable[[Callable[[], object]], float], variants: Variants, repeats: int) -> Seconds:
    """As `interleave`, with a way of timing of its own, and without warming up.

    Args:
        take: a variant → its seconds.
        variants: name → what is timed.
        repeats: of every variant.

    Returns:
        Name → seconds of each repeat.
    """
    found: Seconds = {name: [] for name in variants}
    for _ in range(repeats):
        for name, run in variants.items():
            found[name].append(take(run))
    return found


def ratio(seconds: Seconds, name: str, against: str) -> StandardErrors:
    """One variant against another, repeat by repeat.

    Args:
        seconds: as `interleave` found them.
        name: of the variant.
        against: what it is divided by.

    Returns:
        The ratios' spread.

    >>> ratio({"a": [2.0, 3.0], "b": [1.0, 2.0]}, "a", "b")
    StandardErrors(median=1.75, low=1.5, high=2.0, repeats=2)
    """
    return StandardErrors.of(a / b for a, b in zip(seconds[name], seconds[against], strict=True))


def child_seconds(run: Callable[[], Any]) -> float:
    """CPU seconds of the processes that a function starts and waits for; wall seconds where the system has none.

    Args:
        run: starts them.

    Returns:
        The seconds.
    """
    before, began = os.times(), time.perf_counter()
    run()
    after, ended = os.times(), time.perf_counter()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return cpu or ended - began
