"""Lightning's Trainer, with the callback in it."""

import importlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import geffect
from geffect.errors import GeffectError
from geffect.monitoring import lightning as module
from geffect.monitoring.monitor import Monitor
from tests.support.cases import llama, lora
from tests.support.judged import Weights, judge, weights_of
from tests.support.rows import made_rows, nats, padded

MATH, CHAT = made_rows([7, 5, 9, 6, 8], 0), made_rows([6, 8, 5, 7], 1)
TARGETS = {"math": MATH, "chat": CHAT}
installed = pytest.mark.skipif(module.BASE is object, reason="Lightning is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own advice


def _host(model: nn.Module) -> Any:
    """A LightningModule around a model, made when Lightning is there."""
    pl = importlib.import_module("lightning.pytorch")

    class Host(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model, self.kept = model, list[Weights]()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.kept.append(weights_of(self.model))
            loss = nats(self.model, batch).mean()
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)

    return Host()


def _fit(host: Any, out: Path, callbacks: Sequence[Any], **settings: Any) -> Any:
    pl = importlib.import_module("lightning.pytorch")
    loggers = importlib.import_module("lightning.pytorch.loggers")
    given: dict[str, Any] = {"max_steps": 3, "gradient_clip_val": 0.5, "accelerator": "cpu", "devices": 1}
    trainer = pl.Trainer(
        **given | settings,
        callbacks=list(callbacks),
        logger=loggers.CSVLogger(out),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(host, DataLoader(MATH + CHAT, batch_size=2, collate_fn=padded))  # type: ignore[arg-type]
    return trainer


@installed
@pytest.mark.parametrize(
    ("make", "settings", "within"),
    [
        (llama, {}, 1e-3),
        (lora, {}, 1e-3),
        (llama, {"accumulate_grad_batches": 2, "max_steps": 2}, 1e-3),
        (llama, {"precision": "bf16-mixed"}, 0.1),
    ],
    ids=["plain", "adapter", "accumulation", "bf16"],
)
def test_lightning_trains_to_the_same_bits(make: Any, settings: dict[str, Any], within: float, tmp_path: Path) -> None:
    """And the record is that of a slow judge, its gradient the clipped one."""
    callback = geffect.LightningCallback(TARGETS, batch_size=3)
    hosts = []
    for callbacks in ([], [callback]):
        torch.manual_seed(0)
        host = _host(make())
        trainer = _fit(host, tmp_path, callbacks, **settings)
        hosts.append(host)
    plain, monitored = (weights_of(each.model) for each in hosts)
    assert all(torch.equal(plain[name], monitored[name]) for name in plain)
    every = settings.get("accumulate_grad_batches", 1)
    weights = [*hosts[0].kept[::every], plain]
    judge(callback.run, hosts[0].model, list(pairwise(weights)), TARGETS, within=within)
    steps = callback.run.steps()
    assert (steps["norm_applied_gradient"].dropna() <= 0.5001).all()
    assert steps["norm_applied_gradient"].notna().sum() == len(weights) - 1
    assert trainer.callback_metrics["geffect/math/effect"] != 0
    assert trainer.callback_metrics["geffect/math/loss"] == pytest.approx(steps["math_loss"].iloc[-2])


@installed
def test_the_loggers_have_every_measured_step(tmp_path: Path) -> None:
    callback = geffect.LightningCallback(TARGETS, every=2)
    trainer = _fit(_host(llama()), tmp_path, [callback], log_every_n_steps=50)
    frame = importlib.import_module("pandas").read_csv(Path(trainer.logger.log_dir) / "metrics.csv")
    rows = frame.dropna(subset=["geffect/math/effect"])
    assert list(rows["step"]) == [1, 3]
    effects = callback.run.effects().groupby(["step", "target"])["effect"].sum()
    assert list(rows["geffect/chat/effect"]) == pytest.approx([effects[0, "chat"], effects[2, "chat"]], rel=1e-5)


@installed
def test_a_training_that_fails_leaves_an_unfinished_record(tmp_path: Path) -> None:
    host = _host(llama())
    step = type(host).training_step

    def failing(batch: Any, batch_idx: int) -> Tensor:
        if batch_idx == 1:
            raise RuntimeError("of the host")
        return step(host, batch, batch_idx)  # type: ignore[no-any-return]

    host.training_step = failing
    with pytest.raises(RuntimeError, match="of the host"):
        _fit(host, tmp_path, [geffect.LightningCallback(TARGETS, out=tmp_path / "run")])
    assert not (tmp_path / "run" / "DONE").exists()
    geffect.monitor(host.model, TARGETS).open().close()


@installed
def test_what_cannot_be_followed_is_refused(tmp_path: Path) -> None:
    host = _host(llama())
    with pytest.raises(GeffectError, match=r"is no model.*model="):
        _fit(host, tmp_path, [geffect.LightningCallback(TARGETS, model="network")])
    host.configure_optimizers = lambda: [torch.optim.SGD(host.parameters(), lr=0.1) for _ in range(2)]
    host.automatic_optimization = False
    with pytest.raises(GeffectError, match="has 2 optimizers"):
        _fit(host, tmp_path, [geffect.LightningCallback(TARGETS)], gradient_clip_val=None)


@installed
def test_a_batch_that_is_skipped_is_not_measured(tmp_path: Path) -> None:
    host = _host(llama())
    step = type(host).training_step
    host.training_step = lambda batch, batch_idx: None if batch_idx == 1 else step(host, batch, batch_idx)
    callback = geffect.LightningCallback(TARGETS)
    _fit(host, tmp_path, [callback])
    assert callback.run.steps()["norm_update"].notna().sum() == 2


def test_without_lightning_the_remedy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BASE", object)
    with pytest.raises(GeffectError, match="pip install lightning"):
        geffect.LightningCallback(TARGETS)


@pytest.mark.parametrize("positional", [True, False])
def test_gradients_that_a_closure_makes_are_measured_after_its_first_call(positional: bool, tmp_path: Path) -> None:
    """L-BFGS calls it several times; both loops end in the same bits."""
    ended: list[Weights] = []
    first: list[float] = []
    for monitored in (False, True):
        model = llama().train()
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
        monitor = Monitor(model, TARGETS, optimizer=optimizer, out=tmp_path / f"run-{positional}")

        def closure(model: Any = model, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = nats(model, padded(MATH[:2])).mean()
            loss.backward()
            first.append(float(torch.cat([p.grad.flatten() for p in model.parameters()]).norm()))
            return loss

        if monitored:
            monitor.open()
        for _ in range(2):
            optimizer.step(closure) if positional else optimizer.step(closure=closure)
        if monitored:
            monitor.close()
        ended.append(weights_of(model))
    assert len(first) > 4
    assert all(torch.equal(ended[0][name], ended[1][name]) for name in ended[0])
    steps = monitor.run.steps()
    assert (steps["norm_update"][:2] > 0).all()
