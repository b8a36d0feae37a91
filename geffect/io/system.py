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
    """Refuse to start what is estimated to need more bytes of memory than ``limit`` (the free memory by default)."""
    limit = free_memory() if limit is None else limit
    if needed > limit:
        message = f"About {needed / 1e9:.3g} GB of memory are needed for {what}; {limit / 1e9:.3g} GB are available"
        raise GeffectError(message, remedy=remedy)


def _limits() -> list[int]:
    limits = []
    for name in CGROUP:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int(Path(name).read_text(encoding="ascii")))
    return limits


@contextlib.contextmanager
def raise_on_signals() -> Iterator[None]:
    """Raise `Interrupted` on SIGTERM and SIGHUP, as Ctrl-C raises `KeyboardInterrupt`; a second one ends the process.

    A handler that the calling program has set, and a signal that is ignored (``nohup``), stay as they are.
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
    """Set a signal's handler until a stack closes.

    Nothing changes outside the main thread, where signals do not arrive; for a SIGTERM or SIGHUP that is ignored (a
    shell makes its background jobs ignore SIGINT, which says nothing of what their user wants); and where a handler
    is set that Python cannot restore.
    """
    before = signal.getsignal(signum)
    main = threading.current_thread() is threading.main_thread()
    ignored = before is signal.SIG_IGN and signum != signal.SIGINT
    if main and before is not None and not ignored:
        signal.signal(signum, handler)
        installed.callback(signal.signal, signum, before)


@contextlib.contextmanager
def keep_interrupts() -> Iterator[None]:
    """Raise Ctrl-C again at the end where it was swallowed: a module that is imported may catch everything."""
    pressed = False

    def stop(signum: int, frame: Any) -> None:
        nonlocal pressed
        pressed = True
        signal.default_int_handler(signum, frame)

    with contextlib.ExitStack() as installed:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            install(installed, signal.SIGINT, stop)
        yield
    if pressed:
        raise KeyboardInterrupt


def signal_of(stopped: KeyboardInterrupt) -> int:
    """The signal that raised an interrupt."""
    return stopped.signum if isinstance(stopped, Interrupted) else signal.SIGINT


def rank_and_size() -> tuple[int, int]:
    """This process's rank and the number of launched processes, (0, 1) without a launcher; torch is not imported."""
    size = int(os.environ.get("WORLD_SIZE") or 1)
    return (int(os.environ.get("RANK") or 0) if size > 1 else 0), size


def launch_command() -> str:
    """The prefix that runs a command in as many processes again; empty where there is one."""
    size = rank_and_size()[1]
    return f"torchrun --nproc-per-node {size} -m " if size > 1 else ""


def check_launch_settings() -> None:
    """Refuse what ``accelerate launch`` sets where a run has its own setting for it, or where it hides gradients."""
    for name, (kind, remedy) in SETTINGS.items():
        value = os.environ.get(name, "").lower()
        if value not in ("", "no", "false", "0"):
            raise GeffectError(f"The launch asks for {kind} ({name}={value})", remedy=remedy)


def check_single_process(what: str) -> None:
    """Refuse several launched processes for ``what``, which works in one."""
    if rank_and_size()[1] > 1:
        message = f"{what} works in one process, and {rank_and_size()[1]} were launched"
        raise GeffectError(message, remedy="Start it without a launcher")
