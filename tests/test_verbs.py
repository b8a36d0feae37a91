"""The verbs in Python: a configuration or its fields in, an object that stands where a path does out."""

from pathlib import Path
from typing import Any

import pytest

import geffect
from geffect.errors import GeffectError

SETS: Any = {"forget": "builtin:authors/forget[:4]", "retain": "builtin:authors/retain[:4]"}


def test_fields_and_a_configuration_give_the_same_run(start: Path, tmp_path: Path) -> None:
    run = geffect.unlearn(model=start, **SETS, steps=1, out=tmp_path / "one")
    config = geffect.UnlearnConfig(model=start, **SETS, steps=1, out=tmp_path / "two")
    other = geffect.unlearn(config)
    assert geffect.read(run).equals(geffect.read(other))
    assert geffect.read(run).equals(run.to_frame())
    assert Path(run) == tmp_path / "one"
    with pytest.raises(TypeError, match="A configuration is given alone: steps"):
        geffect.unlearn(config, steps=2)  # type: ignore[call-overload]
    with pytest.raises(GeffectError, match=r"exists already"):
        geffect.unlearn(config)


def test_a_constructor_refuses_what_a_file_refuses() -> None:
    with pytest.raises(GeffectError, match="--forget has no value"):
        geffect.UnlearnConfig(model="m", out="o")
    with pytest.raises(GeffectError, match="--masks"):
        geffect.UnlearnConfig(model="m", **SETS, out="o", rectifier="grail")
    with pytest.raises(GeffectError, match="'gaa'"):
        geffect.UnlearnConfig(model="m", **SETS, out="o", objective="gaa")


def test_every_field_of_a_configuration_is_in_its_help() -> None:
    for name in geffect.UnlearnConfig.model_fields:
        assert f"    {name}: " in str(geffect.UnlearnConfig.__doc__)
    assert "learning_rate: " in str(geffect.unlearn.__doc__)
