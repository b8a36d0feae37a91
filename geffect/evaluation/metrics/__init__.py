"""Metrics, one definition each."""
