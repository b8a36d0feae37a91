"""Gradients and what is computed of them: functions of tensors that return tensors and small matrices."""
