"""The command line: what a user gets wrong is one line and exit code 2, and nothing has been written."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import geffect
from geffect.config import EvaluateConfig, FinetuneConfig, LocalizeConfig, PreviewConfig, UnlearnConfig
from geffect.config.schema import Schema, shown_default
from geffect.core.forward import IGNORE_INDEX
from geffect.data.encode import encode_set
from geffect.data.load import load_set
from geffect.models.builtin import make_tokenizer
from tests.conftest import Command, Ended

HEAVY = ("torch", "transformers", "peft", "matplotlib", "seaborn", "pandas", "numpy", "scipy", "tokenizers")
SETS = ("--forget", "builtin:authors/forget[:4]", "--retain", "builtin:authors/retain[:4]")
GOOD = ("--model", "model", *SETS, "--steps", "1", "--out", "out")


def good(*flags: str) -> tuple[str, ...]:
    """A good command's flags, some of them in place of its own: a flag stands once."""
    kept = [(GOOD[i], GOOD[i + 1]) for i in range(0, len(GOOD), 2) if GOOD[i] not in flags]
    return (*(each for pair in kept for each in pair), *flags)


ROW = b'{"question": "Q?", "answer": "A."}\n'


@pytest.fixture
def shell(invoke: Command, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command line, in an empty directory beside a model directory."""
    shutil.copytree(start, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("FORCE_COLOR", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)

    return invoke


@pytest.fixture
def refused(shell: Command, tmp_path: Path) -> Callable[..., None]:
    """Run a command that must be refused in one line that says something, and write nothing."""

    def check(*arguments: str, says: str) -> None:
        before = files(tmp_path)
        ended = shell(*arguments)
        assert (ended.code, ended.out) == (2, "")
        assert re.fullmatch(rf"geffect: .*{says}.*\n", ended.err), ended.err
        assert files(tmp_path) == before

    return check


def files(path: Path) -> dict[Path, bytes | None]:
    """Everything below a directory."""
    return {each: each.read_bytes() if each.is_file() else None for each in path.rglob("*")}


def process(*arguments: str, cwd: Path, **environment: str) -> Ended:
    """The command line in a process of its own."""
    found = subprocess.run(
        [sys.executable, "-m", "geffect", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=cwd,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"} | environment,
    )
    return Ended(found.returncode, found.stdout, found.stderr)


# bad input


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--objective", "gaa"), "'gaa' is not an objective. Did you mean ga"),
        (("--objective", "npo(gamma=1)"), "npo has no parameter 'gamma'. It has beta"),
        (("--objective", "npo(beta=0)"), "beta of npo is 0. It should be greater than 0"),
        (("--objective", "npo(beta=0.1"), r"'npo\(beta=0.1' is no sum of names with parameters, such as"),
        (("--objective", "ga - gd"), "'ga - gd' is no sum of names with parameters, such as"),
        (("--objective", "1e999*ga"), "'1e999\\*ga' is no sum of names with parameters"),
        (("--objective", "gd"), "'gd' has no term on the forget set"),
        (("--rectifier", "grv"), "'grv' is not a rectifier. Did you mean gru"),
        (("--rectifier", "gru(decay=1)"), "decay of gru is 1. It should be less than 1"),
        (("--rectifier", "hamu(gain=1.5)"), "gain of hamu is 1.5. It should be less than or equal to 1"),
        (("--rectifier", "gem(memory=0)"), "memory of gem is 0. It should be greater than or equal to 1"),
        (("--rectifier", "2*gru"), "'2\\*gru' is more than one rectifier .* or has weights"),
        (("--forget", "builtin:autors/forget"), "There is no built-in set .*Name one of builtin:authors/forget, .*"),
        (("--forget", "builtin:authors/forget[9:3]"), "selects none of 40 rows"),
        (("--forget", "forget01"), "There is no set 'forget01'.* builtin:authors/forget, tofu:forget01, knowundo:"),
        (("--forget", ""), "--forget is .*. It should have at least 1 character"),
        (("--retain", "absent.json"), "There is no file at absent.json"),
        (
            ("--heldout", "tofu:forget01"),
            "tofu:forget01 needs --data-dir, a directory with tofu/forget01.json below it",
        ),
        (
            ("--heldout", "tofu:forget01", "--data-dir", "."),
            "There is no set tofu:forget01 among those in tofu: no .json file",
        ),
        (("--model", "builtin:tinny"), "There is no model 'builtin:tinny'"),
        (("--model", "./absent"), "There is no model './absent'"),
        (("--model", "gguf:absent.gguf"), "There is no GGUF file at absent.gguf"),
        (("--out", "model"), "--out model exists already"),
        (("--out", "model/config.json"), "--out model/config.json exists already"),
        (("--out", "model/config.json/run"), "--out model/config.json/run cannot be made"),
        (("--steps", "0"), "--steps is 0. It should be greater than or equal to 1"),
        (("--learning-rate", "nan"), "--learning-rate is nan. It should be a finite number"),
        (("--dtype", "int8"), "--dtype is 'int8'. It should be 'float32', 'bfloat16' or 'float64'"),
        (("--optimizer", "adamm"), "--optimizer is 'adamm'. Did you mean .*It should be one of adamw_torch, .*"),
        (("--schedule", "cosinus"), "--schedule is 'cosinus'. Did you mean cosine. It should be one of linear, .*"),
        (("--max-length", "4"), "Example 0 of builtin:authors/forget.* has no token to learn within 4"),
    ],
)
def test_a_bad_flag_is_refused(flags: tuple[str, ...], says: str, refused: Callable[..., None]) -> None:
    refused("unlearn", *good(*flags), says=says)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("rows.json", b"", "The file at rows.json has no rows"),
        ("rows.jsonl", b"\n", "The file at rows.jsonl has no rows"),
        ("rows.csv", b"", "The .csv file at rows.csv cannot be read"),
        ("rows.csv", b"question,answer\n", "The file at rows.csv has no rows"),
        ("rows.json", ROW + ROW[:9], "rows.json has no JSON object in line 2"),
        ("rows.json", b"[" + ROW + b"," + ROW[:9], "The .json file at rows.json cannot be read: .*line 2"),
        ("rows.json", b'{"q": "Q?", "a": "A."}', "Row 0 of rows.json has no column 'question', only q, a"),
        ("rows.csv", b"q,a\nQ?,A.\n", "Row 0 of rows.csv has no column 'question', only q, a"),
        (
            "rows.json",
            ROW + b'{"question": "Q?", "answer": " "}',
            "The answer in row 1 of .* is blank or not text: ' '",
        ),
        ("rows.csv", b"question,answer\nQ?,\n", "The answer in row 0 of rows.csv is blank or not text: ''"),
        (
            "rows.csv",
            b"question,answer\nQ?,A., B.\n",
            "The .csv file at rows.csv cannot be read: rows with more fields",
        ),
        ("rows.csv", b"question,answer\ncaf\xe9?,A.\n", "The .csv file at rows.csv cannot be read: 'utf-8' codec"),
        ("rows.json", b'{"question": "caf\xe9?"}', "The .json file at rows.json cannot be read: 'utf-8' codec"),
        ("rows.json", b'{"question": "\\ud800", "answer": "A."}', r"The question in row 0 .* not text: '\\ud800'"),
        ("rows.parquet", b"garbage", "The .parquet file at rows.parquet cannot be read"),
        ("rows.md", ROW, "There is no set 'rows.md'"),
    ],
)
def test_a_bad_data_file_is_refused(
    name: str, content: bytes, says: str, refused: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    refused("unlearn", *good("--forget", name), says=says)


def test_an_unknown_tofu_set_is_refused_and_the_known_are_listed(refused: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "tofu").mkdir()
    for name in ("forget01", "retain99"):
        (tmp_path / "tofu" / f"{name}.json").write_bytes(ROW)
    refused(
        "unlearn",
        *good("--data-dir", ".", "--forget", "tofu:forget02"),
        says="There is no set tofu:forget02 among those in tofu: forget01, retain99",
    )


@pytest.mark.parametrize("content", ["garbage", "[1]", "null", "{}", '{"model_type": "llama", "hidden_size": "wide"}'])
def test_a_model_with_a_garbled_config_is_refused(content: str, refused: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "model" / "config.json").write_text(content, encoding="utf-8")
    refused("unlearn", *GOOD, says="The model at model cannot be read")


def test_a_model_directory_without_a_model_is_refused(refused: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused("unlearn", *good("--model", "empty"), says="config.json, adapter_config.json or checkpoint in empty")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"stepz: 3\n", r"no key 'stepz'. Did you mean steps\?"),
        (b"- steps\n", "run.yaml holds no names with values but a list"),
        (b"", "run.yaml holds no names with values but a NoneType"),
        (b"steps: [", "run.yaml is no readable YAML file"),
        (b"out: 2023-13-45\n", "run.yaml is no readable YAML file: month must be in 1..12"),
        (b"\xff\xfe", "run.yaml is no readable YAML file: 'utf-8' codec"),
        (b"lora: true\n", "--lora is True. It should be a number or text"),
        (b"batch_size: x\n", "--batch-size is .*. It should be a valid integer"),
    ],
)
def test_a_bad_yaml_file_is_refused(content: bytes, says: str, refused: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(content)
    refused("unlearn", "run.yaml", *GOOD, says=says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("unlearn", *GOOD[:-2]), "--out has no value"),
        (("unlearn", *GOOD[2:]), "--model has no value"),
        (("unlearn", "absent.yaml"), "absent.yaml is no readable YAML file"),
        (("finetune", "--model", "model", "--out", "out"), "--train has no value"),
        (("finetune", "--model", "model", "--out", "out", "--train", "builtin:x"), "There is no built-in set"),
        (("finetune", "--model", "model", "--out", "model", "--train", "builtin:authors/heldout"), "exists already"),
        (("preview", "--model", "model"), "--set has no value"),
        (("preview", "--model", "model", "--data", "builtin:authors/heldout", "--limit", "0"), "--limit"),
        (("preview", "--model", "model", "--data", "builtin:authors/hold"), "There is no built-in set"),
        (("demo", "--out", "model"), "--out model exists already"),
        (("plot", "model"), "There is no run in model, which has no environment.json"),
        (("plot", "absent", "model"), "There is no directory absent"),
        (("report",), "runs has no value. Add it after the verb"),
        (("report", "model"), "There is no run in model, which has no environment.json"),
        (("report", "absent", "--out", "absent/page.html"), "There is no directory absent"),
        (("report", "absent", "model"), "There is no page to write for 2 runs"),
        (("report", "absent", "--scheme", "halves"), "--scheme"),
        (("cite", "adam"), "no reference for 'adam'. Choose one of geffect, g-effect, gru, "),
    ],
)
def test_a_bad_command_is_refused(arguments: tuple[str, ...], says: str, refused: Callable[..., None]) -> None:
    refused(*arguments, says=says)


@pytest.mark.parametrize(
    "arguments",
    [
        ("unlern",),
        ("unlearn", "--no-such-flag"),
        ("unlearn", *GOOD, "--batch-size", "x"),
        ("plot",),
        ("unlearn", "a.yaml", "b.yaml"),
        ("unlearn", "--out"),
    ],
)
def test_a_usage_error_exits_with_2_and_writes_nothing(
    arguments: tuple[str, ...], shell: Command, tmp_path: Path
) -> None:
    before = files(tmp_path)
    ended = shell(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert re.fullmatch(r"geffect: .* See geffect( unlearn| plot)? --help\.\n", ended.err)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("report",), "runs has no value. Add it after the verb"),
        (("report", "model"), "There is no run in model, which has no environment.json"),
        (("report", "absent", "--out", "absent/page.html"), "There is no directory absent"),
        (("report", "absent", "model"), "There is no page to write for 2 runs"),
        (("report", "absent", "--scheme", "halves"), "--scheme"),
    ],
)
def test_a_report_is_refused(arguments: tuple[str, ...], says: str, refused: Callable[..., None]) -> None:
    refused(*arguments, says=says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("cite", "adam"), "no reference for 'adam'"),
        (("preview", "--model", "no-such-org/no-such-model", "--data", "builtin:authors/heldout"), "cannot be read"),
    ],
)
def test_a_process_refuses_in_one_line_with_exit_code_2(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    home = tmp_path / "home"  # so that no model is found, nor asked for
    work = tmp_path / "work"
    work.mkdir()
    ended = process(*arguments, cwd=work, HF_HUB_OFFLINE="1", HF_HOME=str(home))
    assert (ended.code, ended.out) == (2, "")
    assert re.fullmatch(rf"(geffect: loading the model...\n)?geffect: .*{says}.*\n", ended.err), ended.err
    assert not list(work.iterdir())


# what is imported, and help


@pytest.mark.parametrize("command", [["--help"], ["unlearn", "--help"], ["cite", "gru"]])
def test_help_and_citations_load_nothing_heavy(command: list[str], tmp_path: Path) -> None:
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['geffect', *{command}]\n"
        "try:\n    runpy.run_module('geffect', run_name='__main__')\n"
        "except SystemExit as ended:\n    assert not ended.code, ended.code\n"
        f"assert not {set(HEAVY)} & set(sys.modules), {set(HEAVY)} & set(sys.modules)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout


def test_importing_the_package_imports_nothing_else(tmp_path: Path) -> None:
    code = "import geffect, sys; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    modules = found.stdout.split()
    assert [name for name in modules if name.startswith("geffect")] == ["geffect"]
    assert not {*HEAVY, "pydantic", "typer", "yaml"} & set(modules)


def test_help_lists_the_commands(shell: Command) -> None:
    ended = shell("--help")
    assert ended.code == 0
    for command in ("finetune", "unlearn", "localize", "doctor", "preview", "demo", "plot", "report", "cite"):
        assert re.search(rf"^  {command}  +[A-Z]", ended.out, re.MULTILINE), command


@pytest.mark.parametrize(
    ("command", "schema"),
    [
        ("finetune", FinetuneConfig),
        ("unlearn", UnlearnConfig),
        ("localize", LocalizeConfig),
        ("preview", PreviewConfig),
    ],
)
def test_help_names_and_explains_every_field(command: str, schema: type[Schema], shell: Command) -> None:
    ended = shell(command, "--help")
    assert ended.code == 0
    text = " ".join(ended.out.split())
    for name, field in schema.model_fields.items():
        if name != "reference":  # what a run writes for itself
            words = (name, *(word for word, own in schema.ALIASES.items() if own == name))
            flag = ", ".join(f"--{word.replace('_', '-')}" for word in words)
            assert f"{flag} {'' if field.annotation is bool else '<'}" in text, name
            assert _without_spaces(f"{field.description} [") in _without_spaces(text), name
            assert shown_default(field) in text, name
    assert "--reference" not in text


def _without_spaces(text: str) -> str:
    """Help breaks lines at hyphens, too."""
    return "".join(text.split())


def test_help_tells_defaults_and_what_is_required(shell: Command) -> None:
    text = " ".join(shell("unlearn", "--help").out.split())
    assert "the set to unlearn [required without --domain]" in text
    assert re.search(r"what is descended, as in 'npo\(beta=0.1\) \+ 1.0\*gd' \[of adversarial, .*; default: ga\]", text)
    assert "a set to retain that no gradient is drawn from [default: none]" in text


def test_no_arguments_show_help(shell: Command) -> None:
    ended = shell()
    assert ended.code in {0, 2}
    assert re.search(r"^Usage: .*^Run:", ended.out + ended.err, re.MULTILINE | re.DOTALL)


# dry runs


@pytest.mark.parametrize(
    "arguments",
    [
        ("unlearn", *GOOD),
        ("unlearn", *good("--model", "builtin:tiny")),
        ("unlearn", *GOOD, "--lora", "2", "--objective", "npo + 1.0*gd", "--rectifier", "gru"),
        ("finetune", "--model", "model", "--train", "builtin:authors/heldout", "--train", "rows.csv", "--out", "out"),
    ],
)
def test_a_dry_run_tells_the_plan_and_writes_nothing(
    arguments: tuple[str, ...], shell: Command, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text("question,answer\nQ?,A.\n", encoding="utf-8")
    cache = Path(os.environ["GEFFECT_CACHE"])
    before, cached = files(tmp_path), files(cache)
    ended = shell(*arguments, "--dry-run")
    assert (ended.code, ended.out) == (0, "")
    for line in ("model  ", "batches  ", "memory  about ", "out  "):
        assert re.search(rf"^ *{line}", ended.err, re.MULTILINE), line
    assert files(tmp_path) == before
    assert files(cache) == cached


def test_a_dry_run_loads_no_weight(shell: Command, tmp_path: Path) -> None:
    (tmp_path / "model" / "model.safetensors").unlink()
    assert shell("unlearn", *GOOD, "--dry-run").code == 0


def test_a_plan_counts_what_the_configuration_asks_for(shell: Command, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("steps: 99\nbatch_size: 3\ngrad_accum_steps: 2\n", encoding="utf-8")
    ended = shell("unlearn", "run.yaml", *GOOD, "--dry-run")
    sentence = (
        "3 examples × 2 micro-batches × 1 process = 6 examples a step; 4 examples make 1 steps an epoch; 1 steps are"
    )
    assert sentence in ended.err
    rows = encode_set(make_tokenizer(), load_set(SETS[1]))
    labeled = sum(label != IGNORE_INDEX for row in rows for label in row.labels)
    assert f"4 examples, {sum(len(row.labels) for row in rows)} tokens ({labeled} carry loss)" in ended.err


def test_a_file_flags_and_a_mixture_plan_the_same_run(shell: Command, tmp_path: Path) -> None:
    whole = (
        "forget: rows.csv\nretain: builtin:authors/retain[:4]\nsteps: 7\nlora: 2\nobjective: npo(beta=0.2) + 1.0*gd\n"
    )
    (tmp_path / "rows.csv").write_text("q,answer\nQ?,A.\n", encoding="utf-8")
    (tmp_path / "whole.yaml").write_text(whole + "question_column: q\nmodel: model\nout: out\n", encoding="utf-8")
    (tmp_path / "part.yaml").write_text(whole.replace("7", "8") + "question_column: other\n", encoding="utf-8")
    rest = ("--model", "model", "--out", "out", "--question-column", "q", "--steps", "7")
    flags = ("--forget", "rows.csv", *SETS[2:], "--lora", "2", "--objective", "npo(beta=0.2) + 1.0*gd")
    ways = (("whole.yaml",), ("part.yaml", *rest), (*rest, *flags))
    plans = [shell("unlearn", *way, "--dry-run").err for way in ways]
    told = {re.sub(r"[\d.]+ GB are free", "", plan) for plan in plans}
    assert len(told) == 1
    assert "7 steps are 7.0 epochs" in told.pop()


# a batch, shown


def test_brackets_stand_around_the_tokens_that_carry_loss_and_no_others(shell: Command, tmp_path: Path) -> None:
    content = [{"question": "What is it?", "answer": "A book,\nby Umeko."}, {"question": "Who?", "answer": "Umeko"}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, content)), encoding="utf-8")
    ended = shell("preview", "--model", "model", "--data", "rows.jsonl")
    assert (ended.code, ended.err) == (0, "")
    tokenizer = make_tokenizer()
    for row in encode_set(tokenizer, load_set("rows.jsonl")):
        tokens = [tokenizer.decode([token]).replace("\n", "⏎\n") for token in row.input_ids]
        learned = [label != IGNORE_INDEX for label in row.labels]
        shown = "".join(f"[{token}]" if own else token for token, own in zip(tokens, learned, strict=True))
        assert f"\nexample {row.index}: {sum(learned)} of {len(tokens)} tokens\n{shown}\n" in ended.out


def test_a_limit_shows_the_first_rows(shell: Command) -> None:
    ended = shell("preview", "--model", "model", "--data", "builtin:authors/heldout", "--limit", "2")
    assert re.findall(r"^example \d+", ended.out, re.MULTILINE) == ["example 0", "example 1"]


def test_the_version_is_printed(shell: Command) -> None:
    ended = shell("--version")
    assert (ended.code, ended.out) == (0, f"geffect {geffect.__version__}\n")


@pytest.mark.parametrize(
    ("what", "name"),
    [
        ("objectives", "npo"),
        ("objectives", "graddiff +ga"),
        ("presets", "open_unlearning:NPO"),
        ("rectifiers", "gru"),
        ("rectifiers", "hamu"),
        ("metrics", "min_k"),
        ("suites", "tofu"),
        ("stop-rules", "knee"),
        ("plots", "g_effect"),
        ("models", "builtin:tiny"),
        ("sets", "builtin:general"),
        ("sets", "builtin:domains/privacy/unlearn/val"),
    ],
)
def test_what_can_be_named_is_listed(what: str, name: str, shell: Command) -> None:
    ended = shell("list", what)
    assert ended.code == 0
    assert re.search(rf"^{name}\b", ended.out, re.MULTILINE)


# citations


def test_every_entry_is_cited_by_its_name_and_all_by_none(shell: Command) -> None:
    everything = shell("cite").out
    for method in ("geffect", "g-effect", "gru", "grail", "npo", "tofu", "GRU"):
        ended = shell("cite", method)
        assert ended.code == 0
        assert ended.out.startswith("@")
        assert ended.out.strip() in everything


def test_an_entry_is_balanced_and_has_author_title_and_year(shell: Command) -> None:
    for entry in re.split(r"\n\n", shell("cite").out.strip()):
        assert re.match(r"@\w+\{[\w-]+,\n", entry)
        assert entry.count("{") == entry.count("}")
        assert all(re.search(rf"^  {field} +=", entry, re.MULTILINE) for field in ("author", "title", "year"))


# losses that leave the finite numbers


def test_a_loss_that_is_not_finite_ends_in_a_line_of_advice(shell: Command) -> None:
    flags = ("--optimizer", "sgd", "--learning-rate", "1e30", "--steps", "3")
    ended = shell("unlearn", *good(*flags))
    assert ended.code == 2
    assert re.search(r"^geffect: A loss or gradient is not finite: .* Lower .*learning.rate", ended.err, re.MULTILINE)
    assert not Path("out", "DONE").exists()


def test_every_field_has_its_flag_but_what_runs_write() -> None:
    schemas: dict[str, type[Schema]] = {
        "evaluate": EvaluateConfig,
        "unlearn": UnlearnConfig,
        "finetune": FinetuneConfig,
    }
    for name, schema in schemas.items():
        told = subprocess.run(
            [sys.executable, "-m", "geffect", name, "--help"],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"COLUMNS": "400"},
        ).stdout
        flags = set(re.findall(r"--[a-z][a-z-]*", told))
        for key in schema.model_fields:
            assert ("--" + key.replace("_", "-") in flags) == ((name, key) != ("unlearn", "reference")), key
