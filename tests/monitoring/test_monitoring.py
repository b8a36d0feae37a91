"""Another's training, monitored: its weights stay bit for bit, and the record is what slow loops find."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import geffect
from geffect.core.gradients import capture_gradients
from geffect.core.gram import Gram
from geffect.errors import GeffectError
from geffect.monitoring.callback import Callback
from geffect.monitoring.monitor import Monitor
from geffect.record.frames import read
from geffect.record.reader import read_lines
from tests.support.cases import gpt2, llama, lora, neox
from tests.support.rows import QUIET, Rows, made_rows, padded

CHECKPOINTING = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if hasattr(TrainingArguments, n))
FORGET, RETAIN = made_rows([7, 5, 9, 6, 8], 0), made_rows([6, 8, 5, 7], 1)


def _mean_nll(model: Any, examples: Rows) -> Tensor:
    """Token-mean NLL, an example after another."""
    nll, count = [], 0
    for example in examples:
        logits = model(input_ids=torch.tensor([example["input_ids"]])).logits[0]
        labels = torch.tensor(example["labels"])[1:]
        count += int((labels != -100).sum())
        nll.append(nn.functional.cross_entropy(logits[:-1], labels, reduction="sum"))
    return torch.stack(nll).sum() / count


def _flat(gradient: dict[str, Tensor], model: nn.Module) -> Tensor:
    return torch.cat([gradient.get(n, torch.zeros_like(p)).double().reshape(-1) for n, p in model.named_parameters()])


@pytest.fixture
def dropout_model() -> Any:
    model = gpt2()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.2
    return model


def _trained(
    model: Any, out: Path, *callbacks: Any, host: type[Trainer] = Trainer, resume: bool = False, **settings: Any
) -> dict[str, Tensor]:
    arguments: dict[str, Any] = {
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "max_grad_norm": 0.5,
        **QUIET,
    }
    args = TrainingArguments(output_dir=str(out), **arguments | settings)
    trainer = host(model, args, train_dataset=FORGET + RETAIN, data_collator=padded, callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=resume)
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


class Ascending(Trainer):  # type: ignore[misc]
    """A user's own subclass, which ascends."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        return -super().compute_loss(model, inputs)


@pytest.mark.parametrize(
    "settings",
    [{}, {"optim": "sgd", "max_grad_norm": 0.0}, {CHECKPOINTING: True}, {"bf16": True}, {"weight_decay": 0.1}],
    ids=str,
)
def test_the_host_trains_to_the_same_bits(dropout_model: Any, tmp_path: Path, settings: dict[str, Any]) -> None:
    """With dropout, accumulation, clipping and AdamW, the callback's passes leave no trace."""
    other = copy.deepcopy(dropout_model)
    plain = _trained(dropout_model, tmp_path / "plain", host=Ascending, **settings)
    callback = Callback({"forget": FORGET, "retain": RETAIN}, update=True, batch_size=2)
    monitored = _trained(other, tmp_path / "monitored", callback, host=Ascending, **settings)
    assert len(read_lines(callback.run.path)) == 5  # the last holds the end's scores
    assert all(torch.equal(plain[name], monitored[name]) for name in plain)


def test_adapters_are_monitored(tmp_path: Path) -> None:
    model = lora()
    other = copy.deepcopy(model)
    plain = _trained(model, tmp_path / "plain")
    callback = Callback({"forget": FORGET, "retain": RETAIN})
    monitored = _trained(other, tmp_path / "monitored", callback)
    assert all(torch.equal(plain[name], monitored[name]) for name in plain)
    assert all("lora_" in name for name in read(callback.run.path, "parameter")["parameter"])


