"""The schemas: a file, flags and a mixture say the same; nothing unknown or out of range gets through."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from geffect import api
from geffect.config import FinetuneConfig, InspectConfig, PreviewConfig, UnlearnConfig
from geffect.config.presets import PRESETS
from geffect.config.schema import Schema
from geffect.errors import GeffectError
from geffect.record.reader import read_environment, read_lines
from geffect.record.schema import CONFIG
from tests.conftest import config

REQUIRED = {"model": "builtin:tiny", "out": "runs/x", "forget": "builtin:authors/forget", "retain": "rows.json[:9]"}
CHANGED: dict[str, Any] = REQUIRED | {
    "heldout": "tofu:real_authors",
    "data_dir": "data",
    "objective": "npo(beta=0.2) + 1.0*gd",
    "rectifier": "gru(decay=0.3)",
    "steps": 7,
    "learning_rate": 1e-05,
    "weight_decay": 0.01,
    "optimizer": "adafactor",
    "schedule": "cosine",
    "dtype": "bfloat16",
    "seed": 3,
    "report_to": ["tensorboard", "wandb"],
}


def written(path: Path, content: Any) -> Path:
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("in_file", [set(), {"model", "steps", "learning_rate", "report_to", "out"}, set(CHANGED)])
def test_a_file_flags_and_a_mixture_resolve_equally(in_file: set[str], tmp_path: Path) -> None:
    file = written(tmp_path / "run.yaml", {key: CHANGED[key] for key in in_file} | {"batch_size": 4})
    given = {key: value for key, value in CHANGED.items() if key not in in_file}
    assert UnlearnConfig.read(file, **given) == UnlearnConfig(**CHANGED)


@pytest.mark.parametrize("key", [key for key in CHANGED if key not in {"report_to", "data_dir", "heldout"}])
def test_what_is_given_wins_over_the_file(key: str, tmp_path: Path) -> None:
    plain = UnlearnConfig.read(**REQUIRED)
    file = written(tmp_path / "run.yaml", CHANGED)
    back = getattr(plain, key)
    read = UnlearnConfig.read(file, **{key: back})
    assert read == UnlearnConfig(**(CHANGED | {key: back}))


def test_a_value_in_neither_is_the_default(tmp_path: Path) -> None:
    file = written(tmp_path / "run.yaml", REQUIRED)
    assert UnlearnConfig.read(file).model_dump(exclude_unset=True).keys() == REQUIRED.keys()
    assert UnlearnConfig.read(file).steps == 25


def test_a_path_may_stand_where_a_text_does(tmp_path: Path) -> None:
    series = [tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"]
    found = InspectConfig.read(checkpoints=series, start=tmp_path, out=tmp_path / "out")
    assert (found.checkpoints, found.start) == ([str(each) for each in series], str(tmp_path))
    alone = InspectConfig.read(checkpoints=series[0], points="wga", out=tmp_path / "out")
    assert (alone.checkpoints, [point.text for point in alone.points]) == ([str(series[0])], ["wga"])
    assert alone.out == tmp_path / "out"


def test_yaml_numbers_without_a_point_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("learning_rate: 1e-4\n", encoding="utf-8")  # text, to YAML 1.1
    assert UnlearnConfig.read(tmp_path / "run.yaml", **REQUIRED).learning_rate == 1e-4


def test_a_runs_configuration_reads_back_and_replays(start: Path, tmp_path: Path) -> None:
    config = UnlearnConfig.read(
        model=str(start),
        forget="builtin:authors/forget[:4]",
        retain="builtin:authors/retain[:4]",
        steps=1,
        out=tmp_path / "first",
        objective="npo(beta=0.2)",
        learning_rate=1e-5,
    )
    first = api.unlearn(config).path
    again = UnlearnConfig.read(first / CONFIG, out=tmp_path / "second")
    second = api.unlearn(again).path
    assert again.model_copy(update={"out": config.out, "reference": None}) == config
    assert read_environment(first)["data"] == read_environment(second)["data"]
    assert (second / CONFIG).read_text() == (first / CONFIG).read_text().replace("first", "second")


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_fills_what_is_not_given(name: str) -> None:
    chosen = UnlearnConfig.read(**REQUIRED, preset=name)
    assert chosen.objective.text == PRESETS[name]["objective"]
    assert chosen.learning_rate == (1e-4 if name.endswith("UNDIAL") else 1e-5)
    assert chosen.batch_size * chosen.grad_accum_steps == 32
    other = UnlearnConfig.read(**REQUIRED, preset=name.upper(), objective="ga", batch_size=2)
    assert (other.objective.text, other.batch_size, other.grad_accum_steps) == ("ga", 2, 4)
    assert other.replace(batch_size=3).objective.text == "ga"


def test_what_a_file_gives_a_preset_leaves(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("preset: open_unlearning:NPO\nlearning_rate: 2.0e-5\n", encoding="utf-8")
    chosen = UnlearnConfig.read(tmp_path / "run.yaml", **REQUIRED)
    assert (chosen.objective.text, chosen.learning_rate) == ("npo(beta=0.1) + gd", 2e-5)


@pytest.mark.parametrize("name", ["open_unlearning:NPOO", "NPO", ""])
def test_an_unknown_preset_is_refused(name: str) -> None:
    with pytest.raises(GeffectError, match=f"'{name}' is not a preset. [^\n]*open_unlearning:NPO"):
        UnlearnConfig.read(**REQUIRED, preset=name)


def test_a_run_with_a_preset_reads_back_and_resumes(start: Path, tmp_path: Path) -> None:
    chosen = config(start, tmp_path / "run", preset="open_unlearning:PDU", batch_size=2, grad_accum_steps=2, steps=2)
    run = api.unlearn(chosen).path
    again = UnlearnConfig.read(run / CONFIG)
    assert (again.preset, again.objective.text) == ("open_unlearning:PDU", chosen.objective.text)
    assert read_lines(run)[0]["multiplier_2"] == 100


def test_a_replay_from_another_start_is_refused(start: Path, tmp_path: Path) -> None:
    config = UnlearnConfig.read(
        **(REQUIRED | {"model": str(start), "retain": "builtin:authors/retain"}),
        reference={"path": "elsewhere", "sha256": "0" * 64},
    )
    with pytest.raises(GeffectError, match=r"The configuration records a start with weights 000000000000"):
        api.unlearn(config.replace(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("schema", [UnlearnConfig, FinetuneConfig, PreviewConfig])
def test_every_field_says_what_it_is(schema: type[Schema]) -> None:
    assert [name for name, field in schema.model_fields.items() if not field.description] == []


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        UnlearnConfig.read(**REQUIRED).steps = 3


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("steps", 0, "--steps is 0. It should be greater than or equal to 1"),
        ("steps", 1.5, "--steps is .*. It should be a valid integer"),
        ("batch_size", "x", "--batch-size is .*. It should be a valid integer"),
        ("batch_size", -1, "--batch-size"),
        ("learning_rate", float("nan"), "--learning-rate is nan. It should be a finite number"),
        ("learning_rate", float("inf"), "--learning-rate is inf. It should be a finite number"),
        ("learning_rate", -1e-5, "--learning-rate"),
        ("weight_decay", float("inf"), "--weight-decay"),
        ("max_grad_norm", -1, "--max-grad-norm"),
        ("max_length", 1, "--max-length"),
        ("lora", -1, "--lora"),
        ("lora", True, "--lora is True. It should be a number or text"),
        ("seed", -1, "--seed"),
        ("seed", 2**32, "--seed is .*. It should be less than 4294967296"),
        ("dtype", "int8", "--dtype is 'int8'. It should be 'float32', 'bfloat16' or 'float64'"),
        ("optimizer", "adamm", "--optimizer is 'adamm'. Did you mean .*It should be one of adamw_torch, .*"),
        ("schedule", "cosinus", "--schedule is 'cosinus'. Did you mean .*It should be one of linear, .*"),
        ("forget", "", "--forget is .*. It should have at least 1 character"),
        ("retain", "", "--retain"),
        ("heldout", "", "--heldout"),
        ("model", "", "--model"),
        ("model", None, "--model is .*. It should be a valid string"),
        ("report_to", {"wandb": 1}, "--report-to is .*. It should be a valid list"),
        ("report_to", [1], "--report-to"),
        ("reference", {"sha256": 1}, "--reference"),
    ],
)
def test_a_value_out_of_range_names_its_flag_in_one_line(key: str, value: object, says: str) -> None:
    with pytest.raises(GeffectError, match=rf"^{says}[^\n]*$"):
        UnlearnConfig.read(**(REQUIRED | {key: value}))


@pytest.mark.parametrize("key", REQUIRED)
def test_a_required_value_is_asked_for(key: str) -> None:
    with pytest.raises(GeffectError, match=f"^--{key} has no value. Add it as a flag or to the"):
        UnlearnConfig.read(**{name: value for name, value in REQUIRED.items() if name != key})


def test_fitting_asks_for_a_set() -> None:
    with pytest.raises(GeffectError, match=r"--train is .*. It should have at least 1 item"):
        FinetuneConfig.read(model="builtin:tiny", out="x", train=[])


def test_an_unknown_key_is_named_beside_the_known(tmp_path: Path) -> None:
    file = written(tmp_path / "run.yaml", REQUIRED | {"learning_rte": 1e-5})
    with pytest.raises(GeffectError, match=r"no key 'learning_rte'. Did you mean learning_rate.$"):
        UnlearnConfig.read(file)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"- a\n- b\n",
        b"only text",
        b"1: 2\n",
        b"a: [1",
        b"a: b: c\n",
        b"\tx: 1\n",
        b"\xff\xfe\x00",
        b"out: 2023-13-45\n",
        b"steps: !!int many\n",
        b"a: !!python/object/apply:os.getcwd []\n",
        b"[" * 5000,
        b"x: \x07\n",
    ],
)
def test_what_is_no_mapping_of_names_is_refused_in_one_line(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(text)
    with pytest.raises(
        GeffectError, match=r"^\S+run.yaml (is no readable YAML file: |holds no names with values but )[^\n]*$"
    ):
        UnlearnConfig.read(tmp_path / "run.yaml", **REQUIRED)


def test_a_file_that_is_absent_or_a_directory_is_refused(tmp_path: Path) -> None:
    for file in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(GeffectError, match="is no readable YAML file"):
            UnlearnConfig.read(file, **REQUIRED)


def test_what_was_found_is_shown_up_to_a_length() -> None:
    with pytest.raises(GeffectError, match=r"^--out is 9{400}… \(5000 characters\). It should be a path.$"):
        UnlearnConfig.read(model="m", forget="f", retain="r", out=_Wide())


class _Wide:
    """Something whose text is too long for a terminal."""

    def __repr__(self) -> str:
        return "9" * 5000


@pytest.mark.parametrize("key", ["batch_size", "grad_accum_steps", "steps", "warmup_steps", "lora", "prediction"])
def test_a_count_beyond_all_measure_is_refused(key: str) -> None:
    flag = "--" + key.replace("_", "-")
    with pytest.raises(
        GeffectError, match=rf"{flag} is 10.*… \(401 characters\). It should be less than or equal to 1000000000"
    ):
        UnlearnConfig.read(model="m", forget="f", retain="r", out="o", **{key: 10**400})
