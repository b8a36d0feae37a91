"""Ctrl-C, once: the step that runs is finished first."""

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

LOGGER = logging.getLogger(__name__)


@contextlib.contextmanager
def deferred(tell: Callable[[], None]) -> Iterator[None]:
    """While this lasts the first Ctrl-C only calls ``tell``; a second one interrupts as ever.

    Outside the main thread nothing is changed: signals do not arrive there.

    Args:
        tell: notes that the work should end soon.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def first(*_: Any) -> None:
        signal.signal(signal.SIGINT, before)
        LOGGER.warning("stopping after this step; Ctrl-C again stops at once")
        tell()

    signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
