"""Check a setup before a run is spent on it."""
