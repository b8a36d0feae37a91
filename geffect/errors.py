"""The exceptions a user can cause."""

import signal

from geffect.visible import visible

LONGEST = 400  # characters shown of what was found


class Interrupted(KeyboardInterrupt):
    """Work stopped by Ctrl-C, SIGTERM or SIGHUP: the message tells what is kept and how to continue.

    Attributes:
        signum: the signal.
        exit_code: 128 + the signal's number, as a shell reports it: 130 (Ctrl-C), 143 (SIGTERM), 129 (SIGHUP).
    """

    def __init__(self, message: str, signum: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signum = int(signum)

    @property
    def exit_code(self) -> int:
        """What the command line exits with."""
        return 128 + self.signum


class GeffectError(ValueError):
    """A request that cannot be carried out: one line with what was expected, what was found, and the remedy.

    The command line prints it and exits with 2. Before a run's first step is through, nothing has been written; a run
    stopped later, by a loss that is not finite, keeps its record.
    """

    def __init__(self, expected: str, found: str, remedy: str) -> None:
        shown = found if len(found) <= LONGEST else f"{found[:LONGEST]}… ({len(found)} characters)"
        super().__init__(visible(f"expected {expected}; found {shown}; {remedy}", lines=False))
