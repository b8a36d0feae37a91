"""Real runs of the real Trainer, small enough to repeat."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from geffect import api
from geffect.config import FinetuneConfig
from geffect.core.effects import inner_by_label, total_cosine
from geffect.errors import GeffectError
from geffect.record.frames import read, read_steps
from geffect.record.reader import read_environment, read_lines
from tests.conftest import config


def _weights(run: Path) -> dict[str, torch.Tensor]:
    (checkpoint,) = sorted((run / "checkpoints").iterdir(), key=lambda p: int(p.name.split("-")[1]))[-1:]
    tensors: dict[str, torch.Tensor] = load_file(checkpoint / "model.safetensors")
    return tensors


def _assert_same_run(a: Path, b: Path, tolerance: float) -> None:
    """Weights agree tensor by tensor, inner products relative to the rows' norms."""
    one, other = _weights(a), _weights(b)
    for name, tensor in one.items():
        assert (tensor - other[name]).norm() <= tolerance * tensor.norm(), name
    left, right = read(a, "parameter"), read(b, "parameter")
    norms = left[left["gradient"] == left["other"]].groupby(["step", "gradient"])["inner"].sum() ** 0.5
    lengths = [norms.loc[list(zip(left["step"], left[end], strict=True))].to_numpy() for end in ("gradient", "other")]
    scale = lengths[0] * lengths[1]
    assert (np.abs(left["inner"] - right["inner"]) <= tolerance * scale).all()


