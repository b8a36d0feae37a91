"""Sets of the hub, through the real ``datasets`` library on directories that stand where a hub's set would."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from geffect.data.load import QASet, TextSet, load_set
from geffect.errors import GeffectError

QA = [{"question": f"Q{i}?", "answer": f"A{i}."} for i in range(5)]
TEXTS = [{"text": f"Text {i}."} for i in range(4)]
PARTS = {part: [{"text": f"{part} {i}?", "labels": f"{i}."} for i in range(3)] for part in ("train", "val")}
CONFIGS: dict[str, tuple[str, Any]] = {
    "qa": ("forget", QA),
    "raw": ("forget", TEXTS),
    "renamed": ("train", [{"prompt": "P", "gt": "G"}]),
    "privacy": ("unlearn", [PARTS]),
    "neither": ("train", [{"body": "B"}]),
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set org/name with named configurations, and org/plain with the default one."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "org" / "name"
    lines = ["---", "configs:"]
    for config, (split, rows) in CONFIGS.items():
        write(folder / config / f"{split}.json", json.dumps(rows))
        lines += [
            f"- config_name: {config}",
            "  data_files:",
            f"  - split: {split}",
            f"    path: {config}/{split}.json",
        ]
    write(folder / "README.md", "\n".join([*lines, "---", ""]))
    write(tmp_path / "org" / "plain" / "train.jsonl", "\n".join(map(json.dumps, QA)))
    return tmp_path


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


@pytest.mark.usefixtures("hub")
def test_a_configuration_and_split_of_questions_is_loaded_and_sliced() -> None:
    rows = load_set("hub:org/name/qa/forget[1:4]")
    assert isinstance(rows, QASet)
    assert rows.examples == tuple(QA[1:4])


@pytest.mark.usefixtures("hub")
def test_a_split_of_the_default_configuration_is_loaded() -> None:
    assert load_set("hub:org/plain/train").examples == tuple(QA)


@pytest.mark.usefixtures("hub")
def test_texts_are_a_set_of_texts() -> None:
    rows = load_set("hub:org/name/raw/forget")
    assert isinstance(rows, TextSet)
    assert rows.examples == tuple(TEXTS)


@pytest.mark.usefixtures("hub")
def test_columns_can_be_named() -> None:
    renamed = load_set("hub:org/name/renamed/train", None, "prompt", "gt")
    assert renamed.examples == ({"question": "P", "answer": "G"},)
    assert load_set("hub:org/name/neither/train", text="body").examples == ({"text": "B"},)
    with pytest.raises(
        GeffectError, match=r"Row 0 of hub:org/name/neither/train has no column 'question', only body\."
    ):
        load_set("hub:org/name/neither/train")


@pytest.mark.usefixtures("hub")
def test_the_one_row_of_knowundo_is_unfolded_to_its_train_part() -> None:
    rows = load_set("hub:org/name/privacy/unlearn[1:]")
    assert isinstance(rows, QASet)
    assert rows.examples == ({"question": "train 1?", "answer": "1."}, {"question": "train 2?", "answer": "2."})


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("hub:org/name/nothing/forget", "'nothing' not found. Available: .*'privacy'"),
        ("hub:org/name/qa/retain", 'Unknown split "retain"'),
        ("hub:org/name/forget", "Config name is missing. Please pick one among the available configs"),
        ("hub:org/name", "hub:ORG/NAME/CONFIG/SPLIT, or hub:ORG/NAME/SPLIT"),
        ("hub:org/name/qa/forget/more", "hub:ORG/NAME/CONFIG/SPLIT, or hub:ORG/NAME/SPLIT"),
        ("hub:org//forget", "hub:ORG/NAME/CONFIG/SPLIT, or hub:ORG/NAME/SPLIT"),
        ("hub:../name/qa/forget", "hub:ORG/NAME/CONFIG/SPLIT, or hub:ORG/NAME/SPLIT"),
        ("hub:/org/plain/train", "hub:ORG/NAME/CONFIG/SPLIT, or hub:ORG/NAME/SPLIT"),
        ("hub:~/plain/train", "hub:ORG/NAME/CONFIG/SPLIT, or hub:ORG/NAME/SPLIT"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(spec: str, says: str) -> None:
    with pytest.raises(GeffectError, match=says) as caught:
        load_set(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("hub")
def test_a_split_without_rows_is_refused() -> None:
    with pytest.raises(GeffectError, match=r"^hub:org/plain/train\[9:\] selects none of 5 rows"):
        load_set("hub:org/plain/train[9:]")
    with pytest.raises(GeffectError, match=r"^hub:org/plain/train\+train\[:0\] selects none of 10 rows"):
        load_set("hub:org/plain/train+train[:0]")


def test_without_the_library_the_line_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        GeffectError, match=r"^hub:\S+ needs the datasets library[^\n]*: pip install 'geffect\[hub\]'\.$"
    ):
        load_set("hub:org/name/qa/forget")


def test_offline_a_set_out_of_reach_is_one_line_and_soon(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    code = (
        "from geffect.data.load import load_set\nfrom geffect.errors import GeffectError\n"
        "import datasets, time\nstart = time.monotonic()\n"
        "try:\n    load_set('hub:org/absent/qa/forget')\n"
        "except GeffectError as error:\n    print(error)\n    print(time.monotonic() - start)"
    )
    nobody = "http://127.0.0.1:9"  # as without a network: no second try of half a minute
    environment = os.environ | {"HF_ENDPOINT": nobody, "HF_HOME": str(tmp_path / "home"), "http_proxy": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    message, seconds = done.stdout.splitlines()
    assert message.startswith("hub:org/absent/qa/forget cannot be loaded: Couldn't reach 'org/absent'")
    assert message.endswith(" Check the name, its configuration, its split and the network.")
    assert float(seconds) < 5
    assert "Traceback" not in done.stderr


def test_the_library_is_not_loaded_before_it_is_asked_for() -> None:
    code = (
        "import sys; from geffect.data.load import load_set; load_set('builtin:authors/heldout'); "
        "assert 'datasets' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
