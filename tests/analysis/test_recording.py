"""The recording of a terminal: what the last screen shows, and that the picture stands by itself."""

import re
from xml.etree import ElementTree

from analysis.recording import COLUMNS, OUT, Screen, commands, picture


def _last(screen: Screen) -> list[str]:
    return [re.sub("<[^>]+>", "", versions[-1][1]) for _, versions in sorted(screen.shown.items())]


def test_a_bar_is_written_over_and_a_long_line_wraps() -> None:
    screen = Screen()
    screen.feed("10%|█ |\r20%|██|", 1.0)
    screen.feed("\r\x1b[Kdone\r\n\x1b[1;32mok\x1b[0m & \x1b[38;5;9mplain\r\n" + "x" * (COLUMNS + 2), 2.0)
    assert _last(screen) == ["done", "ok&amp; plain", "x" * COLUMNS, "xx"]
    assert [when for when, _ in screen.shown[0]] == [1.0, 2.0]
    assert 'class="b c2">ok<' in screen.shown[1][-1][1]
    screen.feed("\x1b[2A\x1b[1Gup", 3.0)
    assert _last(screen)[1] == "up &amp; plain"


def test_the_picture_ends_on_the_last_screen_and_needs_nothing_else() -> None:
    screen = Screen()
    for step in range(60):
        screen.feed(f"line {step}\r\n", float(step))
    drawn = picture(screen, 60.0, 100.0)
    root = ElementTree.fromstring(drawn)
    assert root.tag.endswith("svg")
    assert "prefers-reduced-motion:reduce" in drawn
    assert "ran in 100 s; waits are shortened" in drawn
    assert not re.search(r"href|url\(|<script|@import|http(?!://www\.w3\.org/2000/svg)", drawn)


def test_the_stored_recording_is_small_and_of_readmes_commands() -> None:
    text = OUT.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    said = "".join(each.text or "" for each in root.iter("{http://www.w3.org/2000/svg}text")).replace(" ", "")
    assert len(text.encode()) <= 300_000
    assert commands()
    assert all(f"${command}".replace(" ", "") in said for command in commands())
    assert not re.search(r"/(?:home|root|tmp|work)/", text)
