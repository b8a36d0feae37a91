"""One script per paper figure and table, and the benchmarks; figure scripts start runs through the command line."""
