"""Foreign code as a pure function: within bounds of time and memory, and with random numbers of its own."""

import contextlib
import ctypes
import random
import sys
import threading
from collections.abc import Iterator

import psutil


class TimeIsUp(Exception):
    """Python code took longer than it may."""

    def __str__(self) -> str:
        return "it does not come to an end"


@contextlib.contextmanager
def bounded(seconds: float, memory: int) -> Iterator[None]:
    """Interrupt Python code after a time, and let it allocate no more than so much.

    A single operation of the interpreter (such as a power of two large numbers) cannot be interrupted, and a system
    without ``RLIMIT_AS`` does not bound memory. Python's ``random`` starts from one seed, and is left as it was.

    Args:
        seconds: after which `TimeIsUp` is raised.
        memory: bytes beyond those in use, after which ``MemoryError`` is raised.

    Yields:
        Nothing.

    Raises:
        TimeIsUp: the code did not end.
    """
    state = random.getstate()
    random.seed(0)  # a template may draw from a list
    try:
        with _time(seconds), _memory(memory):
            yield
    finally:
        random.setstate(state)


@contextlib.contextmanager
def _time(seconds: float) -> Iterator[None]:
    thread, lock, over = ctypes.c_ulong(threading.get_ident()), threading.Lock(), False

    def interrupt() -> None:
        with lock:
            if not over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(TimeIsUp))

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            over = True
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, None)  # one on its way would arrive later
        timer.cancel()


@contextlib.contextmanager
def _memory(size: int) -> Iterator[None]:
    if sys.platform == "win32":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = psutil.Process().memory_info().vms + size
    lower = soft == resource.RLIM_INFINITY or wanted < soft
    if lower:
        resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        if lower:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
