"""Reading input that nobody vouches for, bounds on its time and memory, and signals."""
