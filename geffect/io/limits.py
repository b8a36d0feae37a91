"""How much a machine holds, and the refusal of what would need more."""

from pathlib import Path

from geffect.errors import GeffectError

CGROUP = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # a container's own limit


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
