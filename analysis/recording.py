"""Record ``docs/_static/demo.svg``: README's commands in a terminal, as they ran, animated by CSS.

    python -m analysis.recording

Each command runs in a pseudo-terminal; what it writes is kept with its time, and waits are shortened. Who asks for
reduced motion sees the last screen.
"""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path

import geffect

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "_static" / "demo.svg"
COLUMNS, ROWS = 100, 26
WIDE, HIGH, SIZE = 8.4, 18, 14  # of a character, of a line, of the type, in pixels
LONGEST, HOLD, MOST = 1.0, 5.0, 55.0  # seconds: of a wait, at most; of the last screen; of all before it, at most
COLORS = dict(enumerate(["#8b949e", "#ff7b72", "#7ee787", "#e3b341", "#79c0ff", "#d2a8ff", "#76e3ea", "#e6edf3"]))
ESCAPE = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|\x1b\][^\x07]*\x07|\x1b[=>()][AB0]?|[\r\n\b]|[^\x1b\r\n\b]+|\x1b")
Row = dict[int, tuple[str, str]]  # column → a character and its style


class Screen:
    """A terminal that only grows: rows by number, with colors, and what each row showed when."""

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}
        self.y = self.x = 0
        self.style = ""
        self.shown: dict[int, list[tuple[float, str]]] = {}  # row → since when, what as SVG
        self.tops: list[tuple[float, int]] = [(0.0, 0)]  # since when, the first row in sight

    def feed(self, text: str, when: float) -> None:
        """Write what a program wrote."""
        for found in ESCAPE.finditer(text):
            self._put(found)
        for y, row in self.rows.items():
            drawn, before = _svg(row), self.shown.setdefault(y, [])
            if (before[-1][1] if before else "") != drawn:
                before.append((when, drawn))
        top = max(0, max(self.rows, default=0) - ROWS + 2)
        if top != self.tops[-1][1]:
            self.tops.append((when, top))

    def _put(self, found: re.Match[str]) -> None:
        text, (numbers, kind) = found[0], found.groups()
        count = int(numbers) if (numbers or "").isdigit() else 0
        row = self.rows.setdefault(self.y, {})
        if text == "\n":
            self.y, self.x = self.y + 1, 0
        elif text in "\r\b":
            self.x = 0 if text == "\r" else max(0, self.x - 1)
        elif kind == "m":
            self._paint([int(each or 0) for each in numbers.split(";")])
        elif kind == "K":
            for x in [x for x in row if count == 2 or x >= self.x]:
                del row[x]
        elif kind in ("A", "B"):
            self.y = max(0, self.y + (count or 1) * (1 if kind == "B" else -1))
        elif kind in ("C", "D"):
            self.x = max(0, self.x + (count or 1) * (1 if kind == "C" else -1))
        elif kind == "G":
            self.x = max(0, count - 1)
        elif kind == "J":
            for y in [y for y in self.rows if y > self.y]:
                self.rows[y] = {}
        elif not kind and not text.startswith("\x1b"):
            for character in text:
                if self.x >= COLUMNS:
                    self.y, self.x = self.y + 1, 0
                self.rows.setdefault(self.y, {})[self.x] = (character, self.style)
                self.x += 1

    def _paint(self, codes: list[int]) -> None:
        style = set(self.style.split())
        for code in codes if codes[:1] not in ([38], [48]) else ():  # of the many colors none is kept
            if code in (0, 22, 39):
                style = {each for each in style if code and each.startswith("c") == (code == 22)}
            elif code in (1, 2):
                style.add({1: "b", 2: "d"}[code])
            elif 30 <= code <= 37 or 90 <= code <= 97:
                style = {each for each in style if not each.startswith("c")} | {f"c{code % 10}"}
        self.style = " ".join(sorted(style))


def _svg(row: Row) -> str:
    """A row's characters, by style, each run as wide as its columns in any font."""
    parts: list[tuple[int, str, str]] = []
    for x in sorted(row):
        character, style = row[x]
        if parts and parts[-1][2] == style and parts[-1][0] + len(parts[-1][1]) == x:
            parts[-1] = (parts[-1][0], parts[-1][1] + character, style)
        else:
            parts.append((x, character, style))
    drawn = []
    for x, text, style in parts:
        spaces = len(text) - len(text.lstrip())
        if words := text.strip():
            looks = f' class="{style}"' if style else ""
            place = f'x="{(x + spaces) * WIDE:.1f}" textLength="{len(words) * WIDE:.1f}"'
            drawn.append(f"<text {place}{looks}>{escape(words, quote=False)}</text>")
    return "".join(drawn)


