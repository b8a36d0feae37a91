"""The bridge to open-unlearning: its experiments, its published checkpoints, its saved folders and evaluations."""

import json
import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

import geffect
from geffect.config import UnlearnConfig
from geffect.config.imported import HANDLERS, import_experiment, objective_text
from geffect.config.presets import PRESETS
from geffect.errors import GeffectError
from geffect.models.load import resolve
from geffect.models.names import hub_id
from geffect.objectives.registry import make_objective
from geffect.reports.scores import NAMES, final_scores
from tests.conftest import Command

# what a composed experiment has, in its form; `${…}` as Hydra leaves it
EXPERIMENT: dict[str, Any] = {
    "model": {
        "model_args": {"pretrained_model_name_or_path": "org/full", "torch_dtype": "bfloat16"},
        "tokenizer_args": {"pretrained_model_name_or_path": "org/words"},
        "template_args": {"apply_chat_template": True, "system_prompt": "Be\nbrief.", "date_string": "10 Apr 2025"},
    },
    "trainer": {
        "handler": "NPO",
        "args": {
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 4,
            "learning_rate": "1e-5",
            "weight_decay": 0.01,
            "bf16": True,
            "optim": "paged_adamw_32bit",
            "num_train_epochs": 10,
            "warmup_epochs": 1.0,
            "seed": 7,
            "logging_steps": 5,
            "output_dir": "${paths.output_dir}",
        },
        "method_args": {"gamma": 1.0, "alpha": 0.5, "beta": 0.2, "retain_loss_type": "NLL"},
    },
    "data": {
        role: {
            f"TOFU_QA_{role}": {
                "handler": "QADataset",
                "args": {
                    "hf_args": {"name": f"${{{role}_split}}", "split": "train", "path": "locuslab/TOFU"},
                    "question_key": "question",
                    "answer_key": "answer",
                    "max_length": 256,
                },
            }
        }
        for role in ("forget", "retain")
    }
    | {"anchor": "forget"},
    "eval": {"tofu": {"batch_size": 32, "overwrite": True}},
    "paths": {"output_dir": "${hydra:runtime.output_dir}"},
    "forget_split": "forget05",
    "retain_split": "retain95",
    "task_name": "job",
}


def written(folder: Path, **changes: Any) -> Path:
    """The experiment's file, with values by dotted key that are changed, or removed where None."""
    content = deepcopy(EXPERIMENT)
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = value
        if value is None:
            del place[last]
    file = folder / ".hydra" / "config.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


def test_an_experiment_becomes_a_configuration_by_hand(tmp_path: Path, invoke: Command) -> None:
    """Values by hand: 10 passes over 200 examples in batches of 32, of which the last of each pass is smaller."""
    written(tmp_path)
    ended = invoke("import-config", tmp_path, "--out", tmp_path / "unlearn.yaml")
    assert ended.code == 0
    assert (tmp_path / "unlearn.yaml").read_text().strip() == ended.out.strip()
    config = UnlearnConfig.read(tmp_path / "unlearn.yaml", out="run")
    made = config.model_dump(mode="json", include=config.model_fields_set - {"out"})
    assert made == {
        "model": "org/full",
        "tokenizer": "org/words",
        "dtype": "bfloat16",
        "autocast": "bfloat16",
        "forget": "tofu:forget05",
        "retain": "tofu:retain95",
        "objective": "npo(beta=0.2) + 0.5*gd",
        "learning_rate": 1e-5,
        "batch_size": 8,
        "grad_accum_steps": 4,
        "steps": 70,  # 25 batches are 7 steps
        "warmup_steps": 6,  # ⌊200 / 32⌋
        "weight_decay": 0.01,
        "max_grad_norm": 1.0,
        "schedule": "linear",
        "optimizer": "adamw_torch",
        "seed": 7,
        "system_prompt": "Be\nbrief.",
        "template_date": "2025-04-10",
        "question_column": "question",
        "answer_column": "answer",
        "max_length": 256,
    }


