"""The gallery shows every built-in plot, and what it names exists."""

import re
import shlex
from pathlib import Path

import pandas as pd

from analysis.gallery import METHODS, OF
from geffect.reports.plots.registry import _ALL

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
LARGEST = 80_000  # bytes of a picture


def test_every_built_in_plot_has_a_section_with_its_picture_and_data() -> None:
    assert list(SECTIONS) == [plot.name for plot in _ALL]
    for name, text in SECTIONS.items():
        assert re.findall(r"^!\[[^]]+\]\((.*?)\)$", text, re.MULTILINE) == [f"../figures/gallery/{name}.png"]
        picture = ROOT / "figures" / "gallery" / f"{name}.png"
        assert picture.read_bytes()[:4] == b"\x89PNG"
        assert picture.stat().st_size <= LARGEST
        assert not pd.read_csv(picture.with_suffix(".csv")).empty


def test_the_command_of_a_section_draws_its_plot_of_the_directories_of_the_script() -> None:
    for name, text in SECTIONS.items():
        (command,) = re.findall(r"^```sh\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)
        words = shlex.split(command)
        assert words[:2] == ["geffect", "plot"]
        assert words[words.index("--kind") + 1] == name
        assert [word.removeprefix("runs/gallery/") for word in words if "/" in word] == list(OF.get(name, METHODS))
