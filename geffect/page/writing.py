"""The page on disk."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from geffect.errors import GeffectError
from geffect.findings import Finding
from geffect.page.sections import comparison, section
from geffect.reading import opened
from geffect.record import read_environment

MARK = b'<meta name="generator" content="geffect report">'  # what was drawn once may be drawn again


class Report(NamedTuple):
    """A page and what it found."""

    path: Path
    findings: list[Finding]


def write(runs: Mapping[str, Path], out: Path, scheme: str = "thirds") -> Report:
    """Write runs as one HTML page that needs no network.

    Args:
        runs: name → directory.
        out: the file; a report that is there already is drawn again.
        scheme: how layers make groups.

    Returns:
        The file, and the findings of all runs.

    Raises:
        GeffectError: a run cannot be read, or the file is none of ours or cannot be written.
    """
    for path in runs.values():
        read_environment(path)
    _check(out)
    sections = [section(path, name, f"run-{i}", scheme) for i, (name, path) in enumerate(runs.items())]
    together = comparison(runs) if len(sections) > 1 else None
    page = _render(runs=sections, comparison=together)
    partial = out.with_name(f".{out.name[:200]}.{os.getpid()}")
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(out)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise GeffectError(f"a file to write at --out {out}", str(error.strerror), "choose another place") from error
    return Report(out, [finding for each in sections for finding in each.findings])


def _check(out: Path) -> None:
    if not out.parent.is_dir():
        raise GeffectError(f"a directory to write --out {out} in", "none", "make it, or choose another place")
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_file() or MARK not in _head(out):
        raise GeffectError(
            f"no file, or a report of geffect's own, at --out {out}", "another", "choose another name or move it away"
        )


def _head(file: Path) -> bytes:
    with opened(file) as stream:
        return stream.read(2000)


def _render(**content: object) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("geffect.page"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return templates.get_template("report.html").render(**content)
