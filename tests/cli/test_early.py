"""What can be refused without torch is refused before anything heavy is imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "numpy", "pandas", "matplotlib", "scipy", "datasets", "peft", "pyarrow")
TINY, OUT = ["--model", "builtin:tiny"], ["--out", "new"]
UNLEARN = ["unlearn", *TINY, "--forget", "builtin:authors/forget", "--retain", "builtin:authors/retain", *OUT]
FINETUNE = ["finetune", *TINY, "--train", "builtin:authors/forget", *OUT]
LOCALIZE = ["localize", *TINY, "--domain", "privacy=builtin:domains/privacy", *OUT]
EVALUATE = ["evaluate", *TINY, *OUT]
CASES: list[tuple[list[str], str]] = [
    # names
    ([*UNLEARN, "--objective", "npoo"], "'npoo' is not an objective. Did you mean npo?"),
    ([*UNLEARN, "--rectifier", "grue"], "'grue' is not a rectifier. Did you mean gru?"),
    ([*UNLEARN, "--stop", "kneel"], "'kneel' is not a stop rule. Did you mean knee?"),
    ([*EVALUATE, "--suite", "tofuu"], "'tofuu' is not a suite. Did you mean tofu?"),
    ([*EVALUATE, "--set", "a=b", "--metric", "losss"], "'losss' is not a metric. Did you mean loss?"),
    (["inspect", "run", *OUT, "--objective", "gaa"], "'gaa' is not an objective. Did you mean ga?"),
    (["inspect", "run", *OUT, "--points", "xyzzy"], "'xyzzy' is not an objective."),
    (
        [*UNLEARN, "--optimizer", "adamw"],
        "--optimizer is 'adamw'. Did you mean adamw_torch? It should be one of adamw_torch, ",
    ),
    (
        [*FINETUNE, "--schedule", "cosin"],
        "--schedule is 'cosin'. Did you mean cosine? It should be one of linear, cosine, ",
    ),
    # models
    (["unlearn", "--model", "builtin:tinny", *UNLEARN[3:]], "no model 'builtin:tinny'. Did you mean builtin:tiny? "),
    (["unlearn", "--model", "./absent", *UNLEARN[3:]], "There is no model './absent'. Name one of builtin:tiny, "),
    (["finetune", "--model", "runs/fist", *FINETUNE[3:]], "There is no model 'runs/fist'. Did you mean runs/first? "),
    (["finetune", "--model", "gguf:model.gguf", *FINETUNE[3:]], "There is no GGUF file at model.gguf. Correct the"),
    (["localize", "--model", "runs/fist", *LOCALIZE[3:]], "There is no model 'runs/fist'. Did you mean runs/first? "),
    (
        ["evaluate", "--model", "runs/fist", *OUT, "--suite", "builtin"],
        "There is no model 'runs/fist'. Did you mean runs/first? ",
    ),
    (["preview", "--model", "runs/fist", "--data", "builtin:authors/forget"], "There is no model 'runs/fist'. Did "),
    (["doctor", "--model", "runs/fist", *UNLEARN[3:-2]], "There is no model 'runs/fist'. Did you mean runs/first? "),
    (["inspect", "runs/fist", *OUT], "There is no model 'runs/fist'. Did you mean runs/first? "),
    (["inspect", "runs/first", "--start", "./absent", *OUT], "There is no model './absent'."),
    ([*EVALUATE, "--suite", "builtin", "--calibrate", "./absent"], "There is no model './absent'."),
    # sets
    ([*UNLEARN[:3], "--forget", "forgot.json", *UNLEARN[5:]], "no file at forgot.json. Did you mean forget.json?"),
    ([*UNLEARN, "--heldout", "data/absent.jsonl"], "There is no file at data/absent.jsonl. Correct the path."),
    ([*UNLEARN, "--general", "rows.md"], "There is no set 'rows.md'. Name one such as builtin:authors/forget, "),
    ([*UNLEARN, "--heldout", "builtin:author/heldout[:3]"], "Did you mean builtin:authors/heldout?"),
    ([*UNLEARN, "--heldout", "tofu:forget01"], "tofu:forget01 needs --data-dir"),
    ([*UNLEARN, "--heldout", "tofu:forget10", "--data-dir", "data"], "Did you mean tofu:forget01? Name one of these."),
    ([*FINETUNE, "--train", "builtin:authors/forgot"], "Did you mean builtin:authors/forget? Name one of builtin:au"),
    (["preview", *TINY, "--data", "absent.csv"], "There is no file at absent.csv. Correct the path."),
    ([*EVALUATE, "--metric", "loss", "--set", "forget=absent.csv"], "There is no file at absent.csv."),
    ([*LOCALIZE[:3], "--domain", "a=builtin:domains/privcy", *OUT], "you mean builtin:domains/privacy/unlearn/train?"),
    ([*LOCALIZE[:3], "--domain", "a=zzz.json,forget.json", *OUT], "There is no file at zzz.json. Correct the path."),
    # directories
    ([*UNLEARN, "--rectifier", "grail", "--masks", "runs/mask"], "in runs/mask. Did you mean runs/masks? Make"),
    (
        [*EVALUATE, "--suite", "builtin", "--reference", "runs/fist"],
        "There is no evaluation in runs/fist. Did you mean runs/first? ",
    ),
    (["compare", "runs/fist", "runs/first"], "There is no directory runs/fist. Did you mean runs/first? "),
    (["plot", "runs/first"], "There is no run in runs/first, which has no environment.json. "),
    (["report", "forget.json"], "There is no run in forget.json, which is a file. "),
    ([*EVALUATE], "There is nothing to evaluate: no suite, no set and no task. Add --suite"),
    ([*EVALUATE, "--set", "forget.json", "--metric", "loss"], "--set 'forget.json' is not NAME=SET."),
    (["plot", "runs/fist"], "Did you mean runs/first? Name a directory written by geffect."),
    (["report", "runs/fist"], "Did you mean runs/first? Name a directory written by geffect."),
    ([*UNLEARN[:-1], "runs/first"], "--out runs/first exists already. Choose another name, or move it away."),
    ([*UNLEARN, "--resume"], "There is no run in new to --resume: it has no config.yaml."),
    # files, keys, numbers and choices
    (["unlearn", "bad.yaml"], "bad.yaml is no readable YAML file: "),
    (["unlearn", "bed.yaml"], "bed.yaml is no readable YAML file: No such file or directory. Did you mean bad.yaml? "),
    (["unlearn", "key.yaml"], "There is no key 'learning_rat'. Did you mean learning_rate?"),
    ([*UNLEARN, "--steps", "many"], "Invalid value for '--steps'"),
    ([*UNLEARN, "--steps", "0", "--objective", "npo"], "--steps is 0. It should be greater than or equal to 1."),
    ([*UNLEARN, "--learning-rate", "-1"], "--learning-rate is -1.0. It should be greater than or equal to 0."),
    (
        [*UNLEARN, "--dtype", "float17"],
        "--dtype is 'float17'. Did you mean bfloat16? It should be 'float32', 'bfloat16' or",
    ),
    ([*FINETUNE, "--autocast", "float16"], "--autocast is 'float16'. Did you mean bfloat16? It should be 'none' or"),
    ([*LOCALIZE, "--share", "2"], "--share"),
    (
        [*LOCALIZE, "--labels", "tru"],
        "--labels is 'tru'. Did you mean true? It should be 'random', 'true' or 'corrupted'.",
    ),
    (
        ["inspect", "runs/first", *OUT, "--mode", "papr"],
        "--mode is 'papr'. Did you mean paper? It should be 'exact' or 'paper'.",
    ),
    ([*EVALUATE, "--confidence", "95"], "--confidence is 95.0. It should be less than 1."),
    ([*UNLEARN[:-2], "--stop", "knee", "--evaluate", "forget", *OUT], "--stop needs a forget set and a retain or"),
    ([*UNLEARN, "--standard-errors"], "--standard-errors needs two or more micro-batches a step."),
    (
        ["report", "runs/first", "--scheme", "third"],
        "--scheme is 'third'. Did you mean thirds? It should be 'thirds', ",
    ),
    (["unlearn", *TINY, *OUT], "--forget has no value."),
    ([*UNLEARN, "--objective", "gru"], "'gru' is not an objective but a rectifier. Write --rectifier gru."),
    ([*UNLEARN, "--objective", "NPO(beta=0.2)+gd+GRU"], "Write --objective 'NPO(beta=0.2) + gd' --rectifier GRU."),
    ([*UNLEARN, "--rectifier", "npo+gru"], "'npo' is not a rectifier but an objective. Write --rectifier gru --obj"),
    ([*UNLEARN, "--objective", "npo(bta=1)"], "npo has no parameter 'bta'. Did you mean beta? It has beta."),
    ([*UNLEARN, "--device", "cpuu"], "--device is 'cpuu'. Did you mean cpu? It should be auto, cpu, "),
    ([*UNLEARN, "--report-to", "tensorbord"], "Did you mean tensorboard? It should be one of azure_ml, "),
    ([*UNLEARN, "--target", "a=builtin:generl"], "Did you mean builtin:general? Name one of"),
    ([*UNLEARN, "--preset", "open_unlearning:NPOO"], "Did you mean open_unlearning:NPO? There are"),
    ([*UNLEARN, "--stesp", "3"], "No such option: --stesp. Did you mean --steps?"),
    ([*FINETUNE, "--only-mask", "runs/absent.safetensors"], "runs/absent.safetensors is no file of masks."),
    ([*FINETUNE[:3], "--set", "a=builtin:authors/forgot", *OUT], "Did you mean builtin:authors/forget?"),
    ([*LOCALIZE, "--importance", "mean_ab"], "--importance is 'mean_ab'. Did you mean mean_abs?"),
    ([*EVALUATE, "--suite", "builtin", "--quantize", "nf5"], "'nf5' is not a quantization. Did you mean nf4?"),
    (
        [*EVALUATE, "--suite", "tofu", "--split", "forget02", "--data-dir", "data"],
        "no set tofu:forget02_perturbed among",
    ),
    (["compare", "runs/first", "--simulate", "grue"], "'grue' is not a rectifier. Did you mean gru?"),
    (["plot", "runs/first", "--scheme", "third"], "'third' is not a scheme. Did you mean thirds?"),
    (["monitor", "runs/fist"], "Did you mean runs/first?"),
    (["check", "runs/fist"], "Did you mean runs/first?"),
    (["cite", "gruu"], "There is no reference for 'gruu'. Did you mean gru?"),
    (["demo", "--grial"], "No such option: --grial. Did you mean --grail?"),
    (["cite", "adam"], "There is no reference for 'adam'."),
    (["list", "objectivs"], "There is no list of 'objectivs'. Did you mean objectives? Choose one of objectives, "),
    (["unlern"], "No such command 'unlern'. Did you mean 'unlearn'?"),
]
RUN = """
import contextlib, io, json, sys
from geffect.cli.main import main
heavy, cases = json.load(sys.stdin)
for arguments in cases:
    sys.argv, said = ["geffect", *arguments], io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    print(json.dumps([code, said.getvalue(), sorted(set(heavy) & set(sys.modules))]))