def picture(screen: Screen, end: float, real: float) -> str:
    """The recording as SVG; its state without animation is the last screen."""
    pace = min(1.0, MOST / end)
    whole = pace * end + HOLD
    rules, rows = [], []

    def times(values: list[tuple[float, str]]) -> str:
        return "".join(f"{100 * pace * min(when, end) / whole:.2f}%{{{value}}}" for when, value in values)

    for y, versions in screen.shown.items():
        for i, (when, drawn) in enumerate(versions):
            last = i + 1 == len(versions)
            if not drawn:
                continue
            shown = [(0.0, "opacity:0"), (when, "opacity:1")] + ([] if last else [(versions[i + 1][0], "opacity:0")])
            name = f"r{y}v{i}"
            rules.append(f"@keyframes {name}{{{times(shown)}}}#{name}{{animation-name:{name}}}")
            hidden = "" if last else ' opacity="0"'
            rows.append(f'<g id="{name}" class="r" transform="translate(0 {y * HIGH})"{hidden}>{drawn}</g>')
    moved = [(when, f"transform:translateY({-top * HIGH}px)") for when, top in screen.tops]
    width, height = COLUMNS * WIDE + 32, ROWS * HIGH + 64
    colors = "".join(f".c{number}{{fill:{color}}}" for number, color in COLORS.items())
    note = f"Recorded as it ran in {real:.0f} s; waits are shortened, so that this takes {whole:.0f}."
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" role="img">'
        f"<title>geffect in a terminal: README's commands. {note}</title><style>"
        f"text{{font:{SIZE}px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:#e6edf3;"
        f"white-space:pre}}.b{{font-weight:bold}}.d{{opacity:.65}}{colors}"
        f".r,#s{{animation:{whole:.1f}s steps(1,end) infinite}}#s{{animation-name:s;"
        f"transform:translateY({-screen.tops[-1][1] * HIGH}px)}}@keyframes s{{{times(moved)}}}{''.join(rules)}"
        "@media (prefers-reduced-motion:reduce){.r,#s{animation:none}}</style>"
        f'<rect width="100%" height="100%" rx="8" fill="#0d1117"/><svg x="16" y="12" width="{COLUMNS * WIDE:.0f}" '
        f'height="{ROWS * HIGH}"><g id="s"><g transform="translate(0 {SIZE})">{"".join(rows)}</g></g></svg>'
        f'<text x="16" y="{height - 18}" class="d" style="font-size:12px">{note}</text></svg>\n'
    )


def commands() -> list[str]:
    """README's commands on files of one's own, with the built-in model for MODEL."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## Your own model and files")[2].partition("\n## ")[0]
    return [line.replace("MODEL", "builtin:tiny") for line in section.splitlines() if line.startswith("geffect ")]


def output(command: str, folder: Path) -> Iterator[str]:
    """What a command writes to a terminal, piece by piece; paths as a shell shows them."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    shell = f"geffect() {{ '{sys.executable}' -m geffect \"$@\"; }}; {command}"
    settings = {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        ["bash", "-c", shell], cwd=folder, env=os.environ | settings, stdin=side, stdout=side, stderr=side
    ) as ran:
        os.close(side)
        pending = b""
        while True:
            try:
                pending += os.read(main, 65536)
            except OSError:  # Linux tells so that the other side is closed
                break
            try:
                text = pending.decode()
            except UnicodeDecodeError:  # in the middle of a character
                continue
            pending = b""
            yield text.replace(f"{folder}/", "").replace(str(Path.home()), "~")
    os.close(main)
    if ran.returncode:
        raise SystemExit(f"{command} ended with {ran.returncode}")


def record(folder: Path) -> str:
    """Run the commands in a folder with three files, and draw."""
    for name in ("forget", "retain", "heldout"):
        lines = [
            json.dumps({key: each[key] for key in ("question", "answer")})
            for each in geffect.load_set(f"builtin:authors/{name}")
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    screen, now, began = Screen(), 0.0, time.monotonic()
    for command in commands():
        screen.feed(f"\x1b[32m$\x1b[0m \x1b[1m{command}\x1b[0m\r\n", now)
        now += LONGEST
        since = time.monotonic()
        for text in output(command, folder):
            since, waited = time.monotonic(), time.monotonic() - since
            now += min(waited, LONGEST)
            screen.feed(text, now)
        now += LONGEST
        screen.feed("\r\n", now)
    return picture(screen, now, time.monotonic() - began)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        OUT.write_text(record(Path(work).resolve()), encoding="utf-8")
    print(f"{OUT.relative_to(ROOT)}: {OUT.stat().st_size / 1000:.0f} kB")
