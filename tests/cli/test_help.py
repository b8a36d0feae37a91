"""``--help``, completion, and names in any case: what a newcomer meets before anything is run."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import geffect.config
from geffect.cli.help import EXAMPLES, VerbGroup
from geffect.cli.main import app
from geffect.config import EvaluateConfig, FinetuneConfig, ReportConfig, UnlearnConfig
from geffect.config.schema import GROUPS, MAIN, Schema, has_flag, words_of
from geffect.core.registry import parse
from geffect.errors import GeffectError
from geffect.record.reader import read_metrics
from tests.cli.test_cli import HEAVY, process
from tests.conftest import Command

SCHEMAS = [each for each in vars(geffect.config).values() if isinstance(each, type) and issubclass(each, Schema)]
SETS = {"forget": "builtin:authors/forget", "retain": "builtin:authors/retain"}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_flag_has_its_heading_and_what_is_required_stands_first(schema: type[Schema]) -> None:
    for name, field in schema.model_fields.items():
        assert not has_flag(field) or field.title in GROUPS, name
        assert not (has_flag(field) and field.is_required()) or field.title == MAIN, name


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch, invoke: Command) -> Command:
    monkeypatch.setenv("COLUMNS", "80")
    return invoke


@pytest.mark.parametrize("verb", EXAMPLES)
def test_help_fits_has_headings_in_order_and_two_examples_that_parse(verb: str, narrow: Command) -> None:
    out = narrow(verb, "--help").out
    assert max(map(len, out.splitlines())) <= 80 and not re.search(r"\w-$", out, re.MULTILINE)
    headings = [line[:-1] for line in out.splitlines() if re.fullmatch(r"[A-Z][\w ]+:", line)]
    assert headings[-2:] == ["Other", "Examples"]
    assert [each for each in headings if each in GROUPS] == [each for each in GROUPS if each in headings]
    assert not re.search(r"default: *\]|default: none.{0,3}required", " ".join(out.split()))
    shown = out.partition("\nExamples:\n")[2].replace("\\\n", " ").splitlines()
    group = typer.main.get_group(app)
    context = typer.Context(group)
    commands = [shlex.split(line, comments=True) for line in shown]
    assert commands == [shlex.split(each) for each in EXAMPLES[verb]] and len(commands) == 2
    for program, *arguments in commands:
        arguments = arguments[: arguments.index(">")] if ">" in arguments else arguments
        name, command, rest = group.resolve_command(context, arguments)
        assert (program, name) == ("geffect", verb) and command is not None
        command.make_context(name, rest, parent=context)


def test_what_matters_is_first_and_every_choice_is_shown(narrow: Command) -> None:
    out = narrow("unlearn", "--help").out
    main = re.findall(r"^  (--[a-z-]+)", out.partition("\nMain:")[2].partition("\n\n")[0], re.MULTILINE)
    assert main == ["--model", "--out", "--forget", "--retain", "--objective", "--rectifier"]
    text = " ".join(out.split())
    for name, field in UnlearnConfig.model_fields.items():
        if has_flag(field) and field.annotation is not bool:
            assert all(word in text for word in words_of(field.annotation)), name


def test_doctor_offers_no_flag_for_what_it_does_not_do(narrow: Command) -> None:
    assert "--overwrite" in narrow("unlearn", "--help").out and "--overwrite" not in narrow("doctor", "--help").out


def test_the_verbs_stand_in_groups_each_with_a_whole_sentence(narrow: Command) -> None:
    out = narrow("--help").out
    lines = re.findall(r"^  ([a-z-]+)  +(.*)$", out.partition("\nRun:")[2], re.MULTILINE)
    assert [name for name, _ in lines] == list(EXAMPLES)
    assert all(re.fullmatch(r"[A-Z][^.]+\.", text) for _, text in lines), lines
    assert set(VerbGroup.made) < set(EXAMPLES) and max(map(len, out.splitlines())) <= 80


# completion, by the scripts' own entry points


def completed(shell: str, line: list[str], tmp_path: Path) -> list[str]:
    """What a shell is told where the last word of a line is completed; nothing heavy is imported for it."""
    words = {
        "COMP_WORDS": "\n".join(line),
        "COMP_CWORD": str(len(line) - 1),
        "_TYPER_COMPLETE_ARGS": " ".join(line),
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('HEAVY', *sorted({set(HEAVY)} & set(sys.modules)), file=sys.stderr))\n"
        "from geffect.cli.main import main\nmain()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
        env=os.environ | words | {"_GEFFECT_COMPLETE": f"complete_{shell}"},
    )
    assert ended.stderr.split() == ["HEAVY"]
    return ended.stdout.split("\n")[:-1]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (["unl"], ["unlearn"]),
        (["unlearn", "--rect"], ["--rectifier"]),
        (["unlearn", "--objective", "wt"], ["wtnpo"]),
        (["unlearn", "--objective", "npo+g"], ["npo+ga", "npo+gd"]),
        (["unlearn", "--rectifier", "GR"], ["GRAIL", "GRU"]),
        (["unlearn", "--dtype", "bf"], ["bfloat16"]),
        (["unlearn", "--forget", "builtin", ":", "authors/f"], ["authors/forget"]),  # bash ends a word at : and =
        (["unlearn", "--target", "a", "=", "builtin", ":", "ge"], ["general"]),
        (
            ["unlearn", "--model", "=", "builtin", ":", "tiny-domains-q"],
            [f"tiny-domains-qwen2{e}" for e in ("", "-untrained")],
        ),
        (["evaluate", "--metric", "rouge_l_r"], ["rouge_l_recall"]),
        (["plot", "--scheme", "paper_"], ["paper_script"]),
        (["cite", "gru"], ["gru"]),
        (["unlearn", "--masks", "runs/x"], [""]),  # nothing: bash completes a path
    ],
)
def test_bash_completes(line: list[str], found: list[str], tmp_path: Path) -> None:
    assert completed("bash", ["geffect", *line], tmp_path) == found


def test_zsh_and_fish_complete_whole_words(tmp_path: Path) -> None:
    line = ["geffect", "unlearn", "--forget", "builtin:authors/f"]
    assert completed("zsh", line, tmp_path) == ["_arguments '*: :((\"builtin\\\\:authors/forget\"))'"]
    assert completed("fish", line, tmp_path) == ["builtin:authors/forget"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_shown(shell: str, tmp_path: Path) -> None:
    ended = process(cwd=tmp_path, _GEFFECT_COMPLETE=f"source_{shell}")
    assert ended.code == 0 and f"_GEFFECT_COMPLETE=complete_{shell}" in ended.out


# names in any case, and other words for a setting


def test_names_of_ours_are_read_in_any_case_and_paths_are_not(tmp_path: Path) -> None:
    config = UnlearnConfig.read(
        model="Builtin:Tiny", **SETS, out=tmp_path, objective="GA + 3 GD", rectifier="GRU", dtype="BFloat16",
        heldout="builtin:Authors/Heldout[:3]", general="Data/General.JSON", evaluate=["Forget"], device="CPU",
    )  # fmt: skip
    assert (config.model, config.dtype, config.device, config.evaluate) == (
        "builtin:tiny",
        "bfloat16",
        "cpu",
        ["forget"],
    )
    assert (config.heldout, config.general) == ("builtin:authors/heldout[:3]", "Data/General.JSON")
    assert config.objective.terms == UnlearnConfig.read(model="m", **SETS, out="o", objective="ga+3*gd").objective.terms
    assert ReportConfig.read(runs=["R"], scheme="Thirds").scheme == "thirds"
    scored = EvaluateConfig.read(model="ORG/Name", out="o", suite="TOFU", metric=["Rouge_L_F1"], set=["a=B.json"])
    assert (scored.model, scored.suite, scored.metric, scored.set) == ("ORG/Name", "tofu", ["rouge_l_f1"], ["a=B.json"])


def test_a_weight_may_stand_beside_its_term_but_not_in_a_text() -> None:
    assert parse("GA + 3 GD") == parse("3×gd + ga")[::-1] == parse("ga + 3*gd")
    assert parse("dpo(answers='3 no.csv')")[0].parameters == {"answers": "3 no.csv"}


def test_a_set_has_the_same_word_in_every_verb(start: Path, tmp_path: Path, narrow: Command) -> None:
    values = (("--set", "x=builtin:authors/forget[:3]"), ("--data", "builtin:authors/forget[:3]"))
    shown = [narrow("preview", "--model", start, *value, "--limit", "1") for value in values]
    assert shown[0].code is None or shown[0].code == 0, shown[0].err
    assert shown[0].out == shown[1].out and "example 0" in shown[0].out
    sets = ["known=builtin:authors/heldout[:3]", "builtin:authors/retain[:3]"]
    told = geffect.finetune(FinetuneConfig.read(model=str(start), set=sets, steps=1, out=tmp_path / "fit"))
    recorded = json.loads((told.path / "environment.json").read_text("utf-8"))["data"]
    assert [*recorded] == ["known", sets[1]] and set(read_metrics(told.path)["end"]) == {"step", *recorded}
    assert UnlearnConfig.read(model="m", **SETS, out="o", set={"a": "b.json"}).target == ["a=b.json"]
    for wrong in ({"train": ["a"], "set": ["b"]}, {"train": ["a=b.json", "a=c.json"]}):
        with pytest.raises(GeffectError, match=r"--train and --set are one setting|--train names two sets a"):
            FinetuneConfig.read(model="m", out="o", **wrong)


def test_a_verb_says_that_it_loads_the_model_before_torch_is_there(start: Path, tmp_path: Path) -> None:
    code = (
        "import builtins, sys\nfrom geffect.cli.main import main\nreal = builtins.__import__\n"
        "def watched(name, *rest, **named):\n"
        "    if name in ('torch', 'pandas', 'numpy'): sys.exit('HEAVY')\n"
        "    return real(name, *rest, **named)\n"
        "builtins.__import__ = watched\nsys.argv[0] = 'geffect'\nmain()"
    )
    model, sets = ["--model", str(start)], [each for name, spec in SETS.items() for each in (f"--{name}", spec)]
    for arguments in (
        ["unlearn", *model, *sets, "--out", "o"],
        ["doctor", *model, *sets],
        ["finetune", *model, "--train", SETS["forget"], "--out", "o"],
        ["localize", *model, "--domain", "p=builtin:domains/privacy", "--out", "o"],
        ["inspect", str(start), "--out", "o"],
        ["evaluate", *model, "--suite", "builtin", "--out", "o"],
        ["preview", *model, "--set", SETS["forget"]],
        ["demo", "--out", "o"],
    ):
        ended = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path)
        assert ended.stderr == "geffect: loading the model...\nHEAVY\n", (arguments, ended.stderr)