def test_every_value_is_mapped_or_named(tmp_path: Path) -> None:
    found = import_experiment(written(tmp_path, trainer__args__adam_beta2=0.95, trainer__method_args__new="x"))
    assert found.unmapped == {
        "trainer.args.adam_beta2": "0.95",
        "trainer.args.logging_steps": "5",
        "trainer.args.output_dir": "${paths.output_dir}",
        "trainer.method_args.new": "x",
        "eval": "2 values",
        "paths": "1 values",
        "task_name": "job",
    }
    assert all(f"#   {key}: {value}\n" in found.text for key, value in found.unmapped.items())


@pytest.mark.parametrize(
    ("handler", "arguments", "text"),
    [
        ("GradAscent", {}, "ga"),
        ("GradDiff", {"gamma": 2.0, "alpha": 0.5}, "2.0*ga + 0.5*gd"),
        ("GradDiff", {"retain_loss_type": "KL"}, "ga + kl(variant=tofu)"),
        ("NPO", {}, "npo(beta=1.0) + gd"),
        ("SimNPO", {"beta": 4.5, "delta": 0.5, "gamma": 0.125}, "0.125*simnpo(beta=4.5, gamma=0.5) + gd"),
        ("WGA", {"beta": 2.0, "alpha": 0.0}, "wga(alpha=2.0)"),
        ("SatImp", {"beta1": 6.0, "gamma": 0.1}, "0.1*satimp(beta1=6.0, beta2=1.0) + 0.1*gd"),
        (
            "RMU",
            {"module_regex": r"model\.layers\.5", "steering_coeff": 10, "retain_loss_type": "EMBED_DIFF", "alpha": 3},
            "rmu(layer=6, c=10.0, vector=normalized, dims=mean) + 3.0*rr(dims=mean, layer=6)",
        ),
        ("DPO", {"beta": 0.1}, "dpo(beta=0.1, variant=npo) + gd"),
        ("UNDIAL", {"beta": 10.0, "alpha": 0.0}, "undial(beta=10.0)"),
        ("CEU", {"ignore_first_n_answer_tokens": 2}, "ceu(skip=2)"),
        ("PDU", {"alpha": 50, "primal_dual": False}, "pdu + 50.0*gd"),
        (
            "PDU",
            {"primal_dual": True, "retain_loss_eps": 0.3, "dual_step_size": 5, "alpha": 100, "gamma": 1.0},
            "pdu + dual(gd, eps=0.3, eta=5.0, start=100.0)",
        ),
    ],
)
def test_a_trainer_becomes_an_objective(handler: str, arguments: dict[str, Any], text: str) -> None:
    assert objective_text(handler, arguments) == text
    assert make_objective(text).terms


def test_every_trainer_has_a_preset_and_every_preset_a_trainer() -> None:
    assert sorted(f"open_unlearning:{how.preset}" for how in HANDLERS.values()) == sorted(PRESETS)


def test_dpo_takes_the_experiments_refusals(tmp_path: Path) -> None:
    forget = {"handler": "QAwithIdkDataset", "args": {"idk_path": "./idk.jsonl", "return_original": True}}
    forget["args"] |= EXPERIMENT["data"]["forget"]["TOFU_QA_forget"]["args"]
    found = import_experiment(written(tmp_path, trainer__handler="DPO", data__forget={"TOFU_idk": forget}))
    assert found.settings["objective"] == "dpo(beta=0.2, variant=npo, answers='./idk.jsonl') + 0.5*gd"
    assert not [key for key in found.unmapped if "idk" in key]


