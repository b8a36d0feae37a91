"""One thing a run shows."""

from typing import NamedTuple


class Finding(NamedTuple):
    """One thing a run shows, which its test told from noise.

    Attributes:
        kind: ``conflict``, ``start``, ``layers``, ``removed`` or ``applied``.
        text: in plain words, with the number and its 95 % interval.
        value: the number.
        low: lower end of its 95 % interval.
        high: upper end.
        gradient: which one it speaks of: ``objective``, before any rectifier; ``rectified``, what was left of it; or
            ``applied``, what the optimizer made of that.
        run: whose.
    """

    kind: str
    text: str
    value: float
    low: float
    high: float
    gradient: str = "objective"
    run: str = ""


def number(value: float, digits: int = 2) -> str:
    """A number as it is printed, with a real minus."""
    return f"{value:.{digits}f}".replace("-", "−")


def percent(share: float) -> str:
    """A share as it is printed: ``71 %``, never broken into two lines."""
    return f"{number(100 * share, 0)}\N{NO-BREAK SPACE}%"


def within(low: float, high: float, digits: int = 2) -> str:
    """An interval as it is printed: ``[0.60, 0.75]``, never broken into two lines."""
    return f"[{number(low, digits)},\N{NO-BREAK SPACE}{number(high, digits)}]"
