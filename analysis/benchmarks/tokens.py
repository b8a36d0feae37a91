"""What the effects of a direction on every token cost, by forward mode and by backward passes."""

from collections.abc import Callable

import torch

from analysis.benchmarks.published import backward_per_sequence, backward_per_token
from analysis.benchmarks.setting import Setting
from analysis.benchmarks.table import Finding
from analysis.benchmarks.timing import Seconds, StandardErrors, interleave, ratio
from geffect.core.forward import forward
from geffect.core.gradients import NamedTensors
from geffect.core.layers import layout
from geffect.core.token_effects import token_effects

TIMED = 4  # tokens that are back-propagated one by one; the rest of the batch is extrapolated
LONG = (2, 256)  # examples and tokens of the batch of long answers


def variants(setting: Setting, direction: NamedTensors) -> dict[str, Callable[[], object]]:
    """One forward pass, our effects of the forget batch's tokens, and those of examples and tokens by backward passes.

    Args:
        setting: model and batches.
        direction: parameter name → v.

    Returns:
        Name → what is timed.
    """
    model, batch = setting.model, setting.batches["forget"]
    groups = layout(model).groups()

    def one_forward() -> None:
        with torch.no_grad():
            forward(model, batch).nll.sum()

    return {
        "forward": one_forward,
        "whole": lambda: token_effects(model, batch, direction),
        "groups": lambda: token_effects(model, batch, direction, groups),
        "a backward a sequence": lambda: backward_per_sequence(setting, direction),
        "a backward a token": lambda: backward_per_token(setting, direction, TIMED),
    }


def benchmark(setting: Setting, repeats: int) -> tuple[list[Finding], Seconds]:
    """Time all variants.

    Args:
        setting: model and batches.
        repeats: of each.

    Returns:
        The findings, and the seconds they were made of.
    """
    direction, long = setting.direction(), setting.of_random_examples(*LONG)
    timed, of_long = variants(setting, direction), variants(long, direction)
    timed |= {f"{name}, long answers": of_long[name] for name in ("whole", "a backward a token")}
    seconds = interleave(timed, repeats, setting.clear, label=f"tokens of {setting.name}")
    sequence = ratio(seconds, "a backward a sequence", "forward")
    note = "published: a backward pass an example, which tells examples apart, not tokens"
    return [
        Finding("tokens", setting.name, ratio(seconds, "whole", "forward"), sequence, note),
        Finding("tokens by group", setting.name, ratio(seconds, "groups", "forward"), sequence, note),
        _faster("tokens speed", setting, seconds, ""),
        _faster("tokens speed long", long, seconds, ", long answers"),
    ], seconds


def _faster(key: str, setting: Setting, seconds: Seconds, suffix: str) -> Finding:
    labeled = (setting.batches["forget"]["labels"][:, 1:] >= 0).sum(1).tolist()
    timed = min(TIMED, labeled[0])
    found, scale = ratio(seconds, f"a backward a token{suffix}", f"whole{suffix}"), sum(labeled) / timed
    spread = StandardErrors(found.median * scale, found.low * scale, found.high * scale, found.repeats)
    told = f"extrapolated to the batch's {sum(labeled)} labeled tokens from {timed} of its first example, run alone"
    return Finding(key, setting.name, spread, note=f"{told}; {len(labeled)} examples")