def test_other_sets_are_files_and_those_of_the_hub(tmp_path: Path) -> None:
    """Where nobody knows their size, the passes are named as not mapped, with how to give steps."""
    made = {"handler": "PretrainingDataset", "args": {"text_key": "text"}}
    forget = made | {"args": {"hf_args": {"path": "org/news", "name": "raw", "split": "forget"}}}
    retain = made | {"args": {"hf_args": {"path": "text", "data_files": "data/retain.jsonl", "split": "train"}}}
    found = import_experiment(written(tmp_path, data__forget={"a": forget}, data__retain={"b": retain}))
    assert found.settings["forget"] == "hub:org/news/raw/forget"
    assert found.settings["retain"] == "data/retain.jsonl"
    assert "steps" not in found.settings
    assert "give steps" in found.unmapped["trainer.args.num_train_epochs"]
    unknown = {"handler": "QADataset", "args": {"hf_args": {"path": "nowhere"}}}
    found = import_experiment(written(tmp_path, data__forget={"a": unknown}))
    assert "forget" not in found.settings
    assert found.unmapped["data.forget.a.args.hf_args.path"] == "nowhere"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"trainer__handler": None}, "names no trainer (trainer.handler). Choose one of GradAscent, GradDiff"),
        ({"trainer__handler": "NPOO"}, "'NPOO' is not a trainer of open-unlearning that unlearns. Did you mean NPO?"),
        ({"defaults": ["x"]}, "is not composed: it has defaults. Name .hydra/config.yaml in its output folder"),
        ({"trainer": None}, "is no experiment of open-unlearning: it has no trainer."),
        ({"forget_split": "${now:%Y}"}, "forget_split}', which the file does not resolve."),
        ({"forget_split": "${retain_split}", "retain_split": "${forget_split}"}, "which the file does not resolve."),
        ({"forget_split": "${forget_split}${forget_split}"}, "which the file does not resolve."),
        ({"trainer__args__seed": "???"}, "trainer.args.seed is '???', which the file does not resolve."),
        (
            {"trainer__args__learning_rate": ".nan"},
            "trainer.args.learning_rate is '.nan'. It should be a finite number",
        ),
        ({"trainer__args__learning_rate": -1.0}, "--learning-rate is -1.0."),
        ({"trainer__args__per_device_train_batch_size": 0}, "--batch-size is 0."),
        ({"trainer__args__num_train_epochs": 1e308}, "--steps is"),
        ({"trainer__args__seed": True}, "trainer.args.seed is True. It should be a whole number."),
        (
            {"trainer__method_args__retain_loss_type": "EMBED_DIFF"},
            "retain_loss_type is 'EMBED_DIFF'. It should be NLL",
        ),
        ({"model__model_args__torch_dtype": "float17"}, "--dtype is 'float17'."),
    ],
)
def test_what_cannot_be_imported_is_refused_in_a_sentence(
    changes: dict[str, Any], says: str, tmp_path: Path, invoke: Command
) -> None:
    ended = invoke("import-config", written(tmp_path, **changes), "--out", tmp_path / "made.yaml")
    assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert says in ended.err
    assert not (tmp_path / "made.yaml").exists()


def test_code_in_a_file_is_not_run_and_nothing_is_overwritten(tmp_path: Path, invoke: Command) -> None:
    hostile = tmp_path / "hostile.yaml"
    hostile.write_text(f"trainer: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n", encoding="utf-8")
    assert invoke("import-config", hostile).code == 2
    assert not (tmp_path / "made").exists()
    there = written(tmp_path)
    assert "exists already" in invoke("import-config", there, "--out", there).err


def test_a_text_of_the_file_stays_a_comment(tmp_path: Path) -> None:
    found = import_experiment(written(tmp_path, task_name="a\nsteps: 1\u2028\x1b[2J"))
    assert yaml.safe_load(found.text)["steps"] == 70
    assert "\x1b" not in found.text


# checkpoints


def test_a_published_checkpoint_has_a_short_name() -> None:
    name = "tofu_Llama-3.2-1B-Instruct_retain90"
    assert resolve(f"open_unlearning:{name}") == f"open-unlearning/{name}"
    assert hub_id(f"open_unlearning:{name}@main") == f"open-unlearning/{name}@main"
    for wrong in ("open_unlearning:", "open_unlearning:a/b", "open_unlearning:a:b"):
        with pytest.raises(GeffectError, match=r"There is no model .*open_unlearning:NAME"):
            resolve(wrong)


