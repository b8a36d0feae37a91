"""What tests of the studies share."""

from collections.abc import Iterator

import matplotlib.pyplot as plt
import pytest


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    """No figure that a study draws stays open for the tests after it."""
    yield
    plt.close("all")
