"""What measuring adds to an optimizer step, beside the published protocols."""

from analysis.benchmarks.published import FlatProjection, ThreeBackwards
from analysis.benchmarks.setting import Setting
from analysis.benchmarks.table import Finding
from analysis.benchmarks.timing import Seconds, StandardErrors, Variants, interleave, ratio

OBJECTIVES = {"wga": "wga", "npo": "npo(beta=0.1)", "tnpo": "tnpo(beta=4)"}


def variants(setting: Setting) -> Variants:
    """What is timed: plain passes, our steps, and the published protocols, on the same batches.

    Args:
        setting: model and batches.

    Returns:
        Name → a function that takes one step.
    """
    ours = {name: setting.stepping(text) for name, text in OBJECTIVES.items()}
    return {
        "plain": setting.plain("forget", "retain"),
        "plain forget": setting.plain("forget"),
        "bare": setting.stepping("ga", measure=False),
        "ga": setting.stepping("ga"),
        "gru": setting.stepping("ga", "gru", measure=False),
        "gru diagnostics": setting.stepping("ga", "gru"),
        **ours,
        "three backwards": ThreeBackwards(setting),
        "flat projection": FlatProjection(setting),
    }


def benchmark(setting: Setting, repeats: int) -> tuple[list[Finding], Seconds]:
    """Time all variants.

    Args:
        setting: model and batches.
        repeats: of each.

    Returns:
        The findings, and the seconds they were made of.
    """
    seconds = interleave(variants(setting), repeats, setting.clear, label=f"steps of {setting.name}")
    setting.clear()
    script, flat = ratio(seconds, "three backwards", "plain"), ratio(seconds, "flat projection", "plain")
    against = {
        "bare": ("plain forget", None),
        "ga": ("plain", script),
        "gru": ("plain", flat),
        "gru diagnostics": ("gru", None),
    }
    against |= {name: ("plain", script) for name in OBJECTIVES}
    found = [
        Finding(name, setting.name, ratio(seconds, name, other), published)
        for name, (other, published) in against.items()
    ]
    every = [a / b for a, b in zip(seconds["ga"], seconds["bare"], strict=True)]
    tenth = [(each + 9) / 10 for each in every]
    told = "computed from the two steps' seconds"
    found += [
        Finding("every", setting.name, StandardErrors.of(every)),
        Finding("tenth", setting.name, StandardErrors.of(tenth), note=told),
    ]
    return found, seconds
