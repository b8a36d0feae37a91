"""All findings of a run."""

from pathlib import Path

import pandas as pd

from geffect.findings import checkpoints, gradients
from geffect.findings.evaluations import evaluations
from geffect.findings.finding import Finding
from geffect.record import as_written, read, read_config, read_lines, read_standard_errors


@as_written
def find(path: Path | str, run: str = "", scheme: str = "thirds") -> list[Finding]:
    """What a run shows beyond noise.

    Seven claims are tested, each at `geffect.findings.LEVEL`: over steps by the moving-block bootstrap, over
    checkpoints by their standard errors where an inspection recorded them, over rows where evaluations are compared.
    In which layers the retain set is harmed, and what undid it, is asked only where it is harmed at all.

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
    frame, lines = read(path, "group", scheme), read_lines(path)
    config = read_config(path)
    found = in_rows(frame, _rectifier(str(config.get("rectifier", "none"))))
    spread = [line["spread"] for line in lines if line.get("spread")]
    if spread and not any(each.kind == "conflict" for each in found):
        batches = len(spread[0]["linearised"][0])
        found = [*_made(checkpoints.conflict(read_standard_errors(path, "total"), batches)), *found]
    return [each._replace(run=run) for each in (*found, *evaluations(lines))]


def in_rows(frame: pd.DataFrame, rectifier: str = "The rectifier") -> list[Finding]:
    """What the measured rows of a run show.

    Args:
        frame: a record's tidy frame by group.
        rectifier: what is named as having removed harm.

    Returns:
        The findings.
    """
    harm = _made(gradients.conflict(frame), gradients.start(frame))
    where = _made(gradients.layers(frame), gradients.removed(frame, rectifier)) if harm else []
    return [*harm, *where, *_made(gradients.applied(frame))]


def _made(*found: Finding | None) -> list[Finding]:
    return [each for each in found if each is not None]


def _rectifier(written: str) -> str:
    """``gru(decay=0.2)`` → GRU."""
    return "The rectifier" if written == "none" else written.partition("(")[0].upper()
