"""The exceptions a user can cause."""

LONGEST = 400  # characters shown of what was found


class Interrupted(KeyboardInterrupt):
    """A run stopped by Ctrl-C after a whole step, its state kept: the message tells how to go on."""


class GeffectError(ValueError):
    """A request that cannot be carried out: one line with what was expected, what was found, and the remedy.

    The command line prints it and exits with 2. Before a run's first step is through, nothing has been written; a run
    stopped later, by a loss that is not finite, keeps its record.
    """

    def __init__(self, expected: str, found: str, remedy: str) -> None:
        shown = found if len(found) <= LONGEST else f"{found[:LONGEST]}… ({len(found)} characters)"
        super().__init__(f"expected {expected}; found {shown}; {remedy}")
