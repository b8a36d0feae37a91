"""What a monitored step costs beside plain passes over its targets, and what it adds to a training."""

from collections.abc import Callable

import torch

from analysis.benchmarks.setting import Setting
from analysis.benchmarks.table import Finding
from analysis.benchmarks.timing import Seconds, StandardErrors, interleave, ratio
from geffect.data.encode import EncodedExample
from geffect.monitoring.monitor import Monitor

EVERY = 10  # steps of a training of which one is measured


def examples(setting: Setting, name: str) -> list[EncodedExample]:
    """The examples of a batch, without its padding.

    Args:
        setting: model and batches.
        name: of the batch.

    Returns:
        The examples.
    """
    batch = setting.batches[name]
    found = []
    for i, mask in enumerate(batch["attention_mask"].bool().cpu()):
        ids, labels = (batch[key][i].cpu()[mask].tolist() for key in ("input_ids", "labels"))
        found.append(EncodedExample(i, ids, labels))
    return found


def variants(setting: Setting) -> dict[str, Callable[[], object]]:
    """Plain passes over both targets, the step of a training on both batches, and a measured step of it.

    Args:
        setting: model and batches.

    Returns:
        Name → what is timed. Gradients are left in ``.grad``.
    """
    optimizer = torch.optim.SGD(setting.model.parameters(), lr=0.0)
    targets = {name: examples(setting, name) for name in ("forget", "retain")}
    size = max(map(len, targets.values()))
    monitor = Monitor(setting.model, targets, optimizer=None, update=True, batch_size=size).open()
    plain = setting.plain("forget", "retain")

    def step() -> None:
        plain()
        optimizer.step()

    def measured() -> None:
        plain()
        monitor.step()
        optimizer.step()
        monitor.updated()

    return {"plain": plain, "step": step, "measured": measured}


def benchmark(setting: Setting, repeats: int) -> tuple[list[Finding], Seconds]:
    """Time all.

    Args:
        setting: model and batches.
        repeats: of each.

    Returns:
        The findings, and the seconds they were made of.
    """
    seconds = interleave(variants(setting), repeats, setting.clear, label=f"monitoring of {setting.name}")
    setting.clear()
    added = [m - s for m, s in zip(seconds["measured"], seconds["step"], strict=True)]
    seconds |= {"added": added}
    run = [1 + a / (EVERY * s) for a, s in zip(added, seconds["step"], strict=True)]
    note = f"two targets as large as the training's batch, every {EVERY}th step; computed from the steps' seconds"
    return [
        Finding("monitor", setting.name, ratio(seconds, "added", "plain")),
        Finding("monitor run", setting.name, StandardErrors.of(run), note=note),
    ], seconds
