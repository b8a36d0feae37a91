"""Metrics: one definition each."""

from geffect.metrics.adversarial import adversarial_labels
from geffect.metrics.likelihood import Likelihood, likelihood, reference_nll

__all__ = ["Likelihood", "adversarial_labels", "likelihood", "reference_nll"]