def test_without_a_hub_a_published_checkpoint_ends_in_a_sentence(
    invoke: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    ended = invoke("preview", "--model", "open_unlearning:tofu_none", "--data", "builtin:authors/forget")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "The model at open_unlearning:tofu_none cannot be read: " in ended.err


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder as its trainer leaves it: a model, its tokenizer, the arguments, and an evaluation."""
    import torch
    from transformers import TrainingArguments

    loaded = geffect.load_model("builtin:tiny")
    folder = tmp_path / "saves" / "unlearn" / "npo"
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    torch.save(TrainingArguments(output_dir=str(folder), report_to="none"), folder / "training_args.bin")
    (folder / "trainer_state.json").write_text('{"global_step": 3}', encoding="utf-8")
    (folder / "evals").mkdir()
    (folder / "evals" / "TOFU_SUMMARY.json").write_text(json.dumps(SUMMARY), encoding="utf-8")
    (folder / "evals" / "TOFU_EVAL.json").write_text(json.dumps(EVAL), encoding="utf-8")
    return folder


SUMMARY = {"forget_Q_A_Prob": 0.1 + 0.2, "forget_truth_ratio": 0.5, "model_utility": 0.25, "privleak": -20}
EVAL = {name: {"agg_value": value, "value_by_index": {"0": {"prob": 0.5}}} for name, value in SUMMARY.items()}
EVAL |= {"forget_quality": {"agg_value": None}}
OURS = {
    "forget/probability": 0.1 + 0.2,
    "forget_truth_ratio": 0.5,
    "model_utility (open-unlearning)": 0.25,
    "privleak": -20.0,
}


def test_its_saved_checkpoint_is_inspected(saved: Path, tmp_path: Path) -> None:
    runs = [
        geffect.inspect(
            checkpoints=model,
            forget="builtin:authors/forget[:4]",
            retain="builtin:authors/retain[:4]",
            objective="ga",
            one_pass=True,
            out=tmp_path / name,
        )
        for name, model in (("inspected", str(saved)), ("again", "builtin:tiny"))
    ]
    first, second = (each[0].evaluations()["loss"].tolist() for each in runs)
    assert first == second


def test_its_evaluation_stands_beside_ours(saved: Path, tmp_path: Path, invoke: Command) -> None:
    made = geffect.evaluate(
        model="builtin:tiny",
        set=["forget=builtin:authors/forget[:3]", "holdout=builtin:authors/heldout[:3]"],
        metric=["probability", "auc_loss"],
        out=tmp_path / "ours",
    )
    told = json.loads(invoke("compare", made.path, saved, "--json").out)
    means = made.metrics["builtin:tiny"]
    assert told["npo"] == OURS
    assert told["ours"]["forget/probability"] == means["sets"]["forget"]["probability"]["mean"]
    assert told["ours"]["auc_loss"] == means["totals"]["auc_loss"]
    shown = invoke("compare", made.path, saved).out
    assert "forget/probability" in shown
    assert "–" in shown


@pytest.mark.parametrize("place", [".", "evals", "evals/TOFU_SUMMARY.json", "evals/TOFU_EVAL.json"])
def test_an_evaluation_is_read_from_its_folder_or_file(place: str, saved: Path) -> None:
    found = final_scores({"it": saved / place})["it"]
    if place.endswith("EVAL.json"):
        assert math.isnan(found.pop("forget_quality"))  # it was not computed
    assert found == OURS


def test_its_names_are_those_of_metrics_here() -> None:
    from geffect.evaluation.metrics import METRICS
    from geffect.evaluation.suites import DERIVED

    for name in NAMES.values():
        assert name.rpartition("/")[2].removesuffix(" (open-unlearning)") in {*METRICS, *DERIVED, "model_utility"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[1, 2]", "has no number of an evaluation of open-unlearning"),
        ('{"a": {"b": 1}}', "has no number of an evaluation of open-unlearning"),
        ('{"a": 1, "a": 2}', "cannot be read: the key 'a' twice"),
        ("{", "cannot be read"),
        ('{"a": ' + "9" * 400 + "}", "cannot be read"),
    ],
)
def test_a_broken_evaluation_is_refused(content: str, says: str, tmp_path: Path, invoke: Command) -> None:
    (tmp_path / "TOFU_EVAL.json").write_text(content, encoding="utf-8")
    ended = invoke("compare", tmp_path / "TOFU_EVAL.json")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert says in ended.err


def test_what_is_no_evaluation_does_not_stand_beside_one(saved: Path, tmp_path: Path, invoke: Command) -> None:
    (tmp_path / "run").mkdir()
    assert "There is no run in" in invoke("compare", saved, tmp_path / "run").err
    assert "has no steps for --at" in invoke("compare", saved, "--at", "2").err
