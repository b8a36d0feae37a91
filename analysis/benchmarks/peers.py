"""Other libraries at the same work as this toolkit: TorchJD's steps, open-unlearning's NPO, per-example gradients.

They are optional: one that cannot be imported is a row that says so. ``PYTHONPATH`` may name a folder they are in.
"""

import copy
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from analysis.benchmarks.setting import Setting
from analysis.benchmarks.table import NOT_INSTALLED, Finding
from analysis.benchmarks.timing import Seconds, Variants, interleave, ratio
from geffect.core.forward import IGNORE_INDEX, forward
from geffect.core.layers import trainable_parameters
from geffect.core.losses import nll_at
from geffect.core.token_effects import token_effects

BETA = 0.1
NPO = f"npo(beta={BETA}) + 1.0*gd"
# row → (ours, its peer, the package of that, what both are divided by)
PAIRS = {
    "peer pcgrad": ("ga + gru", "PCGrad", "torchjd", "plain"),
    "peer upgrad": ("ga + gru", "UPGrad", "torchjd", "plain"),
    "peer npo": ("npo + gd", "open-unlearning's NPO", "", "plain"),
    "peer vmap": ("examples", "vmap", "", "forward"),
    "peer opacus": ("examples", "opacus", "opacus", "forward"),
}


def is_installed(package: str) -> bool:
    """Whether a package can be imported; it is not imported."""
    return not package or importlib.util.find_spec(package) is not None


def variants(setting: Setting) -> Variants:
    """What is timed, on the same model and batches; peers that are not installed are left out.

    Args:
        setting: model and batches.

    Returns:
        Name → a function that does the work once.
    """
    direction = setting.direction()

    def one_forward() -> None:
        with torch.no_grad():
            forward(setting.model, setting.batches["forget"]).nll.sum()

    made: dict[str, Callable[[], object]] = {
        "plain": setting.plain("forget", "retain"),
        "forward": one_forward,
        "ga + gru": setting.stepping("ga", "gru"),
        "npo + gd": setting.stepping(NPO),
        "examples": lambda: token_effects(setting.model, setting.batches["forget"], direction).by_example(),
    }
    peers: dict[str, Callable[[], Callable[[], object]]] = {
        "PCGrad": lambda: projection(setting, "PCGrad"),
        "UPGrad": lambda: projection(setting, "UPGrad"),
        "open-unlearning's NPO": lambda: preference(setting),
        "vmap": lambda: examples_by_vmap(setting, direction),
        "opacus": lambda: examples_by_opacus(setting, direction),
    }
    for _, name, package, _ in PAIRS.values():
        if is_installed(package):
            made[name] = peers[name]()
    return made


def projection(setting: Setting, name: str) -> Callable[[], None]:
    """A step of TorchJD: the Jacobian of −R(forget) and R(retain), aggregated into ``.grad``.

    Args:
        setting: model and batches.
        name: of an aggregator of theirs.

    Returns:
        The step.
    """
    autojac: Any = importlib.import_module("torchjd.autojac")
    aggregator = getattr(importlib.import_module("torchjd.aggregation"), name)()
    parameters = list(trainable_parameters(setting.model).values())

    def step() -> None:
        losses = torch.stack([-plain_loss(setting, "forget"), plain_loss(setting, "retain")])
        autojac.backward(losses, inputs=parameters)
        autojac.jac_to_grad(parameters, aggregator)

    return step


def plain_loss(setting: Setting, name: str) -> Tensor:
    """R of one batch as transformers computes it."""
    batch = {each: setting.batches[name][each] for each in ("input_ids", "attention_mask", "labels")}
    loss: Tensor = setting.model(**batch).loss
    return loss


