"""A run's further measurements, through the trainer and the record."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from geffect import api
from geffect.core.effects import g_effect, inner_by_label, r_squared
from geffect.errors import GeffectError
from geffect.record.frames import read, read_overlap, read_prediction, read_published, read_standard_errors
from geffect.record.reader import read_environment, read_lines
from geffect.reports.run import plot
from tests.conftest import config


def _weights(run: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_file(run / "checkpoints" / "checkpoint-4" / "model.safetensors")
    return weights


@pytest.fixture(scope="module")
def watched(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run under AdamW with everything switched on."""
    return api.unlearn(
        config(
            start,
            tmp_path_factory.mktemp("watched") / "run",
            rectifier="gru(space=both)",
            batch_size=2,
            grad_accum_steps=2,
            prediction=6,
            overlap=0.1,
            standard_errors=True,
            mode="paper",
            max_grad_norm=1.0,
            warmup_steps=2,
            save_gradients=["objective", "forget", "retain", "retain_average", "rectified"],
            forget="builtin:authors/forget[:9]",
        )
    ).path


def test_watching_changes_no_bit_of_the_weights(start: Path, watched: Path, tmp_path: Path) -> None:
    plain = api.unlearn(
        config(
            start,
            tmp_path / "run",
            rectifier="gru(space=both)",
            batch_size=2,
            grad_accum_steps=2,
            diagnose_every=3,
            max_grad_norm=1.0,
            warmup_steps=2,
            forget="builtin:authors/forget[:9]",
        )
    ).path
    left, right = _weights(watched), _weights(plain)
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_the_prediction_adds_up_over_the_run_and_the_update_explains_it(watched: Path) -> None:
    frame = read_prediction(watched)
    assert list(frame["step"].unique()) == [0, 1, 2, 3]
    for _, rows in frame.groupby(["target", "reading"]):
        assert rows["measured"].sum() == pytest.approx(rows["after"].iloc[-1] - rows["before"].iloc[0], abs=1e-9)
        assert rows["before"].iloc[1:].to_numpy() == pytest.approx(rows["after"].iloc[:-1].to_numpy(), abs=1e-6)
    readings = {name: rows for name, rows in frame[frame["target"] == "forget"].groupby("reading")}
    update, gradient = readings["update"], readings["gradient"]
    assert update["measured"].iloc[0] == 0  # warm-up: the first step's learning rate is zero
    assert r_squared(list(update["predicted"]), list(update["measured"])) > 0.9
    assert r_squared(list(gradient["predicted"]), list(gradient["measured"])) < 0.5


def test_a_step_of_rate_zero_moves_nothing_and_is_predicted_so(watched: Path) -> None:
    frame = read_prediction(watched)
    first = frame[frame["step"] == 0]
    assert (first["predicted"] == 0).all()
    gram = read(watched)
    assert inner_by_label(gram, "update", "update").xs(0, level="step").sum() == 0
    assert inner_by_label(gram, "update", "update").xs(1, level="step").sum() > 0


def test_supports_are_read_by_group_and_a_row_shares_its_multiples_mask(watched: Path) -> None:
    frame = read_overlap(watched)
    both = frame[(frame["gradient"] == "objective") & (frame["other"] == "forget")]
    assert (both["jaccard"] == 1).all()
    other = frame[(frame["gradient"] == "objective") & (frame["other"] == "retain")]
    assert other["jaccard"].between(0.02, 0.95).all()
    assert {"rectified", "update", "applied"} <= {*frame["gradient"], *frame["other"]}


