"""The exceptions a user can cause, and text made safe to print."""

import json
import logging
import re
import signal
from typing import Any

LONGEST = 400  # characters shown of what was found

# C0 without tab and line feed, DEL, C1, zero-width and bidirectional controls, line separators, surrogates, tags
UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    r"\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def visible(text: str, *, lines: bool = True) -> str:
    r"""Text that a terminal, a pipe or a page shows as it is: whatever else a character would do, it is written out.

    The escapes are JSON's, so that JSON stays the same JSON.

    Args:
        text: from a file, a model or the user.
        lines: line feeds stay; without, they are escaped too.

    Returns:
        The text with escapes.

    >>> visible("a\x1b[31m\u202eb\n")
    'a\\u001b[31m\\u202eb\n'
    """
    found = UNSEEN.sub(lambda match: json.dumps(match[0])[1:-1], text)
    return found if lines else found.replace("\n", "\\n")


class VisibleRecord(logging.LogRecord):
    """A log record whose message is `visible`."""

    def getMessage(self) -> str:
        """The message with its arguments."""
        return visible(super().getMessage())


def formatted_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> str:
    """A warning as one visible line, in place of `warnings.formatwarning`."""
    return visible(f"{category.__name__}: {message}") + "\n"


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
