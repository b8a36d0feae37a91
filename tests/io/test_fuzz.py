"""A few garbled inputs of each kind; hundreds by hand: ``python -m tests.support.fuzz --count 400``."""

from pathlib import Path

import pytest

from tests.support.fuzz import KINDS, World, trial


@pytest.mark.parametrize("kind", KINDS)
def test_garbled_input_ends_well_or_in_one_line_and_no_file_is_lost(kind: str, world: World) -> None:
    ends = [trial(world, kind, seed) for seed in range(12)]
    assert not [said for outcome, said in ends if outcome not in ("well", "one line")]
    assert any(outcome == "one line" for outcome, _ in ends)
    assert Path(world.folder / "run" / "DONE").exists()
