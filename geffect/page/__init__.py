"""Runs as one offline HTML page: findings first, then the figures, the layers, the worst examples, the settings."""

from geffect.page.writing import Report, write

__all__ = ["Report", "write"]
