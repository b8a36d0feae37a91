"""Whatever is given, a command ends in one sentence or does what was asked: never in a traceback, never in silence."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from geffect import api
from geffect.config import EvaluateConfig, FinetuneConfig, ReportConfig, UnlearnConfig
from geffect.data.load import load_set
from geffect.data.sources import read_rows
from geffect.errors import GeffectError
from geffect.evaluation.results import read_evaluation
from geffect.io.readers import YAML_NODES, Unreadable, parse_json, parse_yaml, read_text, text_lines
from geffect.io.system import check_memory, free_memory, total_memory
from geffect.models.checkpoints import checkpoint_step, checkpoints_below
from geffect.record.reader import read_lines
from geffect.reports.compare import summarize
from tests.conftest import Command
from tests.support.fuzz import World
from tests.support.hostile import BOMB, CASES, ENDS, MERGES, QA, ROW, TEXTS, Case, ended

pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
QUICK = [each for i, each in enumerate(CASES) if each.kind != "rundirs" or i % 9 == 0]
OTHERS = [each for each in CASES if each not in QUICK]
SETS: dict[str, Any] = {"forget": "builtin:authors/forget[:4]", "retain": "builtin:authors/retain[:4]"}
DIVERGES: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 1e38, "steps": 1, "batch_size": 2}


@pytest.mark.parametrize("each", QUICK, ids=str)
def test_hostile_input_ends_well(each: Case, world: World, tmp_path: Path) -> None:
    outcome, said = ended(world, each, tmp_path)
    assert outcome in ENDS[each.expected], said


@pytest.mark.exhaustive
def test_every_other_hostile_input_ends_well(world: World, tmp_path: Path) -> None:
    wrong = {}
    for i, each in enumerate(OTHERS):
        (tmp_path / str(i)).mkdir()
        outcome, said = ended(world, each, tmp_path / str(i))
        shutil.rmtree(tmp_path / str(i))
        if outcome not in ENDS[each.expected]:
            wrong[str(each)] = outcome, said[-500:]
    assert not wrong


# readers


@pytest.mark.parametrize("text", [BOMB + "x: *i", MERGES], ids=["list", "merge"])
def test_a_yaml_bomb_is_counted_and_never_expanded(text: str) -> None:
    began = time.process_time()
    with pytest.raises(Unreadable, match=f"more than {YAML_NODES} values"):
        parse_yaml(text)
    assert time.process_time() - began < 5


def test_aliases_within_bounds_are_read() -> None:
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: [*a, *a]}") == {"a": {"x": 1}, "b": {"x": 1, "y": [{"x": 1}] * 2}}


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "[" * 10**5, "9" * 5000, "", "{", b"\xff", '{"a": 1}{'])
def test_what_is_no_json_within_bounds_has_a_reason_of_one_line(text: str | bytes) -> None:
    with pytest.raises(Unreadable) as raised:
        parse_json(text)
    assert "\n" not in str(raised.value)


def test_lines_end_as_files_end_them_and_at_no_other_character(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf" + f"{TEXTS}\r\n{TEXTS}\r{TEXTS}\n{TEXTS}".encode())
    assert list(text_lines(tmp_path / "a")) == [f"{TEXTS}\n"] * 3 + [TEXTS]
    assert read_text(tmp_path / "a") == f"{TEXTS}\n{TEXTS}\n{TEXTS}\n{TEXTS}"


def test_a_slice_reads_the_lines_it_needs(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f"{ROW}\n{ROW}\nno json\n", encoding="utf-8")
    assert len(load_set(f"{tmp_path / 'a.jsonl'}[:2]")) == 2
    with pytest.raises(GeffectError, match="line 3"):
        load_set(str(tmp_path / "a.jsonl"))


def test_a_slice_reads_the_row_groups_it_needs(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    rows = [QA | {"answer": f"{i} " * 50} for i in range(1000)]
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=250)
    second = pq.ParquetFile(file).metadata.row_group(1).column(0)
    content = bytearray(file.read_bytes())
    content[second.dictionary_page_offset : second.dictionary_page_offset + 40] = b"\xff" * 40
    file.write_bytes(content)
    assert [row["answer"] for row in load_set(f"{file}[:3]").examples] == [row["answer"] for row in rows[:3]]
    with pytest.raises(GeffectError, match=r"The \.parquet file at .* cannot be read"):
        load_set(str(file))


def test_other_columns_of_a_parquet_file_are_kept_as_json_writes_them(tmp_path: Path) -> None:
    import datetime
    import decimal

    more = {
        "list": [1, 2],
        "struct": {"a": [None]},
        "time": datetime.datetime(2026, 1, 2, 3, 4, 5),
        "none": None,
        "day": datetime.date(2026, 1, 2),
        "decimal": decimal.Decimal("1.50"),
        "large": 2**60,
    }
    pq.write_table(pa.Table.from_pylist([QA | more]), tmp_path / "a.parquet")
    (row,) = read_rows(tmp_path / "a.parquet")
    assert row == QA | {
        "list": [1, 2],
        "struct": {"a": [None]},
        "time": "2026-01-02T03:04:05",
        "none": None,
        "day": "2026-01-02",
        "decimal": "1.50",
        "large": 2**60,
    }
    assert json.loads(json.dumps(row)) == row


def test_more_memory_than_there_is_is_refused_before_it_is_taken() -> None:
    assert 0 < free_memory() <= total_memory()
    check_memory("a", free_memory() / 2, "b")
    with pytest.raises(GeffectError, match=r"^About .* GB of memory are needed for a; .* GB are available\. b\.$"):
        check_memory("a", 2.0 * total_memory(), "b")


# checkpoints


@pytest.mark.parametrize("name", ["checkpoint-²", "checkpoint-٣", "checkpoint-", "checkpoint-1x", "checkpoint--1"])
def test_another_name_is_no_checkpoint(name: str) -> None:
    assert checkpoint_step(Path(name)) is None


def test_two_checkpoints_of_one_step_are_refused(tmp_path: Path) -> None:
    for name in ("checkpoint-4", "checkpoint-04"):
        (tmp_path / name).mkdir()
    with pytest.raises(GeffectError, match=r"Two checkpoints in .* are of step 4"):
        checkpoints_below(tmp_path)


# runs that diverge


@pytest.mark.parametrize(
    "more",
    [{}, {"prediction": 2, "overlap": 0.1}, {"objective": "npo", "rectifier": "gru"}, {"stop": "accuracy(share=0.5)"}],
)
def test_a_run_that_diverges_on_its_last_step_says_so_and_keeps_its_record(
    more: dict[str, Any], start: Path, tmp_path: Path
) -> None:
    config = UnlearnConfig.read(model=str(start), out=tmp_path / "run", **SETS, **DIVERGES, **more)
    with pytest.raises(GeffectError, match=r"not finite at the end: no finite loss of forget, retain after step 0"):
        api.unlearn(config)
    metrics = json.loads((config.out / "metrics.json").read_text())
    assert metrics["diverged"] == "no finite loss of forget, retain"
    assert metrics["end"]["forget"]["loss"] is None
    assert [line.get("diverged", "") for line in read_lines(config.out)] == ["", metrics["diverged"]]
    assert (config.out / "DONE").exists()
    assert api.report(ReportConfig.read(runs=[config.out])).path.exists()
    assert len(summarize([config.out])) == 1


def test_weights_that_are_not_finite_count_where_no_loss_shows_them(start: Path, tmp_path: Path) -> None:
    import torch

    from geffect.training.trainer import _divergence

    model = api.load_model(str(start)).model
    assert not _divergence(model)
    with torch.no_grad():
        next(model.parameters())[0, 0] = float("inf")
    assert _divergence(model) == "1 parameters with values that are not finite"


def test_a_fit_that_diverges_leaves_no_model(start: Path, tmp_path: Path) -> None:
    config = FinetuneConfig.read(model=str(start), train=[SETS["forget"]], out=tmp_path / "fit", **DIVERGES)
    with pytest.raises(GeffectError, match="not finite at the end"):
        api.finetune(config)
    assert {each.name for each in config.out.iterdir()} == {
        "config.yaml",
        "environment.json",
        "steps.jsonl",
        "metrics.json",
        "DONE",
    }


# what is shown


def test_names_are_shown_as_they_are(world: World, tmp_path: Path, invoke: Command) -> None:
    names = ["[red]a[/red]", "[/]", ":smile:"]
    for name in names:
        shutil.copytree(world.folder / "run", tmp_path / name.replace("/", "\u2215"))
    shown = invoke("compare", *(tmp_path / name.replace("/", "\u2215") for name in names))
    assert shown.code in (0, 2)
    rows = [{"question": "[red]Q?[/]", "answer": "[/] :smile: A."}]
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    batch = invoke("preview", "--model", world.folder / "start", "--data", tmp_path / "a.json")
    assert batch.code == 0
    assert ":smile:" in batch.out.replace("[", "").replace("]", "")
    out = tmp_path / "[bold]ev[" / "[-]"
    scored = invoke(
        "evaluate",
        "--model",
        world.folder / "start",
        "--metric",
        "probability",
        "--set",
        f"[b]forget={tmp_path / 'a.json'}",
        "--out",
        out,
    )
    assert scored.code == 0, scored.err
    assert "[b]forget" in scored.out
    assert "[bold]ev[" in scored.out


def test_dollars_in_a_name_make_no_formula(world: World) -> None:
    from geffect.core.effects import cosines
    from geffect.record.frames import read, read_prediction, read_steps
    from geffect.reports import plots
    from geffect.reports.compare import descended, whole_overlaps
    from geffect.reports.plots.heat_maps import overlap_matrix

    run = world.folder / "run"
    gram, steps = read(run), read_steps(run).dropna(subset=["forget_loss"])
    for name in (r"a$\frac$b", "_$x_$", "$"):
        plots.g_effect_curves(descended(gram).assign(run=name))
        plots.cosine_curves(cosines(gram).assign(run=name))
        plots.trade_off(steps.assign(run=name))
        plots.prediction_plane(read_prediction(run).assign(run=name))
        plots.g_effect_plane(gram[gram["step"] == 0].assign(run=name))
    overlaps = whole_overlaps(world.folder / "localized").replace({"forget/a": r"forget/$\frac$"})
    figure = overlap_matrix(overlaps, 0.1)
    assert any(r"\$\frac\$" in each.get_text() for each in figure.axes[0].get_yticklabels())


def test_texts_with_line_ends_of_every_script_come_back(start: Path, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"question": TEXTS, "answer": TEXTS}]), encoding="utf-8")
    config = EvaluateConfig.read(
        model=str(start),
        metric=["rouge_l_recall"],
        set=[f"forget={tmp_path / 'a.json'}"],
        max_new_tokens=2,
        out=tmp_path / "ev",
    )
    api.evaluate(config)
    (line,) = (config.out / "texts.jsonl").read_bytes().decode().split("\n")[:-1]
    assert json.loads(line)["question"] == TEXTS
    assert len(read_evaluation(config.out)) == 1


# standard output


def _cite(**streams: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "geffect", "cite"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, **streams)


def test_a_closed_pipe_ends_it_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = _cite(stdout=writer)
    os.close(writer)
    assert process.communicate()[1] == b""
    assert process.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_below_the_output_is_one_sentence() -> None:
    with Path("/dev/full").open("wb") as full:
        process = _cite(stdout=full)
        said = process.communicate()[1].decode()
    assert (process.returncode, said.count("\n")) == (2, 1)
    assert said.startswith("geffect: The output cannot be written: ")


def test_an_output_that_lacks_a_character_gets_its_escape(world: World, tmp_path: Path) -> None:
    runs = [shutil.copytree(world.folder / "run", tmp_path / name) for name in ("é漢", "other")]
    command = [sys.executable, "-m", "geffect", "compare", *map(str, runs)]
    found = subprocess.run(command, capture_output=True, check=False, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert found.returncode == 0, found.stderr
    assert rb"\xe9\u6f22" in found.stdout
