"""All findings of a run."""

import re
from pathlib import Path

import pandas as pd

from geffect.record.frames import read, read_standard_errors
from geffect.record.reader import contents, damage_refused, read_config
from geffect.reports.findings import checkpoints, gradients
from geffect.reports.findings.finding import Finding


@damage_refused
def find(path: Path | str, run: str = "", scheme: str = "thirds") -> list[Finding]:
    """What a run shows beyond noise.

    Five claims on gradients are tested, each at `geffect.reports.findings.estimates.LEVEL`: over steps by the
    moving-block bootstrap,
    over checkpoints by their standard errors where an inspection recorded them. In which layers the retain set is
    harmed, and what undid it, is asked only where it is harmed at all. What became of the sets: `outcome`.

    Args:
        path: the run directory.
        run: what it is called.
        scheme: how layers make groups.

    Returns:
        The findings, most important first; none where nothing is told from noise.

    Raises:
        GeffectError: no run is there, or it has no measured step.
    """
    path = Path(path)
    frame = read(path, "group", scheme)
    config = read_config(path)
    found = in_rows(frame, _rectifier(str(config.get("rectifier", "none"))))
    batches = contents(path).batches
    if batches and not any(each.kind == "conflict" for each in found):
        found = [*_made(checkpoints.conflict(read_standard_errors(path, "total"), batches)), *found]
    return [each._replace(run=run) for each in found]


def in_rows(frame: pd.DataFrame, rectifier: str = "") -> list[Finding]:
    """What the measured gradients of a run show.

    Args:
        frame: a record's tidy frame by group.
        rectifier: what changed the objective's gradient; empty where nothing did.

    Returns:
        The findings.
    """
    rectifier = rectifier or ("the rectifier" if frame["gradient"].isin(["rectified", "masked"]).any() else "")
    who = f"The objective before {rectifier}" if rectifier else "The objective"
    harm = _made(gradients.conflict(frame, who), gradients.start(frame, who))
    where = _made(gradients.layers(frame, who), gradients.removed(frame, _capital(rectifier))) if harm else []
    return [*harm, *where, *_made(gradients.applied(frame))]


def _made(*found: Finding | None) -> list[Finding]:
    return [each for each in found if each is not None]


def _rectifier(written: str) -> str:
    """``grail(k_unlearn=0.1) + gru(decay=0.2)`` → GRAIL + GRU; empty for none."""
    return "" if written == "none" else re.sub(r"\(.*?\)", "", written).upper()


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
