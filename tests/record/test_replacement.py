"""``--overwrite``: a run is replaced, nothing else is, and nothing is lost before the new run begins."""

import contextlib
import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import geffect
from geffect.cli.main import main
from geffect.config import EvaluateConfig, UnlearnConfig
from geffect.errors import GeffectError
from geffect.record import writer
from geffect.record.replacement import REPLACED, foreign_file, is_run, move_aside, settle
from geffect.record.writer import RunDirectory
from geffect.reports.plots.style import save
from tests.conftest import config


def files_in(path: Path) -> dict[str, bytes]:
    """Every file below a directory, the lock aside."""
    return {
        str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file() and f.name != ".lock"
    }


@pytest.fixture(scope="module")
def made(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of each verb that trains and evaluates, one with a picture."""
    home = tmp_path_factory.mktemp("made")
    settings: dict[str, Any] = {
        "save_every": 1,
        "rectifier": "gru",
        "save_gradients": ["objective"],
        "objective": "npo",
    }
    run = geffect.unlearn(config(start, home / "unlearned", steps=2, evaluate_every=1, **settings))
    save(run.plot("cosine"), run.path / "figures" / "cosine", run.cosine())
    geffect.finetune(model=start, train="builtin:authors/forget[:4]", epochs=1, lora=2, out=home / "adapter")
    geffect.evaluate(model=start, set="forget=builtin:authors/forget[:2]", metric="loss", out=home / "evaluated")
    return home


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of the unlearned run."""
    return Path(shutil.copytree(made / "unlearned", tmp_path / "run"))


def test_all_that_the_verbs_write_is_known(made: Path) -> None:
    folders = sorted(path for path in made.iterdir() if path.is_dir())
    assert len(folders) == 3
    assert [(path.name, is_run(path), foreign_file(path)) for path in folders] == [
        (p.name, True, None) for p in folders
    ]


def test_what_localize_inspect_and_report_write_is_known(run: Path) -> None:
    for name in ("localization.json", "masks/share-0.1.safetensors", "tokens.jsonl", "points.jsonl", "report.html"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).touch()
    assert foreign_file(run) is None


@pytest.mark.parametrize(
    "name",
    ["notes.txt", "figures/mine.png", "checkpoints/checkpoint-1/notes.md", "inner/config.yaml", "README.md", "a.py"],
)
def test_a_foreign_file_is_named_and_nothing_is_touched(name: str, run: Path, start: Path) -> None:
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text("mine", encoding="utf-8")
    before = files_in(run)
    with pytest.raises(GeffectError, match=f"--overwrite removes runs alone, and .*{name} is no file"):
        geffect.unlearn(config(start, run, overwrite=True))
    assert files_in(run) == before


def test_what_is_no_run_and_what_lies_behind_a_link_stay(tmp_path: Path, run: Path, start: Path) -> None:
    (tmp_path / "link").symlink_to(run)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "config.yaml").write_text("steps: 3\n", encoding="utf-8")
    for name in ("link", "notes"):
        with pytest.raises(GeffectError, match="exists already"):
            geffect.unlearn(config(start, tmp_path / name, overwrite=True))
    assert is_run(run)


def test_a_run_is_replaced(run: Path, start: Path, tmp_path: Path) -> None:
    plain = geffect.unlearn(config(start, tmp_path / "plain", steps=1))
    again = geffect.unlearn(config(start, run, steps=1, overwrite=True))
    assert set(files_in(again.path)) == set(files_in(plain.path))
    assert "overwrite" not in yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    with pytest.raises(GeffectError, match="--overwrite replaces it"):
        geffect.unlearn(config(start, run, steps=1))


