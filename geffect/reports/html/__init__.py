"""Runs as one offline HTML page."""
