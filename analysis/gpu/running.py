"""Checks, one after another: each passes, fails or is skipped, and none stops the others."""

import gc
import math
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch

OK, FAILED, SKIPPED = "ok", "failed", "skipped"
FRAMES = 4  # of a traceback, the innermost


class Number(NamedTuple):
    """What a check found, and the most it may be; no limit where it is only told."""

    value: float
    limit: float | None = None

    @property
    def met(self) -> bool:
        """Whether it stays within its limit; NaN does not."""
        return self.limit is None or self.value <= self.limit


Numbers = Mapping[str, Number]


class OutOfTime(BaseException):
    """The time for all checks is over; no Exception, so that nothing mistakes it for a fault of its own."""


@dataclass(frozen=True)
class Place:
    """Where checks run.

    Attributes:
        device: ``cuda`` or ``cpu``.
        small: build small models in place of those of 1 and 8 billion parameters, and set no limits on cost.
        folder: for what checks write.
    """

    device: str
    small: bool
    folder: Path

    @property
    def cuda(self) -> bool:
        """Whether there is a GPU."""
        return self.device == "cuda"

    def synchronize(self) -> None:
        """Wait until the device has done what it was given."""
        if self.cuda:
            torch.cuda.synchronize()

    def clear(self) -> None:
        """Free what nobody holds, and count peak memory anew."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def held_gb(self) -> float:
        """Device memory in use, GB (10⁹ bytes); 0 on a CPU."""
        return torch.cuda.memory_allocated() / 1e9 if self.cuda else 0.0

    def peak_gb(self) -> float:
        """The most device memory in use since `clear`, GB; 0 on a CPU."""
        return torch.cuda.max_memory_allocated() / 1e9 if self.cuda else 0.0

    def total_gb(self) -> float:
        """The device's memory, GB; without bound on a CPU."""
        return torch.cuda.get_device_properties(0).total_memory / 1e9 if self.cuda else math.inf


@dataclass(frozen=True)
class Check:
    """One thing that is tried.

    Attributes:
        name: ``family/what``.
        run: tries it, and returns what it found; raises where it fails.
        seconds: left at least, or the check is skipped.
        gb: device memory that it needs, or it is skipped.
        only_cuda: it says nothing on a CPU.
    """

    name: str
    run: Callable[[Place], Numbers]
    seconds: float = 10.0
    gb: float = 0.0
    only_cuda: bool = False


@dataclass(frozen=True)
class Result:
    """What became of a check.

    Attributes:
        check: its name.
        status: ``ok``, ``failed`` or ``skipped``.
        seconds: that it took.
        peak_gb: of device memory; None on a CPU.
        numbers: what it found.
        error: why it failed or was skipped.
        where: the innermost places in the code that raised.
    """

    check: str
    status: str
    seconds: float = 0.0
    peak_gb: float | None = None
    numbers: Numbers | None = None
    error: str = ""
    where: tuple[str, ...] = ()

    def line(self) -> dict[str, Any]:
        """For JSON; a number that is not finite is null."""
        numbers = {
            name: {"value": each.value if math.isfinite(each.value) else None, "limit": each.limit}
            for name, each in (self.numbers or {}).items()
        }
        return {
            "check": self.check,
            "status": self.status,
            "seconds": round(self.seconds, 4),
            "peak_gb": None if self.peak_gb is None else round(self.peak_gb, 3),
            "numbers": numbers,
            "error": self.error,
            "where": list(self.where),
        }


def results(checks: Sequence[Check], place: Place, seconds: float) -> Iterator[Result]:
    """Run checks.

    Args:
        checks: in order.
        place: where.
        seconds: for all of them; one that no longer fits is skipped, and one that is still running then fails.

    Yields:
        What became of each.
    """
    end = time.monotonic() + seconds
    for check in checks:
        left = end - time.monotonic()
        reason = _unfit(check, place, left)
        yield Result(check.name, SKIPPED, error=reason) if reason else _tried(check, place, left)


def _unfit(check: Check, place: Place, left: float) -> str:
    if check.only_cuda and not place.cuda:
        return "tells something on a GPU only"
    if not place.small and check.gb > place.total_gb():
        return f"needs {check.gb:.0f} GB; the device has {place.total_gb():.0f}"
    if (not place.small and check.seconds > left) or left <= 0:
        return f"may take {check.seconds:.0f} s; {max(left, 0):.0f} s are left"
    return ""


def _tried(check: Check, place: Place, seconds: float) -> Result:
    place.clear()
    held, began = place.held_gb(), time.perf_counter()
    numbers: Numbers = {}
    error, where = "", tuple[str, ...]()
    try:
        with _limited(seconds):
            numbers = check.run(place)
            place.synchronize()
    except KeyboardInterrupt:
        raise
    except BaseException as raised:  # an out-of-time or SystemExit of a check's own is its failure, too
        error = f"{type(raised).__name__}: {str(raised).strip()[:500]}".strip(": ")
        where = tuple(
            f"{Path(each.filename).name}:{each.lineno} {each.name}"
            for each in traceback.extract_tb(raised.__traceback__)[-FRAMES:]
        )
    took, peak = time.perf_counter() - began, place.peak_gb()
    error = error or _missed(numbers) or ("the device was not used" if place.cuda and peak <= held else "")
    status = FAILED if error else OK
    return Result(check.name, status, took, peak if place.cuda else None, numbers, error, where)


def _missed(numbers: Numbers) -> str:
    beyond = {name: each for name, each in numbers.items() if not each.met}
    return "; ".join(f"{name}: {each.value:.3g}, at most {each.limit:g}" for name, each in beyond.items())


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` in the main thread after so many seconds; where there are no such signals, never."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise OutOfTime("it was still running when the time was over")

    before = signal.signal(signal.SIGALRM, stop)
    theirs = signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *theirs)  # a caller's own, as of a test's timeout


def seconds_of(place: Place, run: Callable[[], object], repeats: int = 3) -> float:
    """The shortest of several runs after one that warms up, each until the device is done."""
    run()
    found = []
    for _ in range(1 if place.small else repeats):
        place.synchronize()
        began = time.perf_counter()
        run()
        place.synchronize()
        found.append(time.perf_counter() - began)
    return min(found)


def chosen(checks: Iterable[Check], only: Sequence[str]) -> list[Check]:
    """The checks whose names begin with one of these; all without any."""
    return [each for each in checks if not only or each.name.startswith(tuple(only))]
