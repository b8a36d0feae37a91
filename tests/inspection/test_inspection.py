"""Checkpoints are measured over whole sets: as a run would have, whoever wrote them, and to the end."""

import gc
import json
import logging
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from huggingface_hub import constants

import geffect
from geffect import api
from geffect.config import InspectConfig
from geffect.core.forward import forward
from geffect.data.encode import collate, encode_set
from geffect.data.load import load_set
from geffect.errors import GeffectError, Interrupted
from geffect.inspection.measure import dataset_parts
from geffect.inspection.resolve import Checkpoint, check_readable, find_checkpoints
from geffect.models.scoring import compute_likelihood
from geffect.record.reader import read_lines
from geffect.training.batches import draw_partner, permutation
from tests.conftest import Command, config, exhaustive
from tests.support import oracles
from tests.support.cases import gpt2
from tests.support.steps import make_measurement

SETS = {
    "forget": "builtin:authors/forget[:6]",
    "retain": "builtin:authors/retain[:9]",
    "heldout": "builtin:authors/heldout[:4]",
}


def inspected(out: Path, *checkpoints: Path | str, **given: Any) -> InspectConfig:
    return InspectConfig.read(None, checkpoints=[str(each) for each in checkpoints], out=out, **given)


@pytest.fixture(scope="module")
def run(known: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three full-batch steps, a checkpoint each."""
    out = tmp_path_factory.mktemp("inspected") / "run"
    changes = SETS | {"steps": 3, "batch_size": 6, "save_every": 1, "evaluate_every": 1, "objective": "npo(beta=0.1)"}
    return api.unlearn(config(known, out, **changes)).path


def total(path: Path, step: int) -> "pd.Series[Any]":
    frame = geffect.read(path, by="parameter")
    sums: pd.Series[Any] = frame[frame["step"] == step].groupby(["gradient", "other"])["inner"].sum()
    return sums


def test_its_curves_are_those_recorded_in_training_on_the_same_rows(run: Path, tmp_path: Path) -> None:
    """The rows that met in each step, with the retain rows drawn then, are put into files and inspected."""
    retain = load_set(SETS["retain"])
    rows = [permutation(6, 0, epoch) for epoch in range(3)]
    start = start_of(run)
    for step, order in enumerate(rows):
        drawn = tmp_path / f"drawn-{step}.json"
        drawn.write_text(json.dumps([retain.examples[draw_partner(9, 0, step, row)] for row in order]))
        at = str(run / "checkpoints" / f"checkpoint-{step}") if step else start
        given = {"retain": str(drawn), "start": start, "forget": SETS["forget"], "objective": "npo(beta=0.1)"}
        found = api.inspect(inspected(tmp_path / f"at-{step}", at, **given))[0].path
        recorded, now = total(run, step), total(found, read_lines(found)[-1]["step"])
        norms = np.sqrt([recorded[a, a] * recorded[b, b] for a, b in recorded.index])
        assert np.all(np.abs(now.reindex(recorded.index) - recorded) < 1e-6 * norms)
        line, before = read_lines(found)[-1], read_lines(run)[step]
        assert line["evaluation"]["forget"]["loss"] == pytest.approx(before["evaluation"]["forget"]["loss"], rel=1e-6)
        assert line["weight_mean"] == pytest.approx(before["weight_mean"], rel=1e-5)


def start_of(run: Path) -> str:
    return str(yaml.safe_load((run / "config.yaml").read_text())["model"])


def test_a_row_is_the_gradient_of_the_whole_set(run: Path, tmp_path: Path) -> None:
    """Against the loss of one example after the other, by autograd alone."""
    found = api.inspect(inspected(tmp_path / "whole", run, batch_size=4, objective="ga"))[0].path
    loaded = api.load_model(str(run / "checkpoints" / "checkpoint-2"))
    gradients = {}
    for name in ("forget", "retain"):
        rows = encode_set(loaded.tokenizer, load_set(SETS[name]))
        sums: dict[str, torch.Tensor] = {}
        count = 0
        for row in rows:
            batch = {"input_ids": torch.tensor([row.input_ids]), "labels": torch.tensor([row.labels])}
            outputs = forward(loaded.model, batch | {"attention_mask": torch.ones_like(batch["input_ids"])})
            loaded.model.zero_grad()
            outputs.nll.sum().backward()
            count += int(outputs.mask.sum())
            for key, parameter in loaded.model.named_parameters():
                assert parameter.grad is not None
                sums[key] = sums.get(key, torch.zeros(())) + parameter.grad.double()
        gradients[name] = torch.cat([each.flatten() for each in sums.values()]) / count
    f, r = gradients["forget"], gradients["retain"]
    now = total(found, 2)
    scale = float(f.norm() * r.norm())
    assert now["forget", "retain"] == pytest.approx(float(f @ r), abs=1e-6 * scale)
    assert now["objective", "retain"] == pytest.approx(-float(f @ r), abs=1e-6 * scale)
    assert now["retain", "retain"] == pytest.approx(float(r @ r), rel=1e-6)


def test_parts_hold_every_row_once_and_end_with_every_set() -> None:
    rows = encode_set(api.load_model("builtin:tiny-untrained").tokenizer, load_set("builtin:authors/forget[:23]"))
    for sizes, size in (((5, 23), 2), ((23, 5), 4), ((2, 20), 8), ((1, 3), 2), ((7, 7), 7)):
        sets = {"forget": rows[: sizes[0]], "retain": rows[: sizes[1]]}
        parts = dataset_parts(sets, {}, 0, size)
        assert len(parts) == min(min(sizes), max(2, -(-min(sizes) // size)))
        for name, own in sets.items():
            met = [i for part in parts for each in part if name in each for i in each[name]["index"].tolist()]
            assert met == [row.index for row in own]
        for part in parts:
            assert set(part[-1]) == {"forget", "retain"}
            assert all(len(batch["labels"]) <= size for each in part for batch in each.values())


@pytest.mark.parametrize(
    "objective", ["npo(beta=0.1) + 0.5*gd", "rmu(layer=1, c=2)", *map(exhaustive, ("ga", "ga + kl", "po + gd"))]
)
def test_sets_of_different_sizes_are_as_one_batch(known: Path, tmp_path: Path, objective: str) -> None:
    changes = {"forget": "builtin:authors/forget[:5]", "retain": "builtin:authors/retain[:12]", "start": str(known)}
    both = [
        api.inspect(inspected(tmp_path / str(size), known, objective=objective, batch_size=size, **changes))[0].path
        for size in (2, 64)
    ]
    one, other = (total(path, 1) for path in both)
    norms = np.sqrt([one[a, a] * one[b, b] for a, b in one.index])
    assert np.all(np.abs(one - other) <= 1e-6 * norms + 1e-12)
    first, second = (read_lines(path)[0] for path in both)
    assert first["loss_objective"] == pytest.approx(second["loss_objective"], rel=1e-5)


def test_standard_errors_are_those_of_parts_however_they_are_cut() -> None:
    """A part cut into micro-batches counts as one, against the definition with whole gradients."""
    from geffect.measurement.step import Step
    from geffect.objectives.base import window_counts
    from tests.support.steps import FORGET, RETAIN

    def rows(batch: dict[str, torch.Tensor], *chosen: int) -> dict[str, torch.Tensor]:
        return {key: tensor[list(chosen)] for key, tensor in batch.items()}

    whole = [
        [{"forget": rows(FORGET, 0, 1), "retain": rows(RETAIN, 0, 1)}],
        [{"forget": rows(FORGET, 2, 3), "retain": rows(RETAIN, 2, 3)}],
    ]
    cut = [
        [{"retain": rows(RETAIN, 0)}, {"forget": rows(FORGET, 0, 1), "retain": rows(RETAIN, 1)}],
        [{"forget": rows(FORGET, 2)}, {"forget": rows(FORGET, 3), "retain": rows(RETAIN, 2, 3)}],
    ]
    found = []
    for parts in (whole, cut):
        step = Step(
            make_measurement(gpt2(), "ga", standard_errors=True),
            window_counts([each for part in parts for each in part]),
            measure=True,
        )
        flat = [(i, each) for i, part in enumerate(parts) for each in part]
        for i, (part, each) in enumerate(flat):
            step.micro_batch(each, last=i == len(flat) - 1, part=part)
        spread = step.finish().parts["standard_errors"]
        assert spread is not None
        found.append(torch.stack(list(spread.linearized.values())))
    assert found[0].shape[1] == 2
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6 * float(found[0].abs().max()))


def test_what_is_not_given_comes_from_the_run(run: Path, tmp_path: Path) -> None:
    found = api.inspect(inspected(tmp_path / "own", run))[0].path
    assert found == tmp_path / "own"
    lines = read_lines(found)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert [line["checkpoint"] for line in lines[1:]] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    for line, recorded in zip(lines, read_lines(run), strict=True):
        assert line["evaluation"]["heldout"]["loss"] == pytest.approx(
            recorded["evaluation"]["heldout"]["loss"], rel=1e-6
        )
    assert lines[0]["weight_mean"] == pytest.approx(1.0, abs=1e-5)  # NPO's, against the run's own start
    errors = geffect.read_standard_errors(found, "total")
    assert set(errors["step"]) == {0, 1, 2, 3}
    assert (errors["standard_error"] > 0).all()
    assert {path.name for path in geffect.plot([found])} >= {"g_effect.png", "cosine.csv", "trade_off.pdf"}


def test_a_built_in_model_is_a_checkpoint_by_its_name(tmp_path: Path) -> None:
    given: dict[str, Any] = SETS | {"checkpoints": "builtin:tiny-untrained", "objective": "ga", "one_pass": True}
    chosen = InspectConfig.read(**given, out=tmp_path / "record")
    assert api.plan(chosen)["steps"] == "1 checkpoints: 1"
    (line,) = read_lines(api.inspect(chosen)[0].path)
    assert line["evaluation"]["heldout"]["accuracy"] < 0.1


def test_several_objectives_have_a_record_each(run: Path, tmp_path: Path) -> None:
    made = api.inspect(inspected(tmp_path / "all", run, objective=["ga", "npo(beta=0.1)"], one_pass=True))
    assert [each.path.name for each in made] == ["ga", "npo-beta-0.1"]
    alone = api.inspect(inspected(tmp_path / "alone", run, objective="npo(beta=0.1)", one_pass=True))[0].path
    for step in range(4):
        pd.testing.assert_series_equal(total(made[1].path, step), total(alone, step))
    with pytest.raises(GeffectError, match=r"has no standard errors\. Run geffect unlearn with --standard-errors"):
        geffect.read_standard_errors(alone)


def test_points_tell_ceus_weights_without_an_answers_first_token(run: Path, tmp_path: Path) -> None:
    text = "ceu(skip=1)"
    place = run / "checkpoints" / "checkpoint-2"
    asked = inspected(tmp_path / "points", place, **SETS, points=[text], one_pass=True)
    record = api.inspect(asked)[0].path
    loaded = api.load_model(str(place))
    examples = encode_set(loaded.tokenizer, load_set(SETS["forget"]), 512)
    lines = [line for line in read_lines(record, "points.jsonl") if line["step"] == 2]
    assert len(lines) == len(examples) > 2
    for line in lines:
        batch = collate([examples[line["example"]]], 0)
        with torch.no_grad():
            p = torch.exp(-oracles.example_nll(loaded.model.double(), batch, 0))
        assert line["weights"][text] == pytest.approx(float((p / (1 - p))[1:].sum() / len(p)), rel=1e-4)


def test_an_interrupted_inspection_goes_on_to_the_same_record(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geffect.inspection import measure
    from geffect.inspection import run as inspecting

    whole = api.inspect(inspected(tmp_path / "whole", run, tokens=2, points=["wga"]))[0].path
    broken, calls = inspected(tmp_path / "broken", run, tokens=2, points=["wga"]), []
    real = measure.point_lines

    def twice(*given: Any) -> Any:
        calls.append(1)
        for i, line in enumerate(real(*given)):
            if len(calls) == 3 and i == 2:  # some of the third checkpoint's lines are written already
                raise KeyboardInterrupt
            yield line

    with monkeypatch.context() as patch:
        patch.setattr(inspecting, "point_lines", twice)
        with pytest.raises(Interrupted, match="stopped at step 2; the checkpoints before"):
            api.inspect(broken)
    assert [line["step"] for line in read_lines(broken.out)] == [0, 1]
    with pytest.raises(GeffectError, match=r"objective is .*npo"):
        api.inspect(broken.replace(objective=["ga"]), resume=True)
    api.inspect(broken, resume=True)
    for name in ("steps.jsonl", "tokens.jsonl", "points.jsonl"):
        first, second = (
            [{k: v for k, v in line.items() if k != "seconds"} for line in read_lines(path, name)]
            for path in (whole, broken.out)
        )
        assert first == second
    assert (broken.out / "DONE").exists()
    before = (broken.out / "steps.jsonl").read_bytes()
    assert [each.path for each in api.inspect(broken, resume=True)] == [broken.out]  # finished: left as it is
    assert (broken.out / "steps.jsonl").read_bytes() == before


def test_nobody_inspects_into_what_another_writes(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from geffect.inspection import run as inspecting

    asked, load = inspected(tmp_path / "out", run), inspecting._start_of

    def beside_another(*given: Any) -> Any:
        monkeypatch.setattr(inspecting, "_start_of", load)
        with pytest.raises(GeffectError, match="Another process writes"):
            api.inspect(asked)
        return load(*given)

    monkeypatch.setattr(inspecting, "_start_of", beside_another)
    api.inspect(asked)
    whole = (tmp_path / "out" / "steps.jsonl").read_bytes()
    (tmp_path / "out" / "DONE").unlink()  # as a kill between the last line and the end leaves it
    api.inspect(asked, resume=True)
    assert (tmp_path / "out" / "DONE").exists()
    assert (tmp_path / "out" / "steps.jsonl").read_bytes() == whole


def test_tokens_and_points_add_up_to_the_record(run: Path, tmp_path: Path) -> None:
    """Two engines, one truth: sums over tokens are the Gram's entries, sums of PG-effects NPO's G-effect (Eq. 5)."""
    found = api.inspect(inspected(tmp_path / "told", run, tokens=9, points=["npo(beta=0.1)", "ga"]))[0].path
    effects = geffect.g_effect(geffect.read(found)).groupby("step")[["unlearn", "retain"]].sum()
    tokens, points = geffect.read_tokens(found), geffect.read_points(found)
    for step in range(4):
        at = tokens[tokens["step"] == step]
        for name, effect in (("forget", "unlearn"), ("retain", "retain")):
            own = at[at["set"] == name]
            mean = own["effect"].sum() / own["labeled"].sum()
            assert mean == pytest.approx(effects.loc[step, effect], rel=1e-4)
            groups = own[["embed", "shallow", "middle", "deep", "lm_head"]].sum(axis=1)
            np.testing.assert_allclose(groups, own["effect"], atol=1e-5 * own["effect"].abs().max())
            assert own.groupby("example").size().max() >= 10
        here = points[points["step"] == step]
        assert len(here) == 6
        for name in ("unlearn", "retain"):
            weighted = (here["npo(beta=0.1)"] * here[name]).mean()
            assert weighted == pytest.approx(effects.loc[step, name], rel=1e-4)
        weight = 2 / (1 + np.exp(0.1 * (here["nll"] - here["reference_nll"])))
        np.testing.assert_allclose(here["npo(beta=0.1)"], weight, rtol=1e-5)
    assert (points["ga"] == 1).all()
    first = tokens[(tokens["set"] == "heldout") & (tokens["step"] == 3)]
    text = load_set(SETS["heldout"]).examples[int(first["example"].iloc[0])]
    whole = "".join(first[first["example"] == first["example"].iloc[0]]["token"])
    assert text["question"] in whole
    assert text["answer"] in whole
    means = first.groupby("example", sort=False).apply(lambda own: own["effect"].sum() / own["labeled"].sum())
    assert means.is_monotonic_increasing  # the most harmed first


def test_adapters_on_one_base_are_exchanged_not_loaded_anew(known: Path, tmp_path: Path) -> None:
    changes = SETS | {"steps": 3, "batch_size": 6, "save_every": 1, "lora": 2, "learning_rate": 1e-2}
    made = api.unlearn(config(known, tmp_path / "lora", **changes)).path
    found = api.inspect(inspected(tmp_path / "series", made, one_pass=True))[0].path
    assert [line["step"] for line in read_lines(found)] == [0, 1, 2, 3]
    for step in (1, 3):
        alone = made / "checkpoints" / f"checkpoint-{step}"
        own = api.inspect(inspected(tmp_path / str(step), alone, one_pass=True, objective="ga", **SETS))[0].path
        pd.testing.assert_series_equal(total(own, step), total(found, step), rtol=1e-9)
    recorded, now = total(made, 0), total(found, 0)
    assert now["forget", "forget"] == pytest.approx(recorded["forget", "forget"], rel=1e-6)
    assert "lora" in geffect.read(found, by="parameter")["parameter"].iloc[0]


def test_a_memory_estimate_sees_the_parts(run: Path, tmp_path: Path) -> None:
    """One retain row makes one part, whose spread cannot be told: no rows are held for it."""
    from geffect.inspection.measure import num_parts
    from geffect.training.memory import inspection_memory

    loaded = api.load_model(str(run))
    rows = encode_set(loaded.tokenizer, load_set("builtin:authors/forget[:16]"))
    weights = sum(p.numel() for p in loaded.model.parameters()) * 4e-9
    given = SETS | {"checkpoints": str(run), "objective": "ga", "out": tmp_path / "out"}

    def estimate(num_retain: int, batch_size: int, *, one_pass: bool) -> float:
        asked = InspectConfig.read(None, **(given | {"batch_size": batch_size, "one_pass": one_pass}))
        parts = num_parts(min(16, num_retain), batch_size)
        return inspection_memory(asked, loaded.model, {"forget": rows, "retain": rows[:num_retain]}, parts).gb

    assert estimate(16, 8, one_pass=False) - estimate(16, 8, one_pass=True) == pytest.approx(3 * weights, rel=1e-6)
    assert estimate(1, 8, one_pass=False) - estimate(1, 8, one_pass=True) == pytest.approx(weights, rel=1e-6)
    assert estimate(16, 16, one_pass=True) == estimate(16, 8, one_pass=True)  # two parts of eight rows either way
    assert estimate(16, 4, one_pass=True) < estimate(16, 8, one_pass=True)


@pytest.mark.parametrize("objective", ["ga", "npo(beta=0.1) + kl"])
def test_one_checkpoint_is_in_memory_at_a_time(run: Path, tmp_path: Path, objective: str) -> None:
    """When the third is measured the first is gone, though its sets and its layout are still in use."""
    from geffect.inspection.run import inspect
    from geffect.inspection.tasks import prepare_inspection

    held: list[weakref.ref[Any]] = []
    alive = []

    def load(spec: str) -> Any:
        gc.collect()
        alive.append(sum(each() is not None for each in held))
        loaded = api.load_model(spec)
        held.append(weakref.ref(loaded.model))
        return loaded

    inspect(prepare_inspection(inspected(tmp_path / "one", run, objective=objective)), load, resume=False)
    assert alive == [0, 0, 0, 0]


def test_a_trainers_own_checkpoints_are_inspected(known: Path, tmp_path: Path) -> None:
    """Directories checkpoint-N as Hugging Face's Trainer writes them, one by one, and under other names."""
    from transformers import Trainer, TrainingArguments

    loaded = api.load_model(str(known))
    rows = [collate([row], 0) for row in encode_set(loaded.tokenizer, load_set(SETS["heldout"]))]
    data = [{name: batch[name][0] for name in ("input_ids", "attention_mask", "labels")} for batch in rows]
    arguments = TrainingArguments(
        str(tmp_path / "trainer"),
        max_steps=4,
        save_steps=2,
        report_to=[],
        use_cpu=True,
        per_device_train_batch_size=1,
        disable_tqdm=True,
    )
    Trainer(loaded.model, arguments, train_dataset=data, processing_class=loaded.tokenizer).train()
    shutil.copytree(tmp_path / "trainer" / "checkpoint-4", tmp_path / "named")
    given: dict[str, Any] = SETS | {"objective": "ga", "one_pass": True}
    found = api.inspect(inspected(tmp_path / "a", tmp_path / "trainer", **given))[0].path
    assert [line["step"] for line in read_lines(found)] == [2, 4]
    both = tmp_path / "trainer" / "checkpoint-2", tmp_path / "named"
    listed = api.inspect(inspected(tmp_path / "b", *both, **given))[0].path
    assert [line["step"] for line in read_lines(listed)] == [1, 2]
    loss = compute_likelihood(loaded.model, encode_set(loaded.tokenizer, load_set(SETS["heldout"])), 0).loss
    assert read_lines(listed)[1]["evaluation"]["heldout"]["loss"] == pytest.approx(loss, rel=1e-6)


def test_the_published_estimates_are_told_beside(run: Path, tmp_path: Path) -> None:
    """With one micro-batch a pass and cadence four, the first reading comes at call 3."""
    found = api.inspect(inspected(tmp_path / "paper", run, mode="paper", batch_size=1, objective="ga"))[0].path
    published = geffect.read_published(found)
    assert set(published["step"]) == {0, 1, 2, 3}
    assert set(published["call"]) == {3}


def test_steps_that_meet_are_refused(run: Path, tmp_path: Path) -> None:
    both = [run / "checkpoints" / "checkpoint-1", shutil.copytree(run / "checkpoints", tmp_path / "x") / "checkpoint-1"]
    with pytest.raises(GeffectError, match="Two checkpoints are of step 1"):
        find_checkpoints([str(each) for each in both])


def broken_weights(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def no_weights(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()


def no_config(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (broken_weights, "The weights in .* cannot be read"),
        (no_weights, "weights as safetensors in"),
        (no_config, "config.json"),
    ],
)
def test_a_half_written_checkpoint_is_named_and_skipped_only_where_told(
    run: Path, tmp_path: Path, harm: Any, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    copy = shutil.copytree(run / "checkpoints", tmp_path / "series")
    harm(copy / "checkpoint-2")
    with pytest.raises(GeffectError, match=told) as raised:
        check_readable(find_checkpoints([str(copy)]), skip_broken=False)
    assert "checkpoint-2" in str(raised.value)
    with caplog.at_level(logging.WARNING, "geffect"):
        kept = check_readable(find_checkpoints([str(copy)]), skip_broken=True)
    assert [place.step for place in kept] == [1, 3]
    assert "left out" in caplog.text
    assert "checkpoint-2" in caplog.text
    found = api.inspect(inspected(tmp_path / "rest", copy, skip_broken=True, one_pass=True, objective="ga", **SETS))[
        0
    ].path
    assert [line["step"] for line in read_lines(found)] == [1, 3]


def test_checkpoints_of_different_architectures_are_refused(run: Path, tmp_path: Path) -> None:
    other = api.load_model("builtin:tiny-untrained")
    other.model.save_pretrained(tmp_path / "other")
    other.tokenizer.save_pretrained(tmp_path / "other")
    first = str(run / "checkpoints" / "checkpoint-1")
    with pytest.raises(GeffectError, match=r"The checkpoints have several architectures: .* of shape"):
        check_readable([Checkpoint(1, first), Checkpoint(2, str(tmp_path / "other"))], skip_broken=True)


SHELL = {
    "empty": (["{empty}"], "checkpoint-N directories"),
    "nowhere": (["{empty}/nope"], "There is no model"),
    "base": (["{adapter}", "--forget", SETS["forget"], "--retain", SETS["retain"]], "gone"),
    "no set": (["{run}/checkpoints"], "--forget has no value"),
    "no start": (
        ["{run}/checkpoints", "--forget", SETS["forget"], "--retain", SETS["retain"], "--objective", "npo(beta=0.1)"],
        "--start",
    ),
    "objective": (["{run}", "--objective", "nope"], "nope"),
    "points": (["{run}", "--points", "nope"], "nope"),
    "taken": (["{run}", "--out", "{run}"], "exists already"),
    "twice": (["{run}", "--objective", "ga", "--objective", "ga"], "--objective names 'ga' twice"),
    "nothing": ([], "checkpoints has no value"),
    "revision": (["org/model@main", "--forget", SETS["forget"], "--retain", SETS["retain"]], "org/model@main"),
}


@pytest.mark.parametrize("case", SHELL)
def test_bad_input_is_one_line_and_leaves_nothing(
    case: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Command
) -> None:
    arguments, told = SHELL[case]
    (tmp_path / "empty").mkdir()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "gone")}))
    names = {"empty": tmp_path / "empty", "run": run, "adapter": adapter}
    out = [] if "--out" in arguments else ["--out", str(tmp_path / "out")]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    ended = invoke("inspect", *(each.format(**names) for each in arguments), *out)
    assert ended.code == 2
    last = ended.err.strip().splitlines()[-1]
    assert last.startswith("geffect: ")
    assert told in last
    assert not (tmp_path / "out").exists()


def test_the_shell_prints_a_table_and_a_plan(run: Path, tmp_path: Path, invoke: Command) -> None:
    seen = tmp_path / "seen"
    assert "the start, 3 checkpoints: 1, 2, 3" in invoke("inspect", run, "--out", seen, "--dry-run").err
    assert not seen.exists()
    printed = invoke("inspect", run, "--out", seen).out
    assert "unlearn" in printed
    assert "±" in printed
    assert "3 checkpoints" in invoke("inspect", seen / "config.yaml", "--out", tmp_path / "again", "--dry-run").err
