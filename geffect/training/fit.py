"""Whether what a verb takes fits a device's memory: lines of its plan, a warning, a refusal, and cheap remedies."""

import logging
from typing import Any

import torch

from geffect.config import EvaluateConfig, InspectConfig, LocalizeConfig, TrainConfig, UnlearnConfig
from geffect.errors import GeffectError
from geffect.training.memory import MemoryEstimate, available_bytes

LOGGER = logging.getLogger(__name__)
GB = 1e9
Config = TrainConfig | LocalizeConfig | InspectConfig | EvaluateConfig
HALF, MOST = 0.5, 0.9  # of its bytes that a remedy saves


def memory_lines(estimate: MemoryEstimate, device: torch.device) -> dict[str, str]:
    """The lines of a plan: the total beside what is free, and each part.

    >>> memory_lines(MemoryEstimate(weights=2 * 10**9, gradients=10**9), torch.device("cpu"))["memory: weights"]
    '2.00 GB'
    """
    asked = estimate.on(device)
    free = available_bytes(device) / GB
    total = {"memory": f"about {asked.gb:.1f} GB; {free:.1f} GB are free on {device}"}
    return total | {f"memory: {name}": f"{size / GB:.2f} GB" for name, size in asked.parts().items()}


def check_fit(config: Config, estimate: MemoryEstimate, device: torch.device) -> None:
    """Warn where an estimate exceeds a device's free memory; refuse where it exceeds ``--max-memory``."""
    asked = estimate.on(device)
    free, limit = available_bytes(device), config.max_memory * GB
    needs = f"About {asked.gb:.3g} GB of memory are needed"
    if limit and asked.total > limit:
        names = remedies(config, asked, asked.total - limit)
        raise GeffectError(
            f"{needs}, more than --max-memory {config.max_memory:g}", remedy=_sentence(names, "Raise --max-memory")
        )
    if asked.total > free:
        names = remedies(config, asked, asked.total - free)
        remedy = _sentence(names, "use another device")
        LOGGER.warning("%s, and %.3g GB are free on %s: %s", needs.replace("A", "a", 1), free / GB, device, remedy)


def _sentence(names: list[str], otherwise: str) -> str:
    return " or ".join(names) or otherwise


def remedies(config: Config, estimate: MemoryEstimate, excess: float) -> list[str]:
    """The two cheapest changes of a configuration that save memory: first those that save enough, each in its words."""
    savings = [(text, saved) for text, saved in _savings(config, estimate) if saved > 0]
    enough = [text for text, saved in savings if saved >= excess]
    most = [text for text, saved in sorted(savings, key=lambda each: -each[1]) if text not in enough]
    return [*enough, *most][:2]


def _savings(config: Config, estimate: MemoryEstimate) -> list[tuple[str, float]]:
    """What changes of a configuration save, in bytes, roughly; those that change the least of a result come first."""
    passed = estimate.activations + estimate.logits
    changes: list[tuple[str, float]] = []
    if isinstance(config, LocalizeConfig):
        splits = 2 * len(config.domain)
        saved = 0 if config.masks_only else estimate.gradients * (splits - 1) / (splits + 1)
        changes.append(("add --masks-only", saved))
    if isinstance(config, InspectConfig):
        changes.append(("add --one-pass", 0 if config.one_pass else estimate.kept))
    if isinstance(config, UnlearnConfig):
        diagnostics = {
            "--prediction": config.prediction,
            "--save-gradients": config.save_gradients,
            "--standard-errors": config.standard_errors,
        }
        flags = [flag for flag, value in diagnostics.items() if value]
        changes.append((f"leave out {' and '.join(flags)}", estimate.kept if flags else 0))
    if isinstance(config, TrainConfig) and not config.gradient_checkpointing:
        changes.append(("add --gradient-checkpointing", MOST * HALF * estimate.activations))
    if not isinstance(config, LocalizeConfig) and config.batch_size > 1:
        changes.append((f"lower --batch-size to {config.batch_size // 2}", HALF * passed))
    others = estimate.total - estimate.process
    if config.dtype != "bfloat16":
        changes.append(("use --dtype bfloat16", HALF * others))
    if isinstance(config, TrainConfig) and not config.lora:
        states = ("gradients", "optimizer", "kept", "rectifier", "reference", "masks")
        changes.append(("train an adapter with --lora 8", MOST * sum(getattr(estimate, name) for name in states)))
    return changes


def peak_memory() -> dict[str, Any]:
    """GB of a process at its peak so far, as a run records them: of the machine and, where torch uses one, of a GPU."""
    from geffect.record.writer import peak_memory_gb

    found = {"peak_memory_gb": round(peak_memory_gb(), 3)}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        peaks = [torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())]
        found["peak_device_memory_gb"] = round(max(peaks) / GB, 3)
    return found
