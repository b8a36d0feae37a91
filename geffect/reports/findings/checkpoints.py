"""What an inspection shows: few checkpoints, each measured over whole sets, with standard errors over batches."""

import numpy as np
import pandas as pd

from geffect.reports.findings.estimates import Estimate
from geffect.reports.findings.finding import Finding, number, within


def conflict(errors: pd.DataFrame, batches: int) -> Finding | None:
    """Whether a step on the objective would raise the retain loss at the checkpoint where it would most surely.

    Args:
        errors: `geffect.read_standard_errors` of the whole model.
        batches: how many its errors are over.

    Returns:
        The retain G-effect there, in units of its standard error's gradient²; none where no checkpoint's is below
        zero at `LEVEL` shared among the checkpoints.
    """
    rows = errors[(errors["gradient"] == "objective") & (errors["other"] == "retain")].dropna()
    if rows.empty or batches < 3:
        return None
    found = {
        int(step): Estimate(float(inner), float(error), batches - 1)
        for step, inner, error in rows[["step", "inner", "standard_error"]].itertuples(index=False)
    }
    below = [step for step, each in found.items() if each.below(0, tests=len(found))]
    if not below:
        return None
    last = max(below)
    low, high = found[last].interval()
    digits = int(np.clip(3 - np.floor(np.log10(abs(found[last].value))), 0, 6))
    text = (
        f"The objective conflicts with the retain set at {len(below)} of {len(found)} checkpoints; at step {last} "
        f"the retain G-effect is {number(found[last].value, digits)} {within(low, high, digits)}."
    )
    return Finding("conflict", text, found[last].value, low, high)
