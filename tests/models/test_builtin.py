"""A built-in model has learned its sets; tests that come later take it from the cache."""

import json

import pytest

from geffect.api import builtin_tiny
from geffect.models.builtin import BUILT_IN


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_model_of_the_domains_knows_its_sets() -> None:
    name = "builtin:tiny-domains"
    end = json.loads((builtin_tiny(name) / "metrics.json").read_text(encoding="utf-8"))["end"]
    assert {spec for spec in BUILT_IN[name].sets if end[spec]["accuracy"] > 0.95} == set(BUILT_IN[name].sets)
