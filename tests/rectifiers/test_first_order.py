"""The guarantee of every registered rectifier, on the gradient it makes and on what an optimizer makes of that."""

import importlib.util

import pytest
import torch

from analysis.guarantees import GUARANTEES, KINDS, OPTIMIZERS, Start, measure
from geffect.errors import GeffectError
from geffect.models.builtin import make_tiny
from geffect.rectifiers.registry import RULES
from tests.support.cases import NARROW

EXACT = {"torchjd": 1e-3}  # of others 1e-10


@pytest.fixture(scope="module")
def start() -> Start:
    return Start.of(*make_tiny(vocabulary=400, **NARROW))


def test_every_rule_is_here() -> None:
    controls = {"confine", "random"}  # which freeze as grail does: tests/localization/test_controls.py
    assert {text.partition("(")[0] for text in GUARANTEES} == set(RULES) - {"none"} - controls


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("text", GUARANTEES)
def test_the_guarantee_holds(text: str, optimizer: str, kind: str, start: Start) -> None:
    """Of the gradient always; of the applied update under SGD, and under every optimizer in the space of updates."""
    if text == "torchjd" and importlib.util.find_spec("quadprog") is None:
        pytest.skip("torchjd is an extra")
    if optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    name, by_metric = text.partition("(")[0], "metric" in text or text.startswith("gu(")
    if by_metric and optimizer != "adamw":
        with pytest.raises(GeffectError, match="keeps no second moments"):
            measure(text, optimizer, kind, start, 2)
        return
    rows = measure(text, optimizer, kind, start, 2)
    exact = EXACT.get(name, 1e-10)
    on_updates = "space=update" in text or name in ("gu", "grail", "memflex")
    if not on_updates or name in ("grail", "memflex"):
        assert max(row["gradient"] for row in rows) <= exact
    if on_updates or (optimizer == "sgd" and not by_metric):
        assert max(row["applied"] for row in rows) <= exact
