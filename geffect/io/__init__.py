"""Readers of untrusted input with bounds on time and memory, and signals."""
