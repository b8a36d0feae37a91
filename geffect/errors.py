"""The exceptions a user can cause."""


class Interrupted(KeyboardInterrupt):
    """A run stopped by Ctrl-C after a whole step, its state kept: the message tells how to go on."""


class GeffectError(ValueError):
    """A request that cannot be carried out: one line with what was expected, what was found, and the remedy.

    The command line prints it and exits with 2. Before a run's first step is through, nothing has been written; a run
    stopped later, by a loss that is not finite, keeps its record.
    """

    def __init__(self, expected: str, found: str, remedy: str) -> None:
        super().__init__(f"expected {expected}; found {found}; {remedy}")
