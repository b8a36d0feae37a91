"""What steps cost at one and at eight billion parameters: seconds, peak memory, waits on the device."""

import warnings
from collections.abc import Callable, Iterator
from unittest import mock

import torch

from analysis.benchmarks.setting import Setting
from analysis.gpu.models import llama, setting_of
from analysis.gpu.running import Check, Number, Numbers, Place, seconds_of
from geffect.core.forward import forward
from geffect.core.gram import inner_products
from geffect.core.layers import layout
from geffect.core.masks import top_mask
from geffect.core.token_effects import token_effects
from geffect.models.load import add_lora

MEASURED, NPO, MEMORY, SYNCHRONIZATIONS = 1.05, 1.40, 1.10, 10.0  # the budgets
TOKENS, TOKENS_BY_GROUP = 3.0, 11.0
SLABS = (2**18, 2**22, 2**26)  # entries
REPEATABLE = 1e-5


def checks() -> Iterator[Check]:
    """A model of one billion parameters with all weights trained, then eight billion."""
    yield Check("1b/steps", steps, seconds=60, gb=30)
    yield Check("1b/device synchronizations", synchronizations, seconds=20, gb=15, only_cuda=True)
    yield Check("1b/a step twice", twice, seconds=20, gb=25)
    yield Check("1b/inner products", slabs, seconds=20, gb=15)
    yield Check("1b/top-k mask", mask, seconds=20, gb=5)
    yield Check("1b/token effects", tokens, seconds=40, gb=25)
    yield Check("8b/LoRA steps", lora, seconds=60, gb=35)
    yield Check("8b/full GA step", full, seconds=60, gb=75)


def _limit(place: Place, limit: float) -> float | None:
    """A budget holds on a GPU and for the real shapes alone."""
    return limit if place.cuda and not place.small else None


def _cost(place: Place, setting: Setting, run: Callable[[], object]) -> tuple[float, float]:
    """Seconds and peak GB of a step."""
    setting.clear()
    place.clear()

    def once() -> None:
        run()
        setting.clear()

    return seconds_of(place, once), place.peak_gb()


def steps(place: Place) -> Numbers:
    """Plain passes over both batches, against steps with their inner products."""
    setting = setting_of(llama("1b", torch.bfloat16, place))
    variants = {
        "plain": setting.plain("forget", "retain"),
        "GA": setting.stepping("ga"),
        "GRU, unmeasured": setting.stepping("ga", "gru", measure=False),
        "GRU": setting.stepping("ga", "gru"),
        "NPO": setting.stepping("npo"),
        "NPO + GRU": setting.stepping("npo", "gru"),
    }
    costs = {name: _cost(place, setting, run) for name, run in variants.items()}
    found = {f"{name}, s": Number(seconds) for name, (seconds, _) in costs.items()}
    found |= {f"{name}, GB": Number(peak) for name, (_, peak) in costs.items() if place.cuda}
    budgets = [("GA", "plain", MEASURED), ("GRU", "GRU, unmeasured", MEASURED), ("NPO", "plain", NPO)]
    for name, other, limit in budgets:
        found[f"{name} / {other}"] = Number(costs[name][0] / costs[other][0], _limit(place, limit))
    if place.cuda:
        found["memory, GA / plain"] = Number(costs["GA"][1] / costs["plain"][1], _limit(place, MEMORY))
    return found


def synchronizations(place: Place) -> Numbers:
    """How often one measured step makes the host wait for the device."""
    setting = setting_of(llama("1b", torch.bfloat16, place))
    found = {}
    for name, run in {"GA": setting.stepping("ga"), "GRU": setting.stepping("ga", "gru")}.items():
        run()
        setting.clear()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                run()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        setting.clear()
        waits = sum("synchroniz" in str(each.message) for each in told)
        found[f"{name}, a step"] = Number(waits, _limit(place, SYNCHRONIZATIONS))
    return found | {"tensors": Number(len(list(setting.model.parameters())))}


def twice(place: Place) -> Numbers:
    """The same float32 step of NPO + GRU again."""
    setting, grams = setting_of(llama("1b", torch.float32, place), examples=4, tokens=64), []
    for _ in range(2):
        found = setting.stepping("npo", "gru")().gram
        assert found is not None
        grams.append(found.total())
        setting.clear()
    apart = float((grams[0] - grams[1]).abs().max() / grams[0].abs().max())
    return {"apart, relative": Number(apart, REPEATABLE), "not bit for bit": Number(float(apart > 0))}


def slabs(place: Place) -> Numbers:
    """All inner products of three gradients, by how many entries are multiplied at once."""
    shapes = [(p.shape, p.dtype) for p in llama("1b", torch.bfloat16, place).parameters()]
    gradients = [[torch.randn(shape, dtype=dtype, device=place.device) for _ in range(3)] for shape, dtype in shapes]
    found = {}
    for slab in SLABS:
        with mock.patch("geffect.core.gram.DEVICE_SLAB", slab):
            found[f"slab of {slab}, s"] = Number(
                seconds_of(place, lambda: [inner_products(each) for each in gradients], 1)
            )
    return found


def mask(place: Place) -> Numbers:
    """A top-k mask, nanoseconds an entry."""
    entries = 2**16 if place.small else 2**28
    tensor = torch.randn(entries, device=place.device, dtype=torch.bfloat16)
    seconds = seconds_of(place, lambda: top_mask(tensor, 0.1), 1)
    return {"ns an entry": Number(1e9 * seconds / entries)}


def tokens(place: Place) -> Numbers:
    """Effects on all tokens, whole and by layer group, against one forward pass."""
    setting = setting_of(llama("1b", torch.float32, place))
    batch, direction = setting.batches["forget"], setting.direction()
    groups = layout(setting.model).groups()
    with torch.no_grad():
        plain = seconds_of(place, lambda: forward(setting.model, batch).nll.sum())
    whole = seconds_of(place, lambda: token_effects(setting.model, batch, direction), 1)
    grouped = seconds_of(place, lambda: token_effects(setting.model, batch, direction, groups), 1)
    return {
        "forward, s": Number(plain),
        "whole / forward": Number(whole / plain, _limit(place, TOKENS)),
        "five groups / forward": Number(grouped / plain, _limit(place, TOKENS_BY_GROUP)),
    }


def lora(place: Place) -> Numbers:
    """An adapter of rank 8: a plain step against measured ones."""
    setting = setting_of(add_lora(llama("8b", torch.bfloat16, place), 8, 0).eval())
    variants = {
        "plain": setting.plain("forget", "retain"),
        "GA": setting.stepping("ga"),
        "NPO + GRU": setting.stepping("npo", "gru"),
    }
    costs = {name: _cost(place, setting, run) for name, run in variants.items()}
    found = {f"{name}, s": Number(seconds) for name, (seconds, _) in costs.items()}
    found |= {f"{name}, GB": Number(peak) for name, (_, peak) in costs.items() if place.cuda}
    return found | {"GA / plain": Number(costs["GA"][0] / costs["plain"][0], _limit(place, MEASURED))}


def full(place: Place) -> Numbers:
    """A measured GA step of all weights with AdamW's own, fused."""
    setting = setting_of(llama("8b", torch.bfloat16, place), examples=4)
    optimizer = torch.optim.AdamW(setting.model.parameters(), lr=1e-5, fused=place.cuda)
    step = setting.stepping("ga")

    def once() -> None:
        step()
        optimizer.step()

    seconds, peak = _cost(place, setting, once)
    return {"s": Number(seconds)} | ({"GB": Number(peak)} if place.cuda else {})
