"""Metrics: one definition each."""

from geffect.metrics.likelihood import Likelihood, likelihood, reference_nll

__all__ = ["Likelihood", "likelihood", "reference_nll"]
