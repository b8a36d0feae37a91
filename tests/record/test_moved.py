"""A run that was moved, and a run in another format."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import geffect
from geffect import api
from geffect.config import EvaluateConfig, FinetuneConfig, InspectConfig, LocalizeConfig, ReportConfig, UnlearnConfig
from geffect.errors import GeffectError
from geffect.localization.storage import read_localization
from geffect.models.builtin import make_tiny
from geffect.models.load import load
from geffect.record.frames import read
from geffect.record.reader import read_environment, read_lines
from geffect.record.schema import CONFIG, DONE, ENVIRONMENT, FORMAT
from geffect.record.writer import RunDirectory
from tests.conftest import SHAPE, Command, config


@pytest.fixture
def project(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of its own with a model and a run that was stopped after its first checkpoint; paths are relative."""
    place = tmp_path / "project"
    shutil.copytree(start, place / "model")
    monkeypatch.chdir(place)
    chosen = config(Path("model"), Path("run"), steps=3, save_every=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        _stop_at_line(3, patch)
        api.unlearn(chosen)
    api.unlearn(chosen.model_copy(update={"out": Path("whole")}))
    return place


def _stop_at_line(number: int, patch: pytest.MonkeyPatch) -> None:
    append, written = RunDirectory.append, {"n": 0}

    def counting(self: RunDirectory, *given: Any) -> None:
        append(self, *given)
        written["n"] += 1
        if written["n"] == number:
            raise KeyboardInterrupt

    patch.setattr(RunDirectory, "append", counting)


def _same(run: Path, other: Path) -> bool:
    lines = [[{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(each)] for each in (run, other)]
    weights = [(each / "checkpoints/checkpoint-3/model.safetensors").read_bytes() for each in (run, other)]
    return (run / DONE).exists() and lines[0] == lines[1] and weights[0] == weights[1]


def test_a_moved_run_is_resumed_where_it_lies_from_anywhere(
    project: Path, tmp_path: Path, invoke: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    moved = (project / "run").rename(tmp_path / "elsewhere" / "moved")
    monkeypatch.chdir(tmp_path / "elsewhere")  # where the model's relative path leads nowhere
    ended = invoke("unlearn", "moved/config.yaml", "--resume")
    assert ended.code in (0, None), ended.err
    assert _same(moved, project / "whole")
    assert not (project / "run").exists()


def test_a_model_that_was_moved_is_named_where_it_lies(project: Path, invoke: Command) -> None:
    (project / "model").rename(project / "other")
    assert invoke("unlearn", "run/config.yaml", "--resume").code == 2
    ended = invoke("unlearn", "run/config.yaml", "--resume", "--model", "other")
    assert ended.code in (0, None), ended.err
    assert _same(project / "run", project / "whole")


def test_another_models_weights_are_refused_at_a_resume(project: Path, known: Path, invoke: Command) -> None:
    lines = read_lines(project / "run")
    ended = invoke("unlearn", "run/config.yaml", "--resume", "--model", known)
    assert ended.code == 2 and "The configuration records a start with weights " in ended.err
    assert read_lines(project / "run") == lines


def test_another_start_of_a_fit_is_refused_at_a_resume(start: Path, tmp_path: Path) -> None:
    shutil.copytree(start, tmp_path / "model")
    chosen = FinetuneConfig.read(
        model=str(tmp_path / "model"),
        train=["builtin:authors/forget[:4]"],
        out=tmp_path / "fit",
        epochs=2,
        save_every=1,
    )
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        _stop_at_line(1, patch)
        api.finetune(chosen)
    other, _ = make_tiny(7, **SHAPE)
    other.save_pretrained(tmp_path / "model")
    with pytest.raises(GeffectError, match=r"fit began with weights .*; those in .*model are .*\. Restore them"):
        api.finetune(chosen, resume=True)


def test_a_moved_run_is_inspected_and_reported(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = (project / "whole").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    (record,) = api.inspect(InspectConfig.read(None, checkpoints=["moved"], out=tmp_path / "seen"))
    assert [line["step"] for line in read_lines(record.path)] == [0, 1, 2, 3]  # step 0 is the start, found by its path
    assert api.report(ReportConfig.read(None, runs=[moved])).path == moved / "report.html"


def test_an_adapter_names_its_base_beside_itself(start: Path, tmp_path: Path) -> None:
    shutil.copytree(start, tmp_path / "base")
    fitted = api.finetune(
        FinetuneConfig.read(
            model=str(tmp_path / "base"),
            train=["builtin:authors/forget[:2]"],
            steps=1,
            lora=2,
            out=tmp_path / "adapter",
        )
    ).path
    whole, file = tmp_path.rename(tmp_path.with_name("moved")), "adapter_config.json"
    with pytest.raises(GeffectError, match=r"The base of the adapter in .* is not at .* Move it back, or correct"):
        load(str(whole / fitted.name))
    content = json.loads((whole / fitted.name / file).read_text())
    (whole / fitted.name / file).write_text(json.dumps(content | {"base_model_name_or_path": "../base"}))
    assert load(str(whole / fitted.name)).sha256


@pytest.mark.parametrize("written", [None, FORMAT + 1, str(FORMAT), True, [1], {}])
def test_a_run_in_another_format_is_refused_in_one_line(
    project: Path, tmp_path: Path, invoke: Command, written: Any
) -> None:
    """Whatever else it holds: here all of it could be read."""
    for run in ("run", "whole"):
        file = project / run / ENVIRONMENT
        content = json.loads(file.read_text())
        assert next(iter(content.items())) == ("format", FORMAT)
        del content["format"]
        file.write_text(json.dumps(content if written is None else {"format": written} | content))
    found = "has no format, as before format 1" if written is None else f"has format {written!r}"
    says = f"geffect: RUN/environment.json {found} (written by geffect "
    before = {each: each.read_bytes() for each in project.rglob("*") if each.is_file()}
    for words in (
        ["report", "whole"],
        ["compare", "whole", "run"],
        ["inspect", "whole", "--out", "seen"],
        ["plot", "whole"],
    ):
        ended = invoke(*words)
        assert (ended.code, ended.err.count("\n")) == (2, 1)
        assert ended.err.startswith(says.replace("RUN", "whole")), words
    ended = invoke("unlearn", "run/config.yaml", "--resume")
    assert ended.code == 2 and ended.err.startswith(says.replace("RUN", "run"))
    for reader in (read, read_environment, read_lines, geffect.Run):
        with pytest.raises(GeffectError, match="this geffect reads format 3"):
            reader(Path("whole"))
    assert before == {each: each.read_bytes() for each in project.rglob("*") if each.is_file()}


def test_an_evaluation_and_a_localization_are_refused_likewise(start: Path, tmp_path: Path) -> None:
    evaluated = api.evaluate(
        EvaluateConfig.read(
            model=str(start), set=["forget=builtin:authors/forget[:2]"], metric=["loss"], out=tmp_path / "evaluated"
        )
    ).path
    localized = api.localize(
        LocalizeConfig.read(
            model=str(start),
            domain=["a=builtin:domains/privacy"],
            share=[0.1],
            labels="true",
            out=tmp_path / "localized",
        )
    ).path
    for path, reader in ((evaluated, geffect.read_evaluation), (localized, read_localization)):
        assert reader(path) is not None
        content = json.loads((path / ENVIRONMENT).read_text())
        (path / ENVIRONMENT).write_text(json.dumps(content | {"format": 0}))
        with pytest.raises(GeffectError, match=r"has format 0 \(written by geffect .*; this geffect reads format 3"):
            reader(path)


def test_its_weights_are_read_in_any_format(project: Path) -> None:
    (project / "whole" / ENVIRONMENT).write_text('{"format": 9}')
    assert load("whole").sha256
    assert UnlearnConfig.read("whole/config.yaml").out == Path("whole")
    assert (project / "whole" / CONFIG).exists()