@pytest.mark.parametrize("make", [gpt2, llama, neox, lambda: gpt2(tied=False)], ids=["gpt2", "llama", "neox", "untied"])
def test_rows_equal_a_loop_over_examples(make: Callable[[], Any], tmp_path: Path) -> None:
    """Every entry of the Gram, in float64, from flattened gradients of an example at a time."""
    model = make().double().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    found = []
    with Monitor(
        model, {"forget": FORGET, "retain": RETAIN}, update=True, batch_size=2, out=tmp_path / "run"
    ) as monitor:
        for examples in (FORGET[:2], RETAIN[1:3]):
            model.eval()
            slow = capture_gradients(
                model, {"forget": lambda: _mean_nll(model, FORGET), "retain": lambda: _mean_nll(model, RETAIN)}
            )
            model.train()
            (-_mean_nll(model, examples)).backward()
            slow["applied_gradient"] = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
            before = {n: p.detach().clone() for n, p in model.named_parameters()}
            monitor.step()
            optimizer.step()
            monitor.updated()
            slow["update"] = {n: before[n] - p.detach() for n, p in model.named_parameters()}
            slow["weights"] = before
            optimizer.zero_grad()
            found.append(slow)
    frame = read(tmp_path / "run", "parameter")
    sums = frame.groupby(["step", "gradient", "other"])["inner"].sum()
    exact = 1e-6 if make is llama else 1e-8  # a Llama computes in float32 inside; a record keeps nine digits
    for step, slow in enumerate(found):
        vectors = {name: _flat(each, model) for name, each in slow.items()}
        for name, other in sums.loc[step].index:
            a, b = vectors[name], vectors[other]
            assert float(sums[step, name, other]) == pytest.approx(float(a @ b), abs=exact * float(a.norm() * b.norm()))


def test_a_loop_is_left_as_found(dropout_model: Any) -> None:
    model = dropout_model.train()
    model.transformer.h[0].eval()
    model.transformer.wpe.weight.requires_grad_(False)
    _mean_nll(model, FORGET).backward()
    before = {name: p.grad for name, p in model.named_parameters()}
    copies = {name: None if g is None else g.clone() for name, g in before.items()}
    modes, state = {m: m.training for m in model.modules()}, torch.random.get_rng_state()
    with Monitor(model, {"forget": FORGET, "retain": RETAIN}) as monitor:
        monitor.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is before[name]
        copied = copies[name]
        assert copied is None or torch.equal(before[name], copied)
        assert not parameter._post_accumulate_grad_hooks
    assert modes == {m: m.training for m in model.modules()}
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_record_is_one_that_everything_reads(tmp_path: Path) -> None:
    """Sets by name, every second step, in a temporary directory: tables and pictures as of any run."""
    loaded = geffect.load_model("builtin:tiny-untrained")
    optimizer = torch.optim.SGD(loaded.model.parameters(), lr=0.1)
    batch = geffect.collate(geffect.encode_set(loaded.tokenizer, geffect.load_set("builtin:authors/forget[:4]")), 0)
    with geffect.monitor(
        loaded.model,
        {"forget": "builtin:authors/forget[:4]", "retain": geffect.load_set("builtin:authors/retain[:3]")},
        tokenizer=loaded.tokenizer,
        every=2,
    ) as monitor:
        for _ in range(4):
            loss = loaded.model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss
            loss.backward()
            monitor.step()
            optimizer.step()
            optimizer.zero_grad()
    run = monitor.run
    assert list(run.steps()["step"]) == [0, 2, 4]
    steps, effects = run.steps(), run.g_effect().groupby("step")[["unlearn", "retain"]].sum()
    assert (effects["unlearn"] > 0).all()  # it descends the forget loss
    assert steps["forget_loss"].is_monotonic_decreasing
    predicted = -0.1 * effects["unlearn"].iloc[0]
    assert predicted < 0
    assert run.summary()["forget loss"].count("→") == 1
    assert run.plot("g_effect").axes
    assert run.plot("cosine").axes
    assert list(geffect.summarize([run.path])["run"]) == [run.path.name]
    path = run.path
    del monitor, run
    assert not path.exists()