"""


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str, list[str]]]:
    """Exit code, what was said, and the heavy packages imported since the process began, case by case."""
    work = tmp_path_factory.mktemp("work")
    for run in ("first", "masks"):
        (work / "runs" / run).mkdir(parents=True)
        (work / "runs" / run / "steps.jsonl").write_text("{}\n")
    (work / "data" / "tofu").mkdir(parents=True)
    for file in ("forget.json", "data/tofu/forget01.json"):
        (work / file).write_text('{"question": "Who?", "answer": "Ada."}\n')
    (work / "bad.yaml").write_text("model: [\n")
    (work / "key.yaml").write_text("learning_rat: 1\n")
    ended = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps([HEAVY, [arguments for arguments, _ in CASES]]),
        capture_output=True,
        text=True,
        cwd=work,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert sorted(each.name for each in work.iterdir()) == ["bad.yaml", "data", "forget.json", "key.yaml", "runs"]
    return [tuple(json.loads(line)) for line in ended.stdout.splitlines()]


@pytest.mark.parametrize(
    ("number", "says"), list(enumerate(says for _, says in CASES)), ids=[" ".join(each) for each, _ in CASES]
)
def test_a_mistake_is_refused_before_anything_heavy_is_imported(
    number: int, says: str, refusals: list[tuple[int, str, list[str]]]
) -> None:
    code, said, imported = refusals[number]
    assert code == 2
    assert says in " ".join(said.split())
    assert not imported


def test_the_early_checks_are_those_of_the_verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that the early checks refuse is refused by the functions that read it, in the same words."""
    from geffect.data.load import check_set, load_set
    from geffect.errors import GeffectError
    from geffect.models.load import resolve
    from geffect.models.names import check_model

    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("question,answer\na,b\n")
    (tmp_path / "runs").mkdir()
    sets = ["", "rows.csv", "rows.csv[:1]", "row.csv", "rows.md", "builtin:authors/forget", "builtin:author/forget"]
    models = ["builtin:tinny", "./absent", "runs/absent", "org/name", "gguf:absent.gguf", "~nobody-of-that-name/m"]
    pairs = [(check_set, load_set, spec) for spec in sets] + [(check_model, resolve, spec) for spec in models]
    for early, late, spec in pairs:
        said = []
        for function in (early, late):
            try:
                function(spec)
            except (GeffectError, RuntimeError) as error:
                said.append(str(error))
            else:
                said.append("")
        assert said[0] == said[1], spec


def test_the_models_known_early_are_the_built_in_ones() -> None:
    from geffect.core.registry import MODELS
    from geffect.models.builtin import BUILT_IN

    assert list(BUILT_IN) == list(MODELS)


def test_the_names_in_transformers_are_its_own() -> None:
    from transformers import SchedulerType
    from transformers.training_args import OptimizerNames

    from geffect.config import NAMED_BY
    from geffect.config.schema import names_in_transformers

    for setting, enumeration in (("optimizer", OptimizerNames), ("schedule", SchedulerType)):
        assert names_in_transformers(*NAMED_BY[setting]) == [str(each.value) for each in enumeration]
