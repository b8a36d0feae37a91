"""A run's prediction: predicted against measured change of the probe's risks."""

from pathlib import Path

import pandas as pd

from geffect.errors import GeffectError
from geffect.record.reader import as_written, each_line
from geffect.record.writer import STEPS

READINGS = ("gradient", "update")


@as_written
def read_prediction(path: Path | str) -> pd.DataFrame:
    """Predicted and measured change of each probe risk, a step and reading a row (`geffect.measurement.prediction`).

    Args:
        path: the run directory.

    Returns:
        Columns ``step``, ``risk`` (``forget``, ``retain``), ``reading`` (``gradient``, ``update``), ``predicted``,
        ``measured`` (nats a token), ``before`` and ``after``. Where every step was measured the changes add up to that
        of the whole run.

    Raises:
        GeffectError: no run is there, or it kept no prediction.
    """
    rows = [
        {
            "step": line["step"],
            "target": risk,
            "reading": reading,
            "predicted": entry[reading],
            "measured": _difference(entry),
            "before": entry["before"],
            "after": entry["after"],
        }
        for line in each_line(Path(path))
        for risk, entry in (line.get("prediction") or {}).items()
        for reading in READINGS
    ]
    if not rows:
        raise GeffectError(f"a prediction in {Path(path) / STEPS}", "none", "run geffect unlearn with --prediction 16")
    return pd.DataFrame(rows)


def _difference(entry: dict[str, float | None]) -> float:
    before, after = entry["before"], entry["after"]
    return float("nan") if before is None or after is None else after - before
