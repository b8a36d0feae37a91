"""Unlearning objectives by name, each a pure function of one forward pass's outputs."""