def preference(setting: Setting) -> Callable[[], None]:
    """A step of open-unlearning's NPO, by its formula: the model and a copy of it as reference run over the batch.

    −(2/β) mean log σ(−β(log p − log p_ref)) over sequences, plus the NLL of the retain batch.
    """
    reference = copy.deepcopy(setting.model).requires_grad_(False)

    def sequence_log_p(model: nn.Module) -> Tensor:
        batch = setting.batches["forget"]
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        loss = functional.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORE_INDEX, reduction="none")
        return -loss.sum(1)

    def step() -> None:
        with torch.no_grad():
            before = sequence_log_p(reference)
        lost = -2 / BETA * functional.logsigmoid(-BETA * (sequence_log_p(setting.model) - before)).mean()
        (lost + plain_loss(setting, "retain")).backward()

    return step


def examples_by_vmap(setting: Setting, direction: Mapping[str, Tensor]) -> Callable[[], list[float]]:
    """⟨∇ Σ −log p of each forget example, direction⟩ from the gradients of all examples at once, by torch.func.vmap.

    Args:
        setting: model and batches.
        direction: parameter name → v.

    Returns:
        A function that finds one number an example.
    """
    model, batch = setting.model, setting.batches["forget"]
    parameters = {name: p.detach() for name, p in trainable_parameters(model).items()}

    def loss(values: dict[str, Tensor], ids: Tensor, labels: Tensor) -> Tensor:
        inputs = {"input_ids": ids[None], "use_cache": False}  # padding is on the right: no token sees it
        logits = torch.func.functional_call(model, values, (), inputs).logits[0, :-1]
        nll = nll_of(logits, labels[1:])
        return nll.sum()

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0), randomness="error")

    def run() -> list[float]:
        found = gradients(parameters, batch["input_ids"], batch["labels"])
        return _against(found, direction)

    return run


def nll_of(logits: Tensor, labels: Tensor) -> Tensor:
    """−log p(label) ``[T]``, 0 where not labeled, of logits ``[T, V]``, in operations that vmap knows."""
    return functional.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")


def examples_by_opacus(setting: Setting, direction: Mapping[str, Tensor]) -> Callable[[], list[float]]:
    """As `examples_by_vmap`, by the hooks of opacus, on a copy of the model."""
    opacus: Any = importlib.import_module("opacus")
    batch = setting.batches["forget"]
    wrapped: Any = opacus.GradSampleModule(copy.deepcopy(setting.model).train(), loss_reduction="sum", strict=False)

    def run() -> list[float]:
        logits = wrapped(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        labels = batch["labels"][:, 1:].flatten()
        labeled = labels != IGNORE_INDEX
        nll_at(logits[:, :-1].flatten(0, 1)[labeled], labels[labeled]).sum().backward()
        named = {name.removeprefix("_module."): p for name, p in wrapped.named_parameters()}
        found = _against({name: named[name].grad_sample for name in direction}, direction)
        wrapped.zero_grad(set_to_none=True)
        return found

    return run


def _against(gradients: Mapping[str, Tensor], direction: Mapping[str, Tensor]) -> list[float]:
    """⟨gradient, direction⟩ of every example, from gradients ``[B, …]``."""
    products = [gradients[name].flatten(1) @ v.flatten() for name, v in direction.items()]
    found: list[float] = torch.stack(products).sum(0).tolist()
    return found


def benchmark(setting: Setting, repeats: int) -> tuple[list[Finding], Seconds]:
    """Time all variants in turn.

    Args:
        setting: model and batches.
        repeats: of each.

    Returns:
        The findings, whose published protocol is the peer, and the seconds they were made of.
    """
    seconds = interleave(variants(setting), repeats, setting.clear, label=f"peers of {setting.name}")
    setting.clear()
    found = []
    for key, (ours, peer, package, base) in PAIRS.items():
        theirs = ratio(seconds, peer, base) if peer in seconds else None
        note = "" if theirs else f"{package} is {NOT_INSTALLED}"
        if theirs:
            times = ratio(seconds, peer, ours)
            note = f"{peer} takes {times.median:.2f} ({times.low:.2f}–{times.high:.2f}) times as long as ours"
        found.append(Finding(key, setting.name, ratio(seconds, ours, base), theirs, note))
    return found, seconds
