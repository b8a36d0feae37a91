"""Rectifiers by name: they change the update, never the loss."""
