"""The exceptions a user can cause: their text, and that they survive a process boundary."""

import copy
import pickle
import signal
from collections.abc import Callable

import pytest

from geffect.errors import LONGEST, GeffectError, Interrupted, shorten

COPIES: list[Callable[[Exception], Exception]] = [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))]


@pytest.mark.parametrize("duplicate", COPIES, ids=["copy", "deepcopy", "pickle"])
@pytest.mark.parametrize("message", ["The set x has no example", "\x1b[31mlong" + "9" * 5000])
def test_an_error_can_be_copied(duplicate: Callable[[GeffectError], GeffectError], message: str) -> None:
    error = GeffectError(message, remedy="Name another set")
    error.add_note("a note")
    other = duplicate(error)
    assert type(other) is GeffectError and str(other) == str(error)
    assert (other.message, other.remedy, other.__notes__) == (error.message, "Name another set", ["a note"])


@pytest.mark.parametrize("duplicate", COPIES, ids=["copy", "deepcopy", "pickle"])
def test_an_interrupt_can_be_copied(duplicate: Callable[[Interrupted], Interrupted]) -> None:
    other = duplicate(Interrupted("stopped at step 3", signal.SIGTERM))
    assert (str(other), other.signum, other.exit_code) == ("stopped at step 3", 15, 143)


def test_an_error_is_two_sentences() -> None:
    error = GeffectError("The share is 2", remedy="Choose a share in (0, 1].")
    assert str(error) == "The share is 2. Choose a share in (0, 1]."
    assert (error.message, error.remedy) == ("The share is 2", "Choose a share in (0, 1].")


def test_a_long_value_is_shortened() -> None:
    assert shorten("9" * LONGEST) == "9" * LONGEST
    assert shorten("9" * 5000) == "9" * LONGEST + "… (5000 characters)"
    assert len(GeffectError("9" * 5000, remedy="Correct it").message) < 3 * LONGEST