def test_a_resumed_host_goes_on_in_its_record(tmp_path: Path) -> None:
    model = gpt2()
    other = copy.deepcopy(model)
    whole = Callback({"forget": FORGET, "retain": RETAIN}, out=tmp_path / "whole")
    _trained(other, tmp_path / "a", whole)
    first = Callback({"forget": FORGET, "retain": RETAIN}, out=tmp_path / "run")
    _trained(model, tmp_path / "b", first, save_strategy="steps", save_steps=2)
    (tmp_path / "run" / "DONE").unlink()
    again = Callback({"forget": FORGET, "retain": RETAIN}, out=tmp_path / "run")
    args = {
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "max_grad_norm": 0.5,
        **QUIET,
    }
    trainer = Trainer(
        gpt2(),
        TrainingArguments(output_dir=str(tmp_path / "b"), **args),
        train_dataset=FORGET + RETAIN,
        data_collator=padded,
        callbacks=[again],
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    left, right = (read_lines(tmp_path / name) for name in ("whole", "run"))
    assert [line["step"] for line in right] == [0, 1, 2, 3, 4]
    assert [line.get("gram") for line in left] == [line.get("gram") for line in right]


class Broken(TrainerCallback):  # type: ignore[misc]
    """Ends a training after its third step, once."""

    def __init__(self) -> None:
        self.over = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3 and not self.over:
            self.over = True
            raise KeyboardInterrupt


@pytest.mark.parametrize("anew", [True, False], ids=["a new callback and model", "the same ones"])
def test_a_host_that_failed_goes_on_in_the_same_notebook(anew: bool, tmp_path: Path) -> None:
    """An interpreter keeps the last exception, and with it the callback that nobody told."""
    callbacks = [Callback({"forget": FORGET, "retain": RETAIN}, out=tmp_path / "run"), Broken()]
    model, settings = gpt2(), dict[str, Any](save_strategy="steps", save_steps=2)
    with pytest.raises(KeyboardInterrupt) as kept:
        _trained(model, tmp_path / "host", *callbacks, **settings)
    if anew:
        callbacks[0], model = Callback({"forget": FORGET, "retain": RETAIN}, out=tmp_path / "run"), gpt2()
    _trained(model, tmp_path / "host", *callbacks, resume=True, **settings)
    assert kept.value is not None
    assert [line["step"] for line in read_lines(tmp_path / "run")] == [0, 1, 2, 3, 4]
    assert (tmp_path / "run" / "DONE").exists()


def test_a_host_that_failed_leaves_its_model_to_another_callback(tmp_path: Path) -> None:
    model = gpt2()
    with pytest.raises(KeyboardInterrupt) as kept:
        _trained(model, tmp_path / "host", Callback({"forget": FORGET, "retain": RETAIN}), Broken())
    again = Callback({"forget": FORGET, "retain": RETAIN}, out=tmp_path / "run")
    _trained(model, tmp_path / "host", again)
    assert kept.value is not None
    assert [line["step"] for line in read_lines(tmp_path / "run")] == [0, 1, 2, 3, 4]


def test_a_closed_monitor_writes_nothing(tmp_path: Path) -> None:
    with Monitor(llama(), {"forget": FORGET, "retain": RETAIN}, out=tmp_path / "run") as monitor:
        _mean_nll(monitor.model, FORGET).backward()
        monitor.step()
    lines = read_lines(tmp_path / "run")
    with pytest.raises(GeffectError, match="monitor is closed"):
        monitor.step()
    assert read_lines(tmp_path / "run") == lines
    assert [line["step"] for line in lines] == [0, 1]


def test_a_monitor_that_was_never_opened_ends_nothing(tmp_path: Path) -> None:
    with Monitor(llama(), {"forget": FORGET, "retain": RETAIN}, out=tmp_path / "run") as monitor:
        _mean_nll(monitor.model, FORGET).backward()
        monitor.step()
    (tmp_path / "run" / "DONE").unlink()
    Monitor(llama(), {"forget": FORGET, "retain": RETAIN}, out=tmp_path / "run").close()
    assert not (tmp_path / "run" / "DONE").exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "no example"),
        ([{"input_ids": [1, 2]}], "Example 0 of the forget set has input_ids, not"),
        ([3], "Example 0 of the forget set has int, not"),
        (["text"], "a tokenizer"),
        ([{"input_ids": [1, 2, 3], "labels": [-100, -100, -100]}], "Example 0 .* 0 of them with loss"),
        ([{"input_ids": [1, 2, 3], "labels": [1, 2]}], "2 labels of 3 tokens"),
        ("builtin:authors/forget", "a tokenizer"),
    ],
    ids=lambda each: str(each)[:30],
)
def test_a_set_that_cannot_be_judged_by_is_refused(given: Any, told: str) -> None:
    with pytest.raises(GeffectError, match=told):
        Monitor(llama(), {"forget": given, "retain": RETAIN})


