"""Metrics, suites, model variants, and their results."""
