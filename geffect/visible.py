"""Characters that move a cursor, reverse text or cannot be seen, as escapes that can be read."""

import json
import logging
import re
from typing import Any

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
