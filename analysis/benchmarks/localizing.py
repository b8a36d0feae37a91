"""What localizing costs beside its own gradient passes."""

from collections.abc import Callable
from functools import partial

from analysis.benchmarks.table import Finding
from analysis.benchmarks.timing import Seconds, interleave, ratio
from geffect.api import load_model
from geffect.config import LocalizeConfig
from geffect.core.layers import trainable_parameters
from geffect.localization.localize import localize, split_losses
from geffect.models.scoring import in_evaluation_mode
from geffect.training.setup import prepare

PARTS = ("unlearn", "retention")


def passes(model: str, examples: int) -> dict[str, Callable[[], object]]:
    """The passes alone, masks alone, and masks with mean gradients, over the same examples of the built-in domains.

    Args:
        model: a model spec.
        examples: of each of the four sets.

    Returns:
        Name → what is timed.
    """
    domain = [
        f"{name}=" + ",".join(f"builtin:domains/{name}/{part}/train[:{examples}]" for part in PARTS)
        for name in ("privacy", "copyright")
    ]
    config, loaded = LocalizeConfig.read(model=model, domain=domain, out="unused"), load_model(model)
    sets, parameters = prepare(config).encoded, trainable_parameters(loaded.model)

    def alone() -> None:
        with in_evaluation_mode(loaded.model):
            for losses in split_losses(loaded, sets).values():
                for loss in losses:
                    loss().backward()
                    loaded.model.zero_grad()

    def whole(*, masks_only: bool) -> None:
        with in_evaluation_mode(loaded.model):
            localize(parameters, split_losses(loaded, sets), masks_only=masks_only)

    return {
        "passes": alone,
        "masks only": partial(whole, masks_only=True),
        "localize": partial(whole, masks_only=False),
    }


def benchmark(model: str, examples: int, repeats: int) -> tuple[list[Finding], Seconds]:
    """Time all three.

    Args:
        model: a model spec.
        examples: of each of the four sets.
        repeats: of each.

    Returns:
        The findings, and the seconds they were made of.
    """
    seconds = interleave(passes(model, examples), repeats, label=f"localization of {model}")
    note = f"{examples} examples a set"
    variants = {"localize": "localize", "localize masks": "masks only"}
    return [Finding(key, model, ratio(seconds, of, "passes"), note=note) for key, of in variants.items()], seconds
