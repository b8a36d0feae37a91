"""Finished runs of a study are reused where they are the ones asked for, also those of an older version."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis.runs import CONFIG, DONE, ensure
from geffect.config import UnlearnConfig
from geffect.errors import GeffectError


def test_a_setting_that_a_run_is_older_than_is_at_its_default(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"model": "builtin:tiny", "forget": "a.jsonl", "retain": "b.jsonl", "out": tmp_path}
    content = UnlearnConfig.read(**asked).model_dump(mode="json", exclude_none=True)
    older = {key: value for key, value in content.items() if key not in ("target", "template_date", "steps")}
    (tmp_path / CONFIG).write_text(yaml.safe_dump(older), encoding="utf-8")
    (tmp_path / DONE).touch()
    assert ensure([asked]) == [tmp_path]
    with pytest.raises(GeffectError, match=r"^target is \[\] in .*, not \['x=c\.jsonl'\]\. Move that run away\.$"):
        ensure([asked | {"target": ["x=c.jsonl"]}])
    with pytest.raises(GeffectError, match=r"^seed is 0 in .*, not 1\."):
        ensure([asked | {"seed": 1}])
