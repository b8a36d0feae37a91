"""The run directory: written once, line by line, and read back as tidy frames."""