def test_an_error_before_the_first_line_puts_the_run_back(
    run: Path, start: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_in(run)

    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("geffect.training.unlearn.UnlearnTrainer.finish_line", fails)
    changes = {"save_gradients": ["objective"], "overwrite": True}
    with pytest.raises(KeyboardInterrupt):
        geffect.unlearn(config(start, run, steps=1, **changes))
    assert files_in(run) == before


class Killed(BaseException):
    """A kill."""


def test_a_kill_at_any_time_loses_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After every rename, removal and write of the replacement, killed there: the old run, or the new one, is whole."""
    before, steps, ended = files_in(run), 0, False
    while not ended:
        steps += 1
        place = run.with_name(f"killed-{steps}")
        shutil.copytree(run, place)
        ended = _replace_until(place, steps, monkeypatch)
        assert is_run(place) or (place / "config.yaml").exists()
        with RunDirectory(place, overwrite=True):  # which moves the run aside, and puts it back
            pass
        kept = files_in(place)
        new = b"new: 1" in kept["config.yaml"]
        assert (set(kept) <= {"config.yaml", "environment.json"}) if new else kept == before, steps
        shutil.rmtree(place)
    assert steps > 10
    assert new


def _replace_until(place: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Replace a run, and die before a number of changes to the disk; whether it came to its end."""
    left = [steps]

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def do(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] <= 0:
                raise Killed
            return change(*args, **kwargs)

        return do

    with monkeypatch.context() as patch:
        for name in ("rename", "unlink", "rmdir", "mkdir", "touch"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        patch.setattr(shutil, "rmtree", counted(shutil.rmtree))
        patch.setattr(writer, "rename", counted(writer.rename))
        try:
            move_aside(place)
            directory = RunDirectory.__new__(RunDirectory)
            directory.path = place
            directory.create({"new": 1}, {})
        except Killed:
            return False
    return True


def test_a_second_kill_while_it_is_put_back_loses_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files_in(run)
    move_aside(run)
    (run / "environment.json").write_text("{", encoding="utf-8")
    rename = Path.rename
    for allowed in range(3):
        done: list[int] = []

        def some(self: Path, target: Path, allowed: int = allowed, done: list[int] = done) -> Path:
            done.append(1)
            if len(done) > allowed:
                raise Killed
            return rename(self, target)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Path, "rename", some)
            settle(run)
        assert is_run(run)
    settle(run)
    assert files_in(run) == before
    assert not (run / REPLACED).exists()


def test_what_is_read_is_not_overwritten(run: Path, start: Path) -> None:
    with pytest.raises(GeffectError, match=r"--overwrite would remove .*, which --model names"):
        config(start, run, overwrite=True, model=str(run))
    with pytest.raises(GeffectError, match="which --set names"):
        EvaluateConfig(model="m", set=f"forget={run}/steps.jsonl[:3]", metric="loss", out=run, overwrite=True)
    with pytest.raises(GeffectError, match=r"asks to overwrite a run .overwrite: True., which a file alone may not"):
        UnlearnConfig.combine({"overwrite": True}, {"forget": "f", "retain": "r", "model": "m", "out": "o"}, "a.yaml")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """True."""
        return True


@pytest.mark.parametrize(
    ("flags", "answer", "says", "replaced"),
    [
        (("--yes",), "", "", True),
        ((), None, "there is no terminal to ask on. Add --yes", False),
        ((), "y", "removes", True),
        ((), "n", "nothing was removed", False),
        (("--dry-run",), None, "", False),
        (("--resume",), "y", "Leave one of them out", False),
    ],
)
def test_the_command_asks(
    flags: tuple[str, ...],
    answer: str | None,
    says: str,
    replaced: bool,
    run: Path,
    start: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "own.yaml"
    settings = config(start, tmp_path / "other", steps=1).model_dump(mode="json", exclude_unset=True)
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    stream = Terminal if answer is not None else io.StringIO
    monkeypatch.setattr(sys, "stdin", stream(f"{answer}\n"))
    monkeypatch.setattr(sys, "argv", ["geffect", "unlearn", str(file), "--out", str(run), "--overwrite", *flags])
    before, err = files_in(run), stream()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()), pytest.raises(SystemExit) as ended:
        main()
    assert says in " ".join(err.getvalue().split())
    assert (files_in(run) != before) == replaced
    assert (ended.value.code == 0) == (replaced or flags == ("--dry-run",))
