"""What the effects of a direction on every token cost, by forward mode and by backward passes."""

import torch

from analysis.benchmarks.published import backward_per_sequence, backward_per_token
from analysis.benchmarks.setting import Setting
from analysis.benchmarks.table import Finding
from analysis.benchmarks.timing import Seconds, Spread, Variants, interleave, ratio
from geffect.groups import layout
from geffect.objectives import forward
from geffect.rows import NamedTensors
from geffect.tokens import token_effects

TIMED = 4  # tokens that are back-propagated one by one; the rest of the batch is extrapolated


def variants(setting: Setting, direction: NamedTensors) -> Variants:
    """One forward pass, our effects of the forget batch's tokens, and those of rows and tokens by backward passes.

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
    direction = setting.direction()
    seconds = interleave(variants(setting, direction), repeats, setting.clear, label=f"tokens of {setting.name}")
    labelled = int((setting.batches["forget"]["labels"][:, 1:] >= 0).sum())
    first = int((setting.batches["forget"]["labels"][0, 1:] >= 0).sum())
    faster = ratio(seconds, "a backward a token", "whole")
    scale = labelled / min(TIMED, first)
    faster = Spread(faster.median * scale, faster.low * scale, faster.high * scale, faster.repeats)
    told = (
        f"extrapolated to the batch's {labelled} labelled tokens from {min(TIMED, first)} of its first row, run alone"
    )
    sequence = ratio(seconds, "a backward a sequence", "forward")
    note = "published: a backward pass a row, which tells rows apart, not tokens"
    return [
        Finding("tokens", setting.name, ratio(seconds, "whole", "forward"), sequence, note),
        Finding("tokens by group", setting.name, ratio(seconds, "groups", "forward"), sequence, note),
        Finding("tokens speed", setting.name, faster, note=told),
    ], seconds