def test_two_monitors_on_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GeffectError, match="monitored already"):
        _trained(
            llama(),
            tmp_path,
            Callback({"forget": FORGET, "retain": RETAIN}),
            Callback({"forget": FORGET, "retain": RETAIN}),
        )


def test_a_monitor_can_follow_another_on_the_same_model() -> None:
    model = llama()
    for _ in range(2):
        with Monitor(model, {"forget": FORGET, "retain": RETAIN}) as monitor:
            _mean_nll(model, FORGET).backward()
            monitor.step()
        assert (monitor.path / "DONE").exists()


def test_a_loop_that_fails_is_not_finished(tmp_path: Path) -> None:
    model = llama()
    with (
        pytest.raises(RuntimeError, match="broken"),
        Monitor(model, {"forget": FORGET, "retain": RETAIN}, out=tmp_path / "run") as monitor,
    ):
        _mean_nll(model, FORGET).backward()
        monitor.step()
        raise RuntimeError("broken")
    assert not (tmp_path / "run" / "DONE").exists()
    assert len(read_lines(tmp_path / "run")) == 1


def test_a_directory_that_is_taken_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("precious")
    with pytest.raises(GeffectError, match="exists already"):
        Monitor(llama(), {"forget": FORGET, "retain": RETAIN}, out=tmp_path / "run").open()
    assert (tmp_path / "run" / "mine.txt").read_text() == "precious"


def test_a_step_without_gradients_is_refused() -> None:
    with (
        Monitor(llama(), {"forget": FORGET, "retain": RETAIN}) as monitor,
        pytest.raises(GeffectError, match=r"has a gradient in \.grad"),
    ):
        monitor.step()


@pytest.mark.parametrize(("setting", "told"), [({"every": 0}, "every"), ({"batch_size": 0}, "batch_size")], ids=str)
def test_settings_out_of_range_are_refused(setting: dict[str, int], told: str) -> None:
    with pytest.raises(GeffectError, match=told):
        Monitor(llama(), {"forget": FORGET, "retain": RETAIN}, **setting)  # type: ignore[arg-type]


def test_a_callback_that_has_not_begun_says_so() -> None:
    with pytest.raises(GeffectError, match="Training has not begun"):
        _ = Callback({"forget": FORGET, "retain": RETAIN}).run


def test_scaled_gradients_are_refused(tmp_path: Path) -> None:
    class Args:
        fp16, deepspeed = True, None

    with pytest.raises(GeffectError, match="bf16"):
        Callback({"forget": FORGET, "retain": RETAIN}).on_train_begin(Args(), None, None, model=llama())


def test_a_broken_loss_does_not_end_the_hosts_training() -> None:
    model = llama()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = math.nan
    with Monitor(model, {"forget": FORGET, "retain": RETAIN}) as monitor:
        _mean_nll(model, FORGET).backward()
        monitor.step()
    line, _ = read_lines(monitor.path)
    assert line["norm_forget"] is None


