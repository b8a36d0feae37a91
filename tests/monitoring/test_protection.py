"""Protected targets: the gradient in ``.grad`` is rectified, then clipped, then stepped with."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

import geffect
from geffect.core.gradients import capture_gradients
from geffect.core.layers import trainable_parameters
from geffect.errors import GeffectError
from geffect.monitoring.monitor import Monitor
from geffect.record.reader import read_lines
from geffect.rectifiers.gem import multipliers
from tests.monitoring.test_targets import ARGUMENTS, CHAT, MATH, flat, mean_nll, trainer
from tests.support.cases import gpt2, llama, lora
from tests.support.rows import Rows, padded

TARGETS = {"math": MATH, "chat": CHAT}
ASCENT = -1.0  # the training raises the loss of rows that are like the protected ones: it conflicts


def gradients(model: Any) -> Tensor:
    """What lies in ``.grad``, as one vector."""
    return flat({n: p.grad for n, p in trainable_parameters(model).items() if p.grad is not None}, model)


def protected_gradient(model: Any, rows: Rows) -> Tensor:
    """∇R of rows without dropout, as one vector."""
    model.eval()
    slow = capture_gradients(model, {"math": partial(mean_nll, model, rows)})["math"]
    model.train()
    return flat(slow, model)


@pytest.mark.parametrize("make", [gpt2, llama, lora], ids=["tied", "untied", "adapter"])
def test_the_gradient_is_projected_as_gru_says(make: Callable[[], Any], tmp_path: Path) -> None:
    """In float64, three steps: g + max(0, −⟨g, m⟩)/‖m‖² · m with m ← .2 m + .8 ∇R over all protected rows."""
    model = make().double().train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    average: Tensor | None = None
    conflicts = []
    with Monitor(
        model, TARGETS, optimizer=optimizer, protect=["math"], out=tmp_path / "run", batch_size=len(MATH)
    ) as monitor:
        for sign in (ASCENT, 1.0, ASCENT):
            protected = protected_gradient(model, MATH)
            (sign * mean_nll(model, MATH[:2])).backward()
            plain = gradients(model)
            average = 0.8 * protected if average is None else 0.2 * average + 0.8 * protected
            conflict = min(0.0, float(plain @ average))
            expected = plain - conflict / float(average @ average) * average
            monitor.rectify()
            monitor.rectify()  # a second call changes nothing
            torch.testing.assert_close(gradients(model), expected, rtol=1e-9, atol=1e-12)
            cosine = float(plain @ average / plain.norm() / average.norm())
            optimizer.step()
            line = read_lines(monitor.path)[-1]
            assert line["protection_cosine"] == pytest.approx(cosine, rel=1e-8)
            assert line["protection_removed"] == pytest.approx(
                float((expected - plain).norm() / plain.norm()), abs=1e-7
            )
            conflicts.append(line["protection_conflicts"])
            optimizer.zero_grad()
    assert conflicts == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("rectifier", ["pcgrad(alpha=0.5)", "blur", "gem(memory=2)", "sago", "disruption"])
@pytest.mark.parametrize("make", [gpt2, lora], ids=["tied", "adapter"])
def test_the_other_rules_protect_too(make: Callable[[], Any], rectifier: str, tmp_path: Path) -> None:
    """Beside each rule's formula in flat float64 vectors."""
    model = make().double().train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    memories: list[Tensor] = []
    settings: dict[str, Any] = {"optimizer": optimizer, "protect": ["math"], "rectifier": rectifier}
    with Monitor(model, TARGETS, out=tmp_path / "run", batch_size=len(MATH), **settings) as monitor:
        for sign in (ASCENT, 1.0, ASCENT):
            memories = [protected_gradient(model, MATH), *memories][:2]
            (sign * mean_nll(model, MATH[:2])).backward()
            g, r = gradients(model), memories[0]
            if rectifier.startswith("pcgrad"):
                expected = g + (0.5 - min(0.0, float(g @ r)) / float(r @ r)) * r
            elif rectifier == "blur":
                expected = r + (1 - float(g @ r) / float(g @ g)) * g
            elif rectifier == "sago":
                expected = torch.where(g * r < 0, r, g)
            elif rectifier == "disruption":
                expected = torch.where(g.sign() == r.sign(), g, 0.0)
            else:
                vectors = torch.stack([g, *memories])
                expected = g + torch.from_numpy(multipliers((vectors @ vectors.T).numpy())) @ vectors[1:]
            monitor.rectify()
            torch.testing.assert_close(gradients(model), expected, rtol=1e-7, atol=1e-10)
            optimizer.step()
            line = read_lines(monitor.path)[-1]
            assert line["protection_cosine"] == pytest.approx(float(g @ r / g.norm() / r.norm()), rel=1e-7)
            removed = float((expected - g).norm() / g.norm())
            assert line["protection_removed"] == pytest.approx(removed, rel=1e-6, abs=1e-6)
            assert line.get("protection_kkt_residual", 0.0) <= 1e-10
            assert ("protection_kkt_residual" in line) == rectifier.startswith("gem")
            optimizer.zero_grad()


def test_the_batches_of_protected_targets_go_round(tmp_path: Path) -> None:
    """Every row is drawn once before any is drawn again, and of two targets a batch each."""
    model = gpt2().double()
    with Monitor(model, TARGETS, protect=["math", "chat"], out=tmp_path / "run", batch_size=2, examples=1) as monitor:
        protection = monitor.protection
        assert protection is not None
        drawn = [batch["input_ids"] for batch in protection.batches["math"]]
        assert [len(batches) for batches in protection.batches.values()] == [3, 2]  # of 5 and 4 rows, all of them
        assert sorted(row[row > 0].tolist() for each in drawn for row in each) == sorted(
            [i for i in row["input_ids"] if i > 0] for row in MATH
        )


