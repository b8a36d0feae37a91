"""What every figure keeps to."""

from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.text import Text

from geffect.reports import plots


def texts_of(figure: Figure) -> list[Text]:
    """Every text that is drawn, without the ticks' numbers."""
    found = list(figure.texts)
    for axes in figure.axes:
        ticks = {*axes.xaxis.findobj(Text), *axes.yaxis.findobj(Text)} - {axes.xaxis.label, axes.yaxis.label}
        found += [text for text in axes.findobj(Text) if text not in ticks]
    return [text for text in dict.fromkeys(found) if text.get_text().strip() and text.get_visible()]


def tick_texts(figure: Figure) -> list[Text]:
    """The labels of the ticks that are drawn."""
    shown = []
    for axis in (axis for axes in figure.axes if axes.axison for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        inside = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        shown += [tick.label1 for tick in inside if tick.label1.get_visible() and tick.label1.get_text()]
    return shown


def fits(figure: Figure) -> None:
    """No text, tick label or legend leaves the page or lies on another; the width is a paper's, no text is small."""
    with matplotlib.rc_context(plots.STYLE):
        figure.draw_without_rendering()
    drawn = [(text.get_text(), text.get_window_extent()) for text in texts_of(figure)]
    drawn += [("legend", legend.get_window_extent()) for legend in figure.legends]
    drawn += [(f"tick {text.get_text()}", text.get_window_extent()) for text in tick_texts(figure)]
    sizes = [float(text.get_fontsize()) for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text()]
    assert min(sizes) >= 6.5
    for i, (name, box) in enumerate(drawn):
        assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1, name
        assert figure.bbox.y0 <= box.y0 <= box.y1 <= figure.bbox.y1, name
        assert not [other for other, place in drawn[:i] if box.overlaps(place)], name
    assert figure.get_figwidth() in {plots.ONE_COLUMN, plots.TWO_COLUMN}


def same_bytes(first: Figure, again: Figure, folder: Path) -> None:
    """Two figures of the same input are saved alike."""
    nothing = pd.DataFrame()
    one, two = (plots.save(each, folder / name / "x", nothing) for each, name in ((first, "one"), (again, "two")))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
