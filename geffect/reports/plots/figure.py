"""A figure that a notebook shows without pyplot."""

from io import BytesIO

import matplotlib
import matplotlib.figure

from geffect.reports.plots.style import STYLE

DPI = 144  # 8-point text is 16 pixels high


class Figure(matplotlib.figure.Figure):
    """matplotlib's, which as the last value of a cell is its picture: only pyplot would have a notebook draw it."""

    def _repr_png_(self) -> bytes:
        stream = BytesIO()
        with matplotlib.rc_context(STYLE):
            self.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
        return stream.getvalue()
