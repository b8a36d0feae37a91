"""Localize knowledge: the importance of every entry, top-k masks of it, and what freezing may use of them."""