@pytest.mark.parametrize("space", ["update", "both"])
def test_adamw_s_update_is_corrected(space: str, tmp_path: Path) -> None:
    """After the optimizer's step ⟨m, −Δθ⟩ ≥ 0: to first order the step does not raise the protected loss."""
    model = gpt2().double().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    with Monitor(
        model,
        TARGETS,
        optimizer=optimizer,
        protect=["math"],
        rectifier=f"gru(decay=0, space={space})",
        every=2,
        out=tmp_path / "run",
        batch_size=len(MATH),
    ) as monitor:
        for _ in range(4):
            average = 1.0 * protected_gradient(model, MATH)
            before = flat({n: p.detach().clone() for n, p in trainable_parameters(model).items()}, model)
            (ASCENT * mean_nll(model, MATH[:2])).backward()
            optimizer.step()
            optimizer.zero_grad()
            after = flat({n: p.detach().clone() for n, p in trainable_parameters(model).items()}, model)
            update = before - after
            assert float(average @ update) >= -1e-10 * float(average.norm() * update.norm())
    effects = monitor.run.effects().query("target == 'math'").groupby("step")["effect"].sum()
    assert list(effects.index) == [0, 2]
    assert effects.max() <= 1e-9


class Ascending(Trainer):  # type: ignore[misc]
    """A user's own subclass, which ascends."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The loss with the other sign."""
        return -super().compute_loss(model, inputs)


def ascending(model: Any, out: Path, *callbacks: Any, **settings: Any) -> Trainer:
    """A Trainer that raises the loss of the protected rows."""
    args = TrainingArguments(output_dir=str(out), **ARGUMENTS | settings)
    return Ascending(model, args, train_dataset=MATH, data_collator=padded, callbacks=list(callbacks))


def test_a_trainer_rectifies_before_it_clips(tmp_path: Path) -> None:
    """SGD with lr 1: Δθ has the length of the clip, and no conflict; the Trainer is left as it was."""
    callback = geffect.Callback(
        TARGETS, protect=["math"], rectifier="gru(decay=0)", batch_size=len(MATH), out=tmp_path / "run"
    )
    limit = 1e-3
    host = ascending(
        gpt2().double(),
        tmp_path / "t",
        callback,
        optim="sgd",
        max_grad_norm=limit,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        max_steps=2,
    )
    host.train()
    norms = callback.run.steps()
    assert norms["norm_applied_gradient"].dropna().tolist() == pytest.approx([limit, limit], rel=1e-3)
    assert (norms["protection_conflicts"].dropna() == 1).all()
    effects = callback.run.effects().query("target == 'math'").groupby("step")["effect"].sum()
    assert effects.abs().max() < 1e-6 * limit
    assert "_clip_grad_norm" not in vars(host)


def test_without_clipping_it_is_rectified_too(tmp_path: Path) -> None:
    callback = geffect.Callback(TARGETS, protect=["math"], rectifier="gru(decay=0)", batch_size=len(MATH))
    host = ascending(gpt2().double(), tmp_path / "t", callback, optim="sgd", max_grad_norm=0.0, max_steps=2)
    host.train()
    effects = callback.run.effects().query("target == 'math'").groupby("step")["effect"].sum()
    assert effects.abs().max() < 1e-10


@pytest.mark.parametrize("rectifier", ["gru(decay=0.5)", "gem(memory=3)", "gem(memory=2, space=both)"])
def test_a_protected_training_that_resumes_ends_in_the_same_bits(rectifier: str, tmp_path: Path) -> None:
    """The average of protected gradients, or the last of them, are in the checkpoint."""
    model = gpt2()
    start = copy.deepcopy(model)
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}

    def callback() -> geffect.Callback:
        return geffect.Callback({"math": MATH, "chat": CHAT}, protect=["chat"], rectifier=rectifier)

    ascending(model, tmp_path / "a", callback(), **settings).train()
    again = ascending(start, tmp_path / "a", callback(), **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True))


def test_what_the_trainer_logs_of_it(tmp_path: Path) -> None:
    callback = geffect.Callback(TARGETS, protect=["math"])
    host = trainer(gpt2(), tmp_path / "t", callback, max_steps=1)
    host.train()
    logged = {name: value for line in host.state.log_history for name, value in line.items()}
    names = {name for name in logged if name.startswith("geffect/protection/")}
    assert names == {f"geffect/protection/{name}" for name in ("cosine", "removed", "conflicts")}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protect": ["maths"]}, "protect names maths, which is no target. Choose among math, chat."),
        ({"protect": "math"}, "protect is math, no list of targets. Write protect=['math', 'chat']."),
        ({"rectifier": "gru"}, "rectifier='gru' has no target to protect. Name them, such as protect=['math']."),
        ({"protect": ["math"], "rectifier": "grail"}, "'grail' reads masks of a localization, where there are"),
        ({"protect": ["math"], "rectifier": "none"}, "'none' reads no protected gradient, where there are"),
        ({"protect": ["math"], "rectifier": "hamu"}, "'hamu' reads forget, where there are the training's gradient"),
        ({"protect": ["math"], "rectifier": "grux"}, "'grux' is not a rectifier. Did you mean gru?"),
    ],
    ids=str,
)
def test_what_cannot_be_protected_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(GeffectError) as caught:
        geffect.Callback(TARGETS, **settings)
    assert str(caught.value).startswith(message)
