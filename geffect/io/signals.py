"""The signals that ask a process to end, and what they raise."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from geffect.errors import Interrupted

DEADLY = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
SIGNALS = (signal.SIGINT, *DEADLY)
Handler = Callable[[int, Any], None]


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP raise `Interrupted`, as Ctrl-C raises `KeyboardInterrupt`; a second one ends the process.

    A handler that the host has set, and a signal that is ignored (``nohup``), stay as they are.

    Yields:
        Nothing.
    """
    with contextlib.ExitStack() as installed:

        def stop(signum: int, _: Any) -> None:
            installed.close()
            raise Interrupted(f"stopped by {signal.Signals(signum).name}", signum)

        for signum in DEADLY:
            if signal.getsignal(signum) is signal.SIG_DFL:
                install(installed, signum, stop)
        yield


def install(installed: contextlib.ExitStack, signum: int, handler: Handler) -> None:
    """Set a handler until a stack closes.

    Outside the main thread nothing is changed: signals do not arrive there. Nor is a SIGTERM or SIGHUP that is ignored
    (a shell makes its background jobs ignore SIGINT, which says nothing of what their user wants), nor a handler that
    Python cannot put back, because something else has set it.

    Args:
        installed: puts the handler before back.
        signum: the signal.
        handler: called with the signal's number and the frame.
    """
    before = signal.getsignal(signum)
    main = threading.current_thread() is threading.main_thread()
    ignored = before is signal.SIG_IGN and signum != signal.SIGINT
    if main and before is not None and not ignored:
        signal.signal(signum, handler)
        installed.callback(signal.signal, signum, before)


def signal_of(stopped: KeyboardInterrupt) -> int:
    """The signal that raised an interrupt."""
    return stopped.signum if isinstance(stopped, Interrupted) else signal.SIGINT
