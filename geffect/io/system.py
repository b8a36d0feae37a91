"""What the system gives a process: memory, signals that end it, and processes that were launched beside it."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from geffect.errors import GeffectError, Interrupted

CGROUP = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # a container's own limit
DEADLY = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
SIGNALS = (signal.SIGINT, *DEADLY)
Handler = Callable[[int, Any], None]
SETTINGS = {
    "ACCELERATE_USE_FSDP": ("accelerate's own sharding", "Launch several processes plainly, and add --shard"),
    "ACCELERATE_USE_DEEPSPEED": ("DeepSpeed, which keeps gradients to itself", "Launch plainly, and add --shard"),
    "ACCELERATE_MIXED_PRECISION": ("mixed precision of its own", "Leave it to --autocast bfloat16"),
}


def total_memory() -> int:
    """Bytes of the machine's memory, or of the container's where that is less."""
    import psutil

    return min([int(psutil.virtual_memory().total), *_limits()])


def free_memory() -> int:
    """Bytes of memory that can be taken now."""
    import psutil

    return min(int(psutil.virtual_memory().available), total_memory())


def check_memory(what: str, needed: float, remedy: str, limit: int | None = None) -> None:
    """Refuse what would need more memory than there is, before any of it is taken.

    Args:
        what: it is for.
        needed: bytes, estimated.
        remedy: how to need less.
        limit: bytes it may take; the free memory by default.

    Raises:
        GeffectError: it needs more.
    """
    limit = free_memory() if limit is None else limit
    if needed > limit:
        raise GeffectError(
            f"About {needed / 1e9:.3g} GB of memory are needed for {what}; {limit / 1e9:.3g} GB are available",
            remedy=remedy,
        )


def _limits() -> list[int]:
    found = []
    for name in CGROUP:
        try:
            found.append(int(Path(name).read_text(encoding="ascii")))
        except (OSError, ValueError):  # none, or "max"
            continue
    return found


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


def rank_and_size() -> tuple[int, int]:
    """This process's rank, and how many were started: (0, 1) where nothing was launched."""
    size = int(os.environ.get("WORLD_SIZE") or 1)
    return (int(os.environ.get("RANK") or 0) if size > 1 else 0), size


def launch_command() -> str:
    """What goes before a command so that it runs in as many processes again: nothing where there is one."""
    size = rank_and_size()[1]
    return f"torchrun --nproc-per-node {size} -m " if size > 1 else ""


def check_launch_settings() -> None:
    """Raise where ``accelerate launch`` was told to do what a run's own settings say, or what hides gradients.

    Raises:
        GeffectError: it was.
    """
    for name, (kind, remedy) in SETTINGS.items():
        value = os.environ.get(name, "").lower()
        if value not in ("", "no", "false", "0"):
            raise GeffectError(f"The launch asks for {kind} ({name}={value})", remedy=remedy)


def check_single_process(what: str) -> None:
    """Raise where something that works in one process was launched in several.

    Args:
        what: the something.

    Raises:
        GeffectError: there are several.
    """
    if rank_and_size()[1] > 1:
        raise GeffectError(
            f"{what} works in one process, and {rank_and_size()[1]} were launched", remedy="Start it without a launcher"
        )
