"""Messages on the terminal: above any progress bar, in lines that end between words."""

import contextlib
import logging
import os
import re
import sys
import textwrap
import warnings
from typing import Any, TextIO

from geffect.errors import format_warning

COMMAND = re.compile(r" ((torchrun .*)?geffect \w+ \S*config\.yaml .*)$")


def width_of(stream: TextIO | None) -> int | None:
    """Columns of the terminal that a stream writes to, by ``COLUMNS`` or the terminal; None where it is none."""
    if stream is None or not stream.isatty():
        return None
    if (named := os.environ.get("COLUMNS", "")).isdecimal() and int(named):
        return int(named)
    with contextlib.suppress(OSError, ValueError):
        return os.get_terminal_size(stream.fileno()).columns or 80
    return 80


def wrap(text: str, width: int | None, indent: int = 0) -> str:
    r"""Text whose lines end between words, further lines of a paragraph indented; as it is without a width.

    A word that is longer than a line, such as a path, is left whole, and so is a command at the end, to be copied.

    >>> wrap("a path is left whole: runs/a-long-name", 12, indent=2)
    'a path is\n  left\n  whole:\n  runs/a-long-name'
    """
    if width is None:
        return text
    if command := COMMAND.search(text):
        return f"{wrap(text[: command.start()], width, indent)}\n  {command[1]}"
    options: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False, "replace_whitespace": False}
    further = " " * indent
    lines = (textwrap.wrap(line, width, subsequent_indent=further, **options) or [""] for line in text.split("\n"))
    return "\n".join(each for part in lines for each in part)


def say(text: str) -> None:
    """Write a message to stderr, above any progress bar, in lines that end between words."""
    stream, width = sys.stderr, width_of(sys.stderr)
    bars = _bars() if width else []
    for bar in bars:
        bar.clear()
    stream.write(blank_line(width) + wrap(text, width) + "\n")
    stream.flush()
    for bar in bars:
        bar.refresh()


def close_bars() -> None:
    """End the bars of work that an error or a signal stopped, each on a line of its own."""
    for bar in _bars():
        bar.close()


def _bars() -> list[Any]:
    """The bars that are shown, other libraries' too; where nothing has imported tqdm, there is none."""
    bars = getattr(getattr(sys.modules.get("tqdm.std"), "tqdm", None), "_instances", ())
    return [each for each in bars if not each.disable]


def blank_line(width: int | None) -> str:
    """What empties the cursor's line of a terminal, where Ctrl-C may have left ^C."""
    return f"\r{' ' * (width - 1)}\r" if width else ""


class Handler(logging.Handler):
    """Shows log records as `say` does."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            say(self.format(record))
        except Exception:  # as logging's own handlers: a closed stream ends no training
            self.handleError(record)


def show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    """A warning as `say` shows it, in place of `warnings.showwarning`."""
    say(format_warning(message, category).rstrip("\n"))


def take_messages() -> None:
    """Show warnings and the messages of all loggers in this way."""
    handler = Handler()
    handler.setFormatter(logging.Formatter("geffect: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    warnings.formatwarning = format_warning
    warnings.showwarning = show_warning
