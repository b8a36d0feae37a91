"""How many processes ``torchrun`` or ``accelerate launch`` started, read without importing torch."""

import os

from geffect.errors import GeffectError

SETTINGS = {
    "ACCELERATE_USE_FSDP": ("accelerate's own sharding", "Launch several processes plainly, and add --shard"),
    "ACCELERATE_USE_DEEPSPEED": ("DeepSpeed, which keeps gradients to itself", "Launch plainly, and add --shard"),
    "ACCELERATE_MIXED_PRECISION": ("mixed precision of its own", "Leave it to --autocast bfloat16"),
}


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