def test_standard_errors_stand_beside_the_windows_own_products(watched: Path) -> None:
    frame = read_standard_errors(watched, by="group").set_index(["step", "group", "gradient", "other"])
    gram = read(watched).set_index(["step", "group", "gradient", "other"])["inner"]
    assert sorted({step for step, *_ in frame.index}) == [0, 1, 3]  # step 2 closes an epoch with one micro-batch
    shared = gram.index.intersection(frame.index)
    assert len(shared) == len(frame)
    scale = gram.abs().max()
    assert np.allclose(frame.loc[shared, "inner"], gram.loc[shared], atol=1e-5 * scale)
    assert (frame["standard_error"] >= 0).all()
    total = read_standard_errors(watched, by="total").set_index(["step", "gradient", "other"])
    own = total.xs(("objective", "objective"), level=("gradient", "other"))
    assert (own["halves"] < own["inner"]).all()
    with pytest.raises(GeffectError, match="Choose one of total, group, layer"):
        read_standard_errors(watched, by="parameter")


def test_the_published_estimates_stand_at_every_evaluation(watched: Path) -> None:
    frame = read_published(watched)
    assert sorted(frame["step"].unique()) == [0, 2, 4]
    assert set(frame["call"]) == {3}  # nine rows by twos are five calls
    effects = g_effect(frame.drop(columns="call"))
    assert (effects.groupby("step")["unlearn"].sum() < 0).all()
    exact = g_effect(read(watched)).groupby("step")["unlearn"].sum()
    assert exact[0] != effects.groupby("step")["unlearn"].sum()[0]


def test_saved_rows_are_the_gradients_of_the_record(watched: Path) -> None:
    gram = read(watched, by="parameter")
    folder = watched / "gradients" / "step-1"
    rows = {path.stem: load_file(path) for path in folder.glob("*.safetensors")}
    assert set(rows) == {"objective", "forget", "retain", "retain_average", "rectified"}
    for a in rows:
        for b in rows:
            recorded = inner_by_label(gram, a, b).xs(1, level="step")
            for name, value in recorded.items():
                found = float((rows[a][str(name)].double() * rows[b][str(name)].double()).sum())
                scale = float(rows[a][str(name)].norm() * rows[b][str(name)].norm())
                assert abs(found - value) <= 1e-5 * scale + 1e-12, (a, b, name)


def test_figures_draw_what_was_recorded(watched: Path, tmp_path: Path) -> None:
    names = {path.stem for path in plot([watched], tmp_path)}
    last = read(watched)["step"].max()
    of_steps = {
        "g_effect",
        "layers",
        "cosine",
        "trade_off",
        "prediction",
        "prediction_sums",
        "jaccard",
        "effects",
        "conflicts",
        "price",
    }
    assert names == of_steps | {f"gram-{last}", f"plane-{last}"}


@pytest.mark.parametrize("reader", [read_prediction, read_overlap, read_standard_errors, read_published])
def test_what_a_run_did_not_record_is_said(start: Path, tmp_path: Path, reader: Any) -> None:
    run = api.unlearn(config(start, tmp_path / "run", steps=1)).path
    with pytest.raises(GeffectError, match="Run geffect unlearn with --"):
        reader(run)


