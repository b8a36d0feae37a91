"""A host is left bit for bit as it was found: twelve architectures, monitored, called back and inspected."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from geffect import api
from geffect.config import InspectConfig
from geffect.core.gradients import capture_gradients
from geffect.core.layers import layout
from geffect.core.model_state import SMALL
from geffect.errors import GeffectError
from geffect.inspection.run import inspect
from geffect.inspection.tasks import prepare_inspection
from geffect.models.load import Loaded
from geffect.monitoring.callback import Callback
from geffect.monitoring.monitor import Monitor
from geffect.record.reader import read_lines
from geffect.training.trainer import set_mode
from tests.conftest import sweep
from tests.support.cases import llama
from tests.support.hosts import ARCHITECTURES, VOCABULARY, differences, everything, make_host
from tests.support.rows import made_rows, padded

FORGET, RETAIN = made_rows([7, 5], 0), made_rows([6, 14], 1)
STATES = ("python", "numpy", "torch", "threads", "modes", "warnings", "place", "logging", "state_dict")
KINDS = ("plain", "lora", "checkpointing")


def _loss(model: Any) -> Tensor:
    return model(**padded(FORGET + RETAIN), use_cache=False).loss  # type: ignore[no-any-return]


def _loop(model: Any, make_monitor: Callable[[], Monitor] | None, steps: int = 2) -> list[str]:
    """A bare loop's end, and what a monitor changed."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    found: list[str] = []
    before = everything(model)
    monitor = make_monitor().open() if make_monitor else None
    found += differences(before, everything(model))
    for _ in range(steps):
        _loss(model).backward()
        before = everything(model)
        if monitor:
            monitor.step()
            found += differences(before, everything(model))
        optimizer.step()
        optimizer.zero_grad()
    before = everything(model)
    if monitor:
        monitor.close()
    return found + differences(before, everything(model))


