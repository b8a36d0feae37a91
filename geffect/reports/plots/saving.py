"""A figure and its data on disk."""

import io
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from geffect.record.writer import write
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
    png, pdf = io.BytesIO(), io.BytesIO()  # rendered first: a disk's error amid a PDF raises matplotlib's own
    with matplotlib.rc_context(STYLE):
        figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
        figure.savefig(pdf, format="pdf", metadata=dict.fromkeys(("Creator", "Producer", "CreationDate")))
    csv = data.to_csv(index=False, lineterminator="\n")
    contents: dict[str, str | bytes] = {"png": png.getvalue(), "pdf": pdf.getvalue(), "csv": csv}
    files = {path.with_name(f"{path.name}.{kind}"): content for kind, content in contents.items()}
    for file, content in files.items():
        write(file, content)
    return list(files)
