"""Checks of a run's arithmetic: whether gradients repeat, and how many digits of an inner product are right."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import psutil
import torch
from torch import Tensor

from geffect.config import UnlearnConfig
from geffect.core.forward import forward
from geffect.core.gradients import NamedTensors, capture_gradients
from geffect.core.gram import Gram, inner_products
from geffect.core.layers import trainable_parameters
from geffect.models.load import DTYPES
from geffect.models.scoring import in_evaluation_mode
from geffect.objectives.base import Counts, mean_nll

Batches = Mapping[str, Mapping[str, Tensor]]
DIGITS = 2.0  # of an inner product: fewer say little of a G-effect's size
TOLERANCE, LARGE = 0.1, 0.3  # relative errors of a derivative: rounding and curvature stay below the first
FULL = 4  # bytes of a float32
WRONG = "do not trust these gradients: use full weights in float32, or another attention or quantization kernel"
FLOAT32 = "use --dtype float32, with --autocast bfloat16 for speed"
REPEAT = "runs will not repeat bit for bit: on a GPU set CUBLAS_WORKSPACE_CONFIG=:4096:8, on a CPU use fewer threads"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: the check.
        status: ``good``, ``warning`` (results may mislead), or ``bad`` (a run would fail or be wrong).
        found: what was measured.
        remedy: what to do; empty where all is good.
    """

    name: str
    status: Literal["good", "warning", "bad"]
    found: str
    remedy: str = ""


def is_quantized(model: Any) -> bool:
    """Whether the model's weights, or those under its adapter, are quantized."""
    return bool(getattr(model, "is_quantized", False))


def determinism(model: Any, batches: Batches) -> Finding:
    """Whether the same batches give the same gradients twice."""
    one, other = (_rows(model, batches) for _ in range(2))
    differing = [name for row in one for name in one[row] if not torch.equal(one[row][name], other[row][name])]
    if differing:
        state = f"the same batch twice: {len(differing)} gradients differ, that of {differing[0]} first"
        return Finding("determinism", "warning", state, REPEAT)
    return Finding("determinism", "good", "the same batch twice: the same gradients bit for bit")


@torch.no_grad()
def derivative(model: Any, batches: Batches) -> Finding:
    """Compare a central difference of the forget loss along its own gradient with ‖∇R‖.

    Some kernels, such as those of quantized weights, silently return no gradient or a wrong one. Weights are restored
    bit for bit.
    """
    if any(p.element_size() < FULL for p in trainable_parameters(model).values()):
        return Finding("derivative", "good", "not measured: 16-bit weights do not move by so little")
    gradient = _rows(model, {"forget": batches["forget"]})["forget"]
    norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradient.values()))
    parameters = trainable_parameters(model)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    counts = Counts.of([batches["forget"]])

    def at(step: float) -> float:
        for name, g in gradient.items():
            parameters[name].copy_(before[name] + step / norm * g)
        with in_evaluation_mode(model):
            value = float(mean_nll(forward(model, _here(model, batches["forget"])), counts))
        for name in gradient:
            parameters[name].copy_(before[name])
        return value

    step = min(0.1 * at(0.0), 0.005) / norm if norm else 0.0
    slope = (at(step) - at(-step)) / (2 * step) if step else 0.0
    state = f"a finite difference of the forget loss along its gradient is {slope:.4g}, the gradient's norm {norm:.4g}"
    error = abs(slope - norm) / norm if norm else math.inf
    if error > TOLERANCE:
        return Finding("derivative", "bad" if error > LARGE else "warning", state, WRONG)
    return Finding("derivative", "good", state)


def precision(config: UnlearnConfig, model: Any, batches: Batches) -> Iterator[Finding]:
    """Compare inner products of the losses' gradients in bfloat16 and float32 with those in float64.

    A Llama-like model computes its norms in float32 whatever the dtype, so its float64 is no better than that.
    """
    needed, free = 32 * sum(p.numel() for p in model.parameters()) / 1e9, psutil.virtual_memory().available / 1e9
    if is_quantized(model) or needed > free:
        why = "quantized weights have no other dtype" if is_quantized(model) else f"it takes {needed:.1f} GB"
        yield Finding("precision", "warning", f"not measured: {why}", "measure it on a smaller model of the family")
        return
    exact = _gram(model, torch.float64, batches)
    for name in ("bfloat16", "float32"):
        digits = _digits(_gram(model, DTYPES[name], batches), exact)
        state = f"inner products hold {digits:.1f} digits of those in float64"
        poor = name == config.dtype and digits < DIGITS
        yield Finding(f"precision, {name}", "warning" if poor else "good", state, FLOAT32 if poor else "")


def _here(model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(model.device) for name, tensor in batch.items()}


def _rows(model: Any, batches: Batches) -> dict[str, NamedTensors]:
    def loss(batch: Mapping[str, Tensor]) -> Callable[[], Tensor]:
        return lambda: mean_nll(forward(model, _here(model, batch)), Counts.of([batch]))

    with in_evaluation_mode(model), torch.enable_grad():
        return capture_gradients(model, {name: loss(batch) for name, batch in batches.items()})


def _gram(model: Any, dtype: torch.dtype, batches: Batches) -> Tensor:
    twin = copy.deepcopy(model).to(dtype)
    rows = _rows(twin, batches)
    names = list(trainable_parameters(twin))
    return Gram(tuple(rows), {n: inner_products([row.get(n) for row in rows.values()]) for n in names}).total()


def _digits(gram: Tensor, exact: Tensor) -> float:
    """−log₁₀ of the largest error relative to ‖a‖·‖b‖, at most 16."""
    norms = exact.diagonal().sqrt()
    error = float(((gram - exact).abs() / (norms[:, None] * norms)).max())
    return min(16.0, -math.log10(error)) if error > 0 else 16.0