def test_the_gram_is_that_of_rows_at_hand() -> None:
    model = llama()
    gradients = capture_gradients(
        model, {"forget": lambda: _mean_nll(model, FORGET), "retain": lambda: _mean_nll(model, RETAIN)}
    )
    with Monitor(model, {"forget": FORGET, "retain": RETAIN}) as monitor:
        _mean_nll(model, FORGET).backward()
        monitor.step()
    frame = read(monitor.path, "parameter")
    total = frame.groupby(["gradient", "other"])["inner"].sum()
    assert total["forget", "retain"] == pytest.approx(float(Gram.of(gradients).total()[0, 1]), rel=1e-5)


class Small(Trainer):  # type: ignore[misc]
    """A GPU whose memory is full once two steps are done with more than two examples."""

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if len(inputs["input_ids"]) > 2 and self.state.global_step == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return super().training_step(model, inputs, *args, **kwargs)


AGAIN: dict[str, Any] = {
    "host": Small,
    "auto_find_batch_size": True,
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 1,
}


def test_a_trainer_that_begins_again_with_smaller_batches_begins_its_record_again(tmp_path: Path) -> None:
    callback = Callback({"forget": FORGET, "retain": RETAIN}, update=True, out=tmp_path / "run")
    _trained(gpt2(), tmp_path / "host", callback, **AGAIN)
    assert callback.run.steps()["step"].tolist() == [0, 1, 2, 3, 4]
    assert (tmp_path / "run" / "DONE").exists()
    assert "per_device_train_batch_size: 2\n" in (tmp_path / "run" / "config.yaml").read_text()


class Stopped(TrainerCallback):  # type: ignore[misc]
    """Ctrl-C after the first step."""

    def on_step_end(self, *_: Any, **__: Any) -> None:
        raise KeyboardInterrupt


def test_a_record_that_was_interrupted_is_not_taken_for_one_that_begins_again(tmp_path: Path) -> None:
    model, callback = gpt2(), Callback({"forget": FORGET, "retain": RETAIN}, out=tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        _trained(model, tmp_path / "host", callback, Stopped(), **AGAIN)
    with pytest.raises(GeffectError, match="exists already"):
        _trained(model, tmp_path / "host", callback, **AGAIN | {"per_device_train_batch_size": 2})
    assert [line["step"] for line in read_lines(tmp_path / "run")] == [0]


@pytest.mark.parametrize("every", [1, 2])
def test_an_update_that_was_never_told_is_refused_at_the_next_step(every: int) -> None:
    model = llama()
    with Monitor(model, {"forget": FORGET, "retain": RETAIN}, update=True, every=every) as monitor:
        _mean_nll(model, FORGET).backward()
        monitor.step()
        with pytest.raises(GeffectError, match=r"updated\(\) was not called after step 0"):
            monitor.step()


def test_an_update_that_was_never_told_is_refused_at_the_end(tmp_path: Path) -> None:
    model = llama()
    monitor = Monitor(model, {"forget": FORGET, "retain": RETAIN}, update=True, out=tmp_path / "run").open()
    for _ in range(2):
        _mean_nll(model, FORGET).backward()
        monitor.step()
        if monitor.steps == 1:
            monitor.updated()
    with pytest.raises(GeffectError, match=r"updated\(\) was not called after step 1"):
        monitor.close()
    assert [line["step"] for line in read_lines(tmp_path / "run")] == [0]
    assert not (tmp_path / "run" / "DONE").exists()
    with Monitor(model, {"forget": FORGET, "retain": RETAIN}):
        pass


def test_a_loop_that_fails_before_its_update_tells_its_own_error() -> None:
    model = llama()
    with (
        pytest.raises(RuntimeError, match="broken"),
        Monitor(model, {"forget": FORGET, "retain": RETAIN}, update=True) as monitor,
    ):
        _mean_nll(model, FORGET).backward()
        monitor.step()
        raise RuntimeError("broken")


def test_the_earlier_name_works() -> None:
    assert geffect.watch is geffect.monitor is Monitor