def _ends(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@sweep(3, turn=0, name=ARCHITECTURES, kind=KINDS)
def test_a_monitored_loop_is_left_as_found(name: str, kind: str) -> None:
    model = make_host(name, kind)
    alone = make_host(name, kind)
    assert _loop(model, lambda: Monitor(model, {"forget": FORGET, "retain": RETAIN})) == []
    _loop(alone, None)
    assert _equal(_ends(model), _ends(alone))


@pytest.mark.slow
@sweep(3, turn=1, name=ARCHITECTURES, kind=KINDS)
def test_a_trainer_with_a_callback_is_left_as_found(name: str, kind: str, tmp_path: Path) -> None:
    ends: list[dict[str, Any]] = []
    for monitored in (False, True):
        model = make_host(name, kind)
        callbacks = [Callback({"forget": FORGET, "retain": RETAIN}, out=tmp_path / "run")] if monitored else []
        arguments = TrainingArguments(
            str(tmp_path / "host"),
            max_steps=2,
            per_device_train_batch_size=2,
            report_to="none",
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="steps",
            logging_steps=1,
            learning_rate=0.1,
        )
        trainer = Trainer(model, arguments, train_dataset=FORGET + RETAIN, data_collator=padded, callbacks=callbacks)
        trainer.train()
        own_lines = [line for line in trainer.state.log_history if "geffect/forget/loss" not in line]  # its own
        logs = [{key: line.get(key) for key in ("loss", "grad_norm", "step")} for line in own_lines]
        state = everything(model)
        hooks = {key: len(value) for key, value in state.items() if key.endswith("hooks") and isinstance(value, list)}
        modes = {key: value for key, value in state.items() if key.endswith(".training")}
        own = {name: state[name] for name in STATES}
        ends.append(_ends(model) | own | {"logs": logs, "names": list(state), "hooks": hooks, "modules": modes})
    assert [line["step"] for line in read_lines(tmp_path / "run")] == [0, 1, 2]
    assert differences(*ends) == []


@pytest.mark.slow
@sweep(7, turn=2, name=ARCHITECTURES, kind=KINDS)
def test_an_inspection_leaves_checkpoints_models_and_the_process(
    name: str, kind: str, start: Path, tmp_path: Path
) -> None:
    tokenizer = api.load_model(str(start)).tokenizer
    model = make_host(name, kind)
    whole = model.get_base_model() if kind == "lora" else model
    loaded = Loaded(model, tokenizer, str(tmp_path), "0" * 64)
    assert len(tokenizer) <= VOCABULARY
    files = {part: tmp_path / f"{part}.json" for part in ("forget", "retain")}
    for path in files.values():
        path.write_text('[{"question": "a?", "answer": "b"}, {"question": "c?", "answer": "d e"}]')
    config = InspectConfig.read(
        None,
        checkpoints=[str(start)],
        out=tmp_path / "out",
        objective="ga",
        batch_size=2,
        **{part: str(path) for part, path in files.items()},
    )
    before = everything(model)
    inspect(prepare_inspection(config), lambda _: loaded, resume=False)
    assert differences(before, everything(model)) == []
    assert whole.training
    assert [line["step"] for line in read_lines(tmp_path / "out")] == [1]


class Habit(nn.Module):
    """Stands before a decoder's first norm and, at every pass, does something to itself that a pass may do."""

    count: Tensor
    large: Tensor
    grows: Tensor

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.seen, self.notes, self.kept = what, 0, list[Any](), dict[str, Any]()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("large", torch.ones(SMALL + 1))
        self.register_buffer("grows", torch.arange(3.0))
        self.still = nn.Parameter(torch.linspace(1, 2, 8), requires_grad=False)
        self.norm = nn.BatchNorm1d(16)
        self.norm.requires_grad_(False)
        self.leaf, self.plain = torch.ones(16, requires_grad=True), torch.ones(16)

    def forward(self, x: Tensor) -> Tensor:
        getattr(self, f"_{self.what}")(x)
        return x * self.count.exp() * self.large[0] * self.still.mean() * self.leaf * self.plain

    def _counts(self, x: Tensor) -> None:
        self.count.add_(0.1)
        self.seen += 1

    def _writes_a_large_buffer(self, x: Tensor) -> None:
        self.large.data.mul_(1.1)

    def _writes_a_part(self, x: Tensor) -> None:
        self.large[:1].add_(torch.ones(1))

    def _grows(self, x: Tensor) -> None:
        self.register_buffer("grows", torch.arange(len(self.grows) + 1.0), persistent=self.seen > 0)

    def _creates(self, x: Tensor) -> None:
        if "late" not in self._buffers:
            self.register_buffer("late", torch.zeros(2))
        self.cached = x.detach()

    def _caches(self, x: Tensor) -> None:
        self.notes.append(x.shape)
        self.kept.setdefault("sizes", []).append(x.shape)
        self.kept[f"{len(self.kept)}"] = x.detach()

    def _rescales_a_frozen_weight(self, x: Tensor) -> None:
        with torch.no_grad():
            self.still.mul_(1.1)

    def _rescales_data(self, x: Tensor) -> None:
        self.still.data.mul_(1.1)

    def _exchanges_data(self, x: Tensor) -> None:
        self.still.data = self.still.data * 1.1

    def _normalizes_as_in_training(self, x: Tensor) -> None:
        self.norm.train()(x.flatten(0, -2))

    def _draws(self, x: Tensor) -> None:
        self.plain = self.plain + random.random() + np.random.random() + torch.rand(())

    def _writes_an_attribute(self, x: Tensor) -> None:
        self.plain.mul_(1.1)

    def _thaws(self, x: Tensor) -> None:
        self.still.requires_grad_(True)

    def _hooks(self, x: Tensor) -> None:
        self.register_forward_hook(lambda *_: None)
        self.still.requires_grad_(False)

    def _gathers_gradients(self, x: Tensor) -> None:
        assert self.leaf.requires_grad


HABITS = [name[1:] for name in vars(Habit) if name.startswith("_") and not name.startswith("__")]


def _with_habit(what: str) -> Any:
    model = llama().train()
    model.model.layers[0].input_layernorm = nn.Sequential(model.model.layers[0].input_layernorm, Habit(what))
    return model


@pytest.mark.parametrize("what", HABITS)
def test_what_a_pass_does_to_the_model_is_undone(what: str) -> None:
    model, alone = _with_habit(what), _with_habit(what)
    assert _loop(model, lambda: Monitor(model, {"forget": FORGET, "retain": RETAIN}), steps=3) == []
    _loop(alone, None, steps=3)
    assert _equal(_ends(model), _ends(alone))


def test_a_pass_that_changes_trainable_weights_is_refused_and_undone() -> None:
    model = _with_habit("rescales_data")
    still = model.model.layers[0].input_layernorm[1].still.requires_grad_(True)
    before = everything(model)
    with pytest.raises(GeffectError, match=r"changed the trainable weights [^\n]*input_layernorm\.1\.still "):
        Monitor(model, {"forget": FORGET, "retain": RETAIN}).open()
    assert differences(before, everything(model)) == []
    still.requires_grad_(False)
    with Monitor(model, {"forget": FORGET, "retain": RETAIN}) as monitor:
        still.requires_grad_(True)
        _loss(model).backward()
        before = everything(model)
        with pytest.raises(GeffectError, match=r"changed the trainable weights [^\n]*input_layernorm\.1\.still "):
            monitor.step()
        assert differences(before, everything(model)) == []


def test_a_later_pass_that_writes_elsewhere_is_refused() -> None:
    model = _with_habit("counts")
    with Monitor(model, {"forget": FORGET, "retain": RETAIN}) as monitor:
        _loss(model).backward()
        monitor.step()
        model.model.layers[0].input_layernorm[1].what = "writes_a_part"
        with pytest.raises(GeffectError, match=r"A pass wrote into [^\n]*large, "):
            monitor.step()


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_an_end_in_the_middle_leaves_no_trace(error: type[BaseException], where: str) -> None:
    model, armed = _with_habit("caches"), list[str]()

    def fails(_: Any, __: Any, output: Tensor) -> None:
        def end(*_: Any) -> None:
            raise error

        if armed and armed.pop() == "last":
            end() if where == "forward" else output.register_hook(end)

    model.model.norm.register_forward_hook(fails)
    with Monitor(model, {"forget": FORGET, "retain": RETAIN}, batch_size=1) as monitor:
        _loss(model).backward()
        before = everything(model)
        armed[:] = ["last", "first", "first"]
        with pytest.raises(error):
            monitor.step()
        assert armed == []
        assert differences(before, everything(model)) == []
        monitor.step()


@pytest.mark.filterwarnings("ignore:For backward hooks", "ignore:Full backward hook")
def test_backward_hooks_of_the_host_rest_during_a_look_and_work_after() -> None:
    model, calls = llama().train(), list[str]()
    weight, block = model.model.embed_tokens.weight, model.model.layers[0]
    handles = [
        weight.register_hook(lambda g: calls.append("tensor") or 2 * g),  # type: ignore[func-returns-value]
        torch.autograd.graph.register_multi_grad_hook([weight, model.lm_head.weight], lambda _: calls.append("multi")),
        block.register_full_backward_hook(lambda *_: calls.append("module")),
        block.register_full_backward_pre_hook(lambda *_: calls.append("before")),
        nn.modules.module.register_module_full_backward_hook(lambda *_: calls.append("global")),
    ]
    try:
        kinds = {"tensor", "multi", "module", "before", "global"}
        with Monitor(model, {"forget": FORGET, "retain": RETAIN}) as monitor:
            _loss(model).backward()
            assert set(calls) == kinds
            before, seen = everything(model), len(calls)
            monitor.step()
            assert len(calls) == seen
            assert differences(before, everything(model)) == []
            calls.clear()
            _loss(model).backward()
            assert set(calls) == kinds
    finally:
        for handle in handles:
            handle.remove()
    calls.clear()
    _loss(model).backward()
    assert calls == []


@pytest.mark.parametrize("late", [False, True])
def test_an_optimizer_in_the_backward_pass_is_refused(late: bool) -> None:
    model, stepped = llama().train(), list[bool]()

    def hook() -> Any:
        return model.lm_head.weight.register_post_accumulate_grad_hook(lambda _: stepped.append(True))

    if not late:
        hook()
        with pytest.raises(GeffectError, match=r"^lm_head\.weight has a post-accumulate-grad hook"):
            Monitor(model, {"forget": FORGET, "retain": RETAIN}).open()
        assert stepped == []
        return
    with Monitor(model, {"forget": FORGET, "retain": RETAIN}) as monitor:
        handle = hook()
        _loss(model).backward()
        with pytest.raises(GeffectError, match=r"^lm_head\.weight has a post-accumulate-grad hook"):
            monitor.step()
        capture_gradients(model, {"loss": lambda: _loss(model)})
        assert stepped == [True]
        handle.remove()
        monitor.step()


def test_a_graph_of_the_host_can_still_be_run_backward() -> None:
    """A tensor that a look wrote into has its version again."""
    model = _with_habit("writes_an_attribute")
    with Monitor(model, {"forget": FORGET, "retain": RETAIN}) as monitor:
        _loss(model).backward()
        loss = _loss(model)
        monitor.step()
        loss.backward()


def test_a_layout_and_captured_rows_leave_the_model_as_found() -> None:
    for model in (make_host("rwkv"), make_host("phi3-longrope"), _with_habit("creates"), make_host("rwkv").eval()):
        before = everything(model)
        layout(model)
        assert differences(before, everything(model)) == []
        capture_gradients(model, {"loss": lambda model=model: _loss(model)})  # type: ignore[misc]
        assert differences(before, everything(model)) == []


def test_rows_of_a_model_that_rescales_its_weights_are_those_of_its_own_weights(tmp_path: Path) -> None:
    """RWKV in training mode, which has no dropout, against its gradients in evaluation mode."""
    model = make_host("rwkv").double()
    names = [name for name, _ in model.named_parameters()]
    with Monitor(model, {"forget": FORGET, "retain": FORGET}, out=tmp_path / "run") as monitor:
        batch = padded(FORGET)
        counts = (batch["labels"][:, 1:] != -100).sum()
        logits = model(batch["input_ids"], use_cache=False).logits[:, :-1].flatten(0, 1)
        nll = nn.functional.cross_entropy(logits, batch["labels"][:, 1:].flatten(), reduction="sum")
        (nll / counts).backward()
        own = {name: p.grad.clone() for name, p in model.named_parameters()}
        monitor.step()
    frame = monitor.run.to_frame("parameter")
    inner = frame[(frame["gradient"] == "forget") & (frame["other"] == "forget")].set_index("parameter")["inner"]
    for name in names:
        assert float(inner[name]) == pytest.approx(float(own[name].square().sum()), rel=1e-5, abs=1e-12), name


def test_training_without_dropout_rescales_no_weight() -> None:
    model = make_host("rwkv")
    before = _ends(model)
    set_mode(model, dropout=False)
    _loss(model)
    assert _equal(_ends(model), before)
