"""The page on disk."""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from geffect.errors import GeffectError, visible_text
from geffect.io.readers import open_regular
from geffect.record.reader import check_run
from geffect.record.writer import write as write_file
from geffect.reports.findings import Finding
from geffect.reports.outcome import Outcome
from geffect.reports.sections import comparison, section

MARK = b'<meta name="generator" content="geffect report">'  # what was drawn once may be drawn again


class Report(NamedTuple):
    """A page and its results.

    Attributes:
        path: of the page.
        findings: of all runs.
        outcomes: run → whether it forgot selectively.
    """

    path: Path
    findings: list[Finding]
    outcomes: dict[str, Outcome]


def write(runs: Mapping[str, Path], out: Path, scheme: str = "thirds") -> Report:
    """Write runs as one HTML page that needs no network."""
    for path in runs.values():
        check_run(path)
    _check(out)
    sections = [section(path, name, f"run-{i}", scheme) for i, (name, path) in enumerate(runs.items())]
    together = comparison(runs, scheme) if len(sections) > 1 else None
    page = _render(runs=sections, comparison=together)
    try:
        write_file(out, page)
    except OSError as error:
        reason = f"--out {out} cannot be written to: {error.strerror}"
        raise GeffectError(reason, remedy="Choose another place") from error
    findings = [finding for each in sections for finding in each.findings]
    return Report(out, findings, {each.name: each.outcome for each in sections})


def _check(out: Path) -> None:
    if not out.parent.is_dir():
        raise GeffectError(f"There is no directory to write --out {out} in", remedy="Make it, or choose another place")
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_file() or MARK not in _head(out):
        raise GeffectError(
            f"--out {out} exists, and is no report of geffect", remedy="Choose another name, or move it away"
        )


class Shades:
    """The colors of a page as classes, because a policy that allows its style by hash allows no style in an element."""

    def __init__(self) -> None:
        self._rules: dict[str, str] = {}

    def __call__(self, ground: str, ink: str = "") -> str:
        """The classes of a background, ``#rrggbb``, and of a text's color on it, a name."""
        names = {f"shade-{ground[1:]}": f"background:{ground}"} | ({f"ink-{ink}": f"color:{ink}"} if ink else {})
        self._rules |= names
        return " ".join(names)

    def rules(self) -> str:
        """The style sheet of all classes that were asked for."""
        return "\n".join(f".{name} {{ {rule} }}" for name, rule in sorted(self._rules.items()))


def digest(content: str) -> str:
    """The hash of a script or a style, in the form of a Content-Security-Policy."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _shown(value: object) -> object:
    """The visible form of text from a run, a model or a file, as a template prints it."""
    from markupsafe import Markup

    return visible_text(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _head(file: Path) -> bytes:
    with open_regular(file) as stream:
        return stream.read(2000)


def _render(**content: object) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("geffect.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["digest"] = digest
    return templates.get_template("report.html").render(**content, shade=Shades())
