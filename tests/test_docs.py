"""The documentation: every public name is on its pages."""

import re
from pathlib import Path

import pytest

import geffect

DOCS = Path(__file__).resolve().parents[1] / "docs"


@pytest.mark.parametrize("name", geffect.__all__)
def test_a_public_name_is_documented(name: str) -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    assert re.search(rf"^\.\. auto(function|class|data):: geffect\.{name}$", page, re.MULTILINE)
    assert (getattr(geffect, name).__doc__ or "").strip()


def test_only_public_names_are_documented() -> None:
    names = re.findall(r"^\.\. auto\w+:: geffect\.(\w+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(names) == sorted(geffect.__all__)
