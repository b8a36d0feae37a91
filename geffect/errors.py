"""The exceptions a user can cause, and text made safe to print."""

import copyreg
import difflib
import itertools
import json
import logging
import os
import re
import signal
from collections.abc import Iterable, Sequence
from typing import Any

LONGEST = 400  # characters shown of a value
CHOICES = 30  # names shown beside the nearest one
SIBLINGS = 2000  # entries of a directory among which a name is looked for

# C0 without tab and line feed, DEL, C1, zero-width and bidirectional controls, line separators, surrogates, tags
UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    r"\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)


def visible_text(text: str, *, lines: bool = True) -> str:
    r"""Text with JSON's escapes for every character that a terminal, a pipe or a page would not show as itself.

    JSON stays the same JSON. Line feeds are escaped too unless ``lines`` is set.

    >>> visible_text("a\x1b[31m\u202eb\n")
    'a\\u001b[31m\\u202eb\n'
    """
    escaped = UNSEEN.sub(lambda match: json.dumps(match[0])[1:-1], text)
    return escaped if lines else escaped.replace("\n", "\\n")


class VisibleRecord(logging.LogRecord):
    """A log record whose message is `visible_text`."""

    def getMessage(self) -> str:
        """The message with its arguments."""
        return visible_text(super().getMessage())


def format_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> str:
    """A warning as one visible line, in place of `warnings.formatwarning`."""
    return visible_text(f"{category.__name__}: {message}") + "\n"


class Interrupted(KeyboardInterrupt):
    """Work stopped by Ctrl-C, SIGTERM or SIGHUP; the message says what was saved and how to continue.

    Attributes:
        signum: the signal.
        exit_code: 128 + the signal's number, as a shell reports it: 130 (Ctrl-C), 143 (SIGTERM), 129 (SIGHUP).
    """

    def __init__(self, message: str, signum: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signum = int(signum)

    @property
    def exit_code(self) -> int:
        """The exit code of the command line."""
        return 128 + self.signum


class GeffectError(ValueError):
    """A request that cannot be carried out: what is wrong, then what to do.

    The command line prints it in one line and exits with 2. ``str(error)`` is both sentences, with every control
    character escaped (`visible_text`). It can be pickled and copied.

    Args:
        message: a sentence that says what is wrong, with the value at fault. Shorten a value that may be long with
            `shorten`.
        remedy: an imperative sentence. Full stops are added.

    Attributes:
        message: the first sentence.
        remedy: the second.

    >>> raise GeffectError("There is no set at absent.json", remedy="Correct the path")
    Traceback (most recent call last):
    geffect.errors.GeffectError: There is no set at absent.json. Correct the path.
    """

    def __init__(self, message: str, *, remedy: str = "") -> None:
        self.message, self.remedy = (
            visible_text(shorten(message, 2 * LONGEST), lines=False),
            visible_text(remedy, lines=False),
        )
        super().__init__(" ".join(map(_sentence, filter(None, (self.message, self.remedy)))))

    def __reduce__(self) -> tuple[Any, ...]:
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


def unknown_name(kind: str, name: str, names: Iterable[str]) -> GeffectError:
    """The refusal of a name that a registry lacks, with the nearest one.

    >>> str(unknown_name("a suite", "tofuu", ["builtin", "tofu"]))
    "'tofuu' is not a suite. Did you mean tofu? There are builtin, tofu."
    """
    names = list(names)
    hint = nearest(name, names)
    return GeffectError(f"{name!r} is not {kind}", remedy=choice(hint, "There are" if hint else "Choose one of", names))


def choice(hint: str, words: str, names: Sequence[str]) -> str:
    """A remedy that names what there is: all of it, or the nearest alone (``hint``) where there is much.

    >>> choice("Did you mean b? ", "There are", list("abc"))
    'Did you mean b? There are a, b, c'
    """
    return hint.rstrip() if hint and len(names) > CHOICES else f"{hint}{words} {', '.join(names)}"


def spelled(name: str, names: Iterable[str]) -> str:
    """A name as it is written among ``names``, whatever its case; itself where none is alike.

    >>> spelled("Thirds", ["thirds", "paper"]), spelled("third", ["thirds", "paper"])
    ('thirds', 'third')
    """
    return {each.lower(): each for each in names}.get(name.lower(), name)


def nearest(name: str, names: Iterable[str], prefix: str = "") -> str:
    """The question for the name that was meant, with a blank after it; empty where none is near.

    A name that begins with what was given is the nearest.

    >>> nearest("author/forget", ["authors/forget", "domains/privacy/unlearn"], "builtin:")
    'Did you mean builtin:authors/forget? '
    """
    by_case = {each.lower(): each for each in names}
    begun = [each for each in by_case if len(name) > 2 and each.startswith(name.lower())]
    close = begun or difflib.get_close_matches(name.lower(), list(by_case), n=1)
    return f"Did you mean {prefix}{by_case[close[0]]}? " if close else ""


def missing_path(path: str | os.PathLike[str], remedy: str) -> str:
    """A remedy for a path where nothing is, after the question for the nearest name in its directory."""
    folder, name = os.path.split(os.path.expanduser(path))
    try:
        with os.scandir(folder or ".") as entries:
            siblings = [entry.name for entry in itertools.islice(entries, SIBLINGS)]
    except (OSError, ValueError):
        return remedy
    return nearest(name, sorted({*siblings} - {name}), os.path.join(os.path.split(path)[0], "")) + remedy


def shorten(value: object, longest: int = LONGEST) -> str:
    """The text of a value, cut where it is long.

    >>> shorten("9" * 5000, 4)
    '9999… (5000 characters)'
    """
    text = str(value)
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text)} characters)"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!", "…")) else f"{text}."
