"""One thing looked at."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        name: what.
        status: ``good``, ``warning`` (results may mislead), or ``bad`` (a run would fail or be wrong).
        found: what was measured.
        remedy: what to do; empty where all is good.
    """

    name: str
    status: Literal["good", "warning", "bad"]
    found: str
    remedy: str = ""