def test_gradient_checkpointing_changes_no_bit_and_recomputes(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    calls = {"n": 0}
    plain = LlamaMLP.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls["n"] += 1
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(LlamaMLP, "forward", counted)
    found = []
    for checkpointing in (False, True):
        calls["n"] = 0
        run = api.unlearn(
            config(
                start,
                tmp_path / str(checkpointing),
                objective="npo + kl",
                rectifier="gru",
                gradient_checkpointing=checkpointing,
            )
        ).path
        found.append((_weights(run), read(run), calls["n"]))
    (weights, gram, fewer), (others, twin, more) = found
    assert more > 1.3 * fewer
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert gram.equals(twin)


def test_autocast_computes_in_bfloat16_and_keeps_float32_weights(start: Path, tmp_path: Path) -> None:
    runs = [
        api.unlearn(config(start, tmp_path / kind, objective="npo", autocast=kind)).path
        for kind in ("none", "bfloat16")
    ]
    exact, low = (read_lines(run)[0] for run in runs)
    assert low["loss_objective"] == pytest.approx(exact["loss_objective"], rel=1e-3)
    assert low["norm_objective"] != exact["norm_objective"]
    assert low["norm_objective"] == pytest.approx(exact["norm_objective"], rel=0.05)
    assert all(tensor.dtype == torch.float32 for tensor in _weights(runs[1]).values())


def test_kept_dropout_thins_the_objective_and_not_the_losses(start: Path, tmp_path: Path) -> None:
    runs = {
        keep: api.unlearn(
            config(start, tmp_path / str(keep), lora=2, lora_dropout=0.5, keep_dropout=keep, steps=1)
        ).path
        for keep in (False, True)
    }
    without, kept = (read_lines(run)[0] for run in runs.values())
    assert kept["loss_forget"] == pytest.approx(without["loss_forget"], rel=1e-6)
    assert kept["norm_forget"] == pytest.approx(without["norm_forget"], rel=1e-5)
    assert abs(kept["norm_objective"] / without["norm_objective"] - 1) > 1e-3


def test_a_run_stops_once_the_forget_set_is_unknown_and_keeps_that_state(known: Path, tmp_path: Path) -> None:
    run = api.unlearn(
        config(known, tmp_path / "run", until_accuracy=0.4, evaluate_every=1, steps=50, learning_rate=1e-2)
    ).path
    *before, last = [line["evaluation"]["forget"]["accuracy"] for line in read_lines(run)]
    step = read_lines(run)[-1]["step"]
    assert step < 50 and min(before) >= 0.4 > last
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"checkpoint-{step}"]
    again = read_lines(api.unlearn(config(run, tmp_path / "again", steps=1)).path)[0]["evaluation"]["forget"][
        "accuracy"
    ]
    assert again == last


def test_a_set_already_unknown_is_refused_for_until_accuracy(start: Path, tmp_path: Path) -> None:
    with pytest.raises(
        GeffectError, match=r"The forget set has a token accuracy of 0\.0.*, below --until-accuracy 0\.4"
    ):
        api.unlearn(config(start, tmp_path / "run", until_accuracy=0.4))
    assert not (tmp_path / "run").exists()


def test_a_tied_model_is_recorded_by_use(start: Path, tmp_path: Path) -> None:
    from geffect.models.builtin import make_tiny
    from geffect.models.load import quiet_transformers
    from tests.conftest import SHAPE

    model, tokenizer = make_tiny(**SHAPE, tie_word_embeddings=True)
    with quiet_transformers():
        model.save_pretrained(tmp_path / "tied")
        tokenizer.save_pretrained(tmp_path / "tied")
    run = api.unlearn(
        config(
            tmp_path / "tied", tmp_path / "run", prediction=4, mode="paper", batch_size=2, overlap=0.1, rectifier="gru"
        )
    ).path
    table = read_environment(run)["parameters"]
    assert sum(table["numel"]) == sum(p.numel() for p in model.parameters())
    effects = g_effect(read(run), "applied").set_index(["step", "group"])
    assert "tied" not in effects.index.get_level_values("group")  # split by use, nothing is left
    assert (effects.xs("lm_head", level="group")["unlearn"] != 0).all()
    assert (effects.xs("embed", level="group")["unlearn"] != 0).all()
    assert set(read_published(run)["group"]) == {"embed", "shallow", "deep", "lm_head", "tied"}
    assert set(read_overlap(run)["group"]) >= {"embed", "tied"}


def test_a_general_set_and_refusals_meet_in_a_step(start: Path, tmp_path: Path) -> None:
    run = api.unlearn(
        config(
            start,
            tmp_path / "run",
            objective="dpo + po + kl(on=general) + 0.5*gd(on=general)",
            general="builtin:authors/retain[20:30]",
            steps=7,
        )
    ).path
    lines = read_lines(run)
    assert lines[0]["weight_mean"] == pytest.approx(1, abs=1e-5)
    assert set(read_environment(run)["data"]) == {"forget", "retain", "general", "heldout"}
    assert set(lines[0]["evaluation"]) == {"forget", "retain", "general", "heldout"}
