"""How figures look, show themselves in a notebook, and are saved."""

from io import BytesIO
from pathlib import Path
from typing import Any, Final

import matplotlib
import matplotlib.figure
import pandas as pd

from geffect.record.writer import write

Look = dict[str, Any]  # how a line looks: keywords of Line2D
ONE_COLUMN, TWO_COLUMN = 3.4, 7.0  # inches
NOTE: Final[Look] = {"color": "0.35", "size": 6}  # text inside a panel
STYLE: Final[dict[Any, Any]] = {  # on top of the defaults, so that a user's own settings change no figure
    **{key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith("backend")},
    "font.size": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.edgecolor": "0.7",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": "0.7",
    "ytick.color": "0.7",
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "legend.frameon": False,
    "legend.handlelength": 2.8,
    "legend.columnspacing": 1.2,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    "figure.dpi": 200,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
}


def literal(name: object) -> str:
    """A name as matplotlib shows it; unescaped dollars would make a formula."""
    return str(name).replace("$", r"\$")


GROUPS: Final[dict[str, Look]] = {
    "embed": {"c": "#0072B2", "marker": "o", "ls": "-"},
    "shallow": {"c": "#E69F00", "marker": "s", "ls": (0, (5, 1.5))},
    "middle": {"c": "#009E73", "marker": "^", "ls": (0, (5, 1.5, 1, 1.5))},
    "deep": {"c": "#D55E00", "marker": "D", "ls": (0, (1, 1))},
    "lm_head": {"c": "#CC79A7", "marker": "v", "ls": (0, (3, 1, 1, 1, 1, 1))},
    "shared": {"c": "#56B4E9", "marker": "X", "ls": (0, (2, 1.5, 6, 1.5))},
    "tied": {"c": "#000000", "marker": "P", "ls": (0, (8, 2))},
}
RUNS: Final[tuple[Look, ...]] = (
    {"c": "#004488", "marker": "o"},
    {"c": "#BB5566", "marker": "s"},
    {"c": "#DDAA33", "marker": "^"},
    {"c": "#000000", "marker": "D"},
    {"c": "#228833", "marker": "v"},
    {"c": "#66CCEE", "marker": "P"},
)
READINGS: Final[dict[str, Look]] = {  # what a change of loss is predicted from
    "gradient": {"c": "#D55E00", "marker": "s", "ls": (0, (5, 1.5))},
    "update": {"c": "#0072B2", "marker": "o", "ls": (0, (5, 1.5, 1, 1.5))},
}


DPI = 144  # 8-point text is 16 pixels high


class Figure(matplotlib.figure.Figure):
    """matplotlib's figure, shown as the last value of a notebook cell without pyplot."""

    def _repr_png_(self) -> bytes:
        stream = BytesIO()
        with matplotlib.rc_context(STYLE):
            self.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
        return stream.getvalue()


def save(figure: matplotlib.figure.Figure, path: Path, data: pd.DataFrame) -> list[Path]:
    """Write a figure as PNG and PDF and its data as CSV to a path without suffix; the same input gives the same bytes.

    The three files' paths, in this order.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    png, pdf = BytesIO(), BytesIO()  # rendered first: a disk's error amid a PDF raises matplotlib's own
    with matplotlib.rc_context(STYLE):
        figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
        figure.savefig(pdf, format="pdf", metadata=dict.fromkeys(("Creator", "Producer", "CreationDate")))
    csv = data.to_csv(index=False, lineterminator="\n")
    contents: dict[str, str | bytes] = {"png": png.getvalue(), "pdf": pdf.getvalue(), "csv": csv}
    files = {path.with_name(f"{path.name}.{kind}"): content for kind, content in contents.items()}
    for file, content in files.items():
        write(file, content)
    return list(files)
