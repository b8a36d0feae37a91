"""Runs as one offline HTML page: outcome first, then findings, figures, layers, worst examples, settings."""

from geffect.page.writing import Report, write

__all__ = ["Report", "write"]
