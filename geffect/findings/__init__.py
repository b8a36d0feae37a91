"""What came of a run, and what it shows beyond noise, in plain words and with intervals."""

from geffect.findings.collecting import find, in_rows
from geffect.findings.estimates import LEVEL, Estimate, over_steps
from geffect.findings.finding import Finding
from geffect.findings.outcome import Outcome, outcome

__all__ = ["LEVEL", "Estimate", "Finding", "Outcome", "find", "in_rows", "outcome", "over_steps"]
