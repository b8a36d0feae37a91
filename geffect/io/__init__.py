"""Readers of untrusted input with bounds on time and memory, and what the system gives a process."""
