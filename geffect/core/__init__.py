"""Gradients and what is computed of them: tensors in, tensors and small matrices out."""
