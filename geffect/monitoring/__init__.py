"""Monitor somebody else's training loop or Trainer."""
