"""Measure a series of checkpoints without training."""
