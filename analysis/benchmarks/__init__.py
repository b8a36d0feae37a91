"""What measuring costs, as ratios within one process: ``python -m analysis.benchmarks --json FILE``."""
