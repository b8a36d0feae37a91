"""Any named sets as targets: their Gram, their effects in nats, the Trainer's log, alerts and the end of a training."""

import copy
import itertools
import logging
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import geffect
from geffect.core.gradients import capture_gradients
from geffect.core.layers import layout, trainable_parameters
from geffect.core.masks import top_mask
from geffect.errors import GeffectError
from geffect.measurement.update import exchanged
from geffect.monitoring.callback import Callback
from geffect.monitoring.monitor import Monitor
from geffect.monitoring.pace import Pace
from geffect.record.reader import read_lines
from tests.support.cases import gpt2, llama, lora
from tests.support.rows import QUIET, Rows, made_rows, nats, padded

MATH, CHAT, CODE = made_rows([7, 5, 9, 6, 8], 0), made_rows([6, 8, 5, 7], 1), made_rows([5, 6], 2)
TARGETS = {"math": MATH, "chat": CHAT, "code/python": CODE}
OTHERS = ("applied_gradient", "update", "weights")
ARGUMENTS: dict[str, Any] = {"max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-2, **QUIET}


def mean_nll(model: nn.Module, examples: Rows) -> Tensor:
    """Token-mean NLL, an example after another."""
    total = [nats(model, padded([example])).sum() for example in examples]
    return torch.stack(total).sum() / sum(sum(each != -100 for each in example["labels"][1:]) for example in examples)


def flat(gradient: dict[str, Tensor], model: nn.Module) -> Tensor:
    """One vector of all parameters."""
    parameters = trainable_parameters(model).items()
    return torch.cat([gradient.get(name, torch.zeros_like(p)).double().reshape(-1) for name, p in parameters])


def trainer(model: Any, out: Path, *callbacks: TrainerCallback, **settings: Any) -> Trainer:
    """A Trainer over some rows."""
    args = TrainingArguments(output_dir=str(out), **ARGUMENTS | settings)
    return Trainer(model, args, train_dataset=MATH + CHAT, data_collator=padded, callbacks=list(callbacks))


@pytest.mark.parametrize("make", [gpt2, llama, lora], ids=["tied", "untied", "adapter"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_gram_of_any_targets_is_that_of_single_examples(
    make: Callable[[], Any], count: int, tmp_path: Path
) -> None:
    """In float64, two steps of AdamW: targets, gradient, update and weights, by parameter, with the effects in nats."""
    model = make().double().train()
    targets = dict(itertools.islice(TARGETS.items(), count))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    found = []
    with Monitor(model, targets, optimizer=optimizer, batch_size=2, out=tmp_path / "run") as monitor:
        for examples in (MATH[:2], CHAT[1:3]):
            model.eval()
            slow = capture_gradients(model, {name: partial(mean_nll, model, each) for name, each in targets.items()})
            model.train()
            mean_nll(model, examples).backward()
            trained = trainable_parameters(model)
            slow["applied_gradient"] = {name: p.grad.clone() for name, p in trained.items() if p.grad is not None}
            slow["weights"] = {name: p.detach().clone() for name, p in trained.items()}
            optimizer.step()
            slow["update"] = {name: slow["weights"][name] - p.detach() for name, p in trained.items()}
            optimizer.zero_grad()
            found.append(slow)
    frame = geffect.read(tmp_path / "run", "parameter")
    sums = frame.groupby(["step", "gradient", "other"])["inner"].sum()
    assert monitor.run.targets == list(targets)
    effects = monitor.run.effects().groupby(["step", "target"])["effect"].sum()
    for step, slow in enumerate(found):
        vectors = {name: flat(each, model) for name, each in slow.items()}
        assert {*sums.loc[step].index} == {*itertools.combinations_with_replacement([*targets, *OTHERS], 2)}
        for name, other in sums.loc[step].index:
            a, b = vectors[name], vectors[other]
            assert float(sums[step, name, other]) == pytest.approx(float(a @ b), abs=1e-6 * float(a.norm() * b.norm()))
        for name in targets:
            exact = -float(vectors[name] @ vectors["update"])
            assert effects[step, name] == pytest.approx(exact, rel=1e-5)


def test_an_effect_is_the_change_of_the_loss(tmp_path: Path) -> None:
    """At a small learning rate the next step's loss is this one's plus the effect."""
    callback = Callback({"math": MATH, "chat": CHAT})
    trainer(llama(), tmp_path, callback, learning_rate=1e-5, max_steps=6).train()
    frame = callback.run.prediction()
    assert len(frame) == 2 * 6
    assert set(frame["reading"]) == {"update"}
    assert frame["predicted"].to_numpy() == pytest.approx(frame["measured"].to_numpy(), rel=0.05)
    assert callback.run.plot("prediction").axes


def test_the_record_ends_with_the_scores_of_the_final_weights(tmp_path: Path) -> None:
    model, callback = llama(), Callback({"math": MATH, "chat": CHAT}, every=3)
    trainer(model, tmp_path, callback).train()
    last = callback.run.evaluations().set_index(["step", "set"])["loss"]
    model.eval()
    for name, examples in (("math", MATH), ("chat", CHAT)):
        assert last[4, name] == pytest.approx(mean_nll(model, examples).item(), rel=1e-5)


def test_cosines_are_those_of_the_gradients(tmp_path: Path) -> None:
    model = llama()
    slow = capture_gradients(model, {name: partial(mean_nll, model, each) for name, each in TARGETS.items()})
    callback = Callback(TARGETS)
    trainer(model, tmp_path, callback, max_steps=1).train()
    whole, by_layer = callback.run.target_cosines(), callback.run.target_cosines("layer")
    vectors = {name: flat(each, model) for name, each in slow.items()}
    for _, row in whole.iterrows():
        a, b = vectors[row["target"]], vectors[row["other"]]
        assert row["cosine"] == pytest.approx(float(a @ b / a.norm() / b.norm()), rel=1e-4)
    assert len(whole) == 3
    layers = layout(model).layers
    for _, row in by_layer.iterrows():
        members = [name for name, layer in layers.items() if layer == row["layer"]]
        a, b = (
            torch.cat([slow[row[key]].get(name, torch.zeros(1)).reshape(-1) for name in members])
            for key in ("target", "other")
        )
        assert row["cosine"] == pytest.approx(float(a @ b / a.norm() / b.norm()), abs=1e-4)


class Dividing(torch.optim.SGD):
    """An optimizer that changes ``.grad`` in place."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in (p for p in group["params"] if p.grad is not None):
                parameter.grad.div_(2)
        return super().step(closure)


@pytest.mark.parametrize("loses", [Dividing, torch.optim.SGD], ids=["changed", "removed"])
def test_a_gradient_that_the_optimizer_changed_is_copied_from_then_on(loses: Any, tmp_path: Path) -> None:
    """It is not told as what was applied; ``zero_grad`` before `updated` loses it as well."""
    model = llama()
    optimizer, steps = loses(model.parameters(), lr=0.1), []
    with Monitor(model, {"math": MATH}, update=True, out=tmp_path / "run") as monitor:
        for _ in range(2):
            mean_nll(model, MATH).backward()
            steps.append(flat({n: p.grad.clone() for n, p in model.named_parameters()}, model).norm())
            monitor.step()
            optimizer.step()
            if loses is torch.optim.SGD:
                optimizer.zero_grad()
            monitor.updated()
            optimizer.zero_grad()
    frame = monitor.run.steps()
    assert math.isnan(frame["norm_applied_gradient"][0])
    assert frame["norm_applied_gradient"][1] == pytest.approx(float(steps[1]), rel=1e-5)
    assert (frame["norm_update"][:2] > 0).all()


def test_numbers_go_into_the_trainers_own_log(tmp_path: Path) -> None:
    """A target's effects by group add up, and every number is that of the record."""
    callback = Callback({"math": MATH, "chat": CHAT}, every=2)
    host = trainer(gpt2(), tmp_path, callback)
    host.train()
    lines = [line for line in host.state.log_history if "geffect/math/effect" in line]
    assert [line["step"] for line in lines] == [1, 3]
    effects = callback.run.effects().set_index(["step", "group", "target"])["effect"]
    for line in lines:
        for name in ("math", "chat"):
            own = effects.loc[line["step"] - 1, :, name]
            groups = {key.rpartition("/")[2]: line[key] for key in line if key.startswith(f"geffect/{name}/effect/")}
            assert groups == pytest.approx(own.to_dict(), rel=1e-6)
            assert line[f"geffect/{name}/effect"] == pytest.approx(own.sum(), rel=1e-5)
            assert -1 <= line[f"geffect/cos/{name}~update"] <= 1
        assert -1 <= line["geffect/cos/math~chat"] <= 1
        assert 0 < line["geffect/update/relative"] < 1
        assert -1 <= line["geffect/update/radial"] <= 1
    steps = callback.run.steps()
    assert [line["geffect/math/loss"] for line in lines] == pytest.approx(list(steps["math_loss"][:2]))
    silent = trainer(gpt2(), tmp_path, Callback({"math": MATH}, log=False))
    silent.train()
    assert not any("geffect" in key for line in silent.state.log_history for key in line)


@pytest.mark.parametrize("update", [True, False])
def test_a_host_with_any_targets_trains_to_the_same_bits(update: bool, tmp_path: Path) -> None:
    model = gpt2()
    other = copy.deepcopy(model)
    trainer(model, tmp_path / "plain").train()
    trainer(other, tmp_path / "monitored", Callback(TARGETS, update=update, examples=2)).train()
    for (name, a), (_, b) in zip(model.state_dict().items(), other.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_the_trainers_own_lines_stay(tmp_path: Path) -> None:
    """A line that is due in a measured step is there, to the last digit, as without the callback."""
    found = []
    for callbacks in ([], [Callback({"math": MATH})]):
        settings = {"logging_strategy": "steps", "logging_steps": 2}
        host = trainer(gpt2(), tmp_path, *callbacks, **settings)
        host.train()
        lines = [line for line in host.state.log_history if "geffect/math/loss" not in line]
        timed = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
        found.append([{key: value for key, value in line.items() if key not in timed} for line in lines])
    assert found[0] == found[1]
    assert [line["step"] for line in found[0]] == [2, 4, 4]


def test_alerts_tell_once_and_stop_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Training on one set at a high rate raises the loss of another."""
    callback = Callback({"chat": CHAT}, alerts={"chat": 1e-3}, stop={"chat": 0.1})
    args = TrainingArguments(output_dir=str(tmp_path), **ARGUMENTS | {"learning_rate": 0.05, "max_steps": 40})
    host = Trainer(llama(), args, train_dataset=CODE, data_collator=padded, callbacks=[callback])
    with caplog.at_level(logging.WARNING, "geffect"):
        host.train()
    texts = [record.getMessage() for record in caplog.records]
    assert sum("(alert at 0.001)" in text for text in texts) == 1
    assert sum("the training ends (stop at 0.1)" in text for text in texts) == 1
    assert host.state.global_step < 40
    loss = callback.run.steps()["chat_loss"].iloc[:-1]  # the last is of the weights after
    assert loss.iloc[-1] - loss.iloc[0] > 0.1 >= loss.iloc[-2] - loss.iloc[0]


def test_a_loss_that_is_not_finite_is_above_every_limit_and_ends_no_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without limits the host goes on; an alert is told once, and ``stop`` ends the training."""
    for limits, steps in (({}, 4), ({"alerts": {"math": 9.0}}, 4), ({"stop": {"math": 9.0}}, 1)):
        model: Any = llama()
        with torch.no_grad():
            model.lm_head.weight[0, 0] = math.nan
        given: dict[str, Any] = limits
        host = trainer(model, tmp_path, Callback({"math": MATH}, **given))
        caplog.clear()
        with caplog.at_level(logging.WARNING, "geffect"):
            host.train()
        assert host.state.global_step == steps
        assert caplog.text.count("(alert at 9)") == ("alerts" in limits)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "There is no target"),
        (["math.jsonl"], "not sets by name"),
        ({"update": MATH}, "A target cannot be called update"),
        ({"a\nb": MATH}, "A target cannot be called"),
        ({"": MATH}, "A target cannot be called"),
        ({"../out": MATH}, "A target cannot be called"),
        ({"math": MATH, "Math": CHAT}, "Two targets are called math and Math"),
        ({"math": []}, "The math set has no example"),
    ],
    ids=lambda each: str(each)[:30],
)
def test_targets_that_no_record_can_hold_are_refused(given: Any, told: str) -> None:
    with pytest.raises(GeffectError, match=told) as error:
        Monitor(llama(), given)
    assert "\n" not in str(error.value)


def test_an_example_longer_than_the_model_is_refused() -> None:
    model = gpt2()
    long = made_rows([model.config.max_position_embeddings + 1], 0)
    with pytest.raises(GeffectError, match=r"Example 0 of the long set has \d+ tokens, and the model \d+ positions"):
        Monitor(model, {"long": long})


@pytest.mark.parametrize("name", ["alerts", "stop"])
def test_a_limit_of_no_target_is_refused(name: str) -> None:
    limits: dict[str, Any] = {name: {"maths": 0.1}}
    with pytest.raises(GeffectError, match=f"{name} names maths, which is no target"):
        Callback({"math": MATH}, **limits)


def test_examples_are_spread_over_the_set(tmp_path: Path) -> None:
    with Monitor(llama(), {"math": MATH, "code": CODE}, examples=2, out=tmp_path / "run") as monitor:
        pass
    chosen = [each.input_ids for each in monitor.targets["math"].examples]
    assert chosen == [MATH[0]["input_ids"], MATH[2]["input_ids"]]
    assert len(monitor.targets["code"].examples) == 2


def test_a_run_without_an_update_says_what_to_do(tmp_path: Path) -> None:
    callback = Callback({"math": MATH}, update=False)
    trainer(llama(), tmp_path, callback, max_steps=1).train()
    with pytest.raises(GeffectError, match="recorded no applied update"):
        callback.run.effects()
    with pytest.raises(GeffectError, match="fewer than two targets"):
        callback.run.target_cosines()


def test_tensorboard_has_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the files that it reads, under the Trainer's own prefix."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    callback = Callback({"math": MATH, "chat": CHAT})
    host = trainer(llama(), tmp_path / "host", callback, report_to="tensorboard")
    host.train()
    (file,) = (tmp_path / "board").rglob("events.*")
    events = EventAccumulator(str(file)).Reload()
    effects = callback.run.effects().groupby(["step", "target"])["effect"].sum()
    for name in ("math", "chat"):
        drawn = {event.step: event.value for event in events.Scalars(f"train/geffect/{name}/effect")}
        assert drawn == pytest.approx({step + 1: effects[step, name] for step in range(4)}, rel=1e-5)
    assert "train/geffect/cos/math~chat" in events.Tags()["scalars"]


def test_trackio_is_told_of_an_alert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An alert of a run that trackio holds open; without such a run nothing is begun."""
    trackio = pytest.importorskip("trackio", exc_type=ImportError)
    told: list[tuple[str, str]] = []
    monkeypatch.setattr(trackio, "alert", lambda title, text: told.append((title, text)))
    settings = {"learning_rate": 0.05, "max_steps": 6}
    trainer(llama(), tmp_path / "alone", Callback({"chat": CHAT}, alerts={"chat": -1.0}), **settings).train()
    assert not told
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio.init(project="geffect-test", embed=False)
    try:
        trainer(llama(), tmp_path / "held", Callback({"chat": CHAT}, alerts={"chat": -1.0}), **settings).train()
    finally:
        trackio.finish()
    assert [title for title, _ in told] == ["geffect: chat"]


def test_an_automatic_pace_keeps_to_its_overhead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By a clock that tells a second a step and two a measurement: every step in ⌈2 / (0.1 · 1)⌉ = 20 is measured."""
    pace, now, measured = Pace(None, 0.1), [0.0], []
    monkeypatch.setattr("geffect.monitoring.pace.perf_counter", lambda: now[0])
    for step in range(60):
        now[0] += 1.0
        if pace.due(step):
            measured.append(step)
            now[0] += 0.5
            pace.pause()
            now[0] += 7.0  # the optimizer's own
            pace.resume()
            now[0] += 1.5
            pace.measured()
    assert measured == [0, 5, 25, 45]
    assert pace.chosen == 20


@pytest.mark.parametrize("update", [True, False])
def test_the_automatic_pace_of_a_training(update: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    callback = Callback({"math": MATH}, every="auto", overhead=0.5, update=update)
    with caplog.at_level(logging.INFO, "geffect"):
        trainer(llama(), tmp_path, callback, max_steps=12).train()
    steps = [line["step"] for line in read_lines(callback.run.path) if "gram" in line]
    (chosen,) = re.findall(r"every step in (\d+) is measured", caplog.text)
    assert steps == [0, *range(5, 12, int(chosen))]


@pytest.mark.parametrize("overhead", [0.0, 1.0, -1.0, math.nan])
def test_an_overhead_that_is_no_share_is_refused(overhead: float) -> None:
    with pytest.raises(GeffectError, match="overhead is"):
        Monitor(llama(), {"math": MATH}, every="auto", overhead=overhead)


@pytest.mark.parametrize("kind", ["list", "datasets"])
def test_examples_that_are_trained_on_are_told(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Two of four examples of one target, none of the other."""
    rows = [{"input_ids": each["input_ids"], "labels": each["labels"]} for each in (*MATH[:2], *CHAT)]
    args = TrainingArguments(output_dir=str(tmp_path), **ARGUMENTS | {"max_steps": 1})
    trained: Any = rows
    if kind == "datasets":
        trained = pytest.importorskip("datasets").Dataset.from_list(rows)
    callback = Callback({"math": MATH[:4], "code": CODE})
    with caplog.at_level(logging.WARNING, "geffect"):
        Trainer(llama(), args, train_dataset=trained, data_collator=padded, callbacks=[callback]).train()
    told = [record.getMessage() for record in caplog.records if "training set" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("2 of 4 examples of the target math are in the training set")


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("at", range(1, 7))
def test_an_interruption_amid_the_exchange_of_weights_loses_none(
    at: int, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three tensors, any one of six copies is interrupted: the weights are those of after the step."""
    parameters = dict(itertools.islice(llama().named_parameters(), 3))
    held = {name: torch.randn_like(p) for name, p in parameters.items()}
    wanted = {name: p.detach().clone() for name, p in parameters.items()}
    copy_, count = Tensor.copy_, [0]

    def interrupted(self: Tensor, *args: Any) -> Tensor:
        count[0] += 1
        if before and count[0] == at:
            raise KeyboardInterrupt
        done = copy_(self, *args)
        if not before and count[0] == at:
            raise KeyboardInterrupt
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "copy_", interrupted)
        with pytest.raises(KeyboardInterrupt), exchanged(parameters, held):
            pass
    for name, parameter in parameters.items():
        assert torch.equal(parameter, wanted[name]), name


def looped(model: Any, out: Path, **settings: Any) -> Monitor:
    """Four steps of SGD, measured at every second one unless told otherwise."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    plain: dict[str, Any] = {"optimizer": optimizer, "every": 2, "batch_size": 2, "out": out}
    with Monitor(model, TARGETS, **plain | settings) as monitor:
        for _ in range(4):
            mean_nll(model, MATH[:2]).backward()
            optimizer.step()
            optimizer.zero_grad()
    return monitor


def test_a_checked_step_says_how_far_its_effects_came_true(tmp_path: Path) -> None:
    """Between steps that are not measured, too; and the error of the change is that of its examples, one by one."""
    model = gpt2().double()
    start = copy.deepcopy(model).eval()
    checked = looped(model, tmp_path / "run", check=True).run.prediction()
    assert sorted(checked["step"].unique()) == [0, 2]
    assert sorted(checked["target"].unique()) == sorted(TARGETS)
    assert list(checked["predicted"]) == pytest.approx(list(checked["measured"]), rel=0.1)
    after = copy.deepcopy(start)
    optimizer = torch.optim.SGD(after.parameters(), lr=1e-3)
    mean_nll(after, MATH[:2]).backward()
    optimizer.step()
    for name, rows in TARGETS.items():
        own = checked[(checked["step"] == 0) & (checked["target"] == name)].iloc[0]
        with torch.no_grad():
            changes = torch.stack([nats(after, padded([row])).sum() - nats(start, padded([row])).sum() for row in rows])
        sizes = torch.tensor([float(sum(each != -100 for each in row["labels"][1:])) for row in rows])
        mean = changes.sum() / sizes.sum()
        residual = (changes - mean * sizes).square().sum() * len(rows) / (len(rows) - 1)
        assert own["measured"] == pytest.approx(mean.item(), rel=1e-6)
        assert own["standard_error"] == pytest.approx((residual.sqrt() / sizes.sum()).item(), rel=1e-3)


def test_where_every_step_is_measured_the_record_has_the_errors(tmp_path: Path) -> None:
    checked = looped(gpt2().double(), tmp_path / "run", every=1, check=True)
    assert not any("prediction" in line for line in read_lines(checked.path))
    frame = checked.run.prediction()
    assert len(frame) == 4 * len(TARGETS)
    assert (frame["standard_error"] > 0).all()


@pytest.mark.parametrize("make", [gpt2, llama], ids=["tied", "untied"])
def test_masks_overlap_as_whole_gradients_do(make: Callable[[], Any], tmp_path: Path) -> None:
    """The first step's counts against masks of single gradients, tensor by tensor; the weights have none."""
    model = make().double()
    start = copy.deepcopy(model).eval()
    slow = capture_gradients(start, {name: partial(mean_nll, start, each) for name, each in TARGETS.items()})
    frame = looped(model, tmp_path / "run", overlap=0.2).run.overlap("parameter")
    assert sorted(frame["gradient"].unique()) == sorted({*TARGETS, "applied_gradient"})
    first = frame[(frame["step"] == 0) & (frame["gradient"] == "math") & (frame["other"] == "chat")]
    for name, gradient in slow["math"].items():
        both = top_mask(gradient, 0.2) & top_mask(slow["chat"][name], 0.2)
        own = first[first["parameter"].isin([name, f"{name}@tied"])]["intersection"].sum()
        assert own == int(both.sum()), name


def test_tokens_add_up_to_the_effect(tmp_path: Path) -> None:
    """−Σ over a target's tokens / their number is its effect in the record."""
    loaded = geffect.load_model("builtin:tiny-untrained")
    sets = {"math": "builtin:authors/forget[:3]", "chat": "builtin:authors/retain[:2]"}
    optimizer = torch.optim.AdamW(loaded.model.parameters(), lr=1e-4)
    rows = geffect.encode_set(loaded.tokenizer, geffect.load_set("builtin:authors/heldout[:2]"))
    before = loaded.model.state_dict()
    with Monitor(
        loaded.model, sets, optimizer=optimizer, tokenizer=loaded.tokenizer, tokens=3, out=tmp_path / "run"
    ) as monitor:
        batch = geffect.collate(rows, 0)
        loaded.model(**{k: batch[k] for k in ("input_ids", "attention_mask", "labels")}).loss.backward()
        optimizer.step()
    tokens, effects = monitor.run.tokens(), monitor.run.effects().groupby("target")["effect"].sum()
    assert (tokens["direction"] == "update").all()
    for name in sets:
        own = tokens[tokens["set"] == name]
        assert -own["effect"].sum() / own["labeled"].sum() == pytest.approx(effects[name], rel=1e-4)
    assert set(before) == set(loaded.model.state_dict())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": 2}, "tokens needs a tokenizer to tell their texts. Pass tokenizer=…."),
        ({"update": False, "check": True}, "check needs the optimizer's update. Monitor with update=True."),
        ({"overlap": 2.0}, "overlap is 2.0, no share between 0 and 1. Write 0.1 for 10 %."),
    ],
    ids=str,
)
def test_what_cannot_be_measured_beside_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(GeffectError) as caught:
        looped(gpt2(), tmp_path / "run", **settings)
    assert str(caught.value).rstrip(".") == message.rstrip(".")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("quiet", [True, False], ids=["printer", "progress bar"])
def test_a_hundred_numbers_do_not_fill_the_terminal(
    quiet: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The Trainer's own line is printed, the callback's is in its history alone."""
    host = trainer(gpt2(), tmp_path, Callback(TARGETS), disable_tqdm=quiet, logging_strategy="steps", logging_steps=1)
    host.train()
    printed = "".join(capfd.readouterr())
    assert "grad_norm" in printed
    assert "geffect/" not in printed
    effects = [line["geffect/math/effect"] for line in host.state.log_history if "geffect/math/effect" in line]
    shares = [line["geffect/math/harmed"] for line in host.state.log_history if "geffect/math/harmed" in line]
    assert shares == [sum(each > 0 for each in effects[: i + 1]) / (i + 1) for i in range(len(effects))]
