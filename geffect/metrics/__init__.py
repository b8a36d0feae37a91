"""Metrics: one definition each."""

from geffect.metrics.adversarial import adversarial_labels
from geffect.metrics.likelihood import Likelihood, likelihood, reference_nll
from geffect.metrics.success import Success, harmonic_success, success

__all__ = [
    "Likelihood", "Success", "adversarial_labels", "harmonic_success", "likelihood", "reference_nll", "success",
]  # fmt: skip
