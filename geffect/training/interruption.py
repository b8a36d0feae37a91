"""Ctrl-C, SIGTERM and SIGHUP: the step that runs is finished first."""

import contextlib
import logging
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from geffect.io.system import SIGNALS, install, rank_and_size

LOGGER = logging.getLogger(__name__)
TWICE = 5.0  # seconds in which a launcher may pass on the signal that its processes have received themselves


@contextlib.contextmanager
def deferred(tell: Callable[[int], None]) -> Iterator[None]:
    """The first Ctrl-C, SIGTERM or SIGHUP only calls ``tell``; a second one does what it did before.

    A SIGTERM or SIGHUP that is ignored stays ignored (``nohup``). Outside the main thread nothing is changed: signals
    do not arrive there. The handlers are put back at the end.

    Args:
        tell: notes that the work should end soon; it receives the signal's number.

    Yields:
        Nothing.
    """
    with contextlib.ExitStack() as installed:
        began: list[float] = []

        def first(signum: int, _: Any) -> None:
            if not began:
                began.append(time.monotonic())
                LOGGER.warning("stopping after this step; a second Ctrl-C or signal stops at once")
                tell(signum)
                if rank_and_size()[1] == 1:
                    installed.close()
            elif time.monotonic() - began[0] > TWICE:
                installed.close()
                signal.raise_signal(signum)

        for signum in SIGNALS:
            install(installed, signum, first)
        yield
