"""One optimizer step: losses, gradients, their Gram matrix, the rectified gradient, and the step that was applied."""
