"""Checks for a machine with a GPU and no network: numbers, every path of the product, and what steps cost."""
