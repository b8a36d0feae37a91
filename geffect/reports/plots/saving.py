"""A figure and its data on disk."""

from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from geffect.reports.plots.style import STYLE


def save(figure: Figure, path: Path, data: pd.DataFrame) -> list[Path]:
    """Write a figure as PNG and PDF, and the data it draws as CSV; the same input gives the same bytes.

    Args:
        figure: A figure of this module.
        path: Where to write, without a suffix; the parent directory is created.
        data: The rows drawn.

    Returns:
        The paths of the PNG, PDF and CSV, in this order.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent) as folder, matplotlib.rc_context(STYLE):
        png, pdf, csv = parts = [Path(folder, f"{path.name}.{kind}") for kind in ("png", "pdf", "csv")]
        figure.savefig(png, dpi=200, metadata={"Software": None})
        figure.savefig(pdf, metadata=dict.fromkeys(("Creator", "Producer", "CreationDate")))
        data.to_csv(csv, index=False, lineterminator="\n")
        return [part.replace(path.with_name(part.name)) for part in parts]
