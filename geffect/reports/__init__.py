"""What came of runs: tables, plots, findings, and the HTML page."""
