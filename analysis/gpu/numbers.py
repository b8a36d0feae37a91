"""Numbers on the device against float64, and against the CPU's own error."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from analysis.benchmarks.setting import Setting
from analysis.gpu.models import setting_of
from analysis.gpu.running import Check, Number, Numbers, Place
from geffect.api import load_model
from geffect.core.gradients import NamedTensors
from geffect.core.gram import inner_products
from geffect.core.masks import top_mask
from geffect.core.token_effects import token_effects

GRAM = 1e-6  # of ‖a‖‖b‖, what is promised of inner products
FLOAT32, FLOAT32_GRAM = 1e-4, 1e-5  # of a gradient's norm, and of its inner products: a backward pass in float32
TIMES_THE_CPU = 2.0  # the device may round so much more than the CPU does
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Context = Callable[[Place], AbstractContextManager[Any]]


def checks() -> Iterator[Check]:
    """Inner products, masks, GRU's step and token effects."""
    for name, dtype in DTYPES.items():
        yield Check(f"numbers/Gram {name}", partial(gram, dtype=dtype, context=lambda _: nullcontext()))
    yield Check("numbers/Gram float32 under TF32", partial(gram, dtype=torch.float32, context=lambda _: _tf32()))
    autocast: Context = lambda place: torch.autocast(place.device, torch.bfloat16)  # noqa: E731
    yield Check("numbers/Gram float32 under autocast", partial(gram, dtype=torch.float32, context=autocast))
    for name, dtype in DTYPES.items():
        yield Check(f"numbers/top-k masks {name}", partial(masks, dtype=dtype))
        yield Check(f"numbers/GRU step {name}", partial(step, dtype=dtype))
    yield Check("numbers/token effects float32", tokens)  # the product refuses other weights


def gram(place: Place, dtype: torch.dtype, context: Context) -> Numbers:
    """Inner products of three long vectors, two of them nearly parallel, against float64 of the same entries."""
    generator = torch.Generator().manual_seed(1)
    vectors = [torch.randn(3_000_001 // (100 if place.small else 1), generator=generator) for _ in range(3)]
    vectors[1] -= 0.999 * vectors[0]
    rounded = [each.to(dtype) for each in vectors]
    wide = torch.stack([each.double() for each in rounded])
    truth = wide @ wide.T
    with context(place):
        found = inner_products([each.to(place.device) for each in rounded])
    return {"off, of ‖a‖‖b‖": Number(_off(found, truth), GRAM)}


def masks(place: Place, dtype: torch.dtype) -> Numbers:
    """Masks of a tensor with many ties and zeros: bit for bit those of its copy on the CPU."""
    generator = torch.Generator().manual_seed(2)
    tensor = torch.randn(1000, 400 // (10 if place.small else 1), generator=generator).to(dtype)
    tensor[::3] = tensor[::3].round()
    differing = sum(
        int((top_mask(tensor.to(place.device), share).cpu() != top_mask(tensor, share)).sum())
        for share in (0.01, 0.1, 0.5)
    )
    return {"differing entries": Number(differing, 0)}


def step(place: Place, dtype: torch.dtype) -> Numbers:
    """One measured step of NPO + GRU: its Gram, and the gradient that is handed back."""
    truth, cpu, device = (_stepped(each) for each in _three(place, dtype))
    gram_off, cpu_gram_off = (_off(each[0], truth[0]) for each in (device, cpu))
    off, cpu_off = (_distance(each[1], truth[1]) for each in (device, cpu))
    floor, gram_floor = (FLOAT32, FLOAT32_GRAM) if dtype == torch.float32 else (0.0, 0.0)
    return {
        "Gram off, of ‖a‖‖b‖": Number(gram_off, max(gram_floor, TIMES_THE_CPU * cpu_gram_off)),
        "Gram on the CPU off": Number(cpu_gram_off),
        "gradient off, of its norm": Number(off, max(floor, TIMES_THE_CPU * cpu_off)),
        "gradient on the CPU off": Number(cpu_off),
    }


def tokens(place: Place) -> Numbers:
    """What the retain gradient does to every forget token; and their sum against the Gram's inner product."""
    truth, cpu, device = (_effects(each) for each in _three(place, torch.float32))
    off, cpu_off = (_distance({"": each[0]}, {"": truth[0]}) for each in (device, cpu))
    engines = abs(device[1] - device[2]) / max(abs(device[2]), 1e-30)
    return {
        "off, of their norm": Number(off, max(FLOAT32, TIMES_THE_CPU * cpu_off)),
        "on the CPU off": Number(cpu_off),
        "mean against the Gram's, relative": Number(engines, FLOAT32),
    }


def _three(place: Place, dtype: torch.dtype) -> tuple[Setting, Setting, Setting]:
    """One model of the same weights, rounded to the dtype: in float64, on the CPU, and on the device."""
    model = load_model("builtin:tiny-untrained").model.eval().to(dtype)
    wide, other = copy.deepcopy(model).double(), copy.deepcopy(model).to(place.device)
    truth, cpu, device = (setting_of(each, examples=4, tokens=32) for each in (wide, model, other))
    return truth, cpu, device


def _stepped(setting: Setting) -> tuple[Tensor, NamedTensors]:
    found = setting.stepping("npo", "gru")().gram
    assert found is not None
    gradient = {name: p.grad for name, p in setting.model.named_parameters() if p.grad is not None}
    return found.total(), gradient


def _effects(setting: Setting) -> tuple[Tensor, float, float]:
    """The effects of all tokens, their mean, and the inner product that it has to be."""
    direction = setting.direction()
    found = token_effects(setting.model, setting.batches["forget"], direction)
    setting.mean_nll("forget").backward()
    gradient = {name: p.grad for name, p in setting.model.named_parameters() if p.grad is not None}
    inner = sum(float((direction[name].double() * each.double()).sum()) for name, each in gradient.items())
    return found.total, float(found.total.double().sum() / found.labeled.sum()), inner


def _off(found: Tensor, truth: Tensor) -> float:
    sizes = truth.diagonal().sqrt()
    return float(((found - truth).abs() / (sizes[:, None] * sizes)).max())


def _distance(found: NamedTensors, truth: NamedTensors) -> float:
    """‖found − truth‖ / ‖truth‖, in float64 on the CPU."""
    apart = sum(float((found[name].cpu().double() - each.double()).square().sum()) for name, each in truth.items())
    return float((apart / sum(float(each.double().square().sum()) for each in truth.values())) ** 0.5)


@contextmanager
def _tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
