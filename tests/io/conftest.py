"""What the tests of damaged input share: a small world of files, made once a session."""

from pathlib import Path

import pytest

from tests.support.fuzz import World


@pytest.fixture(scope="session")
def world(shared_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A start, runs and sets, from which tests take copies; one worker makes them."""
    from filelock import FileLock

    with FileLock(shared_folder / "world.lock"):
        return World(shared_folder / "world", tmp_path_factory.mktemp("trials"))
