"""What a run shows beyond noise, in plain words: frames in, findings with their intervals out."""

from geffect.findings.collecting import find, in_rows
from geffect.findings.estimates import LEVEL, Estimate, over_steps
from geffect.findings.finding import Finding

__all__ = ["LEVEL", "Estimate", "Finding", "find", "in_rows", "over_steps"]