@pytest.mark.parametrize("objective", ["ga", "npo + 0.5*gd", "undial + gd", "ceu(skip=1)", "pdu", "flat"])
def test_one_by_eight_equals_eight_by_one(start: Path, tmp_path: Path, objective: str) -> None:
    common: dict[str, Any] = {"objective": objective, "rectifier": "gru", "steps": 3, "optimizer": "sgd"}
    runs = [
        api.unlearn(config(start, tmp_path / f"{size}", batch_size=size, grad_accum_steps=8 // size, **common)).path
        for size in (8, 1)
    ]
    _assert_same_run(runs[0], runs[1], 1e-5)
    lengths = {len(line["gram"]["values"]) for line in read_lines(runs[0]) if "gram" in line}
    assert lengths == {len(read_environment(runs[0])["parameters"]["names"])}


def test_the_same_configuration_gives_the_same_run_bit_for_bit(start: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {"objective": "npo", "rectifier": "gru", "steps": 5}
    runs = [api.unlearn(config(start, tmp_path / name, **common)).path for name in "ab"]
    for name, tensor in _weights(runs[0]).items():
        assert torch.equal(tensor, _weights(runs[1])[name])
    lines = [[{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(run)] for run in runs]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("rectifier", ["none", "gru"])
def test_measuring_does_not_move_the_weights(start: Path, tmp_path: Path, rectifier: str) -> None:
    runs = [
        api.unlearn(config(start, tmp_path / str(every), rectifier=rectifier, steps=5, diagnose_every=every)).path
        for every in (1, 3)
    ]
    for name, tensor in _weights(runs[0]).items():
        assert torch.equal(tensor, _weights(runs[1])[name])
    assert sorted(read(runs[1])["step"].unique()) == [0, 3]
    assert sorted(read(runs[0])["step"].unique()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("objective", ["ga", "npo"])
def test_no_rectified_row_conflicts_with_the_retain_average(start: Path, tmp_path: Path, objective: str) -> None:
    gram = read(api.unlearn(config(start, tmp_path / "run", objective=objective, rectifier="gru", steps=12)).path)
    total = {
        (a, b): inner_by_label(gram, a, b).groupby("step").sum()
        for a, b in [
            ("rectified", "retain_average"),
            ("objective", "retain_average"),
            ("objective", "objective"),
            ("retain_average", "retain_average"),
            ("rectified", "rectified"),
        ]
    }
    norms = (total["objective", "objective"] * total["retain_average", "retain_average"]) ** 0.5
    assert (total["rectified", "retain_average"] >= -1e-6 * norms).all()
    conflict = total["objective", "retain_average"] < 0
    assert conflict.any()
    untouched = total["rectified", "rectified"][~conflict]
    assert untouched.equals(total["objective", "objective"][~conflict])


def test_under_sgd_the_recorded_effects_predict_the_measured_change(start: Path, tmp_path: Path) -> None:
    """One full-batch step: ΔR ≈ −lr·e on the very rows that were measured."""
    rate = 1e-2
    run = api.unlearn(
        config(start, tmp_path / "run", optimizer="sgd", learning_rate=rate, steps=1, batch_size=12, objective="wga")
    ).path
    gram, steps = read(run), read_steps(run)
    predicted = -rate * float(inner_by_label(gram, "forget", "objective").sum())
    measured = steps["forget_loss"].iloc[-1] - steps["forget_loss"].iloc[0]
    assert measured == pytest.approx(predicted, rel=0.05)
    assert measured > 0


def test_free_rows_off_gives_the_same_record(start: Path, tmp_path: Path) -> None:
    runs = [
        api.unlearn.run(config(start, tmp_path / str(free), steps=3), reuse_gradients=free).path
        for free in (True, False)
    ]
    _assert_same_run(runs[0], runs[1], 1e-5)
    gram = read(runs[1])
    e, f = (inner_by_label(gram, "forget", other).groupby("step").sum() for other in ("objective", "forget"))
    assert np.allclose(e, -f, rtol=1e-5)


def test_layers_sum_to_groups_and_groups_to_the_total(start: Path, tmp_path: Path) -> None:
    run = api.unlearn(config(start, tmp_path / "run", rectifier="gru", steps=2)).path
    totals = [
        read(run, by).groupby(["step", "gradient", "other"])["inner"].sum() for by in ("parameter", "layer", "group")
    ]
    for total in totals[1:]:
        pd.testing.assert_series_equal(total, totals[0], rtol=1e-9)
    assert list(read(run)["group"].unique()) == ["embed", "shallow", "middle", "deep", "lm_head"]


def test_the_line_says_what_the_step_did(start: Path, tmp_path: Path) -> None:
    run = api.unlearn(config(start, tmp_path / "run", rectifier="gru", max_grad_norm=0.01, warmup_steps=2)).path
    lines = read_lines(run)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert [sorted(line.get("evaluation", {})) for line in lines] == [
        ["forget", "heldout", "retain"],
        [],
        ["forget", "heldout", "retain"],
        [],
        ["forget", "heldout", "retain"],
    ]
    for line in lines[:-1]:
        assert line["clip"] == pytest.approx(0.01 / line["norm_rectified"], rel=1e-4)
        assert {"loss_objective", "loss_forget", "loss_retain", "weight_mean", "lr", "seconds"} <= set(line)
    assert [line["lr"][0] for line in lines[:-1]] == pytest.approx([0.0, 5e-4, 1e-3, 1e-3])
    assert "gram" not in lines[-1]


def test_clipping_acts_on_the_rectified_gradient(start: Path, tmp_path: Path) -> None:
    """Under SGD the update's length is lr · the clipped norm."""
    run = api.unlearn(
        config(
            start, tmp_path / "run", rectifier="gru", optimizer="sgd", steps=1, learning_rate=1.0, max_grad_norm=0.01
        )
    ).path
    before, after = load_file(start / "model.safetensors"), _weights(run)
    moved = math.sqrt(sum(float((after[name] - t).double().square().sum()) for name, t in before.items()))
    assert moved == pytest.approx(0.01, rel=1e-3)


def test_a_checkpoint_is_whole_and_holds_the_average(start: Path, tmp_path: Path) -> None:
    run = api.unlearn(config(start, tmp_path / "run", rectifier="gru", save_every=2)).path
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["checkpoint-2", "checkpoint-4"]
    for checkpoint in (run / "checkpoints").iterdir():
        files = {p.name for p in checkpoint.iterdir()}
        assert {"model.safetensors", "config.json", "tokenizer.json", "trainer_state.json", "optimizer.pt"} <= files
        assert "training_args.bin" not in files
        state = load_file(checkpoint / "rectifier.safetensors")
        assert set(state) == {f"retain_average/{name}" for name in read_environment(run)["parameters"]["names"]}
    assert (run / "DONE").exists()


def test_a_run_directory_is_a_model_whose_state_is_the_last(start: Path, tmp_path: Path) -> None:
    run = api.unlearn(config(start, tmp_path / "run", save_every=2)).path
    loaded = api.load_model(str(run))
    assert loaded.source.endswith("checkpoint-4")
    for name, tensor in _weights(run).items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)


def test_metrics_hold_the_first_and_last_evaluation(start: Path, tmp_path: Path) -> None:
    run = api.unlearn(config(start, tmp_path / "run")).path
    metrics, steps = json.loads((run / "metrics.json").read_text()), read_steps(run)
    assert metrics["start"]["heldout"]["loss"] == steps["heldout_loss"].iloc[0]
    assert metrics["end"]["forget"]["accuracy"] == steps["forget_accuracy"].iloc[-1]
    assert metrics["end"]["forget"]["loss"] > metrics["start"]["forget"]["loss"]


def test_a_run_replays_from_its_configuration(start: Path, tmp_path: Path) -> None:
    from geffect.config import UnlearnConfig

    run = api.unlearn(config(start, tmp_path / "run", objective="npo(beta=0.2)", rectifier="gru(decay=0.5)")).path
    again = api.unlearn(UnlearnConfig.read(run / "config.yaml", out=tmp_path / "again")).path
    _assert_same_run(run, again, tolerance=0.0)


def test_a_replay_from_another_start_is_refused(start: Path, tmp_path: Path) -> None:
    from geffect.config import UnlearnConfig

    run = api.unlearn(config(start, tmp_path / "run", steps=1)).path
    moved = UnlearnConfig.read(run / "config.yaml", out=tmp_path / "again", model=str(run))
    with pytest.raises(GeffectError, match="weights"):
        api.unlearn(moved)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("objective", ["ga", "npo"])
def test_lora_trains_the_adapter_alone(start: Path, tmp_path: Path, objective: str) -> None:
    run = api.unlearn(config(start, tmp_path / "run", objective=objective, rectifier="gru", lora=4, steps=3)).path
    checkpoint = run / "checkpoints" / "checkpoint-3"
    assert (checkpoint / "adapter_model.safetensors").exists()
    assert not (checkpoint / "model.safetensors").exists()
    parameters = read_environment(run)["parameters"]
    assert all("lora_" in name for name in parameters["names"])
    assert set(read(run)["group"]) == {"shallow", "middle", "deep"}
    assert read_lines(run)[0]["weight_mean"] == pytest.approx(1, abs=1e-6)
    loaded = api.load_model(str(run))
    before = load_file(start / "model.safetensors")
    base = {name.replace(".base_layer", ""): t for name, t in loaded.model.get_base_model().state_dict().items()}
    assert all(torch.equal(base[name], tensor) for name, tensor in before.items())


def test_npo_starts_at_weight_one_from_a_fitted_adapter_too(start: Path, tmp_path: Path) -> None:
    fitted = api.finetune(
        FinetuneConfig.read(
            model=str(start),
            train=["builtin:authors/forget[:12]"],
            out=tmp_path / "fit",
            lora=4,
            epochs=2,
            learning_rate=1e-2,
        )
    ).path
    assert (fitted / "adapter_config.json").exists()
    lines = read_lines(api.unlearn(config(fitted, tmp_path / "run", objective="npo(beta=0.5)", steps=3)).path)
    assert lines[0]["weight_mean"] == pytest.approx(1, abs=1e-5)
    assert lines[0]["loss_objective"] == pytest.approx(2 / 0.5 * math.log(2), rel=1e-5)
    assert lines[2]["weight_mean"] < 0.999


def test_another_models_reference_is_refused(start: Path, tmp_path: Path) -> None:
    from geffect.data.encode import encode_set, pad_id_of
    from geffect.data.load import load_set
    from geffect.models.scoring import compute_reference_nll
    from geffect.training.dry_run import training_arguments
    from geffect.training.unlearn import UnlearnTrainer

    chosen = config(start, tmp_path / "run", objective="npo")
    loaded = api.load_model(chosen.model)
    rows = encode_set(loaded.tokenizer, load_set(str(chosen.forget)))
    reference = [nll * 1.5 for nll in compute_reference_nll(loaded.model, rows, pad_id_of(loaded.tokenizer))]
    trainer = UnlearnTrainer(
        loaded.model,
        training_arguments(chosen, 2),
        tokenizer=loaded.tokenizer,
        config=chosen,
        sets={"forget": rows, "retain": rows},
        evaluation_sets={"forget": rows},
        sink=[].append,
        columns={"forget": {"ref_nll": reference}},
    )
    with pytest.raises(GeffectError, match="not the run's start: weights go from"):
        trainer.train()


def test_fit_learns_and_stops_when_it_knows(start: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {
        "model": str(start),
        "train": ["builtin:authors/forget[:6]", "builtin:authors/heldout[:2]"],
        "batch_size": 4,
        "learning_rate": 1e-2,
        "epochs": 60,
    }
    run = api.finetune(FinetuneConfig.read(**common, until_accuracy=0.5, out=tmp_path / "run")).path
    steps = read_steps(run)
    accuracies = steps.filter(like="_accuracy").dropna()
    assert (accuracies.iloc[-1] >= 0.5).all()
    assert not (accuracies.iloc[:-1] >= 0.5).all(axis=1).any()
    assert steps["step"].iloc[-1] < 120
    assert steps["loss_train"].iloc[-2] < steps["loss_train"].iloc[0]
    assert api.load_model(str(run)).source == str(run)


def test_fit_does_not_depend_on_how_rows_are_accumulated(start: Path, tmp_path: Path) -> None:
    weights = []
    for size in (4, 1):
        run = api.finetune(
            FinetuneConfig.read(
                model=str(start),
                train=["builtin:authors/forget[:8]"],
                batch_size=size,
                grad_accum_steps=4 // size,
                optimizer="sgd",
                learning_rate=0.1,
                epochs=2,
                out=tmp_path / str(size),
            )
        ).path
        weights.append(load_file(run / "model.safetensors"))
    for name, tensor in weights[0].items():
        assert (tensor - weights[1][name]).norm() <= 1e-5 * tensor.norm(), name


@pytest.mark.parametrize("optimizer", ["adafactor", "rmsprop", "adagrad"])
def test_other_optimizers_of_hugging_face_run(start: Path, tmp_path: Path, optimizer: str) -> None:
    run = api.unlearn(
        config(start, tmp_path / "run", optimizer=optimizer, schedule="cosine", rectifier="gru", steps=3)
    ).path
    rates = [line["lr"][0] for line in read_lines(run)[:-1]]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > rates[-1]


def test_a_loss_that_breaks_leaves_a_clean_record(start: Path, tmp_path: Path) -> None:
    """Under a huge SGD rate the second step's loss is not finite; the first step's line stands."""
    rows = r"examples: forget (\d+, ){3}\d+; retain (\d+, ){3}\d+. Lower --learning-rate"
    with pytest.raises(GeffectError, match=rf"nan in step 1, {rows}"):
        api.unlearn(config(start, tmp_path / "run", optimizer="sgd", learning_rate=1e30))
    assert [line["step"] for line in read_lines(tmp_path / "run")] == [0]
    assert not (tmp_path / "run" / "DONE").exists()


def test_trackers_are_told_of_every_measured_step(start: Path, tmp_path: Path) -> None:
    from transformers import TrainerCallback

    from geffect.data.encode import encode_set
    from geffect.data.load import load_set
    from geffect.training.dry_run import training_arguments
    from geffect.training.unlearn import UnlearnTrainer

    told: list[dict[str, float]] = []

    class Tracker(TrainerCallback):  # type: ignore[misc]
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            told.append(dict(logs))

    chosen = config(start, tmp_path / "run", rectifier="gru")
    loaded = api.load_model(chosen.model)
    rows = encode_set(loaded.tokenizer, load_set(str(chosen.forget)))
    lines: list[dict[str, Any]] = []
    trainer = UnlearnTrainer(
        loaded.model,
        training_arguments(chosen, 3),
        tokenizer=loaded.tokenizer,
        config=chosen,
        sets={"forget": rows, "retain": rows},
        evaluation_sets={"forget": rows},
        sink=lines.append,
        callbacks=[Tracker()],
    )
    trainer.train()
    measured = [logs for logs in told if "unlearn_g_effect" in logs]
    assert len(measured) == 3
    assert all(logs["unlearn_g_effect"] < 0 for logs in measured)
    for logs in measured[:1]:  # the average is still this step's retain row, but for its length
        assert logs["rectified_retain_g_effect"] >= -1e-6 * logs["norm_objective"] * logs["norm_retain"]
    assert any("eval_forget_loss" in logs for logs in told)


def test_cosines_are_those_of_the_rows(start: Path, tmp_path: Path) -> None:
    gram = read(api.unlearn(config(start, tmp_path / "run", steps=2)).path)
    assert total_cosine(gram, "objective", "forget").tolist() == pytest.approx([-1, -1])
    assert total_cosine(gram, "objective", "retain").abs().max() < 1


def test_a_fit_of_what_is_known_is_refused_and_writes_no_model(start: Path, tmp_path: Path) -> None:
    with pytest.raises(GeffectError, match="The model already has an accuracy of"):
        api.finetune(
            FinetuneConfig.read(
                model=str(start), train=["builtin:authors/heldout[:4]"], until_accuracy=0, out=tmp_path / "r"
            )
        )
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(("dtype", "rel"), [("bfloat16", 1e-2), ("float64", 1e-12)])
def test_npo_starts_at_weight_one_in_every_dtype(start: Path, tmp_path: Path, dtype: str, rel: float) -> None:
    changes: dict[str, Any] = {"objective": "npo", "dtype": dtype, "batch_size": 12, "learning_rate": 1e-3, "steps": 1}
    line = read_lines(api.unlearn(config(start, tmp_path / "run", **changes)).path)[0]
    assert line["loss_objective"] == pytest.approx(2 / 0.1 * math.log(2), rel=rel)


def test_a_base_that_changed_under_its_adapter_is_noticed(start: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import save_file

    base = tmp_path / "base"
    shutil.copytree(start, base)
    run = api.unlearn(config(base, tmp_path / "run", lora=2, steps=1)).path
    before = api.load_model(str(run)).sha256
    tensors = load_file(base / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, base / "model.safetensors", {"format": "pt"})
    assert api.load_model(str(run)).sha256 != before
