"""Where knowledge lies: importance of every entry, top-k masks, and what may be frozen by them."""
